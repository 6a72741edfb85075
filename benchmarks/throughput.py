"""How close selection comes to the speed of the student alone, and to other tools: one table of ratios.

    python benchmarks/throughput.py --workload nano --threads 1
    python benchmarks/throughput.py --workload mini --threads 2
    python benchmarks/throughput.py --workload sst2                         MiniLM teachers and student (TEACHER_SELECT_DATA)
    python benchmarks/throughput.py --peer peers/bin/python                 with TextBrewer (benchmarks/requirements-peers.txt)

`nano` and `mini`: random tokens of random lengths, four BERT teachers with random weights, batches of 32, no dropout, AdamW, clipping at
1, full precision. `mini`: teachers of 4 layers, 256 wide; student 2 layers, 128 wide; length 64; 512 instances. `nano`: 2 layers, 128
wide; 2 layers, 64 wide; length 32; 1024 instances. `mrpc` and `sst2`: the real tasks, in bf16 where the processor has it.
The floor is the plain training loop: labels only, the same batches, the same student. `floor, fast=false` is that loop as transformers
computes it, which is what one would write by hand. All ways run in turns, so that other work on the machine slows all of them alike.
A figure is the median over the turns; a ratio is the median of each turn's own ratio to its floor. The seconds of REINFORCE are those
of `agents.reinforce.train` without its evaluations on dev.
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
from agents.reinforce import Selector, initial_selector, train, update
from distill.checks import UserError
from distill.data.splits import Split
from distill.data.tokens import Batch, Stream
from distill.losses import label_loss
from distill.process import Distillation
from distill.settings import ReinforceSettings
from distill.teachers.checkpoint import ModelTeacher
from distill.teachers.encoders import TransformerEncoder
from distill.teachers.store import StoredSignals
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
SHARED = "credit.name=shared"
# Joint training of the selector under several rewards, by the settings of the environment.
REINFORCE = {
    "reinforce, paper1": ["reward=paper1", SHARED],
    "reinforce, paper1 on the next batch": ["reward=paper1", "reward.at=next", SHARED],
    "reinforce, paper1 every 8": ["reward=paper1", "reward.every=8", SHARED],
    "reinforce, gain every 1": ["reward.size=128", "reward.every=1", SHARED],
    "reinforce, gain every 4": ["reward.size=128", "reward.every=4", SHARED],
    "reinforce, influence": [
        "reward.size=128",
        "reward.every=16",
        "credit.name=counterfactual",
        "credit.every=16",
        "credit.center=false",
    ],
}
Shape = tuple[int, int, int, int]  # layers, width, heads, inner width
BERTS: dict[str, Shape] = {"BERT_3": (3, 768, 12, 3072), "BERT_6": (6, 768, 12, 3072)}
REAL = {"mrpc": ["task=mrpc", "reward.size=128"], "sst2": ["task=sst2", "task.train_limit=6000", "reward.size=128"]}


@dataclass(frozen=True)
class Workload:
    """A made-up task: shapes of the models, words, longest text in tokens, training instances."""

    teacher: Shape
    student: Shape
    vocabulary: int
    length: int
    instances: int


WORKLOADS = {
    "mini": Workload((4, 256, 4, 1024), (2, 128, 2, 512), 8192, 64, 512),
    "nano": Workload((2, 128, 2, 512), (2, 64, 2, 256), 1024, 32, 1024),
}


def write_data(work: Workload, folder: Path) -> None:
    """Write texts of random words, between half of and all of the longest length, with labels that mean nothing."""
    rng = np.random.default_rng(1)
    words = np.array([f"w{i}" for i in range(work.vocabulary)])
    for name, count in (("train", work.instances + 256), ("test", 64)):
        lines = ["text\tlabel"]
        for i in range(count):
            size = int(rng.integers(work.length // 2, work.length + 1)) - 2
            lines.append(" ".join(words[rng.integers(0, len(words), size)]) + f"\t{i % 2}")
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def overrides(work: Workload, folder: Path) -> list[str]:
    """The workload as overrides of a run."""

    def shape(layers: int, width: int, heads: int, inner: int) -> str:
        return (
            f"{{hidden_size: {width}, num_hidden_layers: {layers}, num_attention_heads: {heads}, intermediate_size: {inner}, "
            "hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0, initializer_range: 0.1}"
        )

    pool = ", ".join(
        f"{{name: t{k}, kind: finetune, seed: {k}, epochs: 1, share: 0.05, max_length: {work.length}, config: {shape(*work.teacher)}}}"
        for k in range(4)
    )
    return [
        "task=files", f"task.train={folder / 'train.tsv'}", f"task.test={folder / 'test.tsv'}", "task.text=[text]", "task.label=label",
        "task.reward_size=128", "task.dev_size=128", f"teachers.pool=[{pool}]", "student=tiny", f"++student.config={shape(*work.student)}",
        f"student.max_length={work.length}", "student.lr=1e-4", "student.schedule=constant", "student.warmup=0", "student.clip=1.0", "loss.temperature=4.0",
        "loss.alpha=0.5", "budget.batch_size=32", "++budget.warm_steps=0", f"home={folder}", "encoder.dim=128", "credit.center=false", "amp=off",
    ]  # fmt: skip


def clock(device: torch.device, work: Callable[[], Any]) -> float:
    """Seconds of `work`, until the device has finished it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def floor(process: Distillation, steps: int) -> float:
    """Seconds of the plain training loop: labels only, the batches of the run."""
    process.begin(0)
    tokens, stream = process.tokens("train"), process.stream

    def loop() -> None:
        for _ in range(steps):
            rows = stream.next()
            gold = torch.from_numpy(process.labels[rows]).to(process.device)
            process.student.step(tokens.batch(rows), label_loss(gold))

    return clock(process.device, loop)


