"""TeacherSelect-v0 as an environment: registration, checkers, actions, episodes, determinism."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from env_helpers import ALL_PARTS, STATES, STEPS, B, K, assert_same, episode, subsets, weights
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from distill.checks import UserError
from distill.settings import PARTS
from envs import observations
from envs.observations import LOSS_CAP
from envs.teacher_select import TeacherSelectEnv, TeacherSelectVectorEnv

# --- registration and checkers ----------------------------------------------------------------------------------------


def test_import_is_light_and_idempotent():
    code = (
        "import importlib, sys, warnings; warnings.simplefilter('error'); import gymnasium as gym\n"
        "assert 'TeacherSelect-v0' not in gym.registry\n"
        "import envs; spec = gym.spec('TeacherSelect-v0'); importlib.reload(envs)\n"
        "assert gym.spec('TeacherSelect-v0') is spec\n"
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "set()"), done.stderr


def test_the_module_form_registers_the_environment(tiny_overrides, monkeypatch):
    monkeypatch.delitem(sys.modules, "envs")
    monkeypatch.delitem(gym.registry, "TeacherSelect-v0")
    with pytest.raises(gym.error.NameNotFound):
        gym.make("TeacherSelect-v0")
    assert gym.make("envs:TeacherSelect-v0", overrides=tiny_overrides).action_space.n == K
    assert gym.make_vec("envs:TeacherSelect-v0", num_envs=B, overrides=tiny_overrides).num_envs == B


def test_make(tiny_overrides):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make("TeacherSelect-v0", overrides=tiny_overrides)
        observation, _ = env.reset(seed=0)
        _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
    assert env.observation_space.contains(observation)
    assert (type(reward), terminated, truncated) == (float, False, False)


@pytest.mark.parametrize("checker", [check_env, sb3_check_env])
@pytest.mark.parametrize(
    "more", [[], [ALL_PARTS, "student.dropout=0.1", "credit.name=counterfactual"], ["reward=paper3"]]
)
def test_checkers_pass_without_a_warning(make, checker, more):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checker(make(*more))


def test_spec_is_json_and_makes_the_same_environment(tiny_overrides):
    first = gym.make("TeacherSelect-v0", task="bundled", overrides=tiny_overrides)
    text = first.spec.to_json()
    assert json.loads(text)["kwargs"]["overrides"] == tiny_overrides
    second = gym.make(gym.envs.registration.EnvSpec.from_json(text))
    assert_same(episode(first.unwrapped, 3, subsets(0)), episode(second.unwrapped, 3, subsets(0)))


def test_a_whole_config_equals_names_and_overrides(make, tiny_config):
    by_config = gym.make("TeacherSelect-v0", config=tiny_config()).unwrapped
    assert_same(episode(by_config, 3, subsets(0)), episode(make(), 3, subsets(0)))


def test_make_vec(make_vec):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = make_vec()
        observations, info = env.reset(seed=0)
        out = env.step(env.action_space.sample())
    assert env.num_envs == B
    assert env.metadata["autoreset_mode"] is env.autoreset_mode is AutoresetMode.SAME_STEP
    assert env.observation_space.contains(observations)
    assert env.observation_space.contains(out[0])
    assert out[1].shape == out[2].shape == out[3].shape == (B,)
    assert (out[1].dtype, out[2].dtype, out[3].dtype) == (np.float64, bool, bool)
    for shown in (info, out[4]):
        assert all(f"_{key}" in shown for key in shown if not key.startswith("_"))
    assert len(np.unique(info["instance"])) == B


@pytest.mark.parametrize("num_envs", [1, 5])
def test_num_envs_is_the_batch_size(make_vec, num_envs):
    env = make_vec(num_envs=num_envs)
    assert env.reset(seed=0)[0].shape == (num_envs, env.single_observation_space.shape[0])
    assert len(env.step(np.ones((num_envs, K)))[1]) == num_envs


# --- what is refused --------------------------------------------------------------------------------------------------


def one_line(error: pytest.ExceptionInfo[UserError], *words: str) -> None:
    text = str(error.value)
    assert text
    assert "\n" not in text
    for word in words:
        assert word in text


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"task": "nope"}, ["nope", "bundled"]),
        ({"teachers": "nope"}, ["nope", "specialists"]),
        ({"student": "nope"}, ["nope", "tiny"]),
        ({"overrides": ["nope.key=1"]}, ["nope.key"]),
        ({"overrides": ["loss.alpha=2"]}, ["loss.alpha", "2"]),
        ({"overrides": ["student.lr=fast"]}, ["student.lr", "fast"]),
        ({"overrides": ["observation.parts=[teacher_los]"]}, ["teacher_los", "teacher_loss"]),
        ({"overrides": ["observation.parts=[]"]}, ["observation.parts"]),
        ({"overrides": ["observation.parts=[progress, progress]"]}, ["progress", "twice"]),
        ({"overrides": ["credit.name=half"]}, ["credit.name=half", "shared, influence, counterfactual"]),
        ({"overrides": ["reward.name=half"]}, ["reward.name=half", "validation_gain, paper1"]),
        ({"config": {"task": {}}, "task": "bundled"}, ["config", "task"]),
        ({"render_mode": "svg"}, ["render_mode=svg is not known; choose from ansi, rgb_array"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("vector", [False, True])
@pytest.mark.filterwarnings("ignore:.*render_mode")
def test_wrong_arguments_end_in_one_line(kwargs, words, vector):
    build = gym.make_vec if vector else gym.make
    with pytest.raises(UserError) as error:
        build("TeacherSelect-v0", **kwargs)
    one_line(error, *words)


@pytest.mark.parametrize("interface", [TeacherSelectEnv, TeacherSelectVectorEnv])
def test_render_mode_human_is_left_to_gymnasium(interface):
    """`gym.make` does not pass it on: Gymnasium itself shows `rgb_array` in a window."""
    with pytest.raises(UserError, match=r"^render_mode=human is not known; choose from ansi, rgb_array$"):
        interface(render_mode="human")


def test_an_unknown_keyword_is_named():
    with pytest.raises((UserError, TypeError), match="teacher_pool"):
        gym.make("TeacherSelect-v0", teacher_pool="own")


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"num_envs": 0}, ["0"]),
        ({"num_envs": -3}, ["-3"]),
        ({"autoreset_mode": "later"}, ["autoreset_mode", "later", "same_step"]),
    ],
    ids=str,
)
def test_wrong_vector_arguments_end_in_one_line(make_vec, kwargs, words):
    with pytest.raises(UserError) as error:
        make_vec(**kwargs)
    one_line(error, *words)


@pytest.mark.parametrize("vector", [False, True])
@pytest.mark.parametrize(
    ("options", "word"), [({"student": "restrat"}, "restrat"), ({"studnet": "continue"}, "studnet")], ids=str
)
def test_wrong_reset_options_end_in_one_line(make, make_vec, vector, options, word):
    env = (make_vec if vector else make)()
    with pytest.raises(UserError) as error:
        env.reset(seed=0, options=options)
    one_line(error, word)


@pytest.fixture(scope="module")
def trio(make, make_vec) -> tuple[Any, Any, Any]:
    """Two single environments and a vector one, for tests that begin with a seeded reset."""
    return make(), make(), make_vec()


@pytest.mark.parametrize("kind", [np.int8, bool, np.float32, np.int64, list])
def test_every_form_of_the_same_action_counts_the_same(trio, kind):
    env, other, _ = trio
    actions = subsets(1, 2).reshape(-1, K)
    expected = episode(other, 0, actions)[1:]
    env.reset(seed=0)
    for action, wanted in zip(actions, expected, strict=True):
        assert_same(env.step(action.tolist() if kind is list else action.astype(kind)), wanted)


@pytest.mark.parametrize(
    "action",
    [
        np.ones(K + 1),
        np.ones(K - 1),
        np.ones((1, K)),
        1,
        [],
        [2, 0, 0, 0],
        [-1, 0, 0, 0],
        [0.5, 0, 0, 0],
        [np.nan, 0, 0, 0],
        [np.inf, 0, 0, 0],
        ["1", "0", "0", "0"],
    ],
    ids=str,
)
def test_a_wrong_action_is_refused_and_changes_nothing(trio, action):
    actions = subsets(2, 1)
    env, untouched, vector = trio
    env.reset(seed=0)
    untouched.reset(seed=0)
    for i, good in enumerate(actions[0]):
        if i in (0, 3, B - 1):  # at the start of a batch, within it, and where the student would step
            with pytest.raises(ValueError, match="action"):
                env.step(action)
        assert_same(env.step(good), untouched.step(good))
    vector.reset(seed=0)
    before = weights(vector)
    with pytest.raises(ValueError, match="action"):
        vector.step(np.broadcast_to(np.asarray(action), (B, *np.shape(action))))
    assert torch.equal(weights(vector), before)


@pytest.mark.parametrize("wrapped", [False, True])
def test_step_needs_a_reset(tiny_overrides, wrapped):
    env = gym.make("TeacherSelect-v0", overrides=tiny_overrides)
    env = env if wrapped else env.unwrapped
    with pytest.raises(ResetNeeded):
        env.step(np.ones(K, np.int8))
    ended = episode(env, 0, subsets(0))
    assert [s[2] for s in ended[1:]] == [False] * (B * STEPS - 1) + [True]
    with pytest.raises(ResetNeeded):
        env.step(np.ones(K, np.int8))
    env.reset()
    env.step(np.ones(K, np.int8))


@pytest.mark.parametrize("mode", ["same_step", "disabled"])
def test_vector_step_needs_a_reset(make_vec, mode):
    env = make_vec(autoreset_mode=mode)
    everyone = np.ones((B, K), np.int8)
    with pytest.raises(ResetNeeded):
        env.step(everyone)
    env.reset(seed=0)
    ends = [bool(env.step(everyone)[2].all()) for _ in range(STEPS)]
    assert ends == [False] * (STEPS - 1) + [True]
    if mode == "disabled":
        with pytest.raises(ResetNeeded):
            env.step(everyone)
        env.reset()
    env.step(everyone)


# --- observations -----------------------------------------------------------------------------------------------------


def test_the_settings_name_every_part():
    assert tuple(observations.PARTS) == PARTS


@pytest.mark.parametrize("more", ["observation=paper", "observation=student", ALL_PARTS])
def test_layout_covers_the_observation_exactly(make, make_vec, more):
    for env in (make(more), make_vec(more).unwrapped):
        size = env.core.observe.space.shape[0]
        places = np.concatenate([np.arange(size)[s] for s in env.layout.values()])
        np.testing.assert_array_equal(places, np.arange(size))
    parts = PARTS[:3] if more == "observation=paper" else PARTS
    if more == "observation=student":  # made for tasks whose teachers answer and whose instances are labelled
        parts = [p for p in PARTS if p not in ("answered", "labelled")]
    assert tuple(env.layout) == tuple(parts)


def test_observations_hold_what_they_say(make_vec):
    env = make_vec(ALL_PARTS, autoreset_mode="disabled").unwrapped
    process = env.core.process
    states, info = env.reset(seed=4)
    for step, actions in enumerate(subsets(4)):
        rows, at = info["instance"], env.layout
        logits = torch.from_numpy(process.signals.logits(rows)).double()
        gold = torch.from_numpy(process.labels[rows])
        log_p = logits.log_softmax(-1)
        with torch.no_grad():
            log_s = process.student.forward(process.tokens("train").batch(rows)).double().log_softmax(-1)
        expected = {
            "encoder": process.signals.vectors(rows),
            "teacher_probs": log_p.exp().flatten(1),
            "teacher_loss": -log_p[torch.arange(B), :, gold].clamp(min=-LOSS_CAP) / LOSS_CAP,
            "student_probs": log_s.exp(),
            "student_loss": -log_s[torch.arange(B), gold, None].clamp(min=-LOSS_CAP) / LOSS_CAP,
            "divergence": (log_p.exp() * (log_p - log_s[:, None])).sum(-1).clamp(0, LOSS_CAP) / LOSS_CAP,
            "progress": np.full((B, 1), step / STEPS),
        }
        for name, value in expected.items():
            np.testing.assert_allclose(states[:, at[name]], np.asarray(value), atol=2e-6, err_msg=name)
        np.testing.assert_allclose(np.linalg.norm(states[:, at["encoder"]], axis=1), 1, atol=1e-6)
        states, _, _, _, info = env.step(actions)
    assert (states[:, at["progress"]] == 1).all()


@settings(max_examples=8)
@given(
    parts=st.permutations(PARTS).flatmap(lambda p: st.integers(1, len(p)).map(lambda n: p[:n])),
    seed=st.integers(0, 2**31 - 1),
    chance=st.sampled_from([0.0, 0.3, 1.0]),
    lr=st.sampled_from([0.01, 3.0]),  # 3.0 throws the student's losses far beyond the cap
)
def test_observations_stay_within_bounds(make, parts, seed, chance, lr):
    env = make(f"observation.parts=[{', '.join(parts)}]", f"student.lr={lr}", "budget.steps=3", "++budget.warm_steps=0")
    low, high = env.observation_space.low, env.observation_space.high
    assert (low >= -1).all()
    assert (high <= 1).all()
    rng, seen = np.random.default_rng(seed), [env.reset(seed=seed)[0]]
    copies = [seen[0].copy()]
    for _ in range(3 * B):
        seen.append(env.step(rng.random(K) < chance)[0])
        copies.append(seen[-1].copy())
    assert all(o.dtype == np.float32 and o.shape == low.shape for o in seen)
    assert all((low <= o).all() and (o <= high).all() for o in seen)
    assert_same(seen, copies)  # an observation handed out is never written again


# --- two interfaces, one process --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["credit.name=influence"],
        ["credit.name=counterfactual", "student.dropout=0.1"],
        ["reward=paper2", ALL_PARTS],
    ],
)
def test_both_interfaces_are_one_process(make, make_vec, more):
    single, vector = make(*more), make_vec(*more, autoreset_mode="disabled")
    state, info = single.reset(seed=5)
    states, infos = vector.reset(seed=5)
    for actions in subsets(5):
        for i in range(B):
            np.testing.assert_array_equal(state, states[i])
            assert info["instance"] == infos["instance"][i]
            state, reward, done, _, info = single.step(actions[i])
            assert reward == 0 or i == B - 1
        states, rewards, ended, _, infos = vector.step(actions)
        assert torch.equal(weights(single), weights(vector))
        np.testing.assert_array_equal(info["row_rewards"], rewards)
        assert reward == pytest.approx(rewards.mean(), abs=1e-15)
        assert (ended == done).all()
        for key in ("gain", "value", "row_credit", "teacher_advantage"):
            assert (key in info) == (key in infos)
            if key in info:
                np.testing.assert_array_equal(info[key], infos[key][0] if key in ("gain", "value") else infos[key])
    assert done
    np.testing.assert_array_equal(state, states[0])


# --- episodes ---------------------------------------------------------------------------------------------------------


def test_same_step_autoreset(make_vec):
    auto, by_hand = make_vec(), make_vec(autoreset_mode="disabled")
    for env in (auto, by_hand):
        env.reset(seed=6)
    for number in range(2):
        for step, actions in enumerate(subsets(6 + number)):
            states, rewards, ended, truncated, info = auto.step(actions)
            expected = by_hand.step(actions)
            np.testing.assert_array_equal(rewards, expected[1])
            np.testing.assert_array_equal(ended, expected[2])
            assert not truncated.any()
            if step < STEPS - 1:
                assert not ended.any()
                assert not {"final_obs", "final_info"} & set(info)
                assert_same((states, info), (expected[0], expected[4]))
        assert ended.all()
        assert info["_final_obs"].all()
        assert info["_final_info"].all()
        assert_same((info["final_obs"], info["final_info"]), (expected[0], expected[4]))
        assert "_gain" in info["final_info"]
        assert torch.equal(weights(auto), torch.cat([w.flatten() for w in auto.unwrapped.core.process.warm]))
        fresh, fresh_info = by_hand.reset()
        np.testing.assert_array_equal(states, fresh)
        np.testing.assert_array_equal(info["instance"], fresh_info["instance"])
        assert "gain" not in info


def test_gymnasium_statistics_see_whole_episodes(make_vec):
    env = gym.wrappers.vector.RecordEpisodeStatistics(make_vec())
    env.reset(seed=0)
    total = np.zeros(B)
    for actions in subsets(7):
        _, rewards, ended, _, info = env.step(actions)
        total += rewards
    assert ended.all()
    shown = info["final_info"]["episode"] if "episode" in info["final_info"] else info["episode"]
    np.testing.assert_allclose(shown["r"], total, rtol=1e-6)
    assert (shown["l"] == STEPS).all()


@pytest.mark.parametrize("mode", ["same_step", "disabled"])
def test_disabled_autoreset_leaves_the_trained_student(make_vec, mode):
    env = make_vec(autoreset_mode=mode)
    env.reset(seed=0)
    warm = weights(env)
    for actions in subsets(8):
        env.step(actions)
    assert torch.equal(weights(env), warm) == (mode == "same_step")
    assert env.metadata["autoreset_mode"].name == mode.upper()


@pytest.mark.parametrize("vector", [False, True])
def test_reset_restarts_or_continues(make, make_vec, vector):
    env = make_vec(autoreset_mode="disabled") if vector else make()

    def play() -> torch.Tensor:
        for actions in subsets(9):
            for action in [actions] if vector else actions:
                env.step(action)
        return weights(env)

    env.reset(seed=0)
    warm = weights(env)
    assert torch.equal(warm, torch.cat([w.flatten() for w in env.unwrapped.core.process.warm]))
    trained = play()
    assert not torch.equal(trained, warm)
    env.reset(seed=1, options={"student": "continue"})
    assert torch.equal(weights(env), trained)
    assert env.unwrapped.core.process.student.steps == 0
    assert not torch.equal(play(), trained)
    for options in ({"student": "restart"}, {}, None):
        env.reset(seed=0, options=options)
        assert torch.equal(weights(env), warm)
        assert torch.equal(play(), trained)


def test_continue_is_repeated_by_autoresets(make_vec):
    env = make_vec()
    env.reset(seed=0, options={"student": "continue"})
    start, seen = weights(env), []
    for actions in subsets(10):
        env.step(actions)
        seen.append(weights(env))
    assert not torch.equal(seen[-1], start)
    assert not torch.equal(seen[-1], seen[-2])


# --- determinism ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [[], STATES])
def test_a_seed_fixes_the_whole_episode(make, more):
    env, other = make(*more), make(*more)
    first = episode(env, 11, subsets(11))
    assert_same(episode(env, 11, subsets(11)), first)
    assert_same(episode(other, 11, subsets(11)), first)
    assert_same(episode(env, None, subsets(11)), episode(other, None, subsets(11)))  # and all that follows it
    different = episode(env, 12, subsets(11))
    assert [s[-1]["instance"] for s in different] != [s[-1]["instance"] for s in first]


def global_states() -> tuple[Any, ...]:
    return (torch.get_rng_state().numpy(), np.random.get_state(), random.getstate())  # noqa: NPY002


def set_global_seeds(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)


@pytest.mark.parametrize("more", [[], STATES])
def test_global_generators_are_neither_read_nor_moved(make, more):
    env, runs = make(*more), []
    assert env.core.process.student.random == (more == STATES)
    for seed in (1, 2):
        set_global_seeds(seed)
        before = global_states()
        runs.append((episode(env, 13, subsets(13)), weights(env)))
        assert_same(global_states(), before)
    assert_same(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])


def test_construction_leaves_global_generators_alone(make, tmp_path):
    built = []
    for seed in (1, 2):
        set_global_seeds(seed)
        before = global_states()
        built.append(weights(make(f"home={tmp_path / str(seed)}", "student.dropout=0.1")))
        assert_same(global_states(), before)
    assert torch.equal(*built)


def test_dropout_follows_the_seed_of_the_episode(make):
    env = make("student.dropout=0.5", "budget.group_lengths=false")
    env.reset(seed=0)
    begin = env.core.process.begin
    after = []
    for seed in (0, 0, 1):
        begin(0)
        env.core.process.rng_state = torch.Generator().manual_seed(seed).get_state()
        env.core.process.step(np.ones((B, K), np.float32))
        after.append(weights(env))
    assert torch.equal(after[0], after[1])
    assert not torch.equal(after[0], after[2])


@pytest.mark.parametrize("more", [[], STATES])
def test_inference_mode_outside_does_not_stop_training(make, more):
    with torch.inference_mode():
        env = make("student.lr=0.0123", *more)  # a learning rate of its own: the warm start is made here
        env.reset(seed=0)
        warm = weights(env)
        for action in subsets(14, 1)[0]:
            env.step(action)
        once = weights(env)
    for action in subsets(15, 1)[0]:
        env.step(action)
    assert not torch.equal(once, warm)
    assert not torch.equal(weights(env), once)
    outside = make("student.lr=0.0123", *more)
    outside.reset(seed=0)
    for action in subsets(14, 1)[0]:
        outside.step(action)
    assert torch.equal(weights(outside), once)
