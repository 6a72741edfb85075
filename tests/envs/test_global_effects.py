"""An environment leaves the settings and generators of the whole process as they were."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import transformers
from env_helpers import STATES, B, K, assert_same

# Run in a process of its own: these settings belong to the process, and other tests in this one may have set them.
FRESH = """
import json, sys
import numpy as np
import torch
import transformers
torch.set_num_threads(2)

def seen():
    logging = transformers.utils.logging
    return (torch.get_num_threads(), logging.get_verbosity(), logging.is_progress_bar_enabled(),
            torch.get_rng_state().tolist(), [str(part) for part in np.random.get_state()])

before = seen()
import gymnasium as gym
import envs
assert seen() == before, "import"
env = gym.make("TeacherSelect-v0", overrides=json.loads(sys.argv[1]))
assert seen() == before, f"make: {torch.get_num_threads()} threads"
env.action_space.seed(0)
env.reset(seed=0)
assert seen() == before, "reset"
for _ in range(17):
    env.step(env.action_space.sample())
    assert seen() == before, "step"
assert torch.get_num_threads() == 2
"""


def process_wide() -> dict[str, Any]:
    """What code in one process shares."""
    return {
        "threads": torch.get_num_threads(),
        "interop threads": torch.get_num_interop_threads(),
        "default dtype": str(torch.get_default_dtype()),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul": torch.get_float32_matmul_precision(),
        "verbosity": transformers.logging.get_verbosity(),
        "bars": transformers.utils.logging.is_progress_bar_enabled(),
        "torch": torch.get_rng_state().numpy(),
        "numpy": np.random.get_state(),  # noqa: NPY002
        "python": random.getstate(),
    }


def go(env: Any, vector: bool, steps: int) -> None:
    env.reset(seed=0)
    for _ in range(steps):
        env.step(np.ones((B, K) if vector else K, np.int8))
    env.unwrapped.set_state(env.unwrapped.get_state())
    env.unwrapped.fork().render()


@pytest.mark.parametrize(("vector", "threads"), [(False, "1"), (True, "null"), (True, "3")])
def test_an_environment_changes_nothing_outside(tiny_overrides, tmp_path, vector, threads):
    """From an empty cache: teachers are fine-tuned, signals stored and a warm start made within `make`."""
    torch.set_num_threads(2)
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_info()
    try:
        before = process_wide()
        build = gym.make_vec if vector else gym.make
        overrides = [*tiny_overrides, *STATES, f"threads={threads}", f"home={tmp_path}"]
        env = build("TeacherSelect-v0", overrides=overrides, **({"num_envs": B} if vector else {}))
        assert_same(process_wide(), before)
        go(env, vector, 3 if vector else 2 * B + 1)
        assert_same(process_wide(), before)
    finally:
        transformers.logging.set_verbosity(verbosity)


@pytest.mark.parametrize("threads", ["null", "1"])
def test_nothing_changes_in_a_fresh_process(tiny_overrides, tmp_path, threads):
    arguments = json.dumps([*tiny_overrides, f"threads={threads}", f"home={tmp_path}"])
    done = subprocess.run([sys.executable, "-c", FRESH, arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_threads_return_to_their_number_after_an_error(make):
    torch.set_num_threads(2)
    env = make("threads=1", "student.lr=0.01")
    env.reset(seed=0)
    with pytest.raises(ValueError, match="action"):
        env.step([2] * K)
    assert torch.get_num_threads() == 2
    with pytest.raises(ValueError, match="device"):
        make("threads=1", "device=cuda:99")
    assert torch.get_num_threads() == 2


def test_the_threads_of_the_settings_are_those_that_compute(make, monkeypatch):
    """Inside a step the number is the one of the settings, whatever it is outside."""
    torch.set_num_threads(2)
    env = make("threads=1")
    student, seen = env.core.process.student, []
    step = student.step
    monkeypatch.setattr(student, "step", lambda *a: (seen.append(torch.get_num_threads()), step(*a))[1])
    env.reset(seed=0)
    for _ in range(2 * B):
        env.step(np.ones(K, np.int8))
    assert seen == [1, 1]
