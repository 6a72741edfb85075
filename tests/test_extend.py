"""Every way to add a part of one's own, from outside the packages, in about ten lines each, on the tiny run.

Rewards, credit estimators, rules and observation parts are used by import path (`my_ext:MyReward`). Kinds and tasks are added
to a registry by a module that `plugins` names.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import envs  # noqa: F401  registers TeacherSelect-v0
from distill.checks import UserError
from distill.data.load import TASKS
from distill.models.build import STUDENTS
from distill.settings import STUDENT_KINDS, TEACHER_KINDS, RunSettings
from distill.teachers.sources import SOURCES
from envs.core import Core

ROOT = Path(__file__).resolve().parent.parent
REGISTRIES: tuple[dict[str, Any], ...] = (TASKS, STUDENTS, STUDENT_KINDS, TEACHER_KINDS, SOURCES)
Step = tuple[np.ndarray, np.ndarray, bool, dict[str, np.ndarray]]


@pytest.fixture
def extension(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """`extension(code)`: a module `my_ext` in `tmp_path`, which Python finds."""
    before = [dict(registry) for registry in REGISTRIES]
    monkeypatch.syspath_prepend(tmp_path)

    def write(code: str) -> None:
        (tmp_path / "my_ext.py").write_text(dedent(code))
        importlib.invalidate_caches()

    yield write
    sys.modules.pop("my_ext", None)
    for registry, kept in zip(REGISTRIES, before, strict=True):
        registry.clear()
        registry.update(kept)


def episode(config: dict[str, Any]) -> tuple[Core, list[Step]]:
    """All steps of an episode with all teachers."""
    core = Core(config)
    core.begin(0)
    steps: list[Step] = []
    while not steps or not steps[-1][2]:
        steps.append(core.step(np.ones((core.batch_size, core.process.num_teachers), np.float32)))
    assert len(steps) == core.process.budget
    return core, steps


def compare(folder: Path, *arguments: str) -> dict[str, Any]:
    """The content of comparison.json of a command that runs in `folder`, where my_ext.py lies."""
    words = [*arguments, "threads=1", "seeds=1", "report=false", "cells=cells", "hydra.run.dir=run"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "agents/compare.py"), *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    found: dict[str, Any] = json.loads((folder / "run" / "comparison.json").read_text())
    return found


# --- by import path ---------------------------------------------------------------------------------------------------


def test_add_a_reward(extension, tiny_config) -> None:
    """Minus the share of teachers that were used: a reward that saves teachers."""
    extension("""
        from envs.rewards import Reward

        class Savings(Reward):
            def measure(self, batch, actions, result):
                return -float(actions.mean())
    """)
    core, steps = episode(tiny_config("reward.name=my_ext:Savings", "reward.every=1"))
    assert type(core.reward).__name__ == "Savings"
    assert all((rewards == -1).all() for _, rewards, _, _ in steps)
    assert core.settings.credit.name == "shared"
    with pytest.raises(UserError, match=r"credit\.name=influence goes with reward=validation_gain"):
        Core(tiny_config("reward.name=my_ext:Savings", "credit.name=influence"))


def test_add_a_credit_estimator(extension, tiny_config) -> None:
    """Rows with a smaller loss get more of the reward."""
    extension("""
        import numpy as np
        from envs.credit import Credit

        class ByLoss(Credit):
            def after(self, batch, actions, result, reward):
                share = np.exp(-result.losses.cpu().numpy().astype(np.float64))
                share *= len(share) / share.sum()
                return reward * share, {"row_credit": share}
    """)
    _, steps = episode(tiny_config("credit.name=my_ext:ByLoss", "reward.every=1"))
    for _, rewards, _, info in steps:
        assert rewards.mean() == pytest.approx(info["gain"][0])
        np.testing.assert_allclose(rewards, info["gain"] * info["row_credit"])
    assert np.ptp(rewards) > 0


def test_add_a_rule(extension, tiny_overrides, tmp_path) -> None:
    """The teachers that are right about the instance. It runs in a comparison, in processes of its own."""
    extension("""
        import numpy as np
        from agents.rules import Rule

        class Right(Rule):
            summary = "the teachers that are right"

            def __call__(self, states, batch):
                return (batch.probs.argmax(2) == batch.labels[:, None]).astype(np.float32)
    """)
    found = compare(tmp_path, *tiny_overrides, "agents=[my_ext:Right]")
    control, ours = found["tables"]["test"]
    assert (control["agent"], ours["agent"]) == ("control", "my_ext:Right")
    assert 0 < ours["mean_size"] < control["mean_size"] == 4


LEARNER = """
    import numpy as np
    from agents.rules import Rule

    class Learner(Rule):
        labels = "reward"
        needs_states = True

        def __init__(self, core, seed):
            super().__init__(core, seed)
            rng = np.random.default_rng(seed)
            states = core.begin(seed)  # an episode of its own; the students that count start again
            self.value, done = np.zeros(core.process.num_teachers), False
            while not done:
                chosen = (rng.random((len(states), len(self.value))) < 0.5).astype(np.float32)
                states, rewards, done, _ = core.step(chosen)
                self.value += ((chosen - 0.5) * rewards[:, None]).sum(0)

        def __call__(self, states, batch):
            on = self.value >= np.median(self.value)
            return np.tile(on.astype(np.float32), (len(states), 1))
