"""The bundled corpus: domains and labels are worked out from the texts alone, and compared."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from distill.checks import UserError
from distill.data import bundled
from distill.data.load import load_task
from distill.settings import CorpusSettings, TaskSettings

Made = tuple[dict[str, bundled.Reviews], dict[str, bundled.Reviews]]
SIZES = {"train": 1500, "reward": 200, "dev": 200, "test": 300, "pool": 150}


@pytest.fixture(scope="module")
def corpus() -> Made:
    return bundled.corpus(CorpusSettings(**SIZES))


def read(text: str) -> tuple[int, int]:
    """The domain and the true label of a review, from its words alone."""
    signs, homes = [], set()
    for statement in text.split(" and "):
        the, noun, was, *middle, word = statement.split()
        assert (the, was) == ("the", "was")
        assert set(middle) <= {"not", *bundled.INTENSIFIERS}
        (domain,) = [i for i, d in enumerate(bundled.DOMAINS) if noun in d.nouns]
        good = word in bundled.DOMAINS[domain].praise
        assert good or word in bundled.DOMAINS[domain].blame
        signs.append(good != ("not" in middle))
        homes.add(domain)
    assert len(homes) == 1
    right, wrong = signs.count(True), signs.count(False)
    return homes.pop(), int(signs[-1] if right == wrong else right > wrong)


def test_domains_share_no_words() -> None:
    for a, b in combinations(bundled.DOMAINS, 2):
        assert not set(a.praise + a.blame) & set(b.praise + b.blame)
        assert not set(a.nouns) & set(b.nouns)
    for d in bundled.DOMAINS:
        words = d.nouns + d.praise + d.blame
        assert len(set(words)) == len(words)
        assert len(d.praise) == len(d.blame)


def test_only_train_has_label_noise(corpus: Made) -> None:
    roles, pools = corpus
    for name, made in {**roles, **pools}.items():
        truth = np.array([read(t)[1] for t in made.texts])
        wrong = (truth != made.labels).mean()
        if name == "train":
            assert abs(wrong - 0.35) < 4 * np.sqrt(0.35 * 0.65 / SIZES["train"])
        else:
            assert wrong == 0


def test_domains(corpus: Made) -> None:
    roles, pools = corpus
    for made in (*roles.values(), *pools.values()):
        assert [read(t)[0] for t in made.texts] == made.domains.tolist()
    for i, d in enumerate(bundled.DOMAINS):
        assert set(pools[d.name].domains) == {i}
    shares = np.bincount(roles["train"].domains) / SIZES["train"]
    assert np.abs(shares - 0.25).max() < 0.05
    assert abs(np.mean(roles["test"].labels) - 0.5) < 0.12


def test_deterministic_and_seeded(corpus: Made) -> None:
    again, other = bundled.corpus(CorpusSettings(**SIZES)), bundled.corpus(CorpusSettings(**SIZES, seed=1))
    for kind in (0, 1):
        for name, made in corpus[kind].items():
            assert made.texts == again[kind][name].texts
            assert np.array_equal(made.labels, again[kind][name].labels)
            assert made.texts != other[kind][name].texts


@pytest.mark.parametrize("grown", [*SIZES])
def test_the_size_of_one_part_changes_no_other(corpus: Made, grown: str) -> None:
    roles, pools = bundled.corpus(CorpusSettings(**(SIZES | {grown: SIZES[grown] + 7})))
    for before, after in ((corpus[0], roles), (corpus[1], pools)):
        for name, made in before.items():
            own = name == grown or (grown == "pool" and name in pools)
            assert len(after[name].texts) == len(made.texts) + 7 * own
            assert after[name].texts[: len(made.texts)] == made.texts
            assert np.array_equal(after[name].labels[: len(made.labels)], made.labels)


def test_parts_are_not_copies_of_each_other(corpus: Made) -> None:
    parts = [*corpus[0].values(), *corpus[1].values()]
    assert len({tuple(p.texts[:20]) for p in parts}) == len(parts)


def test_as_a_task() -> None:
    task = load_task(TaskSettings(corpus=CorpusSettings(**SIZES)))
    assert {r: len(s) for r, s in task.splits.items()} == {r: SIZES[r] for r in ("train", "reward", "dev", "test")}
    assert list(task.pools) == [d.name for d in bundled.DOMAINS]
    assert task.specialist is not None
    assert [read(t)[0] for (t,) in task.splits["train"].texts] == task.specialist.tolist()
    everything = [*task.splits.values(), *task.pools.values()]
    ids = [i for s in everything for i in s.ids]
    assert len(set(ids)) == len(ids)
    assert {s.role for s in task.pools.values()} == {"pool"}


@pytest.mark.parametrize("bad", [{"train": 1}, {"noise": 0.5}, {"noise": -0.1}, {"pool": 0}])
def test_refused_settings(bad: dict[str, float]) -> None:
    (key,) = bad
    with pytest.raises(UserError, match=rf"^task\.corpus\.{key}="):
        CorpusSettings(**bad)  # type: ignore[arg-type]