def joint_training(env: TeacherSelectVectorEnv) -> float:
    """Seconds of one episode of `agents.reinforce.train`."""
    with tempfile.TemporaryDirectory() as folder, SummaryWriter(folder) as writer:
        settings = ReinforceSettings(start="all_on", lr=0.01, episodes=1)
        return train(env, settings, *initial_selector(env.core, settings), 0, writer).spent


class Ways:
    """All ways to train the student for `steps` steps, from the same start on the same batches; each returns its seconds."""

    def __init__(self, settings: list[str], steps: int) -> None:
        self.steps = steps
        variants = {
            "stored": [],
            **REINFORCE,
            "live": ["teachers.signals=live"],
            "plain": ["fast=false"],
            "bf16": ["amp=bf16"],
            "random batches": ["budget.group_lengths=false"],
        }
        self.envs = {name: self._env([*settings, *more]) for name, more in variants.items()}
        self.everyone = np.ones((32, self.process("stored").num_teachers), np.float32)

    def _env(self, overrides: list[str]) -> TeacherSelectVectorEnv:
        config = configs.compose([*overrides, "++budget.warm_steps=0", f"budget.steps={self.steps}", "budget.evals=1"])
        for teacher in config["teachers"]["pool"]:  # speed does not depend on how much the teachers know
            teacher |= {"epochs": 1, "share": min(teacher.get("share", 1.0), 0.05)}
        env: Any = gym.make_vec("envs:TeacherSelect-v0", num_envs=32, config=config, autoreset_mode="disabled")
        unwrapped: TeacherSelectVectorEnv = env.unwrapped
        return unwrapped

    def process(self, variant: str) -> Distillation:
        """The distillation of one variant of the settings."""
        return self.envs[variant].core.process

    def all(self) -> dict[str, Callable[[], float]]:
        """All ways, by name."""
        return {
            "floor": lambda: floor(self.process("stored"), self.steps),
            PLAIN: lambda: floor(self.process("plain"), self.steps),
            "all teachers, stored": lambda: self.fixed("stored"),
            **{name: partial(joint_training, self.envs[name]) for name in REINFORCE},
            "all teachers, live": lambda: self.fixed("live"),
            "half the teachers, live": lambda: self.fixed("live", half=True),
            "floor, bf16": lambda: floor(self.process("bf16"), self.steps),
            "floor, random batches": lambda: floor(self.process("random batches"), self.steps),
        }

    def fixed(self, variant: str, half: bool = False) -> float:
        """Seconds with all teachers, or with a random half of them for each instance."""
        process = self.process(variant)
        process.begin(0)
        rng = np.random.default_rng(3)

        def loop() -> None:
            for _ in range(self.steps):
                some = (rng.random(self.everyone.shape).argsort(1) < 2).astype(np.float32)
                process.step(some if half else self.everyone)

        return clock(process.device, loop)


# --- where the time goes ----------------------------------------------------------------------------------------------

GROUPS = {
    "attention": "scaled_dot",
    "matrix products": "mm",
    "gelu": "gelu",
    "layer norm": "layer_norm",
    "optimiser": "adam",
}


