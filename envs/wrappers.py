"""Other action spaces over the same environment, for the single and the vector interface.

`DiscreteSubsets`: one number a subset, for DQN. `TeacherWeights`: continuous weights, for SAC and TD3.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorActionWrapper, VectorEnv
from gymnasium.vector.utils import batch_space

from distill.checks import UserError
from envs.actions import subset_table


def _teachers(space: gym.Space[Any]) -> int:
    if not isinstance(space, gym.spaces.MultiBinary):
        raise UserError(f"the wrapped environment's actions must be subsets, found {space}")
    return int(space.n)  # type: ignore[arg-type]


class DiscreteSubsets(gym.ActionWrapper[np.ndarray, int, np.ndarray]):
    """`Discrete(2^K)`: action n is the subset whose teachers are n's bits. K <= 6."""

    def __init__(self, env: gym.Env[np.ndarray, np.ndarray]) -> None:
        super().__init__(env)
        self._table = subset_table(_teachers(env.action_space))
        self.action_space = gym.spaces.Discrete(len(self._table))  # type: ignore[assignment]

    def action(self, action: int) -> np.ndarray:
        """The subset behind a number, int8 `[K]`."""
        return self._table[int(action)]


class DiscreteSubsetsVector(VectorActionWrapper):
    """`DiscreteSubsets` for the vector environment: actions `[B]`."""

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        super().__init__(env)
        self._table = subset_table(_teachers(env.single_action_space))
        self.single_action_space = gym.spaces.Discrete(len(self._table))
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def actions(self, actions: np.ndarray) -> np.ndarray:
        """The subsets behind numbers `[B]`, int8 `[B,K]`."""
        return self._table[np.asarray(actions, np.int64)]


class TeacherWeights(gym.ActionWrapper[np.ndarray, np.ndarray, np.ndarray]):
    """`Box[0,1]^K`: teachers are averaged with these weights, normalised; all zero means the label alone."""

    def __init__(self, env: gym.Env[np.ndarray, np.ndarray]) -> None:
        super().__init__(env)
        self.action_space = gym.spaces.Box(0, 1, (_teachers(env.action_space),), np.float32)
        self.unwrapped.core.weights = True  # type: ignore[attr-defined]

    def action(self, action: np.ndarray) -> np.ndarray:
        """The weights as they are."""
        return action


class TeacherWeightsVector(VectorActionWrapper):
    """`TeacherWeights` for the vector environment: actions `[B,K]`."""

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        super().__init__(env)
        self.single_action_space = gym.spaces.Box(0, 1, (_teachers(env.single_action_space),), np.float32)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.unwrapped.core.weights = True  # type: ignore[attr-defined]

    def actions(self, actions: np.ndarray) -> np.ndarray:
        """The weights as they are."""
        return actions
