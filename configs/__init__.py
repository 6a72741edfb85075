"""Hydra configuration groups, and `compose`, which turns overrides into a run's configuration.

This package imports nothing of `distill`, `envs` and `agents`. The defaults that the YAML files start from
(`run_schema`, `compare_schema`) are registered with Hydra by `distill.settings`, which every program imports.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs.errors import UserError, plain_name


def _folder_name(key: str, value: Any) -> str:
    """The resolver `folder_name` of the YAML files: the value of `key`, if it can name a folder. It runs before Hydra makes one."""
    plain_name(str(value), key)
    return str(value)


OmegaConf.register_new_resolver("folder_name", _folder_name, replace=True)


def compose(overrides: Sequence[str] = (), name: str = "config") -> dict[str, Any]:
    """The run configuration after `overrides` (as on the command line), as a plain mapping.

    Works inside a running Hydra application too, and leaves Hydra's state as it was.

    Raises:
        UserError: in one line, for an unknown group, key or value.
    """
    check_overrides(overrides)
    before = copy.copy(Singleton.get_state())
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("configs", version_base="1.3"):
            return resolved(hydra_compose(name, overrides=list(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(one_line(error)) from None
    finally:
        Singleton.set_state(before)


def resolved(config: DictConfig) -> dict[str, Any]:
    """The configuration as a plain mapping, with interpolations replaced; `UserError` where one leads nowhere."""
    try:
        return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise UserError(one_line(error)) from None


def check_overrides(overrides: Sequence[str]) -> None:
    """Raise `UserError` for an override that removes what every run reads."""
    for key in (o[1:].partition("=")[0] for o in overrides if o.startswith("~")):
        if "." not in key or key.endswith(".name"):
            raise UserError(f"~{key}: {key} cannot be removed; leave it out for its default, or set {key}=...")


def one_line(error: Exception) -> str:
    """Hydra's or OmegaConf's message as one line in our words."""
    message = str(error) or str(error.__cause__)
    refused = re.search(r"^UserError raised while resolving interpolation: (.*)", message)
    if refused:  # by a resolver of ours
        return refused.group(1)
    missing = re.search(r"Could not find '([^']+)/([^']+)'\s+Available options in '[^']+':((?:\n\t.*)+)", message)
    if missing:
        group, value, options = missing.groups()
        return f"{group}={value} is not known; choose from {', '.join(options.split())}"
    unknown = re.search(r"Could not override '([^']+)'", message)
    if unknown:
        return f"{unknown.group(1)} is not a known setting; --help lists all of them"
    return " ".join(message.split())
