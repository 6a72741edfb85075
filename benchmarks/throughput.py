"""How close selection comes to the student's own floor, and to others' tools: one table, ratios of one run.

    python benchmarks/throughput.py --workload nano --threads 1
    python benchmarks/throughput.py --workload mini --threads 2

Random ragged tokens, four BERT teachers with random weights, batches of 32, no dropout, AdamW, clipping at 1: `mini` (teachers of 4
layers, 256 wide; student 2 layers, 128 wide; length 64; 512 instances) and `nano` (2 layers, 128 wide; 2 layers, 64 wide; length 32; 1024).
The floor is the bare loop: labels only, the same batches. Ways take turns, so that what else the machine does falls on all alike;
the figure is the median over the turns, the ratio the median of each turn's own ratio to its floor.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import configs
from agents.reinforce import Credit, ReinforceSettings, Selector, surrogate
from distill.losses import label_loss
from distill.process import Distillation
from envs.rewards import RewardSettings
from envs.teacher_select import Core

ROOT = Path(__file__).resolve().parents[1]
TARGETS = {
    "all teachers, stored": 0.97,
    "reinforce, paper1": 0.92,
    "reinforce, gain every 4": 0.75,
    "reinforce, influence": 0.60,
}


@dataclass(frozen=True)
class Workload:
    """Sizes: (layers, width, heads, inner width) of teachers and student."""

    teacher: tuple[int, int, int, int]
    student: tuple[int, int, int, int]
    vocabulary: int
    length: int
    instances: int


WORKLOADS = {
    "mini": Workload((4, 256, 4, 1024), (2, 128, 2, 512), 8192, 64, 512),
    "nano": Workload((2, 128, 2, 512), (2, 64, 2, 256), 1024, 32, 1024),
}


def write_data(work: Workload, folder: Path) -> None:
    """Random words of random lengths, half the largest to the largest; labels by the toss of a coin."""
    rng = np.random.default_rng(1)
    words = np.array([f"w{i}" for i in range(work.vocabulary)])
    for name, count in (("train", work.instances + 256), ("test", 64)):
        lines = ["text\tlabel"]
        for i in range(count):
            size = int(rng.integers(work.length // 2, work.length + 1)) - 2
            lines.append(" ".join(words[rng.integers(0, len(words), size)]) + f"\t{i % 2}")
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def overrides(work: Workload, folder: Path) -> list[str]:
    """The workload as settings of a run."""

    def shape(layers: int, width: int, heads: int, inner: int) -> str:
        return (
            f"{{hidden_size: {width}, num_hidden_layers: {layers}, num_attention_heads: {heads}, intermediate_size: {inner}, "
            "hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0, initializer_range: 0.1}"
        )

    pool = ", ".join(
        f"{{name: t{k}, seed: {k}, epochs: 1, share: 0.05, max_length: {work.length}, config: {shape(*work.teacher)}}}"
        for k in range(4)
    )
    return [
        "task=files", f"task.train={folder / 'train.tsv'}", f"task.test={folder / 'test.tsv'}", "task.text=[text]", "task.label=label",
        "task.reward_size=128", "task.dev_size=128", f"teachers.pool=[{pool}]", "student=tiny", f"++student.config={shape(*work.student)}",
        f"student.max_length={work.length}", "student.lr=1e-4", "student.schedule=constant", "student.clip=1.0", "loss.temperature=4.0",
        "loss.alpha=0.5", "budget.batch_size=32", "++budget.warm_steps=0", f"home={folder}", "encoder.dim=128", "reward.center=false",
    ]  # fmt: skip


class Ways:
    """Every way to train the student for a number of steps, from the same start on the same batches."""

    def __init__(self, settings: list[str], live: list[str], steps: int) -> None:
        self.steps = steps
        made = {"stored": settings, "live": live}
        self.cores = {name: Core(configs.compose([*o, f"budget.steps={steps}"])) for name, o in made.items()}
        self.everyone = np.ones((32, 4), np.float32)

    def all(self) -> dict[str, Callable[[], None]]:
        """By name."""
        reward = RewardSettings
        gain = {"name": "validation_gain", "size": 128, "credit": "shared"}
        return {
            "floor": self.floor,
            "all teachers, stored": lambda: self.fixed("stored", self.everyone),
            "reinforce, paper1": lambda: self.reinforce(reward(name="paper1"), "shared"),
            "reinforce, gain every 4": lambda: self.reinforce(reward(**gain, every=4), "shared"),
            "reinforce, gain every 1": lambda: self.reinforce(reward(**gain, every=1), "shared"),
            "reinforce, influence": lambda: self.reinforce(
                reward(size=128, every=16, credit="influence", direction_every=16), "counterfactual"
            ),
            "all teachers, live": lambda: self.fixed("live", self.everyone),
            "half the teachers, live": lambda: self.fixed("live", None),
        }

    def floor(self) -> None:
        """Labels only."""
        process: Distillation = self.cores["stored"].process
        process.begin(0)
        tokens = process.tokens("train")
        stream = process.stream
        for _ in range(self.steps):
            rows = stream.next()
            process.student.step(tokens.batch(rows), label_loss(torch.from_numpy(process.labels[rows])))

    def fixed(self, which: str, actions: np.ndarray | None) -> None:
        """The same teachers for all, or a random half of them for each."""
        process = self.cores[which].process
        process.begin(0)
        rng = np.random.default_rng(3)
        for _ in range(self.steps):
            half = (rng.random((32, 4)).argsort(1) < 2).astype(np.float32)
            process.step(half if actions is None else actions)

    def reinforce(self, reward: RewardSettings, kind: str) -> None:
        """The paper's selector on the environment's core: states, choices, rewards, an update a step."""
        core = self.cores["stored"]
        core.reward.settings = reward  # the reward split has the 128 instances that all of them measure
        settings = ReinforceSettings(credit=kind, lr=0.01)
        credit = Credit(settings, waits=reward.name == "validation_gain")
        selector = Selector(core.observe.space.shape[0], 4, 1.0)
        optimizer = torch.optim.Adam(selector.parameters(), lr=0.01)
        generator = torch.Generator().manual_seed(0)
        core.begin(0)
        pending: list[tuple[np.ndarray, np.ndarray]] = []
        states = core.observe()
        for _ in range(self.steps):
            actions = selector.sample(states, generator)
            next_states, rewards, _, info = core.step(actions)
            pending.append((states, actions))
            advantages = credit(rewards, info)
            if advantages is not None:
                logits = selector(torch.from_numpy(np.concatenate([s for s, _ in pending])))
                optimizer.zero_grad()
                (-surrogate(logits, torch.from_numpy(np.concatenate([a for _, a in pending])), advantages)).backward()
                optimizer.step()
            if advantages is not None or "gain" in info or not credit.waits:
                pending.clear()
            states = next_states


def main() -> None:
    """Measure; print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=WORKLOADS, default="nano")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, help="student steps a turn; two epochs, if not given")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/throughput.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    work = WORKLOADS[args.workload]
    steps = args.steps or 2 * work.instances // 32
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_data(work, folder)
        settings = [*overrides(work, folder), f"threads={args.threads}"]
        ways = Ways(settings, [*settings, "teachers.signals=live"], steps).all()
        times: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(args.turns + 1):  # the first warms up
            for name, way in ways.items():
                started = time.perf_counter()
                way()
                if turn:
                    times[name].append(time.perf_counter() - started)
    rows = []
    print(f"{args.workload}, {args.threads} thread(s), {steps} steps of 32, {args.turns} turns")
    print(f"{'way':26s} {'examples/s':>11s} {'to the floor':>13s} {'target':>7s}")
    for name, spent in times.items():
        speed = 32 * steps / statistics.median(spent)
        ratio = statistics.median(f / s for f, s in zip(times["floor"], spent, strict=True))
        rows.append({"way": name, "examples_per_s": speed, "ratio": ratio, "seconds": spent})
        print(f"{name:26s} {speed:11.0f} {ratio:13.2f} {TARGETS.get(name, ''):>7}")
    known: dict[str, Any] = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    known[f"{args.workload}, {args.threads}"] = {
        "workload": args.workload,
        "threads": args.threads,
        "steps": steps,
        "turns": args.turns,
        "torch": torch.__version__,
        "load": os.getloadavg()[0],
        "rows": rows,
        "reproduce": f"python benchmarks/throughput.py --workload {args.workload} --threads {args.threads}",
    }
    args.out.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
