"""TeacherSelect-v0: one student under distillation; every step chooses who teaches each instance of its next batch.

Two faces of one process. `TeacherSelectVectorEnv`: `num_envs` rows are the batch, one step is one student step.
`TeacherSelectEnv`: one step is one instance; the student steps, and the reward arrives, when a batch is full. The same
actions give the same student in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

import configs
from distill.process import Distillation
from distill.settings import ProcessSettings, UserError, check, one_of, parse

from .observations import Observation, ObservationSettings
from .rewards import Reward, RewardSettings


class Core:
    """Process, observation and reward together: what both faces drive.

    Args:
        config: a whole run configuration as a plain mapping (see `configs/config.yaml`).
        batch_size: overrides `budget.batch_size`.
    """

    def __init__(self, config: dict[str, Any], batch_size: int | None = None) -> None:
        settings = ProcessSettings.from_config(config)
        if batch_size is not None:
            settings.budget.batch_size = batch_size
        self.weights = False  # whether actions may be weights; set by the wrapper that offers them
        reward = parse(RewardSettings, config.get("reward", {}), "reward")
        observation = parse(ObservationSettings, config.get("observation", {}), "observation")
        # A caller may sit inside inference_mode; parameters made there could never be trained.
        with torch.inference_mode(False), torch.enable_grad():
            self.process = Distillation(settings)
            self.observe = Observation(observation, self.process)
            self.reward = Reward(reward, self.process)

    @property
    def batch_size(self) -> int:
        """B."""
        return self.process.stream.batch_size

    def begin(self, seed: int, restart: bool = True) -> np.ndarray:
        """Start an episode; returns the states `[B, size]` of its first batch."""
        with torch.inference_mode(False), torch.enable_grad():
            self.process.begin(seed, restart)
            self.reward.begin(seed, restart)
            return self.observe()

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool, dict[str, np.ndarray]]:
        """One student step with `actions` `[B,K]`: next states, rewards `[B]`, whether the budget is spent, info arrays."""
        process = self.process
        with torch.inference_mode(False), torch.enable_grad():
            batch = process.current
            check_ready(batch is not None and not process.done)
            assert batch is not None
            self.reward.before()
            lr = process.student.lr
            logits, _ = process.step(actions)
            rewards, info = self.reward.after(batch, logits, actions, lr)
            return self.observe(), rewards, process.done, info

    def instances(self) -> np.ndarray:
        """Rows of the train split that the coming batch holds, int64 `[B]`."""
        assert self.process.current is not None
        return self.process.current.rows.copy()


def check_ready(ready: bool) -> None:
    """Raise Gymnasium's `ResetNeeded` unless an episode is under way."""
    if not ready:
        raise gym.error.ResetNeeded("no episode is under way: call reset() first")


def as_actions(action: Any, shape: tuple[int, ...], weights: bool = False) -> np.ndarray:
    """Subsets as float32 0/1 from int8, bool or float input, or weights as they are.

    Raises `ValueError` for another shape, a value that is no bit, or a weight outside [0, 1].
    """
    array = np.asarray(action)
    if array.shape != shape:
        raise ValueError(f"action has shape {array.shape}, expected {shape}: one bit per teacher")
    if weights:
        if not ((array >= 0) & (array <= 1)).all():
            raise ValueError(f"action {array.tolist()} holds a weight outside [0, 1]")
        return array.astype(np.float32)
    if not np.isin(array, (0, 1)).all():
        raise ValueError(f"action {array.tolist()} holds something other than 0 and 1")
    return (array > 0.5).astype(np.float32)


def as_config(
    config: dict[str, Any] | None, task: str | None, teachers: str | None, student: str | None, overrides: Sequence[str]
) -> dict[str, Any]:
    """The run configuration behind an environment's arguments: a whole one, or names of groups plus overrides."""
    if config is not None:
        check(
            not (task or teachers or student or overrides),
            "give either config or task/teachers/student/overrides, not both",
        )
        return config
    groups = {"task": task, "teachers": teachers, "student": student}
    return configs.compose([*(f"{k}={v}" for k, v in groups.items() if v), *overrides])


def restart_wanted(options: dict[str, Any] | None) -> bool:
    """Whether a reset returns to the warm start; `options={"student": "continue"}` keeps the student (the paper's joint mode)."""
    mode = (options or {}).get("student", "restart")
    one_of(mode, ("restart", "continue"), "reset option student")
    return bool(mode == "restart")


