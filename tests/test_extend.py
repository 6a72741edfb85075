"""The table "to add X, touch Y" of CONTRIBUTING.md: everything is added here from outside the packages.

Rewards, credit estimators, rules and observation parts come by import path; kinds, tasks and ids are registered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest

import envs  # noqa: F401  registers TeacherSelect-v0
from agents.rules import make_rule
from distill.data import load
from distill.data.splits import RawTask, Table
from distill.models import build
from distill.settings import STUDENT_KINDS, TEACHER_KINDS, FreshStudent, RunSettings, StudentSettings, TeacherSettings
from distill.teachers import sources
from envs.core import Core

Make = Callable[..., dict[str, Any]]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`module(code)` writes a module `my_extension` of the user's own, which can be imported by name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "my_extension", raising=False)
    return lambda code: (tmp_path / "my_extension.py").write_text(code) and None


def play(core: Core, steps: int = 2) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """The states after a few steps with all teachers, the last rewards and the last info."""
    core.begin(0)
    for _ in range(steps):
        states, rewards, _, info = core.step(np.ones((core.batch_size, core.process.num_teachers), np.float32))
    return states, rewards, info


def test_add_a_reward(tiny_config: Make, module: Callable[[str], None]) -> None:
    module(
        "from envs.rewards import Reward\n"
        "class Confidence(Reward):\n"
        "    def measure(self, batch, actions, result):\n"
        "        return float(result.logits.softmax(-1).max(-1).values.mean())\n"
    )
    core = Core(tiny_config("reward.name=my_extension:Confidence"))
    _, rewards, info = play(core)
    assert "measured" in info
    assert 0.5 <= rewards[0] <= 1
    assert (rewards == rewards[0]).all()


def test_add_a_credit_estimator(tiny_config: Make, module: Callable[[str], None]) -> None:
    module(
        "from envs.credit import Credit\n"
        "class ByLoss(Credit):\n"
        "    def after(self, batch, actions, result, reward):\n"
        "        credit = result.losses.double().numpy()\n"
        "        return reward + credit, {'row_credit': credit}\n"
    )
    _, rewards, info = play(Core(tiny_config("credit.name=my_extension:ByLoss")))
    assert np.allclose(rewards - info["row_credit"], (rewards - info["row_credit"])[0])
    assert info["row_credit"].std() > 0


def test_add_a_rule(tiny_config: Make, module: Callable[[str], None]) -> None:
    module(
        "import numpy as np\n"
        "from agents.rules import Rule\n"
        "class First(Rule):\n"
        "    summary = 'the first teacher'\n"
        "    def __call__(self, states, batch):\n"
        "        return np.eye(batch.shape[1], dtype=np.float32)[np.zeros(len(batch.rows), int)]\n"
    )
    core = Core(tiny_config())
    states = core.begin(0)
    assert core.process.batch is not None
    actions = make_rule("my_extension:First", core, seed=0)(states, core.process.batch)
    assert actions.tolist() == [[1, 0, 0, 0]] * core.batch_size


def test_add_an_observation_part(tiny_config: Make, module: Callable[[str], None]) -> None:
    module(
        "import numpy as np\n"
        "from envs.observations import Part\n"
        "class Length(Part):\n"
        "    def width(self, process):\n"
        "        return 1\n"
        "    def values(self, view):\n"
        "        texts = [view.process.train_split.texts[i][0] for i in view.batch.rows]\n"
        "        return np.array([[len(t.split()) / 50] for t in texts])\n"
    )
    core = Core(tiny_config("observation.parts=[teacher_probs,my_extension:Length]"))
    states = core.begin(0)
    place = core.observe.layout["my_extension:Length"]
    words = [len(core.process.train_split.texts[i][0].split()) for i in core.instances()]
    assert np.allclose(states[:, place][:, 0], np.array(words) / 50)
    assert core.observe.space.contains(states[0])


@dataclass
class Guesser(TeacherSettings):
    """A teacher of a new kind: it gives class 0 a fixed logit."""

    kind: ClassVar[str] = "guesser"
    logit: float = 1.0


class GuesserSource:
    """Its answers."""

    def __init__(self, spec: Guesser, task: Any, *_: Any) -> None:
        self.name, self.width, self.fingerprint = spec.name, task.num_classes, f"guesser{spec.logit}"
        self.logit = spec.logit

    def compute(self, split: Any) -> np.ndarray:
        return np.eye(self.width, dtype=np.float32)[np.zeros(len(split), int)] * self.logit

    def at(self, split: Any, rows: np.ndarray) -> np.ndarray:
        return self.compute(rows)

    def release(self) -> None:
        pass


def test_add_a_teacher_kind(tiny_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TEACHER_KINDS, "guesser", Guesser)
    monkeypatch.setitem(sources.SOURCES, "guesser", GuesserSource)
    core = Core(tiny_config("teachers.pool=[{name: a, kind: guesser, logit: 2.0}, {name: b, kind: guesser}]"))
    core.begin(0)
    assert core.process.batch is not None
    assert core.process.batch.logits[0].tolist() == [[2.0, 0.0], [1.0, 0.0]]


@dataclass
class SmallStudent(StudentSettings):
    """A student of a new kind: a BERT of a given width."""

    kind: ClassVar[str] = "small"
    width: int = 16


def test_add_a_student_kind(tiny_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def build_small(settings: SmallStudent, labels: Any, texts: Any, seed: int) -> Any:
        config = {
            "hidden_size": settings.width,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
        }
        fresh = FreshStudent(name=settings.name, max_length=settings.max_length, config=config)
        return build.STUDENTS["fresh"](fresh, labels, texts, seed)

    monkeypatch.setitem(STUDENT_KINDS, "small", SmallStudent)
    monkeypatch.setitem(build.STUDENTS, "small", build_small)
    config = tiny_config()
    config["student"] = {"kind": "small", "name": "small", "width": 8, "max_length": 32}
    core = Core(RunSettings.from_config(config))
    assert core.process.student.model.config.hidden_size == 8
    play(core)


def test_add_a_task(tiny_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def parity(settings: Any, data_dir: str | None) -> Any:
        def table(role: str, count: int) -> Table:
            labels = ["even" if i % 2 == 0 else "odd" for i in range(count)]
            return Table(
                [f"{role}-{i}" for i in range(count)], [(f"the number is {i % 7}",) for i in range(count)], labels
            )

        raw = RawTask("parity", {"train": table("train", 120), "test": table("test", 20)}, ("even", "odd"))
        return load.assign_roles(settings, raw)

    monkeypatch.setitem(load.TASKS, "parity", parity)
    teacher = "{name: a, kind: finetune, config: {hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32}, epochs: 1, max_length: 32}"
    core = Core(tiny_config("task.name=parity", f"teachers.pool=[{teacher}]"))
    assert core.process.task.label_names == ("even", "odd")
    play(core)


@pytest.fixture
def small_id(tiny_overrides: list[str]) -> Iterator[str]:
    """An id of the user's own, registered with settings of its own."""
    gym.register(
        "My/TeacherSelect-v0",
        entry_point="envs.teacher_select:TeacherSelectEnv",
        vector_entry_point="envs.teacher_select:TeacherSelectVectorEnv",
        kwargs={"overrides": [*tiny_overrides, "budget.steps=3"]},
    )
    yield "My/TeacherSelect-v0"
    del gym.registry["My/TeacherSelect-v0"]


def test_add_an_environment_id(small_id: str) -> None:
    env = gym.make_vec(small_id, num_envs=8)
    env.reset(seed=0)
    ends = [env.step(env.action_space.sample())[2].all() for _ in range(3)]
    assert ends == [False, False, True]
    assert gym.make(small_id).reset(seed=0)[0].shape == env.single_observation_space.shape
