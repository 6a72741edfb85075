"""How close selection comes to the student's own floor, and to others' tools: one table, ratios of one run.

    python benchmarks/throughput.py --workload nano --threads 1
    python benchmarks/throughput.py --workload mini --threads 2
    python benchmarks/throughput.py --workload sst2                         MiniLM teachers and student (TEACHER_SELECT_DATA)
    python benchmarks/throughput.py --peer peers/bin/python                 with TextBrewer (benchmarks/requirements-peers.txt)

`nano` and `mini`: random ragged tokens, four BERT teachers with random weights, batches of 32, no dropout, AdamW, clipping at 1, full
precision. `mini`: teachers of 4 layers, 256 wide; student 2 layers, 128 wide; length 64; 512 instances. `nano`: 2 layers, 128 wide;
2 layers, 64 wide; length 32; 1024 instances. `mrpc` and `sst2`: the real thing, bf16 where the processor has it.
The floor is the bare loop: labels only, the same batches, the same student; `floor, fast=false` is that loop as transformers computes it,
which is what one would write by hand. Ways take turns, so that what else the machine does falls on all alike;
the figure is the median over the turns, the ratio the median of each turn's own ratio to its floor. REINFORCE's seconds are those of
the product's own loop without its looks at dev.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from safetensors.torch import load_file
from torch.utils.tensorboard import SummaryWriter

import configs
from agents.reinforce import ReinforceSettings, Selector, surrogate, train
from distill.losses import label_loss
from distill.process import Distillation
from distill.checks import UserError
from distill.teachers.store import StoredSignals
from distill.teachers.encoders import TransformerEncoder
from distill.data.splits import Split
from distill.teachers.sources import ModelTeacher
from distill.data.tokens import Stream
from envs.rewards import Reward, RewardSettings
from envs.teacher_select import TeacherSelectVectorEnv

ROOT = Path(__file__).resolve().parents[1]
TARGETS = {
    "all teachers, stored": 0.97,
    "reinforce, paper1": 0.92,
    "reinforce, paper1 on the next batch": 0.92,
    "reinforce, paper1 every 8": 0.92,
    "reinforce, gain every 4": 0.75,
    "reinforce, influence": 0.60,
}
PLAIN = "floor, fast=false"
REAL = {"mrpc": ["task=mrpc", "reward.size=128"], "sst2": ["task=sst2", "task.train_limit=6000", "reward.size=128"]}


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
        f"student.max_length={work.length}", "student.lr=1e-4", "student.schedule=constant", "student.warmup=0", "student.clip=1.0", "loss.temperature=4.0",
        "loss.alpha=0.5", "budget.batch_size=32", "++budget.warm_steps=0", f"home={folder}", "encoder.dim=128", "reward.center=false", "amp=off",
    ]  # fmt: skip


def clock(device: torch.device, work: Callable[[], Any]) -> float:
    """Seconds of `work`, the device's own included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def floor(process: Distillation, steps: int) -> float:
    """Seconds of the bare loop: labels only, the batches of the run."""
    process.begin(0)
    tokens, stream = process.tokens("train"), process.stream

    def loop() -> None:
        for _ in range(steps):
            rows = stream.next()
            process.student.step(
                tokens.batch(rows), label_loss(torch.from_numpy(process.labels[rows]).to(process.device))
            )

    return clock(process.device, loop)