class TeacherSelectEnv(gym.Env[np.ndarray, np.ndarray]):
    """One instance a step.

    Args:
        task, teachers, student: names of configuration groups; none of them: the bundled task.
        overrides: further overrides, as on the command line (`["budget.steps=100"]`).
        config: a whole configuration instead of names.
        render_mode: None.

    Raises:
        UserError: for anything wrong in the configuration or the data, in one line.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  as Gymnasium declares it

    def __init__(
        self,
        task: str | None = None,
        teachers: str | None = None,
        student: str | None = None,
        overrides: Sequence[str] = (),
        config: dict[str, Any] | None = None,
        render_mode: str | None = None,
    ) -> None:
        if render_mode is not None:
            raise UserError(f"render_mode={render_mode} is not known; use None")
        self.render_mode = render_mode
        self.core = Core(as_config(config, task, teachers, student, overrides))
        self.observation_space = self.core.observe.space
        self.action_space = gym.spaces.MultiBinary(self.core.process.num_teachers)
        self._states: np.ndarray | None = None
        self._actions: list[np.ndarray] = []

    @property
    def layout(self) -> dict[str, slice]:
        """Where each part of the observation lies."""
        return self.core.observe.layout

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """A new episode from the warm start, or going on with `options={"student": "continue"}`."""
        super().reset(seed=seed)
        self._states = self.core.begin(int(self.np_random.integers(2**31)), restart_wanted(options))
        self._actions = []
        return self._states[0].copy(), self._info()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Choose the teachers of one instance; the batch's reward arrives with its last instance."""
        check_ready(self._states is not None)
        assert self._states is not None
        self._actions.append(as_actions(action, (self.core.process.num_teachers,), self.core.weights))
        if len(self._actions) < self.core.batch_size:
            return self._states[len(self._actions)].copy(), 0.0, False, False, self._info()
        self._states, rewards, done, info = self.core.step(np.stack(self._actions))
        self._actions = []
        state = self._states[0].copy()
        if done:
            self._states = None
        shown = {"row_rewards": rewards, **{k: float(v[0]) if k in ("gain", "value") else v for k, v in info.items()}}
        return state, float(rewards.mean()), done, False, {**self._info(), **shown}

    def _info(self) -> dict[str, Any]:
        return {"instance": int(self.core.instances()[len(self._actions)])}


class TeacherSelectVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """One batch a step: the `num_envs` rows share one student, and episodes of all rows end together.

    Autoreset is SAME_STEP: the step that ends an episode returns the first states of the next one, with the last
    states in `info["final_obs"]`. With `autoreset_mode="disabled"` the caller resets, and may look at the trained student
    before. Other arguments as of `TeacherSelectEnv`; `num_envs` is the student's batch size.
    """

    metadata: dict[str, Any] = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(
        self,
        num_envs: int | None = None,
        task: str | None = None,
        teachers: str | None = None,
        student: str | None = None,
        overrides: Sequence[str] = (),
        config: dict[str, Any] | None = None,
        render_mode: str | None = None,
        autoreset_mode: str = "same_step",
    ) -> None:
        if render_mode is not None:
            raise UserError(f"render_mode={render_mode} is not known; use None")
        one_of(autoreset_mode, ("same_step", "disabled"), "autoreset_mode")
        self.render_mode = render_mode
        self.core = Core(as_config(config, task, teachers, student, overrides), num_envs)
        self.num_envs = self.core.batch_size
        self.autoreset_mode = AutoresetMode.SAME_STEP if autoreset_mode == "same_step" else AutoresetMode.DISABLED
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.single_observation_space = self.core.observe.space
        self.single_action_space = gym.spaces.MultiBinary(self.core.process.num_teachers)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._restart = True
        self._ready = False

    @property
    def layout(self) -> dict[str, slice]:
        """Where each part of the observation lies."""
        return self.core.observe.layout

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:  # type: ignore[override]
        """A new episode from the warm start, or going on with `options={"student": "continue"}`, which later resets repeat."""
        super().reset(seed=seed)
        self._restart = restart_wanted(options)
        self._ready = True
        return self._begin()

    def _begin(self) -> tuple[np.ndarray, dict[str, Any]]:
        states = self.core.begin(int(self.np_random.integers(2**31)), self._restart)
        return states, self._masked({"instance": self.core.instances()})

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Choose the teachers of the whole batch, `[num_envs, K]`; the student takes one step."""
        check_ready(self._ready)
        states, rewards, done, info = self.core.step(
            as_actions(actions, (self.num_envs, self.core.process.num_teachers), self.core.weights)
        )
        out = self._masked({"instance": self.core.instances(), **info})
        if done and self.autoreset_mode is AutoresetMode.DISABLED:
            self._ready = False
        elif done:
            final = out
            last = states
            states, out = self._begin()
            out |= self._masked({"final_obs": last}) | {
                "final_info": final,
                "_final_info": np.ones(self.num_envs, bool),
            }
        return states, rewards, np.full(self.num_envs, done), np.zeros(self.num_envs, bool), out

    def _masked(self, info: dict[str, np.ndarray]) -> dict[str, Any]:
        return {**info, **{f"_{key}": np.ones(self.num_envs, bool) for key in info}}
