"""Forms of use that Gymnasium has and tests elsewhere seldom meet: pickles, its enum of autoreset modes, masks of a reset."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from env_helpers import STATES, B, K, assert_same, subsets
from gymnasium.vector import AutoresetMode

from distill.checks import UserError
from envs.core import Core
from envs.wrappers import TeacherWeights

pytestmark = pytest.mark.faults
ROOT = Path(__file__).resolve().parents[2]


def reloaded(env: Any) -> Any:
    return pickle.loads(pickle.dumps(env))


# --- pickles ----------------------------------------------------------------------------------------------------------


def test_a_pickled_single_environment_continues(make):
    env = make(*STATES)
    env.reset(seed=3)
    actions = subsets(5).reshape(-1, K)
    for action in actions[: B + 3]:  # in the middle of a batch
        env.step(action)
    env.action_space.seed(1)
    other = reloaded(env)
    assert_same(other.get_state(), env.get_state())
    assert_same(other.action_space.sample(), env.action_space.sample())
    for action in actions[B + 3 : 3 * B]:
        assert_same(other.step(action), env.step(action))
    assert_same(other.reset(), env.reset())


def test_a_pickled_vector_environment_continues(make_vec):
    env = make_vec(*STATES)
    env.reset(seed=3)
    for action in subsets(5):  # a whole episode: the next one has begun
        env.step(action)
    other = reloaded(env)
    assert_same(other.unwrapped.trajectory(), env.unwrapped.trajectory())
    for action in subsets(6):
        assert_same(other.step(action), env.step(action))


def test_pickles_at_the_ends_of_a_life(make):
    """Before the first reset, as Gymnasium tests it, and after `close`."""
    env = make()
    other = reloaded(env)
    assert_same(other.reset(seed=1), env.reset(seed=1))
    env.close()
    with pytest.raises(gym.error.ClosedEnvironmentError):
        reloaded(env).reset()


def test_wrappers_are_pickled_too(tiny_overrides):
    env = TeacherWeights(gym.make("TeacherSelect-v0", overrides=tiny_overrides))
    env.reset(seed=0)
    other = reloaded(env)
    for _ in range(B):
        action = np.full(K, 0.3, np.float32)
        assert_same(other.step(action), env.step(action))
    assert other.spec == env.spec


def test_a_pickle_is_small_and_leaves_data_out(make):
    env = make()
    env.reset(seed=0)
    assert len(pickle.dumps(env)) < 10 * sum(p.numel() * 4 for p in env.core.process.student.model.parameters())


def test_a_deep_copy_is_independent(make):
    env = make(*STATES)
    env.reset(seed=0)
    other, before = copy.deepcopy(env), env.get_state()
    for action in subsets(1)[0]:
        other.step(action)
    assert_same(env.get_state(), before)


def test_a_pickle_from_other_data_is_refused(make):
    core = make().core
    function, (cls, settings, state, more) = core.__reduce__()
    with pytest.raises(UserError, match="this pickle is of another environment: fingerprint x there"):
        function(cls, settings, {**state, "fingerprint": "x"}, more)
    assert isinstance(function(cls, settings, state, more), Core)


def test_another_process_continues_a_pickle(make, tmp_path):
    env = make("threads=1")
    env.reset(seed=2)
    (tmp_path / "env.pickle").write_bytes(pickle.dumps(env))
    code = (
        "import pickle, sys, numpy as np; env = pickle.load(open(sys.argv[1], 'rb'));"
        f"print(sum(env.step(np.ones({K}, np.int8))[1] for _ in range({2 * B})).hex())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "env.pickle")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == sum(env.step(np.ones(K, np.int8))[1] for _ in range(2 * B)).hex()


# --- autoreset modes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", list(AutoresetMode), ids=str)
def test_gymnasiums_own_names_of_autoreset_modes(make_vec, mode):
    env, other = make_vec(autoreset_mode=mode), make_vec(autoreset_mode=mode.name.lower())
    assert env.metadata["autoreset_mode"] is other.metadata["autoreset_mode"] is mode
    env.reset(seed=0)
    for action in subsets(1):
        env.step(action)
    assert env.unwrapped.running == (mode is not AutoresetMode.DISABLED)


def test_an_unknown_mode_is_refused(make_vec):
    with pytest.raises(UserError, match=r"^autoreset_mode=later is not known; choose from same_step, next_step, dis"):
        make_vec(autoreset_mode="later")


# --- masks of a reset -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.arange(B) == 2, rf"resets 1 of {B} rows, which share one student and end together; reset all rows"),
        (np.arange(B) > 0, rf"resets {B - 1} of {B} rows"),
        (np.zeros(B, bool), rf"resets 0 of {B} rows"),
        (np.ones(B - 1, bool), rf"is bool \[{B - 1}\]; give bool \[{B}\]"),
        (np.ones(B), rf"is float64 \[{B}\]; give bool"),
    ],
    ids=["one", "all but one", "none", "too short", "numbers"],
)
def test_a_mask_that_leaves_rows_out_changes_nothing(make_vec, mask, message):
    env = make_vec(autoreset_mode="disabled").unwrapped
    env.reset(seed=0)
    env.step(subsets(1)[0])
    before = env.get_state()
    with pytest.raises(UserError, match=f"^reset option reset_mask {message}"):
        env.reset(seed=5, options={"reset_mask": mask})
    assert_same(env.get_state(), before)


def test_a_mask_of_all_rows_is_a_reset(make_vec):
    env, other = make_vec(autoreset_mode="disabled"), make_vec(autoreset_mode="disabled")
    plain = env.reset(seed=4)
    assert_same(other.reset(seed=4, options={"reset_mask": np.ones(B, bool)}), plain)
    assert_same(other.reset(seed=4, options={"reset_mask": [True] * B}), plain)


def test_the_single_interface_has_no_mask(make):
    with pytest.raises(UserError, match=r"^reset option=reset_mask is not known; choose from student"):
        make().reset(seed=0, options={"reset_mask": np.ones(1, bool)})
