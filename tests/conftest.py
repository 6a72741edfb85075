"""Shared by all tests: one thread, no network, a cache for tests only, and a very small bundled run."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# For the programs that tests start: two threads beside another busy process are many times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("tests", deadline=None, max_examples=60, derandomize=True, database=None)
hypothesis.settings.load_profile("tests")

ROOT = Path(__file__).resolve().parent.parent
WIDTHS = (
    "{hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32, initializer_range: 0.3}"
)
STILL = WIDTHS[:-1] + ", hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}"
# Weights have a large spread: a model this narrow would otherwise give the same logits for all texts.
# Overrides for `configs.compose` (and `gym.make(..., overrides=...)`): the bundled task in a second or two.
TINY = (
    "task.corpus={train: 200, reward: 60, dev: 60, test: 80, pool: 100}",
    "teachers.pool=["
    + ", ".join(
        f"{{name: {d}, kind: finetune, pool: {d}, config: {STILL}, max_length: 32, batch_size: 25, lr: 1.0e-2, epochs: 4}}"
        for d in ("film", "food", "hotel", "electronics")
    )
    + "]",
    f"++student.config={WIDTHS}",  # ++: it has a key that student=tiny does not set
    "encoder.dim=8",
    "budget.batch_size=8",
    "budget.steps=6",
    "budget.warm_steps=4",
    "budget.evals=2",
    "reward.size=40",
    "reward.every=2",
    "credit.size=16",
    "credit.every=1",
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """One thread before and after every test, whatever the test sets."""
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The session's TEACHER_SELECT_HOME: tests share its caches, and never touch those of the user."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEACHER_SELECT_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def tiny_config(home: Path) -> Callable[..., dict[str, Any]]:
    """`tiny_config("student.lr=0.1", ...)`: the whole configuration of a very small bundled run, after `overrides`."""
    from configs import compose

    # Joint training from all teachers: on data this small the fitted start is all teachers as well, and trains nothing.
    return lambda *overrides: compose([*TINY, "agent.start=all_on", *overrides])


@pytest.fixture(scope="session")
def tiny_overrides() -> list[str]:
    """The overrides behind `tiny_config`, for `gym.make` and command lines, which compose by themselves."""
    return list(TINY)


@pytest.fixture(scope="session")
def prepared(tiny_config: Callable[..., dict[str, Any]]) -> Any:
    """The `Prepared` of `tiny_config()`: data, four fine-tuned teachers and stored signals, made once a session."""
    from distill.process import Prepared
    from distill.settings import RunSettings

    torch.set_num_threads(1)
    return Prepared.of(RunSettings.from_config(tiny_config())).load()


@pytest.fixture(scope="session")
def afrisenti_dir() -> Path:
    """AfriSenti's folders of languages: where `data_dir=TEACHER_SELECT_DATA` leads to, else ../shared/afrisenti."""
    from distill.data.afrisenti import afrisenti_folders

    given = os.environ.get("TEACHER_SELECT_DATA")
    places = [*(afrisenti_folders(given) if given else ()), ROOT.parent / "shared" / "afrisenti"]
    for place in places:
        if (place / "hau" / "train.tsv").is_file():
            return place
    pytest.skip(f"no AfriSenti data at {' or '.join(map(str, places))}; put hau/train.tsv there")


@pytest.fixture(scope="session")
def glue_dir() -> Path:
    """Official GLUE folders: TEACHER_SELECT_DATA, else ../shared/glue beside the repository."""
    folder = Path(os.environ.get("TEACHER_SELECT_DATA") or ROOT.parent / "shared" / "glue").expanduser()
    if not folder.is_dir():
        pytest.skip(f"no GLUE data at {folder}; set TEACHER_SELECT_DATA to a folder holding MRPC/train.tsv")
    return folder
