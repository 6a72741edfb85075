"""The leaderboard: an entry is what a policy did, and its score is what replaying that gives.

An entry holds the actions of whole episodes, usually one for each of several seeds. `submit` trains the student with
them, on the machine it runs on, and writes entry and score. `validate` does the same with entries that are there.

    np.savez("episode0.npz", **env.unwrapped.trajectory())      # after the last step of an episode
    python -m envs.leaderboard submit --id TeacherSelect/Tiny-v0 --name my-policy --labels reward episode*.npz
    python -m envs.leaderboard validate                         # every entry; or name some

Two processors round differently, and training amplifies that. So an entry from a machine with the same teachers, to the
bit, must give the same rewards; from another one its score must come close.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from distill import cache, output
from distill.checks import UserError, plain_name
from distill.progress import Progress
from distill.state import Damaged
from envs.core import Core
from envs.family import FAMILY

FOLDER = Path("benchmarks/leaderboard")
EXACT = 1e-6  # difference of a reward where the teachers are the same to the bit
CLOSE = 0.03  # difference of the mean score elsewhere


@dataclass(frozen=True)
class Episode:
    """The actions of a whole episode.

    Attributes:
        seed: of the episode's batches.
        fingerprint: of the environment that it was recorded in.
        actions: `[T,B,K]`, 0 and 1, or weights.
        rewards: as they were recorded, `[T,B]`.
    """

    seed: int
    fingerprint: str
    actions: np.ndarray
    rewards: np.ndarray


def read_episode(path: Path) -> Episode:
    """An episode that `np.savez(path, **env.unwrapped.trajectory())` wrote.

    Raises:
        UserError: for a file that cannot be read, or an episode that did not start at the warm start.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            facts = json.loads(str(arrays["facts"]))
            episode = Episode(
                int(facts["seed"]), str(facts["fingerprint"]), arrays["actions"].astype(np.float32), arrays["rewards"]
            )
            whole = bool(facts["restart"])
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise UserError(
            f"{path}: not a trajectory ({type(error).__name__}); write it with np.savez(path, **env.unwrapped.trajectory())"
        ) from None
    if episode.actions.ndim != 3 or episode.rewards.shape != episode.actions.shape[:2]:
        raise UserError(
            f"{path}: actions {list(episode.actions.shape)} and rewards do not fit; record the episode again"
        )
    if not whole:
        raise UserError(f"{path}: the episode continued an earlier one; record one that reset() began")
    return episode


def make_core(id: str, rows: int) -> Core:
    """The core of the environment `id` with `rows` instances a batch; it takes subsets and weights.

    Raises:
        UserError: for an id that is not in the family.
    """
    if id not in FAMILY:
        raise UserError(f"--id={id} is not known; choose from {', '.join(FAMILY)}")
    env = gym.make_vec(id, num_envs=rows, autoreset_mode="disabled")
    core: Core = env.unwrapped.core  # type: ignore[attr-defined]
    return core


def replay(core: Core, episode: Episode) -> dict[str, Any]:
    """Train the student with the actions of an episode.

    Returns:
        `return` (nats or whatever the reward counts), `apart` (largest difference of a reward to the recorded ones) and,
        for each test split, its metrics.

    Raises:
        UserError: for actions that do not fit the environment, or that are not a whole episode.
    """
    shape = (core.batch_size, core.process.num_teachers)
    if episode.actions.shape[1:] != shape:
        raise UserError(
            f"actions of {list(episode.actions.shape[1:])} a step, here {list(shape)}; use the same environment"
        )
    if not ((episode.actions >= 0) & (episode.actions <= 1)).all():
        raise UserError("an action is outside [0, 1]; record the episode again")
    core.begin(episode.seed)
    rewards, done = [], False
    for actions in episode.actions:
        if done:
            break
        _, given, done, _ = core.step(actions)
        rewards.append(given)
    if not done or len(rewards) != len(episode.actions):
        raise UserError(f"{len(episode.actions)} steps are not a whole episode, which has {core.process.budget}")
    apart = float(np.abs(np.array(rewards) - episode.rewards).max())
    scores = {test: core.process.evaluate(test) for test in core.process.task.tests}
    return {"return": float(np.mean(rewards, axis=1).sum()), "apart": apart, **scores}


