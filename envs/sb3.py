"""The adapter from a Gymnasium `VectorEnv` to Stable-Baselines3's `VecEnv`.

SB3 has none. `DummyVecEnv` over B single environments would be another problem: B students with batches of their own. Here
the B rows of one vector environment become SB3's environments, and share one student.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvObs, VecEnvStepReturn

from distill.checks import UserError


def rows_of(info: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """A vector environment's info (arrays with `_key` masks, nested) as one dict a row."""
    rows: list[dict[str, Any]] = [{} for _ in range(count)]
    for key, value in info.items():
        if key.startswith("_"):
            continue
        mask = info.get(f"_{key}")
        values = rows_of(value, count) if isinstance(value, dict) else value
        if mask is None or mask.all():
            for row, item in zip(rows, values, strict=True):
                row[key] = item
        else:
            for i in np.flatnonzero(mask):
                rows[i][key] = values[i]
    return rows


class SharedVecEnv(VecEnv):
    """A `VectorEnv` as an SB3 `VecEnv`; put `VecMonitor` on top for episode statistics.

    Args:
        inner: with autoreset mode SAME_STEP, which is SB3's own rule.

    Raises:
        UserError: for any other autoreset mode.
    """

    def __init__(self, inner: VectorEnv[Any, Any, Any]) -> None:
        mode = inner.metadata.get("autoreset_mode")
        if mode != AutoresetMode.SAME_STEP:
            raise UserError(f"autoreset_mode={mode}: SB3 needs a vector environment that resets in the same step")
        self.inner = inner  # before super(), which asks for render_mode
        self._pending: np.ndarray | None = None
        super().__init__(inner.num_envs, inner.single_observation_space, inner.single_action_space)

    def reset(self) -> VecEnvObs:
        """First observations. One process behind all rows: the first seed and options count."""
        obs, info = self.inner.reset(seed=self._seeds[0], options=self._options[0] or None)
        self.reset_infos = rows_of(info, self.num_envs)
        self._reset_seeds()
        self._reset_options()
        return obs

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions for `step_wait`."""
        self._pending = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step; rows that ended carry `terminal_observation` and `TimeLimit.truncated`, as SB3 expects."""
        obs, rewards, terminated, truncated, info = self.inner.step(self._pending)
        done = np.logical_or(terminated, truncated)
        ended = {k: v for k, v in info.items() if k not in ("final_obs", "_final_obs", "final_info", "_final_info")}
        rows = rows_of(ended, self.num_envs)
        if done.any():
            last, last_rows = info["final_obs"], rows_of(info.get("final_info", {}), self.num_envs)
            for i in np.flatnonzero(done):
                self.reset_infos[i] = dict(rows[i])
                only_truncated = bool(truncated[i] and not terminated[i])
                rows[i] = {
                    **last_rows[i],
                    "terminal_observation": np.array(last[i]),
                    "TimeLimit.truncated": only_truncated,
                }
        # SB3 adds to rewards and rewrites terminal observations in place: hand out arrays of its own.
        return obs, np.array(rewards, np.float32), done, rows

    def close(self) -> None:
        """Close the inner environment."""
        self.inner.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The inner environment's attribute, once a row."""
        return [getattr(self.inner, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of the inner environment, which all rows share."""
        setattr(self.inner, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Call a method of the inner environment once, and hand its result to every row."""
        result = getattr(self.inner, method_name)(*args, **kwargs)
        return [result for _ in self._get_indices(indices)]

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Rows have no wrappers of their own."""
        return [False for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[np.ndarray | None]:
        """One frame for all rows, when the inner environment renders one."""
        frame: Any = self.inner.render() if self.render_mode == "rgb_array" else None
        return [frame for _ in range(self.num_envs)]
