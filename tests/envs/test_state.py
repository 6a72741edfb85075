"""States, forks and replays: the same actions give the same episode, wherever it is continued."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from env_helpers import ALL_PARTS, STATES, STEPS, B, K, assert_same, subsets, weights
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.checks import UserError

# Everything a state may hold: the generator of dropout, a direction that serves several steps, states that see the student.
FULL = [*STATES, "credit.every=3", "reward.every=4"]


@pytest.fixture(scope="module", params=["single", "vector"])
def vector(request: pytest.FixtureRequest) -> bool:
    return request.param == "vector"


@pytest.fixture(scope="module")
def build(make, make_vec, vector) -> Any:
    """`build("student.lr=0.1", ...)`: one of the two environments of the tiny run."""
    return lambda *more: make_vec(*more).unwrapped if vector else make(*more)


@pytest.fixture(scope="module")
def kept(build) -> Any:
    """`kept("student.lr=0.1", ..., number=0)`: the same, made once; for tests that begin with a seeded reset."""
    return functools.cache(lambda *more, number=0: build(*more))


def acts(vector: bool, seed: int, steps: int) -> np.ndarray:
    """Random subsets of `steps` student steps, as the environment takes them one by one."""
    chosen = subsets(seed, steps)
    return chosen if vector else chosen.reshape(-1, K)


def go(env: Any, actions: np.ndarray) -> list[Any]:
    """Everything that is returned, with the weights after each step; a single environment is reset when an episode ends."""
    seen: list[Any] = []
    for action in actions:
        seen.append((env.step(action), weights(env)))
        if seen[-1][0][2] is True:
            seen.append(env.reset())
    return seen


def through_a_file(state: dict[str, np.ndarray], folder: Path) -> dict[str, np.ndarray]:
    np.savez(folder / "state.npz", **state)
    with np.load(folder / "state.npz", allow_pickle=False) as file:
        return dict(file)


# --- states -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more", [[], ["student.dropout=0.1"], FULL, ["student.optimizer=sgd", "reward=paper3"]], ids=str
)
@pytest.mark.parametrize("at", [0, 2 * B + 3, 3 * B, 8 * B + 5])
def test_an_episode_continues_from_a_state_in_a_file(build, kept, vector, more, at, tmp_path):
    env, other = kept(*more), build(*more)
    actions = acts(vector, 1, 14)
    at = at // B if vector else at
    env.reset(seed=3)
    go(env, actions[:at])
    state = through_a_file(env.get_state(), tmp_path)
    wanted = go(env, actions[at:])
    other.set_state(state)  # it was never reset
    assert_same(go(other, actions[at:]), wanted)
    env.set_state(state)  # it is elsewhere, in another episode
    assert_same(go(env, actions[at:]), wanted)


def test_a_state_carries_the_log(build, vector, tmp_path):
    env, other = build(), build()
    env.reset(seed=3)
    go(env, acts(vector, 1, 3))
    other.set_state(through_a_file(env.get_state(), tmp_path))
    assert_same(other.trajectory(), env.trajectory())
    assert other.core.log.values == env.core.log.values != []


def test_get_state_changes_nothing(kept, vector):
    env, untouched = kept(*FULL), kept(*FULL, number=1)
    actions = acts(vector, 2, STEPS + 1)
    for one in (env, untouched):
        one.reset(seed=4)
    for action in actions:
        state = env.get_state()
        assert_same(go(env, [action]), go(untouched, [action]))
        assert all(value.dtype != object for value in state.values())


def test_a_state_is_not_moved_by_later_steps(kept, vector):
    env = kept(*FULL)
    env.reset(seed=4)
    go(env, acts(vector, 2, 2))
    state = env.get_state()
    kept = {name: value.copy() for name, value in state.items()}
    go(env, acts(vector, 3, 2))
    assert_same(state, kept)
    env.set_state(state)
    go(env, acts(vector, 3, 2))
    assert_same(state, kept)


def test_a_state_remembers_that_autoresets_continue(make_vec):
    env, other = make_vec().unwrapped, make_vec().unwrapped
    env.reset(seed=0, options={"student": "continue"})
    go(env, subsets(0, STEPS - 1))
    other.set_state(env.get_state())
    seen = go(env, subsets(1, 2))
    assert_same(go(other, subsets(1, 2)), seen)
    assert not torch.equal(seen[0][1], torch.cat([w.flatten() for w in env.core.process.warm]))


def test_a_state_of_an_ended_episode_needs_a_reset(make):
    env, other = make(), make()
    env.reset(seed=0)
    for action in acts(False, 0, STEPS):
        env.step(action)
    other.set_state(env.get_state())
    for one in (env, other):
        with pytest.raises(Exception, match=r"reset\(\)"):
            one.step(np.ones(K, np.int8))
    assert_same(other.reset(), env.reset())


@pytest.mark.parametrize(
    "more",
    ["loss.alpha=0.4", "seed=1", "reward.every=3", "credit.name=influence", "student.dropout=0.1", "budget.steps=7"],
)
def test_a_state_of_another_configuration_is_refused(build, kept, more):
    env, other = kept(), build(more)
    for one in (env, other):
        one.reset(seed=0)
    before = other.get_state()
    with pytest.raises(UserError) as error:
        other.set_state(env.get_state())
    assert env.core.fingerprint != other.core.fingerprint
    for word in (env.core.fingerprint, other.core.fingerprint):
        assert word in str(error.value)
    assert "\n" not in str(error.value)
    assert_same(other.get_state(), before)


def test_a_state_of_the_other_interface_is_refused(make, make_vec):
    interfaces = make(), make_vec().unwrapped
    for env in interfaces:
        env.reset(seed=0)
    assert interfaces[0].core.fingerprint == interfaces[1].core.fingerprint
    for env, other, word in ((*interfaces, "single"), (*interfaces[::-1], "vector")):
        before = other.get_state()
        with pytest.raises(UserError, match=rf"^this state is of the {word} environment[^\n]*$"):
            other.set_state(env.get_state())
        assert_same(other.get_state(), before)


# --- forks ------------------------------------------------------------------------------------------------------------


@settings(max_examples=12)
@given(data=st.data(), seed=st.integers(0, 2**31 - 1), more=st.sampled_from([(), tuple(FULL)]))
def test_forks_are_independent(kept, vector, data, seed, more):
    """Original, fork and a stray, stepped in turn: the first two agree with a run without forks, whatever the stray does."""
    env, alone = kept(*more), kept(*more, number=1)
    actions, others = acts(vector, seed, STEPS + 2), acts(vector, seed + 1, STEPS + 2)
    at = data.draw(st.integers(0, len(actions) - 1))
    alone.reset(seed=seed)
    wanted = go(alone, actions)
    env.reset(seed=seed)
    go(env, actions[:at])
    fork, stray = env.fork(), env.fork()
    assert torch.equal(weights(fork), weights(env))
    seen, mirrored = [], []
    for action, other in zip(actions[at:], others[at:], strict=True):
        go(stray, [1 - other])
        seen += go(env, [action])
        mirrored += go(fork, [action])
    assert_same(mirrored, seen)
    assert_same(seen, wanted[-len(seen) :])
    assert_same(env.trajectory(), alone.trajectory())
    assert_same(fork.trajectory(), alone.trajectory())
    assert_same(fork.reset(), env.reset())  # their generators are in the same state


def test_forks_share_what_is_heavy_and_nothing_that_moves(kept, vector):
    env = kept(*FULL)
    env.reset(seed=0)
    go(env, acts(vector, 0, 1))
    fork = env.fork()
    mine, its = env.core.process, fork.core.process
    assert mine.prepared is its.prepared
    assert mine.warm is its.warm
    assert fork.core.reward.process is fork.core.observe.process is fork.core.credit.process is its
    assert fork.core.credit.reward is fork.core.reward
    assert fork.core.credit.rng is not env.core.credit.rng
    places = {p.data_ptr() for p in mine.student.model.parameters()}
    assert not places & {p.data_ptr() for p in its.student.model.parameters()}


# --- replay -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [[], FULL], ids=["plain", "full"])
def test_replay(build, kept, vector, more, tmp_path):
    env = kept(*more)
    env.reset(seed=5)
    go(env, acts(vector, 6, 4))
    trajectory = through_a_file(env.trajectory(), tmp_path)
    assert trajectory["actions"].shape == (4, B, K)
    assert trajectory["rewards"].shape == (4, B)
    np.testing.assert_array_equal(trajectory["actions"], subsets(6, 4))
    before = env.get_state()
    assert env.validate(trajectory) == 0.0
    assert_same(env.get_state(), before)
    assert build(*more).validate(trajectory) == 0.0  # never reset
    tampered = {**trajectory, "actions": trajectory["actions"].copy()}
    tampered["actions"][1, 2, 3] = 1 - tampered["actions"][1, 2, 3]
    assert env.validate(tampered) > 0
    changed = {**trajectory, "rewards": trajectory["rewards"].copy()}
    changed["rewards"][3, 1] += 0.25
    assert env.validate(changed) == pytest.approx(0.25)


def test_a_whole_episode_replays_on_the_other_interface(make, make_vec):
    single, vector = make(*FULL), make_vec(*FULL, autoreset_mode="disabled").unwrapped
    single.reset(seed=5)
    for action in acts(False, 6, STEPS):
        single.step(action)
    assert single.trajectory()["rewards"].shape == (STEPS, B)
    assert vector.validate(single.trajectory()) == 0.0


@pytest.mark.parametrize("more", ["loss.alpha=0.4", "seed=1", ALL_PARTS])
def test_a_trajectory_of_another_environment_is_refused(build, kept, vector, more):
    env, other = kept(), build(more)
    env.reset(seed=0)
    go(env, acts(vector, 0, 1))
    with pytest.raises(UserError) as error:
        other.validate(env.trajectory())
    assert env.core.fingerprint in str(error.value)
    assert other.core.fingerprint in str(error.value)
    assert "\n" not in str(error.value)


def test_a_continued_episode_cannot_be_replayed(kept, vector):
    env = kept()
    env.reset(seed=0)
    go(env, acts(vector, 0, 2))
    env.reset(seed=1, options={"student": "continue"})
    go(env, acts(vector, 1, 2))
    with pytest.raises(UserError, match=r"^[^\n]*warm start[^\n]*$"):
        env.validate(env.trajectory())
    env.reset(seed=1)
    go(env, acts(vector, 1, 2))
    assert env.validate(env.trajectory()) == 0.0


def test_an_automatic_reset_leaves_the_finished_episode_to_be_validated(make_vec):
    env = make_vec().unwrapped
    env.reset(seed=5)
    chosen = subsets(1)
    rewards = [env.step(actions)[1] for actions in chosen]
    recorded = env.trajectory()
    np.testing.assert_array_equal(recorded["actions"], chosen)
    np.testing.assert_array_equal(recorded["rewards"], rewards)
    assert env.validate(recorded) == 0.0
    env.step(chosen[0])
    assert len(env.trajectory()["actions"]) == 1
