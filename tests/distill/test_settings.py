"""Settings: what a mapping becomes, and what a mistake in it is told."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from distill.checks import UserError, plain_name
from distill.settings import (
    BudgetSettings,
    LossSettings,
    ProcessSettings,
    StudentSettings,
    TaskSettings,
    TeachersSettings,
    digest,
    parse,
)


def test_parse() -> None:
    got = parse(TeachersSettings, {"pool": [{"name": "a", "lr": 1, "config": {"hidden_size": 8}}]}, "teachers")
    assert got.pool[0].lr == 1.0
    assert got.pool[0].config == {"hidden_size": 8}
    assert got.pool[0].epochs == 3
    whole = OmegaConf.create({"beta": 0.25, "loss": {"alpha": "${beta}"}})
    assert parse(LossSettings, whole.loss, "loss") == LossSettings(alpha=0.25)


@pytest.mark.parametrize(
    ("cls", "mapping", "message"),
    [
        (StudentSettings, {"leyers": 3}, r"student: key=leyers is not known; choose from .*; did you mean layers\?"),
        (LossSettings, {"aplha": 0.3}, r"did you mean alpha\?"),
        (LossSettings, {"alpha": "much"}, r"loss\.alpha: .*'much'"),
        (LossSettings, {"alpha": 1.5}, r"loss\.alpha=1\.5 must lie in \[0, 1\]"),
        (LossSettings, {"alpha": None}, r"loss\.alpha: "),
        (LossSettings, {"temperature": 0}, r"loss\.temperature=0"),
        (LossSettings, {"temperature": float("inf")}, r"loss\.temperature=inf"),
        (LossSettings, {"temperature": float("nan")}, r"loss\.temperature=nan"),
        (LossSettings, [1, 2], r"loss=\[1, 2\] is not a group of settings"),
        (BudgetSettings, {"steps": 2.5}, r"budget\.steps: .*2\.5"),
        (BudgetSettings, {"steps": 0}, r"budget\.steps=0 must be positive"),
        (BudgetSettings, {"batch_size": 0}, r"budget\.batch_size=0"),
        (BudgetSettings, {"group_lengths": "perhaps"}, r"budget\.group_lengths: "),
        (TeachersSettings, {"pool": [{"name": "a", "ephocs": 3}]}, r"teachers.*ephocs"),
        (TeachersSettings, {"pool": [{"name": "a", "epochs": "x"}]}, r"teachers.*epochs.*'x'"),
        (TeachersSettings, {"pool": 3}, r"teachers\.pool: "),
        (TeachersSettings, {"pool": [{"name": f"t{i}"} for i in range(33)]}, r"has 33 teachers; at most 32"),
        (TaskSettings, {"corpus": {"trian": 3}}, r"task.*trian"),
        (TaskSettings, {"metric": "acuracy"}, r"task\.metric=acuracy .*did you mean accuracy\?"),
        (TaskSettings, {"reward_size": 0}, r"task\.reward_size=0.* must be positive"),
    ],
)
def test_mistakes(cls: type, mapping: Any, message: str) -> None:
    where = cls.__name__.removesuffix("Settings").lower()
    with pytest.raises(UserError, match=message) as caught:
        parse(cls, mapping, where)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("device=gpu", r"device=gpu is not known; choose from auto, cpu, cuda"),
        ("seed=-1", r"seed=-1 must not be negative"),
        ("seed=x", r"config\.seed: .*'x'"),
        ("threads=0", r"threads=0 must be positive"),
        ("amp=fp16", r"amp=fp16 is not known; choose from auto, off, bf16"),
        ("++student.wieght_decay=0.1", r"student: key=wieght_decay .*did you mean weight_decay\?"),
        ("student=path", r"student\.kind=path needs student\.path"),
        ("student=truncate", r"student\.kind=truncate needs student\.path"),
        ("teachers=own", r"teachers\.pool is empty"),
        ("teachers.signals=lives", r"teachers\.signals=lives .*did you mean live\?"),
    ],
)
def test_mistakes_in_a_whole_configuration(override: str, message: str) -> None:
    from configs import compose

    with pytest.raises(UserError, match=message):
        ProcessSettings.from_config(compose([override]))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("student.leyers=3", r"student\.leyers is not a known setting"),
        ("task=mrcp", r"task=mrcp is not known; choose from .*mrpc"),
        ("nothing=1", r"nothing is not a known setting"),
        ("student.lr=[", r"."),
    ],
)
def test_mistakes_in_overrides(override: str, message: str) -> None:
    from configs import compose

    with pytest.raises(UserError, match=message) as caught:
        compose([override])
    assert "\n" not in str(caught.value)


def test_keys_of_others_are_left_to_them(tiny_config: Any) -> None:
    settings = ProcessSettings.from_config(tiny_config())
    assert settings.task.corpus.train == 200
    assert settings.budget.batch_size == 8
    assert settings.budget.warm_steps == 4
    assert [t.name for t in settings.teachers.pool] == ["film", "food", "hotel", "electronics"]
    again = ProcessSettings.from_config(OmegaConf.create(tiny_config()))
    assert again == settings


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", "-x", "a b", "x" * 65, "naïve"])
def test_names_of_folders(name: str) -> None:
    with pytest.raises(UserError, match="cannot name a folder"):
        plain_name(name, "x")


def test_digest() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert len({digest(1), digest("1"), digest([1]), digest(1, None), digest(LossSettings())}) == 5
    assert digest(LossSettings(0.5)) == digest(LossSettings()) != digest(LossSettings(0.4))
    assert len(digest()) == 16