def parts(ways: Ways, turns: int = 30) -> dict[str, float]:
    """Milliseconds, medians: one student step, and the parts that a selector adds to some of the steps."""
    env, process = ways.envs["stored"], ways.process("stored")
    student, rng = process.student, np.random.default_rng(0)
    env.reset(seed=0)
    env.step(ways.everyone)  # before its first step AdamW has no scale, which the derivative needs
    lengths, drawn = process.tokens("train").lengths, [process.stream.next() for _ in range(15)]
    now = process.batch = process.load(sorted(drawn, key=lambda rows: lengths[rows].max())[7])  # of middle length
    states = env.core.observe()
    selector = Selector(states.shape[1], ways.everyone.shape[1], 1.0)
    optimizer, advantages = torch.optim.Adam(selector.parameters()), torch.randn(ways.everyone.shape)

    def state() -> None:
        process.batch = process.load(now.rows)
        env.core.observe()

    def forward() -> None:
        with torch.inference_mode():
            student.forward(now.inputs)

    def gradient() -> dict[str, torch.Tensor]:
        return student.gradient(*_reward_batches(process, rng, 64)[0])

    measured, direction = _reward_batches(process, rng, 128), student.precondition(gradient())
    work: dict[str, Callable[[], Any]] = {
        "a student step (32 rows)": lambda: process.step(ways.everyone),
        "a forward of the batch, as paper1 needs": forward,
        "V on 128 instances": lambda: student.score(measured),
        "a reward gradient on 64": gradient,
        "a step along it, for influence": lambda: student.probe(now.inputs, direction),
        "the states of a batch": state,
        "an update of the selector": lambda: update(selector, optimizer, states, ways.everyone, advantages, 0.0),
    }
    out = {}
    for name, piece in work.items():
        times = [clock(process.device, piece) for _ in range(turns)]
        out[name] = 1e3 * statistics.median(times[turns // 5 :])
    return out


def _reward_batches(process: Distillation, rng: np.random.Generator, count: int) -> list[tuple[Batch, torch.Tensor]]:
    """Random instances of the reward split with their labels, in batches of 64 of similar length."""
    tokens, labels = process.tokens("reward"), process.task.splits["reward"].labels
    rows = rng.choice(len(labels), min(count, len(labels)), replace=False)
    rows = rows[np.argsort(tokens.lengths[rows], kind="stable")]
    batches = [rows[i : i + 64] for i in range(0, len(rows), 64)]
    return [(tokens.batch(part), torch.from_numpy(labels[part]).to(process.device)) for part in batches]


def shares(ways: Ways) -> dict[str, float]:
    """Share of the floor's processor time that each kind of operation takes, by torch.profiler."""
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
    """Signals in which every teacher gives the mean logits: TextBrewer averages logits, this project probabilities."""

    selective = False

    def __init__(self, inner: StoredSignals) -> None:
        self.inner, self.names, self.width = inner, inner.names, inner.width

    def logits(self, rows: np.ndarray, chosen: np.ndarray | None = None) -> np.ndarray:
        """Float32 `[B,K,C]`, the same for every k."""
        logits = self.inner.logits(rows)
        return np.broadcast_to(logits.mean(1, keepdims=True), logits.shape).copy()

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """Unchanged."""
        return self.inner.vectors(rows)


class TextBrewer:
    """TextBrewer on the same batches, with its own Python. Each turn is a process, so that it runs in turns with the other ways."""

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
        """Seconds of one turn, after a turn that is not counted. Loading is not counted either."""
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
        answer = json.loads(done.stdout.strip().splitlines()[-1])
        self.version = answer["version"]
        return float(answer["seconds"][0])

    def compared(self) -> dict[str, dict[str, float]]:
        """By mode: the largest difference of a weight between its student and ours, and both dev losses."""
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
    """Seconds to compute and store all signals of a split, and of the forward passes of its models alone.

    The forward passes alone: as transformers computes them, with loaded models, tokens ready, sorted by length.
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
                forward, tokens = source.load().forward, source.load().tokenize(split.texts)
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
    """Draw the ratio of every way to its floor, by workload; targets are ticks."""
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


def run_in_turns(ways: dict[str, Callable[[], float]], turns: int) -> dict[str, list[float]]:
    """Seconds of every way in every turn; a first turn is not counted."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name, way in ways.items():
            seconds = way()
            if turn:
                times[name].append(seconds)
    return times


def median_ratio(base: list[float], spent: list[float]) -> float:
    """Speed as a ratio to the base: the median of the ratios of the turns."""
    return statistics.median(b / s for b, s in zip(base, spent, strict=True))


def table(times: dict[str, list[float]], steps: int) -> list[dict[str, Any]]:
    """One row per way."""
    return [
        {
            "way": name,
            "examples_per_s": 32 * steps / statistics.median(spent),
            "ratio": median_ratio(times["floor"], spent),
            "to_plain": median_ratio(times[PLAIN], spent),
            "target": TARGETS.get(name),
            "seconds": spent,
        }
        for name, spent in times.items()
    ]


def signals_row(ways: Ways, turns: int, folder: Path, instances: int) -> dict[str, Any]:
    """The row of storing signals, whose floor is the forward passes alone."""
    bare, stored = signal_speed(ways, min(3, turns), folder, instances).values()
    return {
        "way": "signals stored, to bare forwards",
        "examples_per_s": instances / statistics.median(stored),
        "ratio": median_ratio(bare, stored),
        "target": 0.9,
    }


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All measurements of one workload."""
    real = args.workload in REAL
    if real:
        settings = [*REAL[args.workload], "teachers=minilm", "student=minilm2"]
        steps = args.steps or 30
    else:
        work = WORKLOADS[args.workload]
        write_data(work, folder)
        settings, steps = overrides(work, folder), args.steps or 2 * work.instances // 32
    ways = Ways([*settings, f"threads={args.threads}"], steps)
    everything = ways.all()
    peer = TextBrewer(args.peer, ways, args.threads, folder) if args.peer and not real else None
    if peer is not None:
        everything |= {f"TextBrewer, {mode}": partial(peer.run, mode) for mode in peer.MODES}
    rows = table(run_in_turns(everything, args.turns), steps)
    if peer is not None:
        compared = peer.compared()
        for row in rows:
            mode = row["way"].removeprefix("TextBrewer, ")
            row |= {**compared[mode], "version": peer.version} if mode in compared else {}
    profile = {"parts_ms": parts(ways), "shares": shares(ways)}
    if args.signals:
        rows.append(signals_row(ways, args.turns, folder, args.signals))
    machine = ways.process("stored").prepared.engine.describe()
    return {"workload": args.workload, "steps": steps, **machine, "rows": rows, **profile}


def show(found: dict[str, Any], threads: int, turns: int) -> None:
    """Print the table and the profile."""
    print(f"{found['workload']}, {threads} thread(s), {found['steps']} steps of 32, {turns} turns")
    print(f"{'way':36s} {'examples/s':>11s} {'to the floor':>13s} {'target':>7s} {'to fast=false':>14s}")
    for row in found["rows"]:
        to_plain = f"{row['to_plain']:14.2f}" if "to_plain" in row else ""
        target = row["target"] or ""
        print(f"{row['way']:36s} {row['examples_per_s']:11.0f} {row['ratio']:13.2f} {target:>7} {to_plain}")
        if "distance" in row:
            losses = f"dev loss {row['dev_loss']:.5f}, ours {row['our_dev_loss']:.5f}"
            print(f"{'':8s}{losses}; largest difference of a weight {row['distance']:.1e}")
    for name, milliseconds in found["parts_ms"].items():
        print(f"{milliseconds:10.2f} ms  {name}")
    print("the floor by kind of operation: " + ", ".join(f"{k} {v:.0%}" for k, v in found["shares"].items()))


def main() -> None:
    """Measure; print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=[*WORKLOADS, *REAL], default="nano")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument(
        "--steps", type=int, help="student steps in a turn; if not given: two epochs, or 30 of a real task"
    )
    parser.add_argument("--peer", help="a Python that has TextBrewer; for the made-up workloads")
    parser.add_argument(
        "--signals", type=int, default=4096, help="instances whose signals are stored, to measure that; 0: none"
    )
    parser.add_argument("--figure", type=Path, help="draw all results of --out as this PNG file, and measure nothing")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/throughput.json")
    args = parser.parse_args()
    known: dict[str, Any] = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    if args.figure:
        draw(known, args.figure)
        return
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(args, Path(folder))
    show(found, args.threads, args.turns)
    words = ["python benchmarks/throughput.py", "--workload", args.workload, "--threads", str(args.threads)]
    for name in ("turns", "steps", "signals"):
        if getattr(args, name) != parser.get_default(name):
            words += [f"--{name}", str(getattr(args, name))]
    known[f"{args.workload}, {args.threads}"] = {
        **found,
        "threads": args.threads,
        "turns": args.turns,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
        "reproduce": " ".join([*words, *(["--peer PYTHON"] if args.peer else [])]),
    }
    args.out.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
