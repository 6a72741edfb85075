"""The model card of a shipped student: README.md in the format of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from distill import __version__, cache
from distill.process import Prepared
from distill.settings import RunSettings

SHOWN = ("accuracy", "f1", "matthews", "loss", "brier", "ece")
# An absolute path, a path in a home folder or on a drive: everything up to its last part.
FOLDERS = re.compile(r"(?<![\w.:/\\~-])(?:~[\w.-]*/|/|[A-Za-z]:[\\/])(?:[^\s,'\"\]}=]+[/\\])?(?=[^\s,'\"\]}])")
USE = """```python
from transformers import pipeline

classify = pipeline("text-classification", "student")  # the folder of this file
print(classify({example}))
```"""


@dataclass(frozen=True)
class Shipped:
    """What a card tells of a student.

    Attributes:
        name: of the agent, or `control`.
        seed: of its run.
        scores: metrics by the name of the model and then by split (`dev` and the tests). The first is the student.
        rates: how often the student was taught by each teacher, [K]; null: not known.
        command: that gives the run again.
        reason: why this student is shipped, in one line; empty: it is the run's own.
    """

    name: str
    seed: int
    scores: Mapping[str, Mapping[str, Any]]
    rates: Sequence[float] | None
    command: str
    reason: str = ""
    teachers: Sequence[Mapping[str, Any]] = field(
        default_factory=list
    )  # `Prepared.teacher_scores()`; empty: ask for it


def write_card(folder: Path, settings: RunSettings, prepared: Prepared, shipped: Shipped) -> None:
    """Write README.md beside a student. It names no folder of this machine."""
    cache.write_whole(folder / "README.md", card_text(settings, prepared, shipped).encode())


def card_text(settings: RunSettings, prepared: Prepared, shipped: Shipped) -> str:
    """The text of the card: a head in YAML, then Markdown."""
    task, metric = prepared.task, prepared.task.metric
    teachers = shipped.teachers or prepared.teacher_scores()
    name = f"{task.name}-{settings.student.name}"
    labels = ", ".join(f"`{label}`" for label in task.label_names)
    pair = len(task.splits["train"].texts[0]) == 2
    example = '{"text": "a text", "text_pair": "another text"}' if pair else '"a text of any length"'
    parts = [
        f"---\n{_head(settings, prepared, shipped, name)}\n---",
        f"# {name}",
        f"A small text classifier, distilled from {len(teachers) - 1} teachers with TeacherSelect {__version__} "
        f"(agent: {_plain(shipped.name)}, seed {shipped.seed}).",
        f"Why this student: {_plain(shipped.reason)}." if shipped.reason else "",
        USE.format(example=example),
        f"## Labels\n\n{labels}",
        f"## Scores\n\n{_scores(prepared, shipped, teachers[-1])}",
        "`loss` and `brier` are better when they are low. Dev chose the checkpoint; test was read once, at the end.",
        f"## Calibration\n\n{_calibration(prepared, shipped)}",
        f"## Teachers\n\n{_teachers(prepared, shipped, teachers[:-1])}",
        f"## Data\n\n{_data(settings, prepared)}",
        f"## Limits\n\n{_limits(settings, prepared, metric, pair)}",
        f"## How it was made\n\n```\n{without_folders(shipped.command)}\n```\n\n{_versions(settings, prepared)}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def without_folders(text: str) -> str:
    """The text with every absolute path, and every path in a home folder, cut to its last part."""
    return FOLDERS.sub("", text)


def _plain(text: str) -> str:
    return without_folders(text).replace("|", "\\|").replace("\n", " ")


def _head(settings: RunSettings, prepared: Prepared, shipped: Shipped, name: str) -> str:
    """The card's data in YAML. `base_model` is named where it is of the hub."""
    task = prepared.task
    path = str(getattr(settings.student, "path", None) or "")
    of_the_hub = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path) is not None and not Path(path).exists()
    found = [
        EvalResult(
            task_type="text-classification",
            dataset_type=task.name,
            dataset_name=task.name,
            dataset_split=split,
            metric_type=key,
            metric_value=round(float(value), 6),
            metric_name=key,
        )
        for split, scores in next(iter(shipped.scores.values())).items()
        for key, value in scores.items()
        if key in SHOWN
    ]
    data = ModelCardData(
        model_name=name,
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=["text-classification", "knowledge-distillation", "teacher-select"],
        base_model=path if of_the_hub else None,
        eval_results=found,
    )
    return str(data.to_yaml())


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines))


