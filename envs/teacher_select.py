"""TeacherSelect-v0: one student under distillation. Every step chooses who teaches each instance of its next batch.

Two interfaces to one process. `TeacherSelectVectorEnv`: the `num_envs` rows are the batch, and one step is one student
step. `TeacherSelectEnv`: one step is one instance; the student steps, and the reward arrives, when a batch is full. The
same actions give the same student in both.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Self

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from distill.checks import UserError, one_of
from distill.state import Array, check_state, is_flag, is_generator, pack, unpack
from envs import rendering
from envs.actions import FORMS, Actions
from envs.arguments import as_autoreset, as_settings, check_render_mode, restart_wanted
from envs.core import Core, State, check_open, check_ready


class Interface:
    """What the single and the vector interface share: rendering, state, forks and replay, all by their `core`."""

    core: Core
    actions: Actions
    render_mode: str | None
    np_random: np.random.Generator

    @property
    def layout(self) -> dict[str, slice]:
        """Where each part of the observation lies."""
        return self.core.observe.layout

    def action_masks(self) -> np.ndarray:
        """Which values each bit of the next action may take, for algorithms that mask invalid actions (MaskablePPO).

        Two entries a teacher, for off and on. Off is always allowed; on is where the teacher has an answer. With
        `actions="discrete"` one entry a subset, true where all of its teachers have an answer.

        Returns:
            Bool `[2*K]` or `[2^K]` for the coming instance, and with rows `[B,...]` from the vector interface.
        """
        check_ready(self.running)
        assert self.core.process.batch is not None
        return self._own_rows(self.actions.masks(self.core.process.batch.answered))

    @property
    def running(self) -> bool:
        """Whether an episode is running."""
        raise NotImplementedError

    def _own_rows(self, batch: np.ndarray) -> np.ndarray:
        """What the next action is for, of an array `[B,...]` over the coming batch: one row, or all of them."""
        raise NotImplementedError

    def render(self) -> Any:
        """A status line (`ansi`) or a figure `[H,W,3]` uint8 (`rgb_array`) of the student."""
        return rendering.render(self.render_mode, self.core)

    def get_state(self) -> State:
        """`state_dict()` as arrays without pickles.

        `np.savez(path, **state)` writes it, `dict(np.load(path, allow_pickle=False))` reads it.
        """
        return pack(self.state_dict())

    def set_state(self, state: State) -> None:
        """Continue from `get_state()` of an environment with the same settings.

        Raises:
            UserError: for another environment's state, or a damaged one. The environment stays as it was.
        """
        tree = unpack(state)
        self.core.check_fingerprint(tree, "this state")
        interface = tree.get("interface")
        kind = interface.get("kind") if isinstance(interface, dict) else None
        if isinstance(kind, str) and kind in ("single", "vector") and kind != self._own_state()["kind"]:
            raise UserError(f"this state is of the {kind} environment; give it to one")
        own = {**self._own_template(), "env_rng": is_generator}
        check_state(tree, {**self.core.state_template(), "interface": own})
        self.core.check_consistent(tree)
        self.load_state_dict(tree)

    def state_dict(self) -> dict[str, Any]:
        """The whole state: student, optimiser, schedule, batches, generators, reward, credit and log; arrays and JSON."""
        own = {**self._own_state(), "env_rng": self.np_random.bit_generator.state}
        return {**self.core.state_dict(), "interface": own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`, which is not checked."""
        self.core.load_state_dict(state)
        self.np_random.bit_generator.state = state["interface"]["env_rng"]
        self._restore(state["interface"])

    def fork(self) -> Self:
        """An independent environment in the same state: same actions, same observations, rewards and weights."""
        other = copy.copy(self)
        other.core = self.core.fork()
        other._np_random = copy.deepcopy(self.np_random)  # type: ignore[attr-defined]
        return other

    def trajectory(self) -> State:
        """The batches of the episode so far, for `validate`: arrays without pickles."""
        return self.core.trajectory()

    def validate(self, trajectory: State) -> float:
        """Replay a trajectory; returns the largest absolute difference of a reward."""
        return self.core.validate(trajectory)

    def _own_state(self) -> dict[str, Any]:
        """What the interface adds to the state."""
        raise NotImplementedError

    def _own_template(self) -> dict[str, Any]:
        """The form of `_own_state()`."""
        raise NotImplementedError

    def _restore(self, own: dict[str, Any]) -> None:
        """Continue from `_own_state()`."""
        raise NotImplementedError


