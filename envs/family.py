"""The registered ids, and the arguments behind each of them. Nothing is loaded here but the table."""

from __future__ import annotations

from typing import Any

# Folders of data come from TEACHER_SELECT_DATA, or from `overrides=["data_dir=FOLDER"]`.
_GLUE = ("MRPC", "RTE", "SST2", "QQP", "QNLI", "MNLI", "CoLA")
_AFRISENTI = {"AfriSenti4": "afrisenti4", "AfriSenti8": "afrisenti8"}

# id -> keyword arguments of the environment. `overrides` is left to the user: Gymnasium replaces an argument as a whole.
FAMILY: dict[str, dict[str, Any]] = {
    "TeacherSelect-v0": {},
    "TeacherSelect/Tiny-v0": {"experiment": "tiny"},
    **{f"TeacherSelect/{name}-v0": {"experiment": option} for name, option in _AFRISENTI.items()},
    **{
        f"TeacherSelect/{name}-v0": {"task": name.lower(), "teachers": "minilm", "student": "minilm2"} for name in _GLUE
    },
}
LABELS = "TeacherSelect/Labels-v0"  # an environment of its own, on the bundled task
