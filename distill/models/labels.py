"""Matching a teacher's outputs with the task's labels: by name, and against labelled data where names are missing."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill.checks import UserError

PLACEHOLDER = re.compile(r"LABEL_(\d+)")  # names that transformers makes up for outputs without names
FEWEST = 50  # labelled instances below which nothing is said about an order
BETTER = 0.1  # accuracy by which another order must be better


def folded(name: str) -> str:
    """A name without regard to case, and with spaces, '-' and '_' taken as the same."""
    return re.sub(r"[\s_-]+", "_", unicodedata.normalize("NFKC", name).strip().casefold())


def match_names(names: Sequence[str], labels: Sequence[str]) -> list[int | None]:
    """For each label the index of its name; None where it has none.

    Equal names come first. What is left is matched without regard to case and punctuation, where one name and one label
    alone fit each other. So no two labels share a name.
    """
    place = {name: i for i, name in enumerate(names)}
    order = [place.get(label) for label in labels]
    left = [i for i, name in enumerate(names) if i not in order and list(names).count(name) == 1]
    open_labels = [label for label, i in zip(labels, order, strict=True) if i is None]
    for row, label in enumerate(labels):
        if order[row] is None:
            fits = [i for i in left if folded(names[i]) == folded(label)]
            alone = sum(folded(other) == folded(label) for other in open_labels) == 1
            order[row] = fits[0] if len(fits) == 1 and alone else None
    return order


def all_matched(names: Sequence[str], labels: Sequence[str], missing: str, way_out: str) -> list[int]:
    """`match_names` where every label must have a name.

    Args:
        names: names of the outputs or columns.
        labels: the task's labels.
        missing: how the message begins, up to the label that has no name.
        way_out: how it ends.

    Raises:
        UserError: if a label has no name of its own.
    """
    order = match_names(names, labels)
    if None in order:
        label = labels[order.index(None)]
        alike = [other for other in labels if other != label and folded(other) == folded(label)]
        fits = any(folded(name) == folded(label) for name in names)
        also = f" ({label!r} and {alike[0]!r} would share one)" if alike and fits else ""
        raise UserError(f"{missing} {label!r}{also}; {way_out}")
    return [i for i in order if i is not None]


def unnamed(names: Sequence[str], labels: Sequence[str]) -> bool:
    """Whether the outputs have only the library's names (LABEL_0, ...), and the task's labels have others."""
    return all(PLACEHOLDER.fullmatch(n) for n in names) and all(i is None for i in match_names(names, labels))


def order_of_unnamed(names: Sequence[str], labels: Sequence[str]) -> list[int]:
    """For each label the output that it is taken to have, where outputs are named LABEL_0, ...

    The numbers count: those of labels that are numbers themselves, else the order of the labels.
    """
    numbers = [int(name.rpartition("_")[2]) for name in names]
    by_number = {str(number): i for i, number in enumerate(numbers)}
    if set(by_number) == set(labels):
        return [by_number[label] for label in labels]
    return sorted(range(len(names)), key=lambda i: numbers[i])


def missing_names(folder: Path) -> dict[str, Any]:
    """The `id2label` that config.json means by its `label2id`, where it has no names in `id2label`; else nothing.

    transformers reads `id2label` alone and replaces `label2id` by LABEL_0, ...
    """
    try:
        given = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        numbers = {str(name): int(number) for name, number in (given.get("label2id") or {}).items()}
        names = [str(name) for name in (given.get("id2label") or {}).values()]
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}  # a config.json of another form: the library refuses it, or has names of its own
    used = numbers and len(set(numbers.values())) == len(numbers) and all(PLACEHOLDER.fullmatch(n) for n in names)
    if not used or (names and len(names) != len(numbers)) or all(PLACEHOLDER.fullmatch(n) for n in numbers):
        return {}
    return {"id2label": {number: name for name, number in numbers.items()}, "label2id": numbers}


def check_head(config: Any, given: Sequence[str] | None, what: str) -> None:
    """Raise `UserError` unless the outputs are the logits of one label an instance, and their names are clear.

    Args:
        config: of the model.
        given: names of the outputs that the user gave, if any.
        what: how the message names the model.
    """
    problem = getattr(config, "problem_type", None)
    if problem in ("multi_label_classification", "regression"):
        raise UserError(
            f"{what}: its outputs are no logits of one label an instance (problem_type={problem}); "
            "use a teacher that was trained on one label an instance"
        )
    numbers = getattr(config, "label2id", None) or {}
    for i, name in config.id2label.items():
        other = numbers.get(name, i)
        if given is None and str(other) != str(i):
            raise UserError(
                f"{what}: its config.json names output {i} {name!r} in id2label, and output {other} in label2id; "
                "correct it, or set the teacher's labels=[...] in output order"
            )


def better_order(guesses: np.ndarray, gold: np.ndarray, classes: int) -> np.ndarray | None:
    """The order of the labels that fits labelled data far better than the given one; None where there is no such order.

    An order is fitted on one half of the instances and judged on the other half, and the other way round. It must be
    right more often than the given order by `BETTER` and by three standard errors, and more often than chance.

    Args:
        guesses: most likely class of each instance in the given order, int64 `[N]`.
        gold: gold class of each instance, int64 `[N]`.
        classes: C.

    Returns:
        For each class of the given order the class that it means, int64 `[C]`.
    """
    if len(gold) < FEWEST:
        return None
    half = np.random.default_rng(0).permutation(len(gold)) % 2
    meant = np.empty_like(gold)
    for held in (0, 1):
        meant[half == held] = _fitted_order(guesses[half != held], gold[half != held], classes)[guesses[half == held]]
    gain = (meant == gold).astype(float) - (guesses == gold)
    shares = [np.bincount(values, minlength=classes) / len(gold) for values in (meant, gold)]
    chance = float(shares[0] @ shares[1])  # of two independent answers with these shares
    above = (meant == gold).mean() - chance
    clear = gain.mean() >= BETTER and gain.mean() > 3 * gain.std() / np.sqrt(len(gold))
    return (
        _fitted_order(guesses, gold, classes)
        if clear and above > 2 * np.sqrt(chance * (1 - chance) / len(gold))
        else None
    )


def _fitted_order(guesses: np.ndarray, gold: np.ndarray, classes: int) -> np.ndarray:
    """For each class the class that it must mean to be right most often, each once, int64 `[C]`."""
    from scipy.optimize import linear_sum_assignment

    right = 0.5 * np.eye(classes)  # where nothing is known, the given order stays
    np.add.at(right, (guesses, gold), 1)
    order: np.ndarray = linear_sum_assignment(right, maximize=True)[1]
    return order


def as_list(names: Sequence[str]) -> str:
    """Names as a list in YAML and on a command line."""
    words = [n if re.fullmatch(r"[A-Za-z]\w+", n) and folded(n) not in _RESERVED else repr(n) for n in names]
    return f"[{', '.join(words)}]"


_RESERVED = {"true", "false", "null", "none", "yes", "no", "on", "off", "nan", "inf", "infinity"}