class TeacherSelectEnv(Interface, gym.Env[np.ndarray, np.ndarray]):
    """One instance a step.

    Args:
        task, teachers, student, experiment: names of options of these configuration groups. None: the bundled task's.
        overrides: further overrides, as on the command line (`["budget.steps=100"]`).
        config_dir: a folder of your own with more YAML files, as `--config-dir` on the command line.
        actions: `subset` (one bit for each teacher), `discrete` (the number of a subset) or `weights` (in [0, 1]).
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
        experiment: str | None = None,
        config_dir: str | None = None,
        actions: str = "subset",
    ) -> None:
        self.render_mode = check_render_mode(render_mode)
        groups = {"task": task, "teachers": teachers, "student": student, "experiment": experiment}
        settings = as_settings(config, overrides, config_dir, **groups)
        one_of(actions, FORMS, "actions")  # before anything is computed
        self.core = Core(settings)
        self.actions = Actions(actions, self.core.process.num_teachers)
        self.observation_space = self.core.observe.space
        self.action_space = self.actions.space
        self._states: np.ndarray | None = None
        self._actions: list[np.ndarray] = []
        self._closed = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """A new episode from the warm start. `options={"student": "continue"}` keeps the student as it is."""
        check_open(self._closed)
        restart = restart_wanted(options)
        super().reset(seed=seed)
        self._states = self.core.begin(int(self.np_random.integers(2**31)), restart)
        self._actions = []
        return self._states[0].copy(), self._info()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Choose the teachers of one instance; the batch's reward arrives with its last instance."""
        check_open(self._closed)
        check_ready(self._states is not None)
        assert self._states is not None
        self._actions.append(self.actions.decode(action, weights=self.core.weights))
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

    def close(self) -> None:
        """Close it: `reset` and `step` raise `ClosedEnvironmentError` from now on."""
        self._closed = True

    @property
    def running(self) -> bool:
        """Whether an episode is running."""
        return self._states is not None

    def _own_rows(self, batch: np.ndarray) -> np.ndarray:
        """The row of the coming instance."""
        row: np.ndarray = batch[len(self._actions)]
        return row

    def _info(self) -> dict[str, Any]:
        return {"instance": int(self.core.instances()[len(self._actions)])}

    def fork(self) -> Self:
        """An independent environment in the same state: same actions, same observations, rewards and weights."""
        other = super().fork()
        other._actions = list(self._actions)
        return other

    def _own_state(self) -> dict[str, Any]:
        """Whether an episode is running, and the actions `[b,K]` of the batch that is not full yet."""
        return {"kind": "single", "running": self._states is not None, "pending": np.array(self._actions, np.float32)}

    def _own_template(self) -> dict[str, Any]:
        """The form of `_own_state()`."""
        pending = Array("float32", (None, self.core.process.num_teachers))

        def fits(value: Any) -> bool:
            check_state(value, pending, "pending")
            return len(value) < self.core.batch_size and bool(((value >= 0) & (value <= 1)).all())

        return {"kind": lambda v: v == "single", "running": is_flag, "pending": fits}

    def _restore(self, own: dict[str, Any]) -> None:
        """Continue from `_own_state()`."""
        self._states = self.core.observe() if own["running"] else None
        self._actions = list(np.array(own["pending"]))


