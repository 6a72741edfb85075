"""Hydra configuration groups, and `compose`, which turns overrides into a run's configuration.

This package imports nothing of `distill`, `envs` and `agents`. The defaults that the YAML files start from
(`run_schema`, `compare_schema`) are registered with Hydra by `distill.settings`, which every program imports.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.singleton import Singleton
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from configs.errors import UserError, plain_name
from configs.overrides import check_overrides, quoted

ERRORS = (HydraException, OmegaConfBaseException, YAMLError)  # of a configuration
OPEN_GROUPS = ("student.config", "agent.params")  # groups that take settings without a default here


def _folder_name(key: str, value: Any) -> str:
    """The resolver `folder_name` of the YAML files: the value of `key`, if it can name a folder. It runs before Hydra makes one."""
    plain_name(str(value), key)
    return str(value)


OmegaConf.register_new_resolver("folder_name", _folder_name, replace=True)


def compose(overrides: Sequence[str] = (), name: str = "config", folders: Sequence[str] = ()) -> dict[str, Any]:
    """The run configuration after `overrides` (as on the command line), as a plain mapping.

    Works inside a running Hydra application too, and leaves Hydra's state as it was. The application's own folders
    (`--config-dir`) are searched as well.

    Args:
        overrides: words as `key=value`.
        name: the primary file, `config`, `sb3` or `compare`.
        folders: folders of the user with more YAML files, as in `--config-dir`.

    Raises:
        UserError: in one line, for an unknown group, key or value, or a folder that is missing.
    """
    check_overrides(overrides)
    for folder in folders:
        if not Path(folder).is_dir():
            raise UserError(f"--config-dir {folder}: no such folder; give the folder that holds experiment/NAME.yaml")
    urls = [*own_folders(), *(f"file://{Path(folder).absolute()}" for folder in folders)]
    searched = [f"hydra.searchpath=[{', '.join(map(_in_quotes, urls))}]"] if urls else []
    before = copy.copy(Singleton.get_state())
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("configs", version_base="1.3"):
            return resolved(hydra_compose(name, overrides=[*searched, *overrides]))
    except ERRORS as error:
        raise UserError(one_line(error)) from None
    finally:
        Singleton.set_state(before)


def own_folders(provider: str | None = None) -> list[str]:
    """The folders where the running Hydra application finds YAML files of the user; those of one `provider` of Hydra."""
    if not HydraConfig.initialized():
        return []
    sources = [s for s in HydraConfig.get().runtime.config_sources if s.provider not in ("hydra", "main", "schema")]
    return [f"{s.schema}://{s.path}" for s in sources if provider in (None, s.provider)]


def _in_quotes(text: str) -> str:
    """A text as an element of a list."""
    return QuotedString(text, Quote.double).with_quotes()


def resolved(config: DictConfig) -> dict[str, Any]:
    """The configuration as a plain mapping, with interpolations replaced; `UserError` where one leads nowhere."""
    if "experiment" in config:
        raise UserError("the file of experiment=... must begin with the line '# @package _global_'")
    try:
        return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise UserError(one_line(error)) from None


def one_line(error: Exception) -> str:
    """The message of Hydra, OmegaConf or the YAML reader as one line in our words."""
    if isinstance(error, YAMLError):
        return _yaml_fault(error)
    message = str(error) or str(error.__cause__)
    for pattern, explain in _MESSAGES:
        found = re.search(pattern, message)
        if found:
            return explain(found, error)
    lines = [line.strip() for line in message.splitlines()]
    kept = [line for line in lines if not line.startswith(("See https://", "object_type=", "full_key:"))]
    return " ".join(" ".join(kept).split())


def _yaml_fault(error: YAMLError) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    where = f"{mark.name}: line {mark.line + 1}" if mark else "a YAML file"
    return f"{where}: not readable as YAML ({problem or error}); correct the file"


def _unknown_key(found: re.Match[str], error: Exception) -> str:
    key, cause = found[1], str(error.__cause__)
    full = re.search(r"full_key: (\S+)", cause)
    if full and full[1].startswith(f"{key}."):  # an entry of the group that was given
        key = full[1]
    for group in OPEN_GROUPS:
        if key.startswith(f"{group}."):
            return f"{key} is not set so far; to add it write ++{key}=VALUE"
    near = difflib.get_close_matches(key, _known_keys(), 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{key} is not a known setting; --help lists all of them{hint}"


def _known_keys() -> list[str]:
    """Every setting that has a default, as a dotted key."""

    def keys(node: Any, path: str) -> Iterator[str]:
        for key, value in node.items():
            yield path + key
            if isinstance(value, dict):
                yield from keys(value, f"{path}{key}.")

    store = ConfigStore.instance()
    nodes = [
        store.load(f"{name}.yaml").node for name in ("run_schema", "compare_schema") if f"{name}.yaml" in store.repo
    ]
    return [key for node in nodes for key in keys(OmegaConf.to_container(node), "")]


def _missing_option(found: re.Match[str], error: Exception) -> str:
    path, group, options = found[1], found[2], found[3].split()
    value = path.removeprefix(f"{group}/")
    near = difflib.get_close_matches(value, options, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    own = f"; a file of your own is DIR/{group}/{value}.yaml with --config-dir DIR"
    return f"{group}={value} is not known; choose from {', '.join(options)}{hint}{own}"


def _several(found: re.Match[str], error: Exception) -> str:
    key, _, value = found[1].partition("=")
    return (
        f"{found[1]} means several values; add -m to run each, write a list as {key}=[{value}], "
        f"or quote one text: {quoted(key, value)}"
    )


def _merge_fault(found: re.Match[str], error: Exception) -> str:
    key, cause = found[1].partition("=")[0], str(error.__cause__).splitlines()[0]
    return f"{found[1]} does not fit: " + (
        f"{key} must be a list, as '{key}=[...]'" if "with ListConfig" in cause else cause
    )


# What a message looks like, and what is said instead.
_MESSAGES: tuple[tuple[str, Callable[[re.Match[str], Exception], str]], ...] = (
    (r"^UserError raised while resolving interpolation: (.*)", lambda found, _: found[1]),  # by a resolver of ours
    (r"Could not find '([^']+)'\s+Available options in '([^']+)':((?:\n\t.*)+)", _missing_option),
    (
        r"Could not load '([^']+)/([^'/]+)'",
        lambda found, _: f"{found[1]}={found[2]} is not known; --help lists the options",
    ),
    (r"Could not override '([^']+)'", _unknown_key),
    (r"Ambiguous value for argument '(.*)'", _several),
    (r"Sweep parameters '(.*)' requires --multirun", lambda found, _: f"{found[1]} means several runs; add -m"),
    (r"Error merging override (.*)", _merge_fault),
)
