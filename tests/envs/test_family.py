"""The registered ids: one table, cheap to register, JSON-able, and the small one is quick."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector.utils import batch_space

import envs  # noqa: F401
from distill.checks import UserError
from envs.actions import Actions
from envs.arguments import as_settings
from envs.family import FAMILY, LABELS
from envs.wrappers import DiscreteSubsetsVector

ROOT = Path(__file__).resolve().parents[2]
IDS = [*FAMILY, LABELS]
TINY = "TeacherSelect/Tiny-v0"


@pytest.mark.parametrize("name", IDS)
def test_every_id_is_registered_with_its_arguments(name) -> None:
    spec = gym.spec(name)
    assert spec.kwargs == FAMILY.get(name, {})
    assert spec.vector_entry_point is not None
    assert json.loads(spec.to_json())["kwargs"] == spec.kwargs


@pytest.mark.parametrize("name", list(FAMILY))
def test_the_settings_of_every_id_compose(name) -> None:
    settings = as_settings(None, (), **FAMILY[name])
    assert settings.teachers.pool
    wanted = name.removeprefix("TeacherSelect/").removesuffix("-v0").lower()
    if "experiment" not in FAMILY[name] and name != "TeacherSelect-v0":
        assert settings.task.name == wanted
    if wanted.startswith("afrisenti"):
        assert len(settings.task.languages) == len(settings.teachers.pool) == int(wanted[-1])


def test_the_page_lists_every_id() -> None:
    page = (ROOT / "docs" / "environments.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(TeacherSelect[\w/-]*)` ", page, flags=re.MULTILINE)) == set(IDS)


def test_importing_twice_keeps_what_the_user_has_registered() -> None:
    code = (
        "import gymnasium as gym, importlib; gym.register('TeacherSelect/Tiny-v0', entry_point='mine:Env');"
        "import envs; importlib.reload(envs); print(gym.spec('TeacherSelect/Tiny-v0').entry_point)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "mine:Env"


def test_the_users_overrides_come_on_top(home) -> None:
    env = gym.make(TINY, overrides=["budget.steps=5"]).unwrapped
    assert env.core.process.budget == 5
    assert env.core.process.task.splits["train"].labels.shape == (480,)
    with pytest.raises(
        UserError, match=r"^give either config or task/teachers/student/experiment/overrides/config_dir"
    ):
        gym.make(TINY, config={})


def test_a_folder_of_ones_own(home, tmp_path) -> None:
    """`config_dir` is what `--config-dir` is on the command line."""
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\ndefaults: [tiny]\nbudget: {steps: 7}\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    env = gym.make("TeacherSelect-v0", experiment="mine", config_dir=str(tmp_path)).unwrapped
    assert env.core.process.budget == 7
    assert env.core.process.signals.names == ("film", "food", "hotel", "electronics")
    with pytest.raises(UserError, match=r"no such folder"):
        gym.make("TeacherSelect-v0", config_dir=str(tmp_path / "none"))


def test_the_small_one_is_quick(tmp_path) -> None:
    """Cold: teachers, signals and warm start are made. In processor time, so that other work counts less."""
    code = (
        "import time, numpy as np, gymnasium as gym, envs, envs.teacher_select, sklearn.linear_model\n"
        "from transformers import BertForSequenceClassification, PreTrainedTokenizerFast\n"
        "start = time.process_time(); env = gym.make('TeacherSelect/Tiny-v0')\n"
        "cold = time.process_time() - start; env.reset(seed=0); action = np.ones(4)\n"
        "start = time.process_time()\n"
        "for _ in range(800): env.step(action)\n"
        "print(cold, (time.process_time() - start) / 800)"
    )
    place = {**os.environ, "TEACHER_SELECT_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=place, check=True)
    cold, step = map(float, done.stdout.split())
    assert cold < 3
    assert step < 0.002


# --- forms of action --------------------------------------------------------------------------------------------------


def played(env: Any, actions: list[np.ndarray]) -> list[np.ndarray]:
    env.reset(seed=2)
    return [env.step(a)[1] for a in actions]


def test_the_forms_of_action_are_arguments(home) -> None:
    """The same subsets, as bits, as numbers and as weights, pay alike; wrappers of the same form too."""
    numbers = [np.random.default_rng(i).integers(16, size=16) for i in range(4)]
    bits = [n[:, None] >> np.arange(4) & 1 for n in numbers]
    expected = played(gym.make_vec(TINY, num_envs=16), bits)
    discrete = gym.make_vec(TINY, num_envs=16, actions="discrete")
    assert discrete.action_space == batch_space(gym.spaces.Discrete(16), 16)
    weights = gym.make_vec(TINY, num_envs=16, actions="weights")
    assert weights.single_action_space == gym.spaces.Box(0, 1, (4,), np.float32)
    wrapped = DiscreteSubsetsVector(gym.make_vec(TINY, num_envs=16))
    for env, actions in ((discrete, numbers), (weights, bits), (wrapped, numbers)):
        np.testing.assert_array_equal(played(env, actions), expected)
    halves = [b * np.float32(0.5) for b in bits]
    np.testing.assert_allclose(played(weights, halves), expected, atol=1e-6)


@pytest.mark.parametrize("form", ["discrete", "weights"])
def test_the_checker_passes_with_every_form(form, tiny_overrides) -> None:
    check_env(gym.make("TeacherSelect-v0", overrides=tiny_overrides, actions=form).unwrapped)


def test_masks_of_every_form(home) -> None:
    answered = np.array([[True, False], [True, True]])
    assert Actions("subset", 2).masks(answered).tolist() == [[True, True, True, False], [True] * 4]
    assert Actions("discrete", 2).masks(answered).tolist() == [[True, True, False, False], [True] * 4]
    with pytest.raises(UserError, match=r"^actions=weights cannot be masked"):
        Actions("weights", 2).masks(answered)


@pytest.mark.parametrize(
    ("form", "action", "message"),
    [
        ("discrete", 16, "outside 0 to 15"),
        ("discrete", -1, "outside 0 to 15"),
        ("discrete", 1.0, "expected whole numbers"),
        ("weights", [0.5, 1.5, 0, 0], "a weight outside"),
        ("subset", [0.5, 1, 0, 0], "something other than 0 and 1"),
    ],
)
def test_actions_outside_their_space_are_refused(form, action, message) -> None:
    with pytest.raises(ValueError, match=message):
        Actions(form, 4).decode(action)


def test_too_many_teachers_for_numbers() -> None:
    with pytest.raises(UserError, match=r"has 2\^7 actions; at most 6 teachers"):
        Actions("discrete", 7)