"""


def test_add_an_agent(extension, tiny_config, tmp_path) -> None:
    """It plays an episode at random, and then uses the better half of the teachers."""
    from agents.cell import entry_settings
    from agents.evaluate import evaluate

    extension(LEARNER)
    settings = entry_settings("my_ext:Learner", ["experiment=tiny", "budget.steps=6", "reward.every=1"])
    assert settings.budget.steps == 6
    short = ["budget.steps=6", "reward.every=1", "credit.name=influence"]
    scores = evaluate("my_ext:Learner", "TeacherSelect/Tiny-v0", seeds=[3], overrides=short)
    assert scores.seeds[0].seed == 3
    assert sorted(scores.seeds[0].chosen) == [0, 0, 1, 1]


def test_add_an_observation_part(extension, tiny_config) -> None:
    """How many teachers agree with the most common answer."""
    extension("""
        import numpy as np
        from envs.observations import Part

        class Agreement(Part):
            def width(self, process):
                return 1

            def values(self, view):
                votes = view.batch.probs.argmax(2)
                most = np.apply_along_axis(lambda row: np.bincount(row).max(), 1, votes)
                return most[:, None] / votes.shape[1]
    """)
    core, steps = episode(tiny_config("observation.parts=[teacher_loss,my_ext:Agreement]"))
    assert core.observe.layout["my_ext:Agreement"] == slice(4, 5)
    seen = np.concatenate([states[:, 4] for states, *_ in steps])
    assert set(seen) <= {0.5, 0.75, 1.0}
    assert len(set(seen)) > 1


# --- by registration --------------------------------------------------------------------------------------------------


def test_add_a_teacher_kind(extension, tiny_config) -> None:
    """A teacher that looks for a word."""
    extension("""
        from dataclasses import dataclass
        import numpy as np
        from distill.settings import TEACHER_KINDS, TeacherSettings, option
        from distill.teachers.sources import SOURCES

        @dataclass
        class Word(TeacherSettings):
            kind = "word"
            word: str = option("not", "the word that means the second label")

        class WordTeacher:
            def __init__(self, spec, task, home, engine, folds):
                self.name, self.word, self.width = spec.name, spec.word, task.num_classes
                self.fingerprint = f"word-{spec.word}"

            def compute(self, split):
                return np.array([[0.0, 2.0 if self.word in text[0] else -2.0] for text in split.texts], np.float32)

            def at(self, split, rows):
                return self.compute(split.take(rows))

            def release(self):
                pass

        TEACHER_KINDS["word"], SOURCES["word"] = Word, WordTeacher
    """)
    pool = "teachers.pool=[{name: a, kind: word}, {name: b, kind: word, word: very}]"
    core, _ = episode(tiny_config("plugins=[my_ext]", pool))
    texts = core.process.train_split.texts
    wanted = [[[0.0, 2.0 if word in text[0] else -2.0] for word in ("not", "very")] for text in texts]
    assert core.process.signals.logits(np.arange(200)).tolist() == wanted
    assert len(np.unique(wanted)) == 3
    with pytest.raises(UserError, match="kind=word has no setting 'path'"):
        RunSettings.from_config(tiny_config("plugins=[my_ext]", "teachers.pool=[{name: a, kind: word, path: x}]"))


def test_add_a_student_kind(extension, tiny_config) -> None:
    """A classifier with random weights and another activation."""
    extension("""
        from dataclasses import dataclass, replace
        from distill.models.build import STUDENTS, build_fresh
        from distill.settings import STUDENT_KINDS, FreshStudent, option

        @dataclass
        class Act(FreshStudent):
            kind = "act"
            activation: str = option("relu", "activation of the hidden layers")

        def build_act(settings, labels, texts, seed):
            return build_fresh(replace(settings, config=settings.config | {"hidden_act": settings.activation}), labels, texts, seed)

        STUDENT_KINDS["act"], STUDENTS["act"] = Act, build_act
    """)
    core, _ = episode(tiny_config("plugins=[my_ext]", "student.kind=act", "+student.activation=tanh"))
    assert core.process.student.model.config.hidden_act == "tanh"
    other, _ = episode(tiny_config("plugins=[my_ext]", "student.kind=act"))
    assert other.process.student.model.config.hidden_act == "relu"


def test_add_a_task(extension, tiny_overrides, tmp_path) -> None:
    """Is the number even? It runs in a comparison: every process imports the plugin."""
    extension("""
        from distill.data.load import TASKS, assign_roles
        from distill.data.splits import RawTask, Table

        def numbers(first, count):
            rows = range(first, first + count)
            labels = ["even" if i % 2 == 0 else "odd" for i in rows]
            return Table([str(i) for i in rows], [(f"number {i} ends in {i % 10}",) for i in rows], labels)

        def parity(settings, data_dir):
            return assign_roles(settings, RawTask("made up", {"train": numbers(0, 120), "test": numbers(1000, 40)}, ("even", "odd")))

        TASKS["parity"] = parity
    """)
    kept = [o for o in tiny_overrides if not o.startswith(("teachers.pool", "reward.size"))]
    size = "config: {hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32}"
    pool = f"teachers.pool=[{{name: a, kind: finetune, {size}, max_length: 16, epochs: 1}}]"
    found = compare(tmp_path, *kept, "plugins=[my_ext]", "task.name=parity", pool, "reward.size=8", "agents=[labels]")
    assert found["task"] == "parity"
    assert [row["agent"] for row in found["tables"]["test"]] == ["control", "labels"]
    assert found["data"] == {"train": 96, "reward": 12, "dev": 12, "test": 40}
    assert "plugins=[my_ext]" in found["cells"][0]["reproduce"]


def test_add_an_environment_id(tiny_overrides) -> None:
    """The tiny run under a name of its own."""
    gym.register(
        id="TinyReviews-v0",
        entry_point="envs.teacher_select:TeacherSelectEnv",
        vector_entry_point="envs.teacher_select:TeacherSelectVectorEnv",
        kwargs={"overrides": [*tiny_overrides, "budget.steps=3"]},
    )
    try:
        one, many = gym.make("TinyReviews-v0"), gym.make_vec("TinyReviews-v0", num_envs=8)
        states, _ = many.reset(seed=0)
        state, _ = one.reset(seed=0)
        np.testing.assert_array_equal(state, states[0])
        for step in range(3):
            _, _, ended, _, _ = many.step(many.action_space.sample())
            assert ended.all() == (step == 2)
    finally:
        del gym.registry["TinyReviews-v0"]


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("reward.name=my_ext:None_", r"reward.name=my_ext:None_ cannot be imported .*; give my_package.module:MyClass"),
        ("reward.name=my_ext:Thing", r"reward.name=my_ext:Thing is not a subclass of envs.rewards.Reward"),
        ("credit.name=my_ext:Thing", r"credit.name=my_ext:Thing is not a subclass of envs.credit.Credit"),
        (
            "observation.parts=[my_ext:Thing]",
            r"observation.parts=my_ext:Thing is not a subclass of envs.observations.Part",
        ),
        (
            "plugins=[no_such_module]",
            r"plugins: no_such_module cannot be imported \(No module named 'no_such_module'\)",
        ),
    ],
)
def test_a_wrong_extension_is_one_line(extension, tiny_config, override, message) -> None:
    extension("class Thing: pass")
    with pytest.raises(UserError, match=f"^{message}"):
        Core(tiny_config(override))


def test_a_bug_in_a_plugin_keeps_its_traceback(extension, tiny_config) -> None:
    extension("1 / 0")
    with pytest.raises(ZeroDivisionError):
        RunSettings.from_config(tiny_config("plugins=[my_ext]"))