class Ways:
    """Every way to train the student for a number of steps, from the same start on the same batches; each returns its seconds."""

    def __init__(self, settings: list[str], steps: int) -> None:
        self.steps = steps
        made = {
            "stored": settings,
            "live": [*settings, "teachers.signals=live"],
            "plain": [*settings, "fast=false"],
            "bf16": [*settings, "amp=bf16"],
            "random batches": [*settings, "budget.group_lengths=false"],
        }
        self.envs: dict[str, TeacherSelectVectorEnv] = {name: self._env(overrides) for name, overrides in made.items()}
        self.everyone = np.ones((32, self.process("stored").num_teachers), np.float32)

    def _env(self, overrides: list[str]) -> TeacherSelectVectorEnv:
        words = [*overrides, "++budget.warm_steps=0", f"budget.steps={self.steps}", "budget.evals=1"]
        config = configs.compose(words)
        for teacher in config["teachers"]["pool"]:  # how well they know the task costs nothing and buys nothing here
            teacher |= {"epochs": 1, "share": min(teacher.get("share", 1.0), 0.05)}
        env: Any = gym.make_vec("envs:TeacherSelect-v0", num_envs=32, config=config, autoreset_mode="disabled")
        unwrapped: TeacherSelectVectorEnv = env.unwrapped
        return unwrapped

    def process(self, which: str) -> Distillation:
        """Of one variant of the settings."""
        return self.envs[which].core.process

    def all(self) -> dict[str, Callable[[], float]]:
        """By name."""
        reward, steps = RewardSettings, self.steps
        gain = {"size": 128, "credit": "shared"}
        return {
            "floor": lambda: floor(self.process("stored"), steps),
            PLAIN: lambda: floor(self.process("plain"), steps),
            "all teachers, stored": lambda: self.fixed("stored"),
            "reinforce, paper1": lambda: self.reinforce(reward(name="paper1", every=1), "shared"),
            "reinforce, paper1 on the next batch": lambda: self.reinforce(
                reward(name="paper1", every=1, at="next"), "shared"
            ),
            "reinforce, paper1 every 8": lambda: self.reinforce(reward(name="paper1", every=8), "shared"),
            "reinforce, gain every 1": lambda: self.reinforce(reward(**gain, every=1), "shared"),
            "reinforce, gain every 4": lambda: self.reinforce(reward(**gain, every=4), "shared"),
            "reinforce, influence": lambda: self.reinforce(
                reward(size=128, every=16, credit="influence", direction_every=16, center=False), "counterfactual"
            ),
            "all teachers, live": lambda: self.fixed("live"),
            "half the teachers, live": lambda: self.fixed("live", half=True),
            "floor, bf16": lambda: floor(self.process("bf16"), steps),
            "floor, random batches": lambda: floor(self.process("random batches"), steps),
        }

    def fixed(self, which: str, half: bool = False) -> float:
        """All teachers, or a random half of them for each instance."""
        process = self.process(which)
        process.begin(0)
        rng = np.random.default_rng(3)

        def loop() -> None:
            for _ in range(self.steps):
                some = (rng.random(self.everyone.shape).argsort(1) < 2).astype(np.float32)
                process.step(some if half else self.everyone)

        return clock(process.device, loop)

    def reinforce(self, reward: RewardSettings, kind: str) -> float:
        """The product's joint training, one episode."""
        env = self.envs["stored"]
        env.core.reward.settings = reward  # it measures the 128 instances that all of them are told to
        settings = ReinforceSettings(credit=kind, lr=0.01, episodes=1)
        with tempfile.TemporaryDirectory() as folder, SummaryWriter(folder) as writer:
            return train(env, settings, 0, writer)[1].seconds


# --- where the time goes ----------------------------------------------------------------------------------------------

GROUPS = {
    "attention": "scaled_dot",
    "matrix products": "mm",
    "gelu": "gelu",
    "layer norm": "layer_norm",
    "optimiser": "adam",
}