def replays(core: Core, name: str, episodes: Sequence[Episode]) -> list[dict[str, Any]]:
    """`replay` of every episode.

    Raises:
        UserError: for an episode that does not fit, or whose recorded rewards are not those of its actions.
    """
    rows = []
    with Progress(name, len(episodes), "episode", brief=True) as shown:
        for episode in episodes:
            found = replay(core, episode)
            if episode.fingerprint == core.fingerprint and found["apart"] > EXACT:
                raise UserError(
                    f"{name}, seed {episode.seed}: a recorded reward is off by {found['apart']:.3g}; record it again"
                )
            rows.append(found)
            shown.update()
    return rows


def same_teachers(core: Core, episodes: Sequence[Episode]) -> bool:
    """Whether all episodes were recorded with the data, teachers and settings of this environment, to the bit."""
    return all(episode.fingerprint == core.fingerprint for episode in episodes)


def scored(core: Core, id: str, name: str, labels: str, episodes: Sequence[Episode]) -> dict[str, Any]:
    """The row of an entry: the replay of every episode, and of all teachers on the same batches.

    Raises:
        UserError: for an episode that does not fit, or whose recorded rewards are not those of its actions.
    """
    everyone = [Episode(e.seed, "", np.ones_like(e.actions), np.zeros_like(e.rewards)) for e in episodes]
    rows, control = replays(core, name, episodes), replays(core, "all teachers", everyone)
    test, metric = core.process.task.tests[0], core.process.task.metric
    return {
        "id": id,
        "name": name,
        "labels": labels,
        "metric": metric,
        "seeds": [e.seed for e in episodes],
        "score": [row[test][metric] for row in rows],
        "all_teachers": [row[test][metric] for row in control],
        "return": [row["return"] for row in rows],
        "return_all_teachers": [row["return"] for row in control],
        "same_teachers": same_teachers(core, episodes),
        "machine": core.process.machine(),
    }


def submit(paths: Sequence[Path], id: str, name: str, labels: str, folder: Path = FOLDER) -> dict[str, Any]:
    """Replay episodes, and write them with their score as an entry. Returns its row.

    Args:
        paths: trajectories, each of one episode.
        id: of the environment.
        name: of the policy.
        labels: whose labels the policy has used: `none`, `train`, `reward`, ...
        folder: of the leaderboard.

    Raises:
        UserError: for a trajectory that cannot be replayed, or a name that is taken.
    """
    plain_name(name, "--name")
    place = _place(folder, id, name)
    if place.with_suffix(".json").exists():
        raise UserError(f"{place.with_suffix('.json')} exists; choose another --name, or delete it")
    episodes = [read_episode(path) for path in paths]
    if len({e.actions.shape for e in episodes}) != 1:
        raise UserError("the episodes have different shapes; give those of one environment")
    if len({e.seed for e in episodes}) != len(episodes):
        raise UserError("two episodes have the same seed; give one for each")
    row = scored(make_core(id, episodes[0].actions.shape[1]), id, name, labels, episodes)
    place.parent.mkdir(parents=True, exist_ok=True)
    # Subsets are kept as bits.
    actions = np.stack([e.actions for e in episodes])
    subsets = bool(np.isin(actions, (0, 1)).all())
    kept = np.packbits(actions.astype(bool)) if subsets else actions
    facts = {"id": id, "name": name, "labels": labels, "shape": actions.shape, "subsets": subsets}
    facts |= {"seeds": row["seeds"], "fingerprints": [e.fingerprint for e in episodes]}
    with cache.writing(place.parent, "choose another --folder"):
        rewards = np.stack([e.rewards for e in episodes]).astype(np.float64)
        np.savez_compressed(place.with_suffix(".npz"), facts=np.array(json.dumps(facts)), actions=kept, rewards=rewards)
    cache.write_json(place.with_suffix(".json"), row)
    return row


