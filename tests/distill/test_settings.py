"""Settings: parsing and its messages, kinds, old spellings, and the fingerprints of each scope."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
from omegaconf import OmegaConf

from configs import compose
from distill import settings as module
from distill.checks import UserError, plain_name
from distill.settings import (
    ENCODER_KINDS,
    OUTSIDE,
    SB3_DEFAULTS,
    SCOPES,
    STUDENT_KINDS,
    TEACHER_KINDS,
    BagEncoderSettings,
    BudgetSettings,
    CheckpointStudent,
    CheckpointTeacher,
    FinetuneTeacher,
    FreshStudent,
    LossSettings,
    PredictionsTeacher,
    ReinforceSettings,
    RunSettings,
    SB3Settings,
    TaskSettings,
    TransformerEncoderSettings,
    TruncateStudent,
    digest,
    parse,
    teacher,
)


def run(**config: Any) -> RunSettings:
    return RunSettings.from_config(config)


def test_parse() -> None:
    spec = {"name": "a", "kind": "finetune", "lr": 1, "config": {"hidden_size": 8}}
    (got,) = run(teachers={"pool": [spec]}).teachers.pool
    assert isinstance(got, FinetuneTeacher)
    assert got.lr == 1.0
    assert got.config == {"hidden_size": 8}
    assert got.epochs == 3
    whole = OmegaConf.create({"beta": 0.25, "loss": {"alpha": "${beta}"}})
    assert parse(LossSettings, whole.loss, "loss") == LossSettings(alpha=0.25)


@pytest.mark.parametrize(
    ("cls", "mapping", "message"),
    [
        (LossSettings, {"aplha": 0.3}, r"did you mean alpha\?"),
        (LossSettings, {"alpha": "much"}, r"loss\.alpha='much' must be a number"),
        (LossSettings, {"alpha": 1.5}, r"loss\.alpha=1\.5 must lie in \[0, 1\]"),
        (LossSettings, {"alpha": None}, r"loss\.alpha=None must be a number"),
        (LossSettings, {"temperature": 0}, r"loss\.temperature=0"),
        (LossSettings, {"temperature": float("inf")}, r"loss\.temperature=inf"),
        (LossSettings, {"temperature": float("nan")}, r"loss\.temperature=nan"),
        (LossSettings, [1, 2], r"loss=\[1, 2\] is not a group of settings"),
        (BudgetSettings, {"steps": 2.5}, r"budget\.steps=2\.5 must be a whole number or null"),
        (BudgetSettings, {"steps": 0}, r"budget\.steps=0 must be positive"),
        (BudgetSettings, {"batch_size": 0}, r"budget\.batch_size=0"),
        (BudgetSettings, {"group_lengths": "perhaps"}, r"budget\.group_lengths='perhaps' must be true or false"),
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


def pool(*entries: Any) -> dict[str, Any]:
    return {"teachers": {"pool": [{"kind": "finetune", **e} for e in entries]}}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"student": {"leyers": 3}}, r"student: key=leyers is not known; choose from name, max_length, .*config, path"),
        ({"student": {"kind": "truncate", "leyers": 3}}, r"student: key=leyers is not known; .*did you mean layers\?"),
        (pool({"name": "a", "ephocs": 3}), r"teacher a: key=ephocs .*did you mean epochs\?"),
        (pool({"name": "a", "epochs": "x"}), r"teacher a: epochs='x' must be a whole number"),
        ({"teachers": {"pool": 3}}, r"teachers\.pool must be a list"),
        (pool(*({"name": f"t{i}"} for i in range(33))), r"has 33 teachers; at most 32"),
        ({"beta": 1}, r"config: key=beta is not known"),
    ],
)
def test_mistakes_in_sections(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        run(**config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("device=gpu", r"device=gpu is not known; choose from auto, cpu, cuda"),
        ("seed=-1", r"seed=-1 must not be negative"),
        ("seed=x", r"^seed='x' must be a whole number"),
        ("threads=0", r"threads=0 must be positive"),
        ("amp=fp16", r"amp=fp16 is not known; choose from auto, off, bf16"),
        ("++student.wieght_decay=0.1", r"student: key=wieght_decay .*did you mean weight_decay\?"),
        ("student=checkpoint", r"student\.kind=checkpoint needs student\.path"),
        ("student=path", r"student\.kind=checkpoint needs student\.path"),
        ("student=truncate", r"student\.kind=truncate needs student\.path"),
        ("teachers=own", r"teachers\.pool is empty"),
        ("teachers.signals=lives", r"teachers\.signals=lives .*did you mean live\?"),
    ],
)
def test_mistakes_in_a_whole_configuration(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        RunSettings.from_config(compose([override]))


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
    with pytest.raises(UserError, match=message) as caught:
        compose([override])
    assert "\n" not in str(caught.value)


def test_a_composed_configuration(tiny_config: Any) -> None:
    settings = RunSettings.from_config(tiny_config())
    assert settings.task.corpus.train == 200
    assert settings.budget.batch_size == 8
    assert settings.budget.warm_steps == 4
    assert [t.name for t in settings.teachers.pool] == ["film", "food", "hotel", "electronics"]
    again = RunSettings.from_config(OmegaConf.create(tiny_config()))
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


# --- kinds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"student": {"config": {"hidden_size": 8}}}, FreshStudent(config={"hidden_size": 8})),
        ({"student": {"kind": "truncate", "path": "a", "layers": 2}}, TruncateStudent(path="a", layers=2)),
        ({"student": {"kind": "checkpoint", "path": "a"}}, CheckpointStudent(path="a")),
        ({"encoder": {"dim": 3}}, BagEncoderSettings(3)),
        ({"encoder": {"kind": "transformer", "path": "a"}}, TransformerEncoderSettings("a")),
        ({"agent": {}}, ReinforceSettings()),
        ({"agent": {"name": "a2c"}}, SB3Settings("a2c")),
    ],
)
def test_a_section_becomes_its_kind(config: dict[str, Any], expected: Any) -> None:
    (section,) = config
    got = getattr(run(**config), section)
    assert type(got) is type(expected)
    assert got == expected


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"kind": "finetune", "pool": "film", "lr": 1e-3}, FinetuneTeacher("t", pool="film", lr=1e-3)),
        ({"kind": "checkpoint", "path": "a", "labels": ["b"]}, CheckpointTeacher("t", "a", ["b"])),
        ({"kind": "predictions", "path": "a.csv"}, PredictionsTeacher("t", "a.csv")),
    ],
)
def test_a_teacher_becomes_its_kind(entry: dict[str, Any], expected: Any) -> None:
    got = teacher({"name": "t", **entry})
    assert type(got) is type(expected)
    assert got == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"student": {"kind": "fresh", "layers": 3}},
            r"student: kind=fresh has no setting 'layers' \(it belongs to kind=truncate\); set student\.layers=null",
        ),
        (
            {"student": {"kind": "truncate", "path": "a", "layers": 3, "config": {}}},
            r"student: kind=truncate has no setting 'config' \(it belongs to kind=fresh\)",
        ),
        (
            {"encoder": {"kind": "bag", "path": "a"}},
            r"encoder: kind=bag has no setting 'path' \(it belongs to kind=transformer\); set encoder\.path=null",
        ),
        (
            pool({"name": "a", "labels": ["x"]}),
            r"teacher a: kind=finetune has no setting 'labels' \(it belongs to kind=checkpoint\); take it out",
        ),
        (
            pool({"name": "a", "kind": "checkpoint", "path": "b", "epochs": 2}),
            r"teacher a: kind=checkpoint has no setting 'epochs' \(it belongs to kind=finetune\); take it out",
        ),
        (
            pool({"name": "a", "kind": "predictions", "path": "b", "max_length": 2}),
            r"teacher a: kind=predictions has no setting 'max_length' \(it belongs to kind=finetune, checkpoint\)",
        ),
        ({"student": {"kind": "frsh"}}, r"student\.kind=frsh is not known; .*did you mean fresh\?"),
        ({"encoder": {"kind": "bags"}}, r"encoder\.kind=bags is not known; .*did you mean bag\?"),
        (pool({"name": "a", "kind": "fine"}), r"teacher a: kind=fine is not known; choose from finetune, checkpoint"),
        ({"agent": {"name": "ppo", "entropy": 0.1}}, r"agent: key=entropy is not known"),
    ],
)
def test_a_setting_of_another_kind_is_an_error(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        run(**config)
    assert "\n" not in str(caught.value)


def test_null_stands_for_the_default_of_a_kind() -> None:
    """So that one YAML tree can hold the settings of all kinds."""
    nulls = {"kind": "truncate", "path": "a", "layers": 1, "config": None, "lr": None, "clip": None}
    assert run(student=nulls).student == TruncateStudent(path="a", layers=1)


# --- the spelling of version 0.1 --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ({"epochs": 2}, FinetuneTeacher("t", epochs=2), "{name: t, kind: finetune, ...}"),
        (
            {"path": "a", "fitted": True, "labels": ["b"]},
            CheckpointTeacher("t", "a", ["b"]),
            "{name: t, kind: checkpoint, path: a}",
        ),
        ({"probs": "a.csv"}, PredictionsTeacher("t", "a.csv"), "{name: t, kind: predictions, path: a.csv}"),
    ],
)
def test_old_teachers_are_read_with_a_notice(
    old: dict[str, Any], new: Any, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_NOTICES", set())
    config = {"teachers": {"pool": [{"name": "t", **old}]}}
    assert run(**config).teachers.pool == run(**config).teachers.pool == [new]
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"note: teacher t: give its kind; this entry is now written {said}\n", "one line, once"


def test_an_old_student_is_read_with_a_notice(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_NOTICES", set())
    for _ in range(2):
        assert run(student={"kind": "path", "path": "a"}).student == CheckpointStudent(path="a")
    assert capsys.readouterr().err == "note: student.kind=path is now called kind=checkpoint\n"


# --- identity ---------------------------------------------------------------------------------------------------------

# Whole runs that between them have every kind of teacher, student, encoder and agent.
RUNS = {
    "defaults": {},
    "checkpoints": {
        "teachers": {
            "pool": [
                {"name": "a", "kind": "finetune", "config": {"hidden_size": 8}},
                {"name": "b", "kind": "checkpoint", "path": "x", "labels": ["no", "yes"]},
                {"name": "c", "kind": "predictions", "path": "y.csv"},
            ]
        },
        "student": {"kind": "truncate", "path": "x", "layers": 2},
        "encoder": {"kind": "transformer", "path": "x"},
        "agent": {"name": "ppo", "params": {"n_steps": 4}},
    },
    "checkpoint": {"student": {"kind": "checkpoint", "path": "x"}, "agent": {"name": "dqn"}, "threads": 2},
}


@pytest.mark.parametrize("name", RUNS)
def test_settings_are_read_back_from_their_configuration(name: str) -> None:
    settings = run(**RUNS[name])
    again = RunSettings.from_config(settings.to_config())
    assert again == settings
    assert [type(t) for t in again.teachers.pool] == [type(t) for t in settings.teachers.pool]
    assert all(again.fingerprint(s) == settings.fingerprint(s) for s in SCOPES)


@pytest.mark.parametrize("option", ["agent=ppo", "student=bert3", "teachers=minilm", "teachers=fresh", "reward=paper3"])
def test_composed_settings_are_read_back(option: str) -> None:
    settings = RunSettings.from_config(compose([option]))
    assert RunSettings.from_config(settings.to_config()) == settings


def leaves(cls: type, path: tuple[str, ...] = (), changes: str = "") -> Iterator[tuple[str, str]]:
    """Name and scope of every setting below a dataclass, read from the metadata alone."""
    for f in dataclasses.fields(cls):
        own = f.metadata.get("changes") or changes
        value = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        if dataclasses.is_dataclass(value):
            yield from leaves(type(value), (*path, f.name), own)
        else:
            yield ".".join((*path, f.name)), own


KINDS: list[Any] = [*TEACHER_KINDS.values(), *ENCODER_KINDS.values(), *STUDENT_KINDS.values(), SB3Settings]


def test_every_setting_says_what_it_changes_and_what_it_is() -> None:
    scopes = dict(leaves(RunSettings))
    assert len(scopes) > 70
    assert {n: c for n, c in scopes.items() if c not in (*SCOPES, *OUTSIDE)} == {}
    assert {n for n, c in scopes.items() if c == "nothing"} == {
        "data_dir",
        "home",
        "resume",
        "checkpoint_every",
        "ship",
    }
    assert {n for n, c in scopes.items() if c == "machine"} == {"device", "threads", "amp", "fast"}
    sections = [type(getattr(RunSettings(), f.name)) for f in dataclasses.fields(RunSettings)]
    for cls in (RunSettings, *KINDS, *filter(dataclasses.is_dataclass, sections)):
        assert cls.__doc__
        for f in dataclasses.fields(cls):
            nested = f.default_factory is not dataclasses.MISSING and dataclasses.is_dataclass(f.default_factory())
            assert nested or f.metadata.get("help"), f"{cls.__name__}.{f.name} has no help text"


def test_a_setting_that_does_not_say_what_it_changes_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclasses.dataclass
    class More(RunSettings):
        extra: int = module.option(1, "says nothing")

    with pytest.raises(ValueError, match="extra does not say what it changes"):
        More().fingerprint("run")


def changed(**change: Any) -> set[str]:
    """The scopes whose fingerprint differs from that of the defaults."""
    before, after = RunSettings(), run(**change)
    assert after != before
    return {scope for scope in SCOPES if before.fingerprint(scope) != after.fingerprint(scope)}


@pytest.mark.parametrize(
    ("change", "first"),
    [
        ({"task": {"name": "rte"}}, "signals"),
        ({"task": {"corpus": {"noise": 0.1}}}, "signals"),
        ({"teachers": {"pool": [{"name": "teacher", "kind": "finetune", "lr": 1e-3}]}}, "signals"),
        ({"teachers": {"pool": [{"name": "teacher", "kind": "predictions", "path": "a"}]}}, "signals"),
        ({"encoder": {"dim": 7}}, "signals"),
        ({"student": {"lr": 1e-3}}, "warm start"),
        ({"student": {"kind": "checkpoint", "path": "a"}}, "warm start"),
        ({"loss": {"temperature": 2.0}}, "warm start"),
        ({"budget": {"batch_size": 16}}, "warm start"),
        ({"seed": 1}, "warm start"),
        ({"budget": {"steps": 16}}, "cell"),
        ({"reward": {"every": 3}}, "cell"),
        ({"credit": {"name": "shared"}}, "cell"),
        ({"observation": {"parts": ["encoder"]}}, "cell"),
        ({"agent": {"lr": 1e-3}}, "cell"),
        ({"agent": {"name": "ppo"}}, "cell"),
        ({"policy": "mlp"}, "cell"),
        ({"agent": {"oracle": False}}, "run"),
        ({"device": "cuda"}, None),
        ({"threads": 3}, None),
        ({"amp": "off"}, None),
        ({"fast": False}, None),
        ({"data_dir": "/x"}, None),
        ({"home": "/x"}, None),
        ({"resume": True}, None),
        ({"checkpoint_every": 5}, None),
    ],
)
def test_a_setting_changes_its_scope_and_those_after_it(change: dict[str, Any], first: str | None) -> None:
    assert changed(**change) == (set(SCOPES[SCOPES.index(first) :]) if first else set())


def test_identity_of_a_scope() -> None:
    settings = RunSettings()
    names = {scope: set(settings.identity(scope)) for scope in SCOPES}
    assert names["signals"] < names["warm start"] < names["cell"] < names["run"]
    assert names["run"] - names["cell"] == {"agent.oracle", "plugins"}
    assert "loss.alpha" in names["warm start"] - names["signals"]
    assert "agent.lr" in names["cell"] - names["warm start"]
    assert settings.identity("warm start")["student.kind"] == "fresh"
    rule = settings.identity("cell", ["budget"])
    assert not any(name.startswith("agent.") for name in rule)
    assert {"budget.steps", "loss.alpha"} <= set(rule)
    assert settings.fingerprint("cell", ["budget"]) == run(agent={"lr": 0.1}).fingerprint("cell", ["budget"])
    assert set(SB3_DEFAULTS) >= {"ppo", "dqn"}
