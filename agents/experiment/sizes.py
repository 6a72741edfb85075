"""How large and how fast the student and the teachers are, as far as that is known."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from distill.checks import UserError
from distill.process import Distillation
from distill.student import Student
from distill.teachers.checkpoint import ModelTeacher

TEXTS = 20  # that the latency is measured on
LARGEST = 500e6  # bytes of weights up to which a teacher is loaded for it


def sizes(process: Distillation) -> list[dict[str, Any]]:
    """Size and latency of the student and of each teacher.

    Returns:
        For each model its `name` (`student` for the student), the number of its `parameters`, the `bytes` of its weights,
        and `ms`: milliseconds for one text at a time, with its tokens, the median over some dev texts. None: not known. That
        is so for teachers that are files of predictions, and the latency of a teacher with more than 500 MB of weights.
    """
    texts = process.task.splits["dev"].texts[:TEXTS]
    out = [{"name": "student", **_counts(process.student.model), "ms": _latency(process.student, texts)}]
    for teacher in process.prepared.teachers:
        facts: dict[str, Any] = {"parameters": None, "bytes": None, "ms": None}
        if isinstance(teacher, ModelTeacher):
            facts |= _stored(teacher.folder)
            if 0 < (facts["bytes"] or 0) <= LARGEST:
                with suppress(UserError):  # its outputs are stored: a run does not fail where it cannot be loaded
                    facts["ms"] = _latency(teacher.load(), texts)
                teacher.release()
        out.append({"name": teacher.name, **facts})
    return out


def _counts(model: torch.nn.Module) -> dict[str, int]:
    """Parameters and bytes of a model in memory."""
    weights = list(model.parameters())
    return {"parameters": sum(w.numel() for w in weights), "bytes": sum(w.numel() * w.element_size() for w in weights)}


def _stored(folder: Path) -> dict[str, int]:
    """Parameters and bytes of the weights in a checkpoint's folder, from the headers of its files."""
    files = sorted(folder.glob("*.safetensors"))
    parameters = 0
    for path in files:
        with safe_open(path, "pt") as file:
            parameters += sum(torch.Size(file.get_slice(name).get_shape()).numel() for name in file.keys())  # noqa: SIM118
    return {"parameters": parameters, "bytes": sum(path.stat().st_size for path in files)} if files else {}


def _latency(model: Student, texts: Sequence[tuple[str, ...]]) -> float:
    """Median milliseconds for one text at a time, tokens included."""
    times = []
    for text in (texts[0], *texts):  # the first one warms up
        started = time.perf_counter()
        model.predict(model.tokenize([text]))
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times[1:])
