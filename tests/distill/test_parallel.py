"""Two processes over gloo compute what one computes."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from parallel_worker import play
from safetensors.numpy import load_file

from distill import parallel

ROOT = Path(__file__).resolve().parents[2]
# Without dropout: the masks of two processes differ from those of one.
STILL = ("++student.config.hidden_dropout_prob=0.0", "++student.config.attention_probs_dropout_prob=0.0")
MORE = (*STILL, "threads=1", "credit.name=counterfactual", "teachers.signals=stored")


def launch(arguments: list[str], launcher: list[str], home: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TEACHER_SELECT_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-m", *launcher, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def homes(prepared, place: Path) -> list[Path]:
    """Two caches that hold the same fine-tuned teachers and nothing else."""
    made = []
    for name in ("one", "two"):
        shutil.copytree(prepared.home / "teachers", place / name / "teachers")
        made.append(place / name)
    return made


def test_two_processes_give_the_signals_and_the_student_of_one(prepared, tiny_overrides, tmp_path):
    alone, together = homes(prepared, tmp_path)
    overrides = [*tiny_overrides, *MORE]
    launch(
        ["--nproc-per-node", "2", "--standalone", str(Path(__file__).parent / "parallel_worker.py"),
         str(tmp_path), str(together), json.dumps(overrides)],
        ["torch.distributed.run"],
        together,
    )  # fmt: skip
    one = play(overrides, str(alone))
    first, second = (dict(np.load(tmp_path / f"{r}.npz")) for r in (0, 1))
    np.testing.assert_array_equal(first["logits"], one["logits"])
    stored = sorted(p.relative_to(alone) for p in alone.glob("signals/*/*/values.f32"))
    assert len(stored) == 5, "four teachers and the encoder, on train"
    for path in stored:
        assert (alone / path).read_bytes() == (together / path).read_bytes(), path
    np.testing.assert_array_equal(first["actions"], one["actions"])
    np.testing.assert_array_equal(first["actions"], second["actions"], "the policy of the first process acts")
    np.testing.assert_array_equal(first["weights"], second["weights"])
    for key in ("first", "weights", "predicted"):
        np.testing.assert_allclose(first[key], one[key], atol=1e-5, rtol=0, err_msg=key)
    for key in (
        "rewards",
        "row_credit",
        "teacher_advantage",
    ):  # credit divides by AdamW's second moments, however small
        np.testing.assert_allclose(first[key], one[key], atol=2e-2 * np.abs(one[key]).max(), rtol=0, err_msg=key)
    assert np.abs(one["teacher_advantage"]).max() > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("script", ["agents/reinforce.py", "-m distill.teachers"])
def test_scripts_run_under_accelerate(prepared, tiny_overrides, tmp_path, script):
    assert importlib.util.find_spec("accelerate")
    alone, together = homes(prepared, tmp_path)
    launched = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
                "--mixed_precision", "no", "--dynamo_backend", "no"]  # fmt: skip
    runs = []
    for home, launcher in ((alone, []), (together, launched)):
        folder = tmp_path / f"run-{home.name}"
        settings = [*tiny_overrides, *STILL, "threads=1", f"hydra.run.dir={folder}"]
        if not launcher:
            launcher, words = ([script.split()[1]], []) if script.startswith("-m") else ([], [script])
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "TEACHER_SELECT_HOME": str(home)}
            command = [sys.executable, *(["-m", *launcher] if launcher else words), *settings]
            subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
        else:
            launch([*script.split(), *settings], launcher, home)
        runs.append(folder)
    if script == "agents/reinforce.py":
        one, two = (load_file(r / "student" / "model.safetensors") for r in runs)
        for name in one:
            if name.endswith("key.bias"):
                continue  # see parallel_worker.py
            np.testing.assert_allclose(two[name], one[name], atol=1e-5, rtol=0, err_msg=name)
        results = [json.loads((r / "results.json").read_text()) for r in runs]
        assert results[0]["selection"] == results[1]["selection"]
    for path in alone.glob("signals/*/*/values.f32"):
        assert path.read_bytes() == (together / path.relative_to(alone)).read_bytes(), path


def test_alone_nothing_is_shared():
    assert (parallel.world(), parallel.rank(), parallel.share(7)) == (1, 0, slice(0, 7))


def test_shares_cover_a_batch(monkeypatch):
    monkeypatch.setattr(parallel, "world", lambda: 3)
    rows = []
    for rank in range(3):
        monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
        rows += list(range(8))[parallel.share(8)]
    assert rows == list(range(8))
