"""The table of architectures in docs/reliability.md is true: twelve of them are examined again."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import transformers

from benchmarks.architectures import NAMES, USES, examine

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "architectures.json"
TWELVE = (
    "bert",
    "roberta",
    "distilbert",
    "deberta-v2",
    "modernbert",
    "gpt2",
    "llama",
    "qwen3",
    "t5",
    "fnet",
    "funnel",
    "reformer",
)


def plain(said: str) -> str:
    """An outcome without its numbers, whose digits depend on the machine."""
    return re.sub(r"\d[\d.e-]*", "#", said)


@pytest.mark.faults
@pytest.mark.parametrize("name", TWELVE)
def test_an_architecture_does_what_the_table_says(name: str) -> None:
    stored = json.loads(RESULTS.read_text(encoding="utf-8"))
    if stored["transformers"] != transformers.__version__:
        pytest.skip(f"the table is of transformers {stored['transformers']}; run benchmarks/architectures.py again")
    found, known = examine([name])[name], stored["architectures"][name]
    assert {use: plain(said) for use, said in found.items()} == {use: plain(said) for use, said in known.items()}


def test_the_table_has_every_architecture_and_no_fault() -> None:
    stored = json.loads(RESULTS.read_text(encoding="utf-8"))
    if stored["transformers"] == transformers.__version__:
        assert set(stored["architectures"]) == set(NAMES)
    for row in stored["architectures"].values():
        assert tuple(row) == USES
        for said in row.values():
            assert re.match(r"works$|refused: \w|not applicable: \w", said), said