def parts(ways: Ways, turns: int = 30) -> dict[str, float]:
    """Milliseconds, medians: one student step and what a selector adds to some of them."""
    env = ways.envs["stored"]
    core, process = env.core, ways.process("stored")
    reward = core.reward = Reward(RewardSettings(size=128, credit="influence", center=False), process)
    core.begin(0)
    core.step(ways.everyone)  # AdamW knows no scale before its first step
    lengths, drawn = process.tokens("train").lengths, [process.stream.next() for _ in range(15)]
    now = process.current = process.load(sorted(drawn, key=lambda rows: lengths[rows].max())[7])  # of middling length
    states = core.observe()
    selector, student = Selector(states.shape[1], ways.everyone.shape[1], 1.0), process.student
    optimizer, credit = torch.optim.Adam(selector.parameters()), torch.randn(ways.everyone.shape)
    direction = student.precondition(reward._gradient())

    def state() -> None:
        process.current = process.load(now.rows)
        core.observe()

    def update() -> None:
        optimizer.zero_grad()
        surrogate(selector(torch.from_numpy(states)), torch.from_numpy(ways.everyone), credit).backward()
        optimizer.step()

    def forward() -> None:
        with torch.inference_mode():
            student.forward(now.inputs)

    work: dict[str, Callable[[], Any]] = {
        "a student step (32 rows)": lambda: process.step(ways.everyone),
        "a forward of the batch, as paper1 needs": forward,
        "V on 128 instances": reward.measure,
        "a reward gradient on 64": reward._gradient,
        "a step along it, for influence": lambda: student.probe(now.inputs, direction),
        "the states of a batch": state,
        "an update of the selector": update,
    }
    out = {}
    for name, piece in work.items():
        times = [clock(process.device, piece) for _ in range(turns)]
        out[name] = 1e3 * statistics.median(times[turns // 5 :])
    return out


def shares(ways: Ways) -> dict[str, float]:
    """Share of the floor's processor time by kind of operation, by torch.profiler."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as seen:
        floor(ways.process("stored"), 16)
    spent = {e.key: e.self_cpu_time_total for e in seen.key_averages()}
    out = dict.fromkeys(GROUPS, 0.0)
    for name, micros in spent.items():
        group = next((g for g, word in GROUPS.items() if word in name.lower()), None)
        if group:
            out[group] += micros / sum(spent.values())
    return {**out, "everything else": 1 - sum(out.values())}


# --- other tools ------------------------------------------------------------------------------------------------------


class Averaged:
    """Signals whose teachers all give their mean logits: what TextBrewer averages, where we average probabilities."""

    selective = False

    def __init__(self, inner: StoredSignals) -> None:
        self.inner, self.names, self.width = inner, inner.names, inner.width

    def logits(self, rows: np.ndarray, chosen: np.ndarray | None = None) -> np.ndarray:
        """Float32 `[B,K,C]`, the same for every k."""
        logits = self.inner.logits(rows)
        return np.broadcast_to(logits.mean(1, keepdims=True), logits.shape).copy()

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """As they are."""
        return self.inner.vectors(rows)


class TextBrewer:
    """TextBrewer on our batches, in a Python of its own; one process a turn, so that it takes turns with our ways."""

    MODES = ("fed", "live", "own")

    def __init__(self, python: str, ways: Ways, threads: int, folder: Path) -> None:
        self.python, self.ways, self.threads, self.folder = python, ways, threads, folder
        self.version = ""
        process = ways.process("stored")
        settings, tokens = process.settings, process.tokens("train")
        whole = tokens.batch(np.arange(len(tokens)))
        stream = Stream(tokens.lengths, 32, 0, settings.budget.group_lengths)
        process.student.restore(process.warm)
        process.student.save(folder / "student")
        np.savez(
            folder / "work.npz",
            **{k: v.numpy() for k, v in whole.items()},
            labels=process.labels,
            lengths=tokens.lengths,
            logits=process.signals.logits(np.arange(len(tokens))),
            order=np.stack([stream.next() for _ in range(ways.steps)]),
        )
        facts = {
            "teachers": [str(t.folder) for t in process.prepared.teachers if isinstance(t, ModelTeacher)],
            "student": str(folder / "student"),
            "batch": 32,
            "epochs": ways.steps * 32 // len(tokens),
            "temperature": settings.loss.temperature,
            "alpha": settings.loss.alpha,
            "lr": settings.student.lr,
            "weight_decay": settings.student.weight_decay,
            "clip": settings.student.clip,
        }
        (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")

    def run(self, mode: str) -> float:
        """Seconds of one turn, after one that warms up; loading is not counted."""
        command = [
            self.python,
            str(ROOT / "benchmarks/peer_textbrewer.py"),
            str(self.folder),
            mode,
            "1",
            str(self.threads),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"--peer {self.python}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
        told = json.loads(done.stdout.strip().splitlines()[-1])
        self.version = told["version"]
        return float(told["seconds"][0])

    def compared(self) -> dict[str, dict[str, float]]:
        """By mode: how far its student ends from ours, and both dev losses."""
        process = self.ways.process("stored")
        ours = process.signals
        process.signals = Averaged(ours)  # type: ignore[arg-type]
        self.ways.fixed("stored")
        process.signals = ours  # type: ignore[assignment]
        same, own_loss = process.student.weights(), process.evaluate("dev")["loss"]
        out = {}
        for mode in self.MODES:
            saved = load_file(self.folder / f"{mode}.safetensors")
            theirs = [saved[name] for name in process.student.named]
            process.student.restore(theirs)
            distance = max(float((a - b).abs().max()) for a, b in zip(theirs, same, strict=True))
            loss = process.evaluate("dev")["loss"]
            out[mode] = {"dev_loss": loss, "our_dev_loss": own_loss, "distance": distance}
        return out


# --- signals ----------------------------------------------------------------------------------------------------------


def signal_speed(ways: Ways, turns: int, folder: Path, instances: int = 4096) -> dict[str, list[float]]:
    """Seconds to store all signals of a split anew, and of the bare forwards of its models over it.

    Bare: as transformers computes them, tokens ready, models loaded, sorted by length.
    """
    process, plain = ways.process("stored"), ways.process("plain").prepared
    train_split = process.train_split
    repeats = -(-instances // len(train_split))
    ids = np.array([f"{i}-{r}" for r in range(repeats) for i in train_split.ids])
    split = Split(train_split.role, ids, list(train_split.texts) * repeats, np.tile(train_split.labels, repeats))
    split = split.take(np.arange(instances))
    sources = process.prepared.teachers
    seconds: dict[str, list[float]] = {"signals, bare forwards": [], "signals, stored": []}
    for turn in range(turns + 1):
        spent = 0.0
        for source in [*plain.teachers, plain.encoder]:
            if isinstance(source, ModelTeacher):
                forward, tokens = source._load().forward, source._tokens(split)
            elif isinstance(source, TransformerEncoder):
                tokens, forward = source._tokens(split), source._pool
            else:
                continue
            started = time.perf_counter()
            with torch.inference_mode():
                for rows in tokens.by_length(256):
                    forward(tokens.batch(rows))
            spent += time.perf_counter() - started
            source.release()
        started = time.perf_counter()
        StoredSignals(split, sources, process.prepared.encoder, folder / f"signals{turn}")
        if turn:
            seconds["signals, bare forwards"].append(spent)
            seconds["signals, stored"].append(time.perf_counter() - started)
    return seconds


# --- the run ----------------------------------------------------------------------------------------------------------


def draw(results: dict[str, Any], path: Path) -> None:
    """Every way's ratio to its floor, by workload; targets as ticks."""
    from matplotlib.figure import Figure

    runs = list(results.values())
    names = [r["way"] for r in runs[0]["rows"] if not r["way"].startswith(("floor", "signals", "TextBrewer"))]
    figure = Figure(figsize=(7.2, 0.55 * len(names) + 1.2), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(runs)
    for i, run in enumerate(runs):
        ratio = {r["way"]: r["ratio"] for r in run["rows"]}
        places = [-j - i * height for j in range(len(names))]
        label = f"{run['workload']}, {run['threads']} thread(s)"
        axes.barh(places, [ratio.get(n, 0.0) for n in names], height, label=label)
    for j, name in enumerate(names):
        if name in TARGETS:
            axes.plot([TARGETS[name]] * 2, [-j + 0.45, -j - 0.75], color="black", lw=1.2)
    axes.set_yticks([-j - 0.4 + height / 2 for j in range(len(names))], names)
    axes.axvline(1, color="grey", lw=0.8)
    axes.set_xlabel("speed, as a ratio to the bare student loop (ticks: targets)")
    axes.legend(fontsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure; print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=[*WORKLOADS, *REAL], default="nano")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument(
        "--steps", type=int, help="student steps a turn; two epochs, or 30 of a real task, if not given"
    )
    parser.add_argument("--peer", help="a Python that has TextBrewer; for the synthetic workloads")
    parser.add_argument(
        "--signals", type=int, default=4096, help="instances behind the speed of storing signals; 0: none"
    )
    parser.add_argument("--figure", type=Path, help="draw all results of --out there as PNG, and measure nothing")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/throughput.json")
    args = parser.parse_args()
    if args.figure:
        draw(json.loads(args.out.read_text(encoding="utf-8")), args.figure)
        return
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if args.workload in REAL:
            settings = [*REAL[args.workload], "teachers=minilm", "student=minilm2"]
            steps = args.steps or 30
        else:
            work = WORKLOADS[args.workload]
            write_data(work, folder)
            settings, steps = overrides(work, folder), args.steps or 2 * work.instances // 32
        ways = Ways([*settings, f"threads={args.threads}"], steps)
        everything = ways.all()
        other = TextBrewer(args.peer, ways, args.threads, folder) if args.peer and args.workload not in REAL else None
        if other is not None:
            everything |= {f"TextBrewer, {mode}": partial(other.run, mode) for mode in other.MODES}
        times: dict[str, list[float]] = {name: [] for name in everything}
        for turn in range(args.turns + 1):  # the first warms up
            for name, way in everything.items():
                seconds = way()
                if turn:
                    times[name].append(seconds)

        def to_floor(which: str, spent: list[float]) -> float:
            return statistics.median(f / s for f, s in zip(times[which], spent, strict=True))

        rows: list[dict[str, Any]] = [
            {
                "way": name,
                "examples_per_s": 32 * steps / statistics.median(spent),
                "ratio": to_floor("floor", spent),
                "to_plain": to_floor(PLAIN, spent),
                "target": TARGETS.get(name),
                "seconds": spent,
            }
            for name, spent in times.items()
        ]
        if other is not None:
            known_of = other.compared()
            for row in rows:
                mode = row["way"].removeprefix("TextBrewer, ")
                row |= {**known_of[mode], "version": other.version} if mode in known_of else {}
        profile = {"parts_ms": parts(ways), "shares": shares(ways)}
        if args.signals:
            spent = signal_speed(ways, min(3, args.turns), folder, args.signals)
            bare, stored = spent["signals, bare forwards"], spent["signals, stored"]
            ratio = statistics.median(b / s for b, s in zip(bare, stored, strict=True))
            speed = args.signals / statistics.median(stored)
            rows.append(
                {"way": "signals stored, to bare forwards", "examples_per_s": speed, "ratio": ratio, "target": 0.9}
            )
    print(f"{args.workload}, {args.threads} thread(s), {steps} steps of 32, {args.turns} turns")
    print(f"{'way':36s} {'examples/s':>11s} {'to the floor':>13s} {'target':>7s} {'to fast=false':>14s}")
    for row in rows:
        plain_ratio = f"{row['to_plain']:14.2f}" if "to_plain" in row else ""
        print(
            f"{row['way']:36s} {row['examples_per_s']:11.0f} {row['ratio']:13.2f} {row['target'] or '':>7} {plain_ratio}"
        )
        if "distance" in row:
            print(
                f"{'':8s}dev loss {row['dev_loss']:.5f}, ours {row['our_dev_loss']:.5f}; weights apart {row['distance']:.1e}"
            )
    known: dict[str, Any] = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    words = ["python benchmarks/throughput.py", "--workload", args.workload, "--threads", str(args.threads)]
    for name in ("turns", "steps", "signals"):
        if getattr(args, name) != parser.get_default(name):
            words += [f"--{name}", str(getattr(args, name))]
    known[f"{args.workload}, {args.threads}"] = {
        "workload": args.workload,
        "threads": args.threads,
        "steps": steps,
        "turns": args.turns,
        **ways.process("stored").prepared.engine.told,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
        "rows": rows,
        **profile,
        "reproduce": " ".join([*words, *(["--peer PYTHON"] if args.peer else [])]),
    }
    for name, spent_ms in profile["parts_ms"].items():
        print(f"{spent_ms:10.2f} ms  {name}")
    print("the floor by kind of operation: " + ", ".join(f"{k} {v:.0%}" for k, v in profile["shares"].items()))
    args.out.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