def _scores(prepared: Prepared, shipped: Shipped, ensemble: Mapping[str, Any]) -> str:
    """The student's metrics with those of the control and of the averaged teachers beside them."""
    models = {**shipped.scores, "teachers averaged": ensemble}
    splits = ("dev", *prepared.task.tests)
    keys = [k for k in SHOWN if k in next(iter(shipped.scores.values()))[splits[0]]]
    rows = [
        [_plain(model), split, *(f"{scores[split][key]:.4f}" for key in keys)]
        for model, scores in models.items()
        for split in splits
        if scores.get(split) is not None
    ]
    return markdown(["model", "split", *keys], rows)


def _calibration(prepared: Prepared, shipped: Shipped) -> str:
    student = next(iter(shipped.scores.values()))
    found = ", ".join(f"{student[split]['ece']:.4f} on {split}" for split in prepared.task.tests)
    return (
        f"Expected calibration error (15 bins): {found}. 0 means that of the answers given with a probability of p, a share "
        "of p is right."
    )


def _teachers(prepared: Prepared, shipped: Shipped, teachers: Sequence[Mapping[str, Any]]) -> str:
    """Every teacher, how good it is and how much it was used."""
    tests = prepared.task.tests
    specs = prepared.settings.teachers.pool
    rows = []
    for place, (row, spec) in enumerate(zip(teachers, specs, strict=True)):
        used = "" if shipped.rates is None else f"{shipped.rates[place]:.1%}"
        scores = [f"{row[t]['accuracy']:.4f}" if row[t] else "" for t in tests]
        rows.append([_plain(row["name"]), spec.kind, used, *scores, f"`{row['fingerprint']}`"])
    note = "`used`: share of the training instances that it taught, or its mean weight."
    return f"{markdown(['teacher', 'kind', 'used', *(f'{t} accuracy' for t in tests), 'fingerprint'], rows)}\n\n{note}"


def _data(settings: RunSettings, prepared: Prepared) -> str:
    """Sizes and hashes of the splits."""
    task = prepared.task
    rows = []
    for role, split in task.splits.items():
        labelled = int(split.labelled.sum())
        rows.append([role, str(len(split)), str(labelled), f"`{split.labelled_fingerprint}`"])
    of = {"train": settings.task.train, "dev": settings.task.dev, "test": settings.task.test}
    files = ", ".join(f"{role}: {Path(path).name}" for role, path in of.items() if path)
    source = f"Source: {task.source}{f' ({files})' if files else ''}. Hash of all of it: `{task.fingerprint}`."
    return f"{markdown(['split', 'instances', 'labelled', 'hash'], rows)}\n\n{source}"


def _limits(settings: RunSettings, prepared: Prepared, metric: str, pair: bool) -> str:
    """What a user of the student should know, as a list."""
    length, task = settings.student.max_length, prepared.task
    texts = "Pairs" if pair else "Texts"
    lines = [
        f"{texts} are read up to {length} tokens; the rest is not looked at.",
        f"It gives one of {task.num_classes} labels to every text, also to one that has nothing to do with them.",
        "It learnt from texts like those of `train`. On other kinds of text its scores can be far lower.",
        "It learnt what its teachers say, with their mistakes and preferences.",
        f"It is one seed, chosen by dev {metric}; another seed gives other scores.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _versions(settings: RunSettings, prepared: Prepared) -> str:
    machine = prepared.engine
    packages = ", ".join(f"{p} {version(p)}" for p in ("torch", "transformers"))
    where = f"{machine.device.type}, {', '.join(f'{k}={v}' for k, v in machine.describe().items())}"
    return f"Versions: teacher-select {__version__}, {packages}. Computed on: {where}. Settings: `{settings.fingerprint('run')}`."
