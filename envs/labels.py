"""TeacherSelect/Labels-v0: the labelled reward instances as a one-step problem. There is no student.

A step chooses the teachers of one labelled instance. Its reward is the log-likelihood of the label under the mean of the
chosen teachers, minus that under all teachers, in nats. Every episode is one step, and nothing is learnt but the policy, so
a step costs microseconds. What is learnt here drives `TeacherSelect-v0`: the observation has the same parts in the same
order, without those that read the label or the student.

The best linear policy on these instances is known (`optimum`), and so is the one that is expected to be best on new ones
(`fit`, the start of `agents/reinforce.py`). `regret` compares a policy with the first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from distill.checks import UserError, one_of
from distill.process import Distillation, Prepared, TrainingBatch
from distill.selection import Fit, Problem, best_linear, fit_selector
from distill.settings import ObservationSettings, RunSettings
from envs import rendering
from envs.actions import FORMS, Actions, as_actions
from envs.arguments import as_autoreset, as_settings, check_render_mode, restart_wanted
from envs.core import Core, check_open, check_ready
from envs.observations import PARTS, Observation, Part, View, parts_of
from envs.registry import find

SHOWN = 1000  # steps that rendering remembers


def label_problem(core: Core, role: str = "reward") -> Problem:
    """Every instance of a labelled split, with the reward of each choice of teachers: the log-likelihood of its label.

    The states `[R,S]` have the environment's layout, so what is fitted on them acts in it. Parts that read the label or
    the student are left at zero: a selector that had seen the label here would miss it where it is unknown or wrong.

    Args:
        core: of the environment.
        role: `reward`, or `dev` to compare selectors.
    """
    return problem_of(core.process, core.observe, role)


def problem_of(process: Distillation, observe: Observation, role: str) -> Problem:
    """`label_problem` from its parts."""
    split = process.task.splits[role].require("reward", "dev")
    batch = process.labelled_batch(role)
    view = View(process, batch)
    states = np.zeros((len(split), observe.space.shape[0]))
    for name, part in observe.parts.items():
        if part.label_free:
            states[:, observe.layout[name]] = np.clip(part.values(view), part.low, part.high)
    gold = batch.probs[np.arange(len(split)), :, split.labels]
    return Problem(states, gold, batch.probs.argmax(2) == split.labels[:, None], batch.answered)


class Instances(Distillation):
    """The data, the teachers and their signals, for states and rewards by labels. It has no student and cannot step."""

    def _build(self, settings: RunSettings) -> None:
        self.prepared = Prepared.of(settings)
        self.task, self.device = self.prepared.task, torch.device("cpu")
        self.signals = self.prepared.load().signals("train")
        self.train_split = self.task.splits["train"].require("train")
        self.labels = self.train_split.labels

    def labelled_batch(self, role: str) -> TrainingBatch:
        """All instances of the reward or dev split as one batch, without tokens."""
        split = self.task.splits[role].require("reward", "dev")
        gold, signals = torch.from_numpy(split.labels), self.prepared.signals(role)
        temperature = self.settings.loss.temperature
        return TrainingBatch(np.arange(len(split)), split.labels, {}, gold, signals, temperature)


def label_free_parts(settings: ObservationSettings, process: Distillation) -> list[str]:
    """The parts of the observation that read neither a label nor the student.

    Raises:
        UserError: where `observation.parts` names another part, or where none is left.
    """
    names = parts_of(settings, process)
    free = [n for n in names if find(n, PARTS, Part, "observation.parts").label_free]  # type: ignore[type-abstract]
    if settings.parts is not None and free != names:
        wrong = next(n for n in names if n not in free)
        raise UserError(
            f"observation.parts: {wrong} reads the label or the student, which TeacherSelect/Labels-v0 does not show; "
            f"take it out, or leave observation.parts at null"
        )
    if not free:
        raise UserError(
            f"observation.parts={names} has no part for TeacherSelect/Labels-v0; use encoder, teacher_probs"
        )
    return free


class Labels:
    """What the single and the vector interface share: the instances, their rewards, and the score of a policy.

    Attributes:
        process: the data and the teachers.
        observe: the parts of the state.
        actions: the form of an action.
        problem: the instances of the reward split.
        render_mode: None, `ansi` or `rgb_array`.
    """

    def __init__(self, settings: RunSettings, actions: str, render_mode: str | None) -> None:
        self.render_mode = check_render_mode(render_mode)
        one_of(actions, FORMS, "actions")  # before anything is computed
        self.settings = settings
        self.process = Instances(settings)
        parts = label_free_parts(settings.observation, self.process)
        self.observe = Observation(replace(settings.observation, parts=parts), self.process)
        self.actions = Actions(actions, self.process.num_teachers)
        self._splits: dict[str, Problem] = {}
        self.problem = self.split("reward")
        self._states = self.problem.states.astype(np.float32)
        self._values: deque[float] = deque(maxlen=SHOWN)
        self._rates: deque[np.ndarray] = deque(maxlen=SHOWN)
        self._closed = False

    def split(self, role: str) -> Problem:
        """All instances of the split `reward`, which the environment shows, or `dev`, which it does not."""
        if role not in self._splits:
            self._splits[role] = problem_of(self.process, self.observe, role)
        return self._splits[role]

    @property
    def layout(self) -> dict[str, slice]:
        """Where each part of the observation lies."""
        return self.observe.layout

    @cached_property
    def optimum(self) -> Fit:
        """The best linear policy on the instances of the reward split."""
        return best_linear(self.problem)

    @cached_property
    def fit(self) -> Fit:
        """The linear policy with a ridge penalty by cross-validation, for new instances."""
        return fit_selector(self.problem, forms=["taught"])

    def score(self, chosen: np.ndarray, role: str = "reward") -> float:
        """Mean reward over all instances of a split, nats a label over all teachers.

        Args:
            chosen: subsets or weights `[R,K]`, one for each instance of `split(role)`.
            role: `reward` or `dev`.
        """
        problem = self.split(role)
        given = as_actions(chosen, problem.gold.shape, weights=True)
        return float((problem.reward(given) - problem.everyone).mean())

    def regret(self, chosen: np.ndarray) -> float:
        """Score of the best linear policy on the reward split minus that of `chosen` `[R,K]`, nats a label."""
        return self.optimum.gain - self.score(chosen)

    def render(self) -> Any:
        """A status line (`ansi`) or a figure `[H,W,3]` uint8 (`rgb_array`) of the last steps."""
        if self.render_mode is None:
            return None
        rates, names = np.array(self._rates), self.process.signals.names
        if self.render_mode == "rgb_array":
            return rendering.panels(
                list(enumerate(self._values, 1)), "reward, nats over all teachers", rates, names, "step"
            )
        if not self._values:
            return f"{len(self.problem)} labelled instances"
        chosen = " ".join(f"{n} {r:.2f}" for n, r in zip(names, rates.mean(0), strict=True))
        return f"reward {np.mean(self._values):+.4f} over {len(self._values)} steps  chosen {chosen}"

    def _pay(self, rows: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """Rewards `[B]` of subsets or weights `[B,K]` on the instances `rows` `[B]`."""
        rewards = self.problem.reward(chosen, rows) - self.problem.everyone[rows]
        if self.render_mode is not None:
            self._values.append(float(rewards.mean()))
            self._rates.append((chosen > 0).mean(0))
        return rewards


class LabelsEnv(Labels, gym.Env[np.ndarray, Any]):
    """One labelled instance an episode of one step. The state after the step is that of the same instance.

    Args:
        task, teachers, student, overrides, config, render_mode, experiment, config_dir, actions: as of
            `envs.teacher_select.TeacherSelectEnv`. Settings of the student, the budget, the reward and the credit are
            not used.

    Raises:
        UserError: for anything wrong in the configuration or the data, in one line.
    """

    metadata: dict[str, Any] = {"render_modes": list(rendering.MODES), "render_fps": 4}  # noqa: RUF012  as Gymnasium declares it

    def __init__(
        self,
        task: str | None = None,
        teachers: str | None = None,
        student: str | None = None,
        overrides: Sequence[str] = (),
        config: dict[str, Any] | None = None,
        render_mode: str | None = None,
        experiment: str | None = None,
        config_dir: str | None = None,
        actions: str = "subset",
    ) -> None:
        groups = {"task": task, "teachers": teachers, "student": student, "experiment": experiment}
        super().__init__(as_settings(config, overrides, config_dir, **groups), actions, render_mode)
        self.observation_space = self.observe.space
        self.action_space = self.actions.space
        self._rows = np.zeros(1, np.int64)
        self._ready = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Draw an instance."""
        check_open(self._closed)
        for key in options or {}:
            raise UserError(f"reset option={key} is not known; TeacherSelect/Labels-v0 has none")
        gym.Env.reset(self, seed=seed)
        self._rows = self.np_random.integers(len(self.problem), size=1)
        self._ready = True
        return self._states[self._rows[0]].copy(), self._info()

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Choose the teachers of the instance; the episode ends."""
        check_open(self._closed)
        check_ready(self._ready)
        reward = float(self._pay(self._rows, self.actions.decode(action)[None])[0])
        self._ready = False
        return self._states[self._rows[0]].copy(), reward, True, False, self._info()

    def close(self) -> None:
        """Close it: `reset` and `step` raise `ClosedEnvironmentError` from now on."""
        self._closed = True

    def action_masks(self) -> np.ndarray:
        """Which values the action may take, bool `[2*K]` or `[2^K]`, as `TeacherSelectEnv.action_masks` says it."""
        check_ready(self._ready)
        masks: np.ndarray = self.actions.masks(self.problem.answered[self._rows] > 0)[0]
        return masks

    def _info(self) -> dict[str, Any]:
        return {"instance": int(self._rows[0])}


class LabelsVectorEnv(Labels, VectorEnv[np.ndarray, Any, np.ndarray]):
    """`num_envs` instances a step, drawn independently; every row's episode ends at every step.

    Args:
        num_envs: rows.
        autoreset_mode: `same_step`, `next_step` or `disabled`, or Gymnasium's enum.

    Other arguments as of `LabelsEnv`.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012  as Gymnasium declares it
        "render_modes": list(rendering.MODES),
        "render_fps": 4,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        num_envs: int = 256,
        task: str | None = None,
        teachers: str | None = None,
        student: str | None = None,
        overrides: Sequence[str] = (),
        config: dict[str, Any] | None = None,
        render_mode: str | None = None,
        autoreset_mode: str | AutoresetMode = "same_step",
        experiment: str | None = None,
        config_dir: str | None = None,
        actions: str = "subset",
    ) -> None:
        self.autoreset_mode = as_autoreset(autoreset_mode)
        if num_envs <= 0:
            raise UserError(f"num_envs={num_envs} must be positive")
        groups = {"task": task, "teachers": teachers, "student": student, "experiment": experiment}
        super().__init__(as_settings(config, overrides, config_dir, **groups), actions, render_mode)
        self.num_envs = num_envs
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.single_observation_space = self.observe.space
        self.single_action_space = self.actions.space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._rows = np.zeros(num_envs, np.int64)
        self._ready = self._ended = False

    def reset(  # type: ignore[override]
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Draw an instance for every row."""
        check_open(self.closed)
        if "student" in (options or {}):
            raise UserError("reset option=student is not known; TeacherSelect/Labels-v0 has no student")
        restart_wanted(options, self.num_envs)
        VectorEnv.reset(self, seed=seed)
        self._ready = True
        return self._draw()

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Choose the teachers of every row; all episodes end."""
        check_open(self.closed)
        check_ready(self._ready)
        never = np.zeros(self.num_envs, bool)
        if self._ended:  # NEXT_STEP: this step is the reset
            states, info = self._draw()
            return states, np.zeros(self.num_envs), never, never.copy(), info
        rewards = self._pay(self._rows, self.actions.decode(actions, (self.num_envs,)))
        states, info = self._states[self._rows], self._info()
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            last, final = states, info
            states, info = self._draw()
            info |= {"final_obs": last, "final_info": final, "_final_obs": ~never, "_final_info": ~never}
        self._ended = self.autoreset_mode is AutoresetMode.NEXT_STEP
        self._ready = self.autoreset_mode is not AutoresetMode.DISABLED
        return states, rewards, ~never, never, info

    def action_masks(self) -> np.ndarray:
        """Which values the action of every row may take, bool `[B,2*K]` or `[B,2^K]`."""
        check_ready(self._ready)
        return self.actions.masks(self.problem.answered[self._rows] > 0)

    def _draw(self) -> tuple[np.ndarray, dict[str, Any]]:
        self._ended = False
        self._rows = self.np_random.integers(len(self.problem), size=self.num_envs)
        return self._states[self._rows], self._info()

    def _info(self) -> dict[str, Any]:
        return {"instance": self._rows.copy(), "_instance": np.ones(self.num_envs, bool)}
