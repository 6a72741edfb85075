"""TeacherSelect-v0: one student under distillation; every step chooses who teaches each instance of its next batch.

Two faces of one process. `TeacherSelectVectorEnv`: `num_envs` rows are the batch, one step is one student step.
`TeacherSelectEnv`: one step is one instance; the student steps, and the reward arrives, when a batch is full. The same
actions give the same student in both.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

import configs
from distill import parallel
from distill.checks import NotFinite, check, one_of
from distill.process import Distillation
from distill.settings import ProcessSettings, digest, parse
from envs import rendering
from envs.observations import Observation, ObservationSettings
from envs.rewards import Reward, RewardSettings, part_of
from envs.states import check_arrays, check_facts, facts_of

State = dict[str, np.ndarray]


class Core:
    """Process, observation, reward and log together: what both faces drive.

    Args:
        config: a whole run configuration as a plain mapping (see `configs/config.yaml`).
        batch_size: overrides `budget.batch_size`.
    """

    def __init__(self, config: dict[str, Any], batch_size: int | None = None) -> None:
        settings = ProcessSettings.from_config(config)
        if batch_size is not None:
            if batch_size <= 0:
                raise UserError(f"num_envs={batch_size} must be positive")
            settings.budget.batch_size = batch_size
        self.weights = False  # whether actions may be weights; set by the wrapper that offers them
        reward = parse(RewardSettings, config.get("reward", {}), "reward")
        observation = parse(ObservationSettings, config.get("observation", {}), "observation")
        # A caller may sit inside inference_mode; parameters made there could never be trained.
        with training_mode():
            self.process = Distillation(settings)
            self.observe = Observation(observation, self.process)
            self.reward = Reward(reward, self.process)
        how = (settings.student, settings.loss, settings.budget, reward, observation)
        self.fingerprint = digest(self.process.prepared.fingerprint, settings.seed, [asdict(part) for part in how])
        self.log, self._ended = Log(), Log()
        self.failure: str | None = None  # why this episode ended before its budget was spent

    @property
    def batch_size(self) -> int:
        """B."""
        return self.process.stream.batch_size

    def begin(self, seed: int, restart: bool = True) -> np.ndarray:
        """Start an episode; returns the states `[B, size]` of its first batch. A student that failed is never continued."""
        seed = int(parallel.from_first(np.array([seed]))[0])
        with training_mode():
            if self.log.actions:
                self._ended = self.log
            restart, self.failure = restart or self.failure is not None, None
            self.process.begin(seed, restart)
            self.reward.begin(seed, restart)
            self.log = Log(seed, restart)
            return self.observe()

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool, dict[str, np.ndarray]]:
        """One student step with `actions` `[B,K]`: next states, rewards `[B]`, whether the episode ends, info arrays.

        It ends when the budget is spent, or with `info["failure"]` when the student's numbers are no longer finite.
        """
        process = self.process
        with training_mode():
            check_ready(process.current is not None and not process.done and self.failure is None)
            actions = parallel.from_first(actions)  # one policy acts, however many processes share the step
            try:
                rewards, info = self._learn(actions)
            except NotFinite as error:
                self.failure = str(error)
                left = process.student.budget - len(self.log.actions)
                rewards = np.full(self.batch_size, self.reward.penalty(left))
                info = {"failure": np.full(self.batch_size, self.failure)}
            self.log.add(actions, rewards, info)
            return self.observe(), rewards, process.done or self.failure is not None, info

    def _learn(self, actions: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Rewards `[B]` and info arrays of one student step; `NotFinite` when a number of it is not."""
        process, batch = self.process, self.process.current
        assert batch is not None
        self.reward.before()
        lr = process.student.lr
        logits, _ = process.step(actions)
        rewards, info = self.reward.after(batch, logits, actions, lr)
        if not math.isfinite(sum(float(values.sum()) for values in (rewards, *info.values()))):
            raise NotFinite(
                f"the reward is no finite number after step {process.student.steps} "
                f"with student.lr={process.student.settings.lr:g}; lower student.lr"
            )
        return rewards, info

    def instances(self) -> np.ndarray:
        """Rows of the train split that the coming batch holds, int64 `[B]`."""
        assert self.process.current is not None
        return self.process.current.rows.copy()

    # --- state ------------------------------------------------------------------------------------------------------

    def state(self, more: dict[str, Any]) -> State:
        """All state as arrays without pickle: `np.savez` writes it, `np.load(allow_pickle=False)` reads it."""
        process, process_facts = self.process.state()
        reward, reward_facts = self.reward.state()
        log, log_facts = self.log.state()
        facts = {
            "fingerprint": self.fingerprint,
            "failure": self.failure,
            "process": process_facts,
            "reward": reward_facts,
            "log": log_facts,
            **more,
        }
        arrays = {
            f"{part}/{n}": v
            for part, group in (("process", process), ("reward", reward), ("log", log))
            for n, v in group.items()
        }
        return {"facts": np.array(json.dumps(facts)), **arrays}

    def set_state(self, state: State) -> dict[str, Any]:
        """Go on from `state()`; returns its facts.

        Raises `UserError`, with nothing moved, when it is of another configuration, data or teachers, or is damaged.
        """
        facts = facts_of(state)
        if facts["fingerprint"] != self.fingerprint:
            raise UserError(
                f"this state is of another environment: fingerprint {facts['fingerprint']} there, {self.fingerprint} here; make one with the same settings"
            )
        check_arrays(state, self.process)
        check_facts(facts, state)
        with training_mode():
            self.process.set_state(part_of(state, "process"), facts["process"])
        self.reward.set_state(part_of(state, "reward"), facts["reward"])
        self.log = Log.from_state(part_of(state, "log"), facts["log"])
        self.failure = facts["failure"]
        return facts

    def fork(self) -> Core:
        """An independent copy as it stands; heavy read-only parts are shared."""
        other = copy.copy(self)
        with training_mode():
            other.process = self.process.fork()
        other.reward = self.reward.fork(other.process)
        other.observe = copy.copy(self.observe)
        other.observe.process = other.process
        other.log = Log.from_state(*self.log.state())
        return other

    @property
    def shown(self) -> Log:
        """The log of this episode, or of the one before while nothing has happened in this one."""
        return self.log if self.log.actions else self._ended

    def trajectory(self) -> State:
        """The episode so far, for `validate`: `actions` `[T,B,K]`, `rewards` `[T,B]`, and `facts` (JSON).

        Before an episode's first step it is the episode before, which an automatic reset would else take away.
        """
        arrays, facts = self.shown.state()
        facts = {"fingerprint": self.fingerprint, "seed": facts["seed"], "restart": facts["restart"]}
        return {"facts": np.array(json.dumps(facts)), "actions": arrays["actions"], "rewards": arrays["rewards"]}

    def validate(self, trajectory: State) -> float:
        """Replay a trajectory on a fork; the largest absolute difference of a reward (0.0 on the same machine and threads).

        Raises `UserError` when it was recorded in another environment, or in an episode that did not begin at the warm start.
        """
        facts = facts_of(trajectory)
        if facts["fingerprint"] != self.fingerprint:
            raise UserError(
                f"the trajectory is of another environment ({facts['fingerprint']}; this one is {self.fingerprint})"
            )
        if not facts["restart"]:
            raise UserError(
                "the trajectory's episode went on from an earlier one; only episodes from the warm start can be replayed"
            )
        fork = self.fork()
        fork.begin(facts["seed"])
        worst = 0.0
        for actions, rewards in zip(trajectory["actions"], trajectory["rewards"], strict=True):
            worst = max(worst, float(np.abs(fork.step(actions)[1] - rewards).max()))
        return worst


