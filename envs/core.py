"""The core that the single and the vector interface drive: process, observation, reward, credit and log together."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import gymnasium as gym
import numpy as np
import torch

from distill import parallel
from distill.checks import NotFinite, UserError
from distill.process import Distillation, torch_threads
from distill.settings import RunSettings, digest
from distill.state import Array, Damaged, is_count, is_flag, is_number
from envs.credit import make_credit, with_credit
from envs.observations import Observation
from envs.rewards import make_reward

State = dict[str, np.ndarray]
P = ParamSpec("P")
T = TypeVar("T")


@contextmanager
def computing(threads: int | None) -> Iterator[None]:
    """Gradients on whatever mode the caller is in, and `threads` torch threads; both as before afterwards."""
    with torch_threads(threads):
        if torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
            yield
        else:
            with torch.inference_mode(False), torch.enable_grad():
                yield


def computes(method: Callable[P, T]) -> Callable[P, T]:
    """Run a method of `Core` within `computing`."""

    @wraps(method)
    def inside(*args: P.args, **kwargs: P.kwargs) -> T:
        core: Any = args[0]
        with computing(core.threads):
            return method(*args, **kwargs)

    return inside


class Core:
    """Process, observation, reward, credit and log together.

    Args:
        settings: of the whole run, or a plain mapping of them (what `configs.compose` returns).
        batch_size: overrides `budget.batch_size`.

    Raises:
        UserError: for anything wrong with the settings, the data or a checkpoint, in one line.
    """

    def __init__(self, settings: RunSettings | Mapping[str, Any], batch_size: int | None = None) -> None:
        if not isinstance(settings, RunSettings):
            settings = RunSettings.from_config(settings)
        if batch_size is not None:
            if batch_size <= 0:
                raise UserError(f"num_envs={batch_size} must be positive")
            settings = replace(settings, budget=replace(settings.budget, batch_size=batch_size))
        settings = with_credit(settings, preferred="shared")
        self.settings, self.threads = settings, settings.threads
        self.weights = False  # whether actions may be weights; set by the wrapper that offers them
        # A caller may be inside inference_mode. Parameters made there could never be trained.
        with computing(self.threads):
            self.process = Distillation(settings)
            self.observe = Observation(settings.observation, self.process)
            self.reward = make_reward(settings.reward, self.process)
            self.credit = make_credit(settings.credit, self.reward)
        sections = ("budget", "observation", "reward", "credit")
        self.fingerprint = digest(self.process.prepared.fingerprint, settings.fingerprint("cell", sections))
        self.log, self._ended = Log(), Log()
        self.failure: str | None = None  # why this episode ended before its budget was spent

    @property
    def batch_size(self) -> int:
        """B."""
        return self.process.stream.batch_size

    @computes
    def begin(self, seed: int, restart: bool = True) -> np.ndarray:
        """Start an episode; returns the states `[B, size]` of its first batch. A student that failed always restarts."""
        seed = int(parallel.from_first(np.array([seed]))[0])
        if self.log.actions:
            self._ended = self.log
        restart, self.failure = restart or self.failure is not None, None
        self.process.begin(seed, restart)
        self.reward.begin(seed, restart)
        self.credit.begin(seed)
        self.log = Log(seed, restart)
        return self.observe()

    @computes
    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool, dict[str, np.ndarray]]:
        """One student step with `actions` `[B,K]`: next states, rewards `[B]`, whether the episode ends, info arrays.

        It ends when the budget is spent, or with `info["failure"]` when the student's numbers are no longer finite.
        """
        process = self.process
        check_ready(process.batch is not None and not process.done and self.failure is None)
        actions = parallel.from_first(actions)  # one policy acts, however many processes share the step
        try:
            rewards, info = self._learn(actions)
        except NotFinite as error:
            self.failure = str(error)
            left = process.student.budget - len(self.log.actions)
            rewards = np.full(self.batch_size, self.reward.failed(left))
            info = {"failure": np.full(self.batch_size, self.failure)}
        self.log.add(actions, rewards, info)
        return self.observe(), rewards, process.done or self.failure is not None, info

    def _learn(self, actions: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Rewards `[B]` and info arrays of one student step; `NotFinite` when one of its numbers is not finite."""
        process, batch = self.process, self.process.batch
        assert batch is not None
        self.credit.before(batch)
        result = process.step(actions)
        reward, info = self.reward.after(batch, actions, result)
        rewards, credit = self.credit.after(batch, actions, result, reward)
        info |= credit
        if not math.isfinite(sum(float(values.sum()) for values in (rewards, *info.values()))):
            raise NotFinite(
                f"the reward is not finite after step {process.student.steps} "
                f"with student.lr={process.student.settings.lr:g}; lower student.lr"
            )
        return rewards, info

    def instances(self) -> np.ndarray:
        """Rows of the train split that the coming batch holds, int64 `[B]`."""
        assert self.process.batch is not None
        return self.process.batch.rows.copy()

    # --- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that the coming steps depend on, as a nested dict of arrays and JSON values."""
        return {
            "fingerprint": self.fingerprint,
            "failure": self.failure,
            "process": self.process.state_dict(),
            "reward": self.reward.state_dict(),
            "credit": self.credit.state_dict(),
            "log": self.log.state_dict(),
        }

    def state_template(self) -> dict[str, Any]:
        """The form of `state_dict()`, for `distill.state.check_state`."""
        return {
            "fingerprint": lambda v: v == self.fingerprint,
            "failure": lambda v: v is None or isinstance(v, str),
            "process": self.process.state_template(),
            "reward": self.reward.state_template(),
            "credit": self.credit.state_template(),
            "log": self.log.state_template(self.batch_size, self.process.num_teachers),
        }

    def check_consistent(self, state: Mapping[str, Any]) -> None:
        """Raise `UserError` unless the parts of a state, each of the right form, fit together."""
        log = state["log"]
        if len(log["actions"]) != len(log["rewards"]):
            raise Damaged("its log has more actions than rewards, or fewer")
        if state["interface"]["running"] and state["process"]["rows"] is None:
            raise Damaged("process/rows is missing")
        try:
            torch.Generator().set_state(torch.from_numpy(state["process"]["rng"].copy()))
        except (RuntimeError, TypeError):
            raise Damaged("process/rng is not the state of a generator") from None

    def check_fingerprint(self, facts: Mapping[str, Any], what: str) -> None:
        """Raise `UserError` unless a state or trajectory was recorded with the same settings, data and teachers."""
        there = facts.get("fingerprint")
        if not isinstance(there, str):
            raise Damaged("it has no fingerprint")
        if there != self.fingerprint:
            raise UserError(
                f"{what} is of another environment: fingerprint {there:.40} there, {self.fingerprint} here; "
                "make the environment with the same settings"
            )

    @computes
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()` of a core with the same settings."""
        self.process.load_state_dict(state["process"])
        self.reward.load_state_dict(state["reward"])
        self.credit.load_state_dict(state["credit"])
        self.log = Log.restored(state["log"])
        self.failure = state["failure"]

    @computes
    def fork(self) -> Core:
        """An independent copy as it is now. Heavy read-only parts are shared."""
        other = object.__new__(type(self))
        vars(other).update(vars(self))
        other.process = self.process.fork()
        other.reward = self.reward.fork(other.process)
        other.credit = self.credit.fork(other.reward)
        other.observe = copy.copy(self.observe)
        other.observe.process = other.process
        other.log = Log.restored(self.log.state_dict())
        return other

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickle holds the settings and the state. Data, teachers and warm start are read again, from the cache."""
        more = {"ended": self._ended.state_dict(), "weights": self.weights}
        return _restored, (type(self), self.settings, self.state_dict(), more)

    @property
    def shown(self) -> Log:
        """The log of this episode, or of the previous one while nothing has happened in this one."""
        return self.log if self.log.actions else self._ended

    def trajectory(self) -> State:
        """The episode so far, for `validate`: `actions` `[T,B,K]`, `rewards` `[T,B]`, and `facts` (JSON).

        Before the first step of an episode it is the previous episode, which an automatic reset would otherwise hide.
        """
        log = self.shown
        facts = {"fingerprint": self.fingerprint, "seed": log.seed, "restart": log.restart}
        return {"facts": np.array(json.dumps(facts)), **log.arrays()}

    def validate(self, trajectory: Mapping[str, Any]) -> float:
        """Replay a trajectory on a fork. Returns the largest absolute difference of a reward (0.0 on the same machine).

        Raises:
            UserError: when it was recorded in another environment, or in an episode that did not start at the warm start.
        """
        try:
            facts = json.loads(str(trajectory["facts"]))
        except (KeyError, TypeError, ValueError, RecursionError):
            facts = None
        if not isinstance(facts, dict):
            raise Damaged("it has no readable facts")
        self.check_fingerprint(facts, "the trajectory")
        if not facts.get("restart"):
            raise UserError(
                "the trajectory's episode continued an earlier one; only episodes from the warm start can be replayed"
            )
        fork = self.fork()
        fork.begin(facts["seed"])
        worst = 0.0
        for actions, rewards in zip(trajectory["actions"], trajectory["rewards"], strict=True):
            worst = max(worst, float(np.abs(fork.step(actions)[1] - rewards).max()))
        return worst


def _restored(cls: type[Core], settings: RunSettings, state: Mapping[str, Any], more: Mapping[str, Any]) -> Core:
    """The core that was pickled; `UserError` where the data or the teachers have changed since."""
    core = cls(settings)
    core.check_fingerprint(state, "this pickle")
    core.load_state_dict(state)
    core._ended, core.weights = Log.restored(more["ended"]), more["weights"]
    return core


class Log:
    """What happened in an episode: for replay and for rendering.

    Attributes:
        actions: `[B,K]` of every student step. rewards: `[B]` of every student step.
        values: (student step, V) where V was measured.
    """

    def __init__(self, seed: int = 0, restart: bool = True) -> None:
        self.seed, self.restart = seed, restart
        self.actions: list[np.ndarray] = []
        self.rewards: list[np.ndarray] = []
        self.values: list[tuple[int, float]] = []

    def add(self, actions: np.ndarray, rewards: np.ndarray, info: Mapping[str, np.ndarray]) -> None:
        """Record one student step."""
        self.actions.append(np.array(actions, np.float32))
        self.rewards.append(np.array(rewards, np.float64))
        if "value" in info:
            self.values.append((len(self.actions), float(info["value"][0])))

    def arrays(self) -> State:
        """`actions` `[T,B,K]` and `rewards` `[T,B]`."""
        return {"actions": np.array(self.actions, np.float32), "rewards": np.array(self.rewards, np.float64)}

    def state_dict(self) -> dict[str, Any]:
        """The whole log."""
        return {**self.arrays(), "seed": self.seed, "restart": self.restart, "values": self.values}

    @staticmethod
    def state_template(size: int, teachers: int) -> dict[str, Any]:
        """The form of `state_dict()` for batches of `size` rows, for `distill.state.check_state`."""

        def measured(pairs: Any) -> bool:
            return isinstance(pairs, list) and all(
                isinstance(p, list) and len(p) == 2 and is_count(p[0]) and is_number(p[1]) for p in pairs
            )

        return {
            "actions": Array("float32", (None, size, teachers)),
            "rewards": Array("float64", (None, size)),
            "seed": is_count,
            "restart": is_flag,
            "values": measured,
        }

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> Log:
        """The log that `state_dict()` describes."""
        log = cls(state["seed"], state["restart"])
        log.actions, log.rewards = list(state["actions"]), list(state["rewards"])
        log.values = [(int(t), float(v)) for t, v in state["values"]]
        return log


def check_open(closed: bool) -> None:
    """Raise Gymnasium's `ClosedEnvironmentError` after `close()`."""
    if closed:
        raise gym.error.ClosedEnvironmentError("the environment is closed: make a new one")


def check_ready(ready: bool) -> None:
    """Raise Gymnasium's `ResetNeeded` unless an episode is running."""
    if not ready:
        raise gym.error.ResetNeeded("no episode is running: call reset() first")
