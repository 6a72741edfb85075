"""The leaderboard: entries are replayed, and a score that its actions do not give is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import envs  # noqa: F401  registers the ids
from envs.leaderboard import main, read_entry

ID = "TeacherSelect/Tiny-v0"


@pytest.fixture(scope="module")
def episodes(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two episodes of random subsets."""
    folder = tmp_path_factory.mktemp("episodes")
    env = gym.make_vec(ID, num_envs=32, autoreset_mode="disabled")
    rng, paths = np.random.default_rng(0), []
    for seed in (0, 1):
        env.reset(seed=seed)
        done = False
        while not done:
            done = bool(env.step(rng.integers(0, 2, env.action_space.shape, dtype=np.int8))[2].all())
        paths.append(folder / f"episode{seed}.npz")
        np.savez(paths[-1], **env.unwrapped.trajectory())
    return paths


def submit(folder: Path, paths: list[Path], name: str = "coin") -> int:
    return main(["submit", "--id", ID, "--name", name, "--labels", "none", "--folder", str(folder), *map(str, paths)])


@pytest.fixture(scope="module")
def board(episodes: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("board")
    assert submit(folder, episodes) == 0
    return folder


def entry(board: Path, suffix: str) -> Path:
    return board / "TeacherSelect-Tiny-v0" / f"coin{suffix}"


def row(board: Path) -> Any:
    return json.loads(entry(board, ".json").read_text())


def test_an_entry_holds_actions_and_scores(board: Path, episodes: list[Path]) -> None:
    facts, kept = read_entry(entry(board, ".npz"))
    assert facts["labels"] == "none"
    assert entry(board, ".npz").stat().st_size < 100_000
    for path, episode in zip(episodes, kept, strict=True):
        np.testing.assert_array_equal(np.load(path)["actions"], episode.actions)
    found = row(board)
    assert found["same_teachers"]
    assert len(found["score"]) == len(found["all_teachers"]) == 2
    assert found["return"] == pytest.approx([float(np.load(p)["rewards"].mean(1).sum()) for p in episodes])


def test_an_entry_is_valid_where_it_was_made(board: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "--folder", str(board)]) == 0
    assert "same teachers to the bit): holds" in capsys.readouterr().out


def test_a_score_that_the_actions_do_not_give(board: Path, capsys: pytest.CaptureFixture[str]) -> None:
    honest = row(board)
    entry(board, ".json").write_text(json.dumps({**honest, "score": [s + 0.1 for s in honest["score"]]}))
    try:
        assert main(["validate", "--folder", str(board), str(entry(board, ".npz"))]) == 1
    finally:
        entry(board, ".json").write_text(json.dumps(honest))
    assert "DOES NOT HOLD" in capsys.readouterr().out


def changed(path: Path, to: Path, **arrays: Any) -> Path:
    with np.load(path) as old:
        np.savez(to, **{**old, **arrays})
    return to


def test_what_cannot_be_an_entry(
    board: Path, episodes: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = np.load(episodes[0])
    facts = json.loads(str(first["facts"]))
    wrong = {
        "exists; choose another --name": episodes,
        "the same seed": [episodes[0]] * 2,
        "a recorded reward is off": [changed(episodes[0], tmp_path / "a.npz", rewards=first["rewards"] + 0.01)],
        "not a whole episode": [
            changed(episodes[0], tmp_path / "b.npz", actions=first["actions"][:-1], rewards=first["rewards"][:-1])
        ],
        "continued an earlier one": [
            changed(episodes[0], tmp_path / "c.npz", facts=np.array(json.dumps({**facts, "restart": False})))
        ],
        "outside [0, 1]": [changed(episodes[0], tmp_path / "d.npz", actions=first["actions"] * 2)],
        "not a trajectory": [tmp_path / "none.npz"],
    }
    for message, paths in wrong.items():
        assert submit(board, paths, "coin" if "exists" in message else "other") == 2, message
        assert message in capsys.readouterr().err
    assert not entry(board, ".npz").with_name("other.npz").exists()
    assert main(["submit", "--id", "CartPole-v1", "--name", "x", "--labels", "none", str(episodes[0])]) == 2
    assert "is not known; choose from" in capsys.readouterr().err
    assert main(["validate", "--folder", str(tmp_path)]) == 2
    assert "holds no entry" in capsys.readouterr().err


def test_weights_are_entries_too(episodes: list[Path], tmp_path: Path) -> None:
    env = gym.make_vec(ID, num_envs=32, autoreset_mode="disabled", actions="weights")
    env.reset(seed=3)
    rng, done = np.random.default_rng(0), False
    while not done:
        done = bool(env.step(rng.random(env.action_space.shape, np.float32))[2].all())
    np.savez(tmp_path / "w.npz", **env.unwrapped.trajectory())
    assert submit(tmp_path, [tmp_path / "w.npz"], "soft") == 0
    assert main(["validate", "--folder", str(tmp_path)]) == 0
