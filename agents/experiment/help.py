"""The text of `--help`, made from the settings' dataclasses and the configuration groups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from importlib import resources
from typing import Any

from distill.settings import (
    ENCODER_KINDS,
    SB3_DEFAULTS,
    STUDENT_KINDS,
    TEACHER_KINDS,
    CompareSettings,
    ReinforceSettings,
    RunSettings,
    SB3Settings,
    default_of,
)

GROUPS = ("task", "teachers", "student", "agent", "reward", "observation", "experiment")
USAGE = {
    "config": "Train a selector while a student learns, and judge it against all teachers from the same warm start.",
    "sb3": "Train an agent of Stable-Baselines3, and judge it as agents/reinforce.py judges the paper's policy.",
    "compare": "Compare rules and learnt selectors over seeds, from the same warm starts, on the same batches.",
}
MORE = {
    "compare": """
  agents=[...]   rules: control labels single rand_single rand_subset w_ensemble lr_ensemble lr_dev best_single ca_mkd ebkd
                 aekd dynamic_kd mtkd_rl oracle headroom; single:TEACHER for one teacher, single for each of them
                 learnt: reinforce ppo a2c trpo dqn qrdqn sac td3; a rule of your own: my_package.module:MyRule
                 with settings of its own: agents='[control,"reinforce credit.name=shared reward=paper1"]'
  Finished cells are kept. Start a comparison again after it was killed, and only what is missing runs.
  On a cluster, fill the cells with a sweep and read them here:
    python agents/compare.py -m hydra/launcher=submitit_slurm seeds=1 'seed=range(0,10)' agents=[...]
"""
}


def help_text(config: str, script: str) -> str:
    """What `python agents/SCRIPT --help` prints; `config` is the primary configuration."""
    program = script if script.startswith("teacher-select") else f"python agents/{script}"
    lines = [
        f"TeacherSelect: {USAGE[config]}",
        "",
        f"usage: {program} [group=option] [key=value] ...",
        "",
        "Give settings as key=value. Without any, the bundled offline task runs.",
        "  data_dir=FOLDER                    official GLUE folders (or the environment variable TEACHER_SELECT_DATA)",
        "  hydra.run.dir=FOLDER               where the run writes; resume=true continues the run in that folder",
        "  --config-dir DIR experiment=NAME   settings from a file of your own, DIR/experiment/NAME.yaml",
        "  --multirun key=1,2,3               one run for each value",
        "  --cfg job                          print every setting and its value",
        *MORE.get(config, "").splitlines(),
        "",
        "Groups (choose with group=option):",
        *(f"  {group}: {', '.join(options(group))}" for group in GROUPS),
        "",
        "Settings (key: type = default):",
    ]
    if config == "compare":
        lines += [_line(path, kind, value, text) for path, kind, value, text in settings_of(CompareSettings)]
    lines += [_line(path, kind, value, text) for path, kind, value, text in settings_of(RunSettings)]
    return "\n".join(lines)


def options(group: str) -> list[str]:
    """The names of a group's options."""
    folder = resources.files("configs") / group
    names = {p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml")}
    return sorted(names | set(SB3_DEFAULTS if group == "agent" else ()))  # not every algorithm has a file


def settings_of(cls: type, path: str = "") -> Iterator[tuple[str, str, Any, str]]:
    """Key, type, default and help text of every setting of a tree, with those of each kind under the kind's name."""
    kinds: dict[str, dict[str, type]] = {
        "student": dict(STUDENT_KINDS),
        "encoder": dict(ENCODER_KINDS),
        "agent": {"reinforce": ReinforceSettings, "SB3": SB3Settings},
        "teachers.pool": dict(TEACHER_KINDS),
    }
    for f in fields(cls):
        key = f"{path}.{f.name}" if path else f.name
        default = default_of(f)
        if key in kinds:
            if key == "teachers.pool":
                yield key, str(f.type), [], f.metadata["help"]
            for kind, own in kinds[key].items():
                where = f"{key}[{kind}]" if key == "teachers.pool" else key
                for name, type_, value, text in settings_of(own):
                    yield f"{where}.{name}", type_, value, f"{text} ({kind})" if key != "teachers.pool" else text
        elif is_dataclass(default):
            yield from settings_of(type(default), key)
        else:
            yield key, str(f.type), default, f.metadata.get("help", "")


def _line(path: str, kind: str, value: Any, text: str) -> str:
    shown = "null" if value is None else value
    return f"  {path + ': ' + kind + ' = ' + str(shown):<58} {text}"
