"""The arguments and reset options that all environments share, checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

import configs
from distill.checks import UserError, one_of
from distill.settings import RunSettings
from envs import rendering


def as_settings(
    config: dict[str, Any] | None, overrides: Sequence[str], config_dir: str | None = None, **groups: str | None
) -> RunSettings:
    """The settings behind an environment's arguments: a whole configuration, or names of groups plus overrides.

    Args:
        config: a whole configuration instead of all else.
        overrides: as on the command line.
        config_dir: a folder of the user with more YAML files.
        groups: names of options of configuration groups; None: the default.
    """
    chosen = [f"{group}={name}" for group, name in groups.items() if name]
    if config is not None:
        if chosen or overrides or config_dir:
            raise UserError(f"give either config or {'/'.join(groups)}/overrides/config_dir, not both")
        return RunSettings.from_config(config)
    folders = [config_dir] if config_dir else []
    return RunSettings.from_config(configs.compose([*chosen, *overrides], folders=folders))


def restart_wanted(options: dict[str, Any] | None, rows: int | None = None) -> bool:
    """Whether a reset returns to the warm start. `options={"student": "continue"}` keeps the student (the paper's joint mode).

    Args:
        options: of `reset`.
        rows: B of the vector interface, which also takes Gymnasium's `reset_mask`, of all rows; None: the single interface.

    Raises:
        UserError: for an unknown option, or a mask that leaves rows out.
    """
    for key in options or {}:
        one_of(key, ("student",) if rows is None else ("student", "reset_mask"), "reset option")
    mode = (options or {}).get("student", "restart")
    one_of(mode, ("restart", "continue"), "reset option student")
    mask = (options or {}).get("reset_mask")
    if mask is not None:
        mask = np.asarray(mask)
        if mask.dtype != bool or mask.shape != (rows,):
            raise UserError(f"reset option reset_mask is {mask.dtype} {list(mask.shape)}; give bool [{rows}], all true")
        if not mask.all():
            raise UserError(
                f"reset option reset_mask resets {int(mask.sum())} of {rows} rows, which share one student and end "
                "together; reset all rows"
            )
    return bool(mode == "restart")


def as_autoreset(mode: str | AutoresetMode) -> AutoresetMode:
    """An autoreset mode from its name or from Gymnasium's enum; `UserError` for one that is not supported."""
    name = mode.name.lower() if isinstance(mode, AutoresetMode) else mode
    one_of(name, ("same_step", "next_step", "disabled"), "autoreset_mode")
    return AutoresetMode[name.upper()]


def check_render_mode(mode: str | None) -> str | None:
    """The render mode, if it is a known one; `UserError` otherwise."""
    if mode is not None:
        one_of(mode, rendering.MODES, "render_mode")
    return mode