def read_entry(path: Path) -> tuple[dict[str, Any], list[Episode]]:
    """The facts and the episodes of an entry's `.npz`.

    Raises:
        Damaged: for a file that is not an entry.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            facts = json.loads(str(arrays["facts"]))
            shape, rewards = tuple(facts["shape"]), arrays["rewards"]
            bits = (
                np.unpackbits(arrays["actions"], count=int(np.prod(shape))) if facts["subsets"] else arrays["actions"]
            )
            actions = bits.reshape(shape).astype(np.float32)
        episodes = [
            Episode(int(seed), str(fingerprint), *both)
            for seed, fingerprint, *both in zip(facts["seeds"], facts["fingerprints"], actions, rewards, strict=True)
        ]
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise Damaged(f"{path}: not an entry of the leaderboard ({type(error).__name__})") from None
    return facts, episodes


def validate(path: Path) -> tuple[bool, str]:
    """Replay an entry. Returns whether its score holds here, and a line that says what was found.

    Raises:
        UserError: for an entry that cannot be read or replayed.
    """
    facts, episodes = read_entry(path)
    stored = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    core = make_core(facts["id"], episodes[0].actions.shape[1])
    test, metric = core.process.task.tests[0], core.process.task.metric
    here = float(np.mean([row[test][metric] for row in replays(core, facts["name"], episodes)]))
    there, same = float(np.mean(stored["score"])), same_teachers(core, episodes)
    holds = abs(here - there) <= (EXACT if same and core.process.machine() == stored["machine"] else CLOSE)
    how = "same teachers to the bit" if same else "teachers of another machine"
    verdict = "holds" if holds else "DOES NOT HOLD"
    return holds, f"{facts['id']} {facts['name']}: {metric} {here:.4f} here, {there:.4f} stored ({how}): {verdict}"


def _place(folder: Path, id: str, name: str) -> Path:
    """Where an entry lies, without a suffix."""
    return folder / id.replace("/", "-") / name


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m envs.leaderboard", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    new = commands.add_parser("submit", help="replay episodes and write them as an entry")
    new.add_argument("episodes", nargs="+", type=Path, help="files of np.savez(path, **env.unwrapped.trajectory())")
    new.add_argument("--id", required=True, help=f"environment: {', '.join(FAMILY)}")
    new.add_argument("--name", required=True, help="of the policy")
    new.add_argument("--labels", required=True, help="whose labels the policy has used: none, train, reward, dev")
    old = commands.add_parser("validate", help="replay entries and compare their scores")
    old.add_argument("entries", nargs="*", type=Path, help=".npz files; all entries unless named")
    for command in (new, old):
        command.add_argument("--folder", type=Path, default=FOLDER, help="of the leaderboard (default: %(default)s)")
    args = parser.parse_args(arguments)
    return output.exit_code(lambda: _submit(args) if args.command == "submit" else _validate(args))


def _submit(args: argparse.Namespace) -> int:
    """Write an entry and print its score."""
    row = submit(args.episodes, args.id, args.name, args.labels, args.folder)
    gain = 100 * (np.mean(row["score"]) - np.mean(row["all_teachers"]))
    print(f"{args.id} {args.name}: {row['metric']} {np.mean(row['score']):.4f}, {gain:+.1f} points over all teachers")
    return 0


def _validate(args: argparse.Namespace) -> int:
    """Print a line for each entry; returns 1 if a score does not hold."""
    entries = args.entries or sorted(args.folder.glob("*/*.npz"))
    if not entries:
        raise UserError(f"{args.folder} holds no entry; name one, or give --folder")
    held = True
    for path in entries:
        holds, said = validate(path)
        print(said, flush=True)
        held &= holds
    return 0 if held else 1


if __name__ == "__main__":
    with output.may_be_cut():
        raise SystemExit(main())