class Log:
    """What happened in an episode: for replay and for rendering."""

    def __init__(self, seed: int = 0, restart: bool = True) -> None:
        self.seed, self.restart = seed, restart
        self.actions: list[np.ndarray] = []
        self.rewards: list[np.ndarray] = []
        self.values: list[tuple[int, float]] = []  # (student step, V) where it was measured

    def add(self, actions: np.ndarray, rewards: np.ndarray, info: dict[str, np.ndarray]) -> None:
        """One student step."""
        self.actions.append(np.array(actions, np.float32))
        self.rewards.append(np.array(rewards, np.float64))
        if "value" in info:
            self.values.append((len(self.actions), float(info["value"][0])))

    def state(self) -> tuple[State, dict[str, Any]]:
        """Arrays and JSON-able facts."""
        arrays: State = {"actions": np.array(self.actions, np.float32), "rewards": np.array(self.rewards, np.float64)}
        return arrays, {"seed": self.seed, "restart": self.restart, "values": self.values}

    @classmethod
    def from_state(cls, arrays: State, facts: dict[str, Any]) -> Log:
        """The log that `state()` told of."""
        log = cls(facts["seed"], facts["restart"])
        log.actions, log.rewards = list(arrays["actions"]), list(arrays["rewards"])
        log.values = [(int(t), float(v)) for t, v in facts["values"]]
        return log