class TeacherSelectVectorEnv(Interface, VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """One batch a step: the `num_envs` rows share one student, and episodes of all rows end together.

    Batches are always full: the epochs' permutations follow each other without a gap. `num_envs` is the student's batch
    size. `autoreset_mode` is one of these words, or Gymnasium's enum:

    - `same_step`: the step that ends an episode returns the first states of the next one, with the last states in
      `info["final_obs"]`.
    - `next_step`: the step after the end ignores its actions, and returns the first states and rewards of 0. The student
      does not step.
    - `disabled`: the caller resets, and may look at the trained student before.

    Other arguments as of `TeacherSelectEnv`.
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
        autoreset_mode: str | AutoresetMode = "same_step",
        experiment: str | None = None,
        config_dir: str | None = None,
        actions: str = "subset",
    ) -> None:
        self.autoreset_mode = as_autoreset(autoreset_mode)
        self.render_mode = check_render_mode(render_mode)
        groups = {"task": task, "teachers": teachers, "student": student, "experiment": experiment}
        settings = as_settings(config, overrides, config_dir, **groups)
        one_of(actions, FORMS, "actions")  # before anything is computed
        self.core = Core(settings, num_envs)
        self.actions = Actions(actions, self.core.process.num_teachers)
        self.num_envs = self.core.batch_size
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.single_observation_space = self.core.observe.space
        self.single_action_space = self.actions.space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._restart = True
        self._ready = False
        self._ended = False  # whether the coming step is the reset of NEXT_STEP

    def reset(  # type: ignore[override]
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """A new episode from the warm start. `options={"student": "continue"}` keeps the student, here and at later resets."""
        check_open(self.closed)
        restart = restart_wanted(options, self.num_envs)
        super().reset(seed=seed)
        self._restart = restart
        self._ready = True
        return self._begin()

    def _begin(self) -> tuple[np.ndarray, dict[str, Any]]:
        self._ended = False
        states = self.core.begin(int(self.np_random.integers(2**31)), self._restart)
        return states, self._masked({"instance": self.core.instances()})

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Choose the teachers of the whole batch, one action a row; the student takes one step."""
        check_open(self.closed)
        check_ready(self._ready)
        never = np.zeros(self.num_envs, bool)
        if self._ended:  # NEXT_STEP: this step is the reset
            states, out = self._begin()
            return states, np.zeros(self.num_envs), never, never.copy(), out
        chosen = self.actions.decode(actions, (self.num_envs,), self.core.weights)
        states, rewards, done, info = self.core.step(chosen)
        out = self._masked({"instance": self.core.instances(), **info})
        if done and self.autoreset_mode is AutoresetMode.DISABLED:
            self._ready = False
        elif done and self.autoreset_mode is AutoresetMode.NEXT_STEP:
            self._ended = True
        elif done:
            final = out
            last = states
            states, out = self._begin()
            out |= self._masked({"final_obs": last}) | {
                "final_info": final,
                "_final_info": np.ones(self.num_envs, bool),
            }
        return states, rewards, np.full(self.num_envs, done), never, out

    @property
    def running(self) -> bool:
        """Whether an episode is running."""
        return self._ready

    def _own_rows(self, batch: np.ndarray) -> np.ndarray:
        """All rows."""
        return batch

    def _masked(self, info: dict[str, np.ndarray]) -> dict[str, Any]:
        return {**info, **{f"_{key}": np.ones(self.num_envs, bool) for key in info}}

    def _own_state(self) -> dict[str, Any]:
        """Whether an episode is running, whether resets return to the warm start, and whether the next step is a reset."""
        own = {"kind": "vector", "running": self._ready, "restart": self._restart}
        return own | ({"ended": self._ended} if self.autoreset_mode is AutoresetMode.NEXT_STEP else {})

    def _own_template(self) -> dict[str, Any]:
        """The form of `_own_state()`."""
        ended = {"ended": is_flag} if self.autoreset_mode is AutoresetMode.NEXT_STEP else {}
        return {"kind": lambda v: v == "vector", "running": is_flag, "restart": is_flag, **ended}

    def _restore(self, own: dict[str, Any]) -> None:
        """Continue from `_own_state()`."""
        self._ready, self._restart, self._ended = own["running"], own["restart"], own.get("ended", False)
