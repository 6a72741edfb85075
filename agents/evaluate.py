"""The score of a policy: what its students gain, and how good they are, on common seeds beside all teachers.

`evaluate(policy, id, seeds)` is the public form of what `agents/compare.py` does with rules and agents by name.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

import envs  # noqa: F401  registers the ids
from agents.experiment import runs
from agents.rules import AllTeachers, Policy, make_rule
from distill.checks import UserError
from distill.process import TrainingBatch
from envs.actions import Actions
from envs.core import Core
from envs.teacher_select import TeacherSelectVectorEnv

Choose = Callable[[np.ndarray], Any]


@dataclass(frozen=True)
class Score:
    """One seed.

    Attributes:
        seed: of the batches, and of a rule.
        gain: mean reward of an episode. For a gain, V after the last student step minus V at the warm start, nats.
        accuracy: test accuracy (or the task's metric) of the student with the best dev score.
        dev: its dev score.
        chosen: share of the rows in which each teacher was chosen, K numbers.
        control: test accuracy of the student that all teachers teach, on the same batches.
    """

    seed: int
    gain: float
    accuracy: float
    dev: float
    chosen: tuple[float, ...]
    control: float


@dataclass(frozen=True)
class Scores:
    """The scores of a policy over seeds.

    Attributes:
        id: of the environment.
        metric: that `accuracy`, `dev` and `control` are, as the task says.
        seeds: one `Score` each.
    """

    id: str
    metric: str
    seeds: tuple[Score, ...]

    @property
    def gain(self) -> float:
        """Mean over the seeds, nats."""
        return float(np.mean([s.gain for s in self.seeds]))

    @property
    def points(self) -> np.ndarray:
        """Percentage points of test accuracy over all teachers, one a seed."""
        return np.array([100 * (s.accuracy - s.control) for s in self.seeds])

    def __str__(self) -> str:
        lines = [
            f"seed {s.seed}: gain {s.gain:+.4f}, test {self.metric} {s.accuracy:.4f} (all teachers {s.control:.4f})"
            for s in self.seeds
        ]
        return "\n".join([f"{self.id}: {self.points.mean():+.1f} points over all teachers", *lines])


def evaluate(
    policy: Choose | str | Any, id: str = "TeacherSelect-v0", seeds: int | Sequence[int] = 5, **kwargs: Any
) -> Scores:
    """Train a student under a policy, fixed, for every seed, and one under all teachers on the same batches.

    Every student starts at the warm start and takes the budget's steps. The checkpoint with the best dev score is
    evaluated once on test, as in `agents/compare.py`.

    Args:
        policy: a function from states `[B,S]` to actions `[B,...]` of the environment; a model of Stable-Baselines3, or
            anything with its `predict`; or the name or import path of a rule (`best_single`, `my_package.module:MyRule`).
        id: of the environment. `TeacherSelect/Labels-v0` has no student to score; its `score` and `regret` do that.
        seeds: how many (0, 1, ...), or which.
        kwargs: of the environment: `task`, `teachers`, `student`, `overrides`, `actions`, ...

    Raises:
        UserError: for an id without a student, an unknown rule, or a wrong setting.
    """
    numbers = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not numbers:
        raise UserError(f"seeds={seeds} names no seed; give a number of seeds, or a list of them")
    env = _make(id, kwargs)
    core: Core = env.core

    def rule(seed: int) -> runs.Rule:
        return make_rule(policy, core, seed) if isinstance(policy, str) else Policy(_acting(policy, env.actions))

    scores, test, metric = [], core.process.task.tests[0], core.process.task.metric
    for seed in numbers:
        gain = _gain(core, rule(seed), seed)
        ours = runs.follow(core, rule(seed), seed, "policy")
        control = runs.follow(core, AllTeachers(core, seed), seed, "control")
        rates = tuple(ours.selected.summary()["rate"])
        scores.append(Score(seed, gain, ours.tests[test][metric], ours.dev[metric], rates, control.tests[test][metric]))
    return Scores(id, metric, tuple(scores))


def _make(id: str, kwargs: dict[str, Any]) -> Any:
    """The vector environment. Without `num_envs` it has the batch size of its settings; `gym.make_vec` would make one row."""
    module, _, name = id.rpartition(":")
    if module:
        importlib.import_module(module)
    entry = gym.spec(name).vector_entry_point
    if entry is None:
        raise UserError(f"{id} has no vector form; register it with vector_entry_point")
    create: Any = gym.envs.registration.load_env_creator(entry) if isinstance(entry, str) else entry
    env = create(**{**gym.spec(name).kwargs, **kwargs})
    if not isinstance(env, TeacherSelectVectorEnv):
        raise UserError(
            f"{id} has no student to score; TeacherSelect/Labels-v0 scores a policy with score() and regret()"
        )
    return env


def _acting(policy: Any, actions: Actions) -> Callable[[np.ndarray], np.ndarray]:
    """From states `[B,S]` to subsets or weights `[B,K]`."""
    predict = getattr(policy, "predict", None)
    if predict is None and not callable(policy):
        raise UserError(
            f"policy={policy!r} cannot act; give a function of states, a model with predict(), or the name of a rule"
        )
    choose: Choose = policy if predict is None else lambda states: predict(states, deterministic=True)[0]
    return lambda states: actions.decode(choose(states), (len(states),))


def _gain(core: Core, rule: runs.Rule, seed: int) -> float:
    """The mean reward of one episode under a rule, summed over its steps."""
    states, total, done = core.begin(seed), 0.0, False
    while not done:
        batch = core.process.batch
        assert isinstance(batch, TrainingBatch)
        states, rewards, done, info = core.step(rule(states, batch))
        if "failure" in info:
            raise UserError(str(info["failure"][0]))
        total += float(rewards.mean())
    return total