def training_mode() -> AbstractContextManager[object]:
    """Gradients on, whatever mode the caller is in; entered at every step, so nothing is switched that is right already."""
    if torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
        return nullcontext()
    stack = ExitStack()
    stack.enter_context(torch.inference_mode(False))
    stack.enter_context(torch.enable_grad())
    return stack


def check_open(closed: bool) -> None:
    """Raise Gymnasium's `ClosedEnvironmentError` after `close()`."""
    if closed:
        raise gym.error.ClosedEnvironmentError("the environment is closed: make another one")


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
    on = array == 1
    if not (on | (array == 0)).all():
        raise ValueError(f"action {array.tolist()} holds something other than 0 and 1")
    return on.astype(np.float32)


def as_config(
    config: dict[str, Any] | None, task: str | None, teachers: str | None, student: str | None, overrides: Sequence[str]
) -> dict[str, Any]:
    """The run configuration behind an environment's arguments: a whole one, or names of groups plus overrides."""
    if config is not None:
        if task or teachers or student or overrides:
            raise UserError("give either config or task/teachers/student/overrides, not both")
        return config
    groups = {"task": task, "teachers": teachers, "student": student}
    return configs.compose([*(f"{k}={v}" for k, v in groups.items() if v), *overrides])


def restart_wanted(options: dict[str, Any] | None) -> bool:
    """Whether a reset returns to the warm start; `options={"student": "continue"}` keeps the student (the paper's joint mode)."""
    for key in options or {}:
        one_of(key, ("student", "reset_mask"), "reset option")
    mode = (options or {}).get("student", "restart")
    one_of(mode, ("restart", "continue"), "reset option student")
    return bool(mode == "restart")


def check_render_mode(mode: str | None) -> str | None:
    """The render mode, if it is one of ours; `UserError` otherwise."""
    if mode is not None:
        one_of(mode, rendering.MODES, "render_mode")
    return mode


class TeacherSelectEnv(gym.Env[np.ndarray, np.ndarray]):
    """One instance a step.

    Args:
        task, teachers, student: names of configuration groups; none of them: the bundled task.
        overrides: further overrides, as on the command line (`["budget.steps=100"]`).
        config: a whole configuration instead of names.
        render_mode: None, `ansi` (a status line) or `rgb_array` (a small figure; needs matplotlib).

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
    ) -> None:
        self.render_mode = check_render_mode(render_mode)
        self.core = Core(as_config(config, task, teachers, student, overrides))
        self.observation_space = self.core.observe.space
        self.action_space = gym.spaces.MultiBinary(self.core.process.num_teachers)
        self._states: np.ndarray | None = None
        self._actions: list[np.ndarray] = []
        self._closed = False

    @property
    def layout(self) -> dict[str, slice]:
        """Where each part of the observation lies."""
        return self.core.observe.layout

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """A new episode from the warm start, or going on with `options={"student": "continue"}`."""
        check_open(self._closed)
        super().reset(seed=seed)
        self._states = self.core.begin(int(self.np_random.integers(2**31)), restart_wanted(options))
        self._actions = []
        return self._states[0].copy(), self._info()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Choose the teachers of one instance; the batch's reward arrives with its last instance."""
        check_open(self._closed)
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
        scalars = {k: v[0].item() for k, v in info.items() if k in ("gain", "value", "measured", "failure")}
        shown = {"row_rewards": rewards, **info, **scalars}
        return state, float(rewards.mean()), done, False, {**self._info(), **shown}

    def render(self) -> Any:
        """A status line (`ansi`) or a figure `[H,W,3]` uint8 (`rgb_array`)."""
        return rendering.render(self.render_mode, self.core)

    def close(self) -> None:
        """The last word: `reset` and `step` raise `ClosedEnvironmentError` from now on."""
        self._closed = True

    def _info(self) -> dict[str, Any]:
        return {"instance": int(self.core.instances()[len(self._actions)])}

    def get_state(self) -> State:
        """The whole state: student, optimiser, schedule, data cursor, generators, reward baseline, log, chosen rows.

        Arrays only: `np.savez(path, **state)` writes it, `dict(np.load(path, allow_pickle=False))` reads it.
        """
        rng = self.np_random.bit_generator.state
        state = self.core.state({"env_rng": rng, "running": self._states is not None})
        return {**state, "pending": np.array(self._actions, np.float32)}

    def set_state(self, state: State) -> None:
        """Go on from `get_state()` of an environment with the same settings; `UserError` for another one's state."""
        if "pending" not in state:
            raise UserError("this state is of the vector environment; give it to one")
        facts = self.core.set_state(state)
        self.np_random.bit_generator.state = facts["env_rng"]
        self._states = self.core.observe() if facts["running"] else None
        self._actions = list(np.array(state["pending"]))

    def fork(self) -> TeacherSelectEnv:
        """An independent environment in the same state: same actions, same observations, rewards and weights."""
        other = copy.copy(self)
        other.core = self.core.fork()
        other._np_random = copy.deepcopy(self.np_random)
        other._actions = list(self._actions)
        return other

    def trajectory(self) -> State:
        """The episode's full batches so far, for `validate`: arrays only."""
        return self.core.trajectory()

    def validate(self, trajectory: State) -> float:
        """Replay a trajectory; the largest absolute difference of a reward."""
        return self.core.validate(trajectory)


class TeacherSelectVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """One batch a step: the `num_envs` rows share one student, and episodes of all rows end together.

    Batches are always full: the epochs' permutations follow each other without a gap. Autoreset is SAME_STEP: the step
    that ends an episode returns the first states of the next one, with the last states in `info["final_obs"]`. With
    `autoreset_mode="disabled"` the caller resets, and may look at the trained student before. Other arguments as of
    `TeacherSelectEnv`; `num_envs` is the student's batch size.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012  as Gymnasium declares it
        "render_modes": list(rendering.MODES),
        "render_fps": 4,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

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
        one_of(autoreset_mode, ("same_step", "disabled"), "autoreset_mode")
        self.render_mode = check_render_mode(render_mode)
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

    def reset(  # type: ignore[override]
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """A new episode from the warm start, or going on with `options={"student": "continue"}`, which later resets repeat."""
        check_open(self.closed)
        super().reset(seed=seed)
        self._restart = restart_wanted(options)
        self._ready = True
        return self._begin()

    def _begin(self) -> tuple[np.ndarray, dict[str, Any]]:
        states = self.core.begin(int(self.np_random.integers(2**31)), self._restart)
        return states, self._masked({"instance": self.core.instances()})

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Choose the teachers of the whole batch, `[num_envs, K]`; the student takes one step."""
        check_open(self.closed)
        check_ready(self._ready)
        shape = (self.num_envs, self.core.process.num_teachers)
        states, rewards, done, info = self.core.step(as_actions(actions, shape, self.core.weights))
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

    def render(self) -> Any:  # type: ignore[override]
        """A status line (`ansi`) or a figure `[H,W,3]` uint8 (`rgb_array`) of the one student."""
        return rendering.render(self.render_mode, self.core)

    def get_state(self) -> State:
        """The whole state, as of `TeacherSelectEnv.get_state`."""
        rng = self.np_random.bit_generator.state
        return self.core.state({"env_rng": rng, "running": self._ready, "restart": self._restart})

    def set_state(self, state: State) -> None:
        """Go on from `get_state()` of an environment with the same settings; `UserError` for another one's state."""
        if "pending" in state:
            raise UserError("this state is of the single environment; give it to one")
        facts = self.core.set_state(state)
        self.np_random.bit_generator.state = facts["env_rng"]
        self._ready, self._restart = facts["running"], facts["restart"]

    def fork(self) -> TeacherSelectVectorEnv:
        """An independent environment in the same state: same actions, same observations, rewards and weights."""
        other = copy.copy(self)
        other.core = self.core.fork()
        other._np_random = copy.deepcopy(self.np_random)
        return other

    def trajectory(self) -> State:
        """The episode so far, for `validate`: arrays only."""
        return self.core.trajectory()

    def validate(self, trajectory: State) -> float:
        """Replay a trajectory; the largest absolute difference of a reward."""
        return self.core.validate(trajectory)
