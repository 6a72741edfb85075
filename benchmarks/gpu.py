"""What a GPU makes of it: correctness against the CPU, and the speed of BERT students against their own floor.

    python -m benchmarks.gpu                            BERT_3 and BERT_6, batch 32 and 256, length 64 and 128, fp32 and bf16
    python -m benchmarks.gpu --device cpu --small       the same program in half a minute, on anything

Students have random weights and no dropout, tokens are random and ragged (half the length to the length), signals are stored. FLOPs are
those of the padded batches: 6 a weight outside the embedding tables and token that meets it, and 12 a layer, width, token and token
attended to; what `fast` leaves out of the last layer is not counted. The share bound by launches is the part of a step in which no kernel runs, by torch.profiler.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm.auto import tqdm

import configs
from agents.reinforce import ReinforceSettings, train
from benchmarks.throughput import Workload, clock, floor, overrides, write_data
from envs.rewards import RewardSettings
from envs.teacher_select import Core

ROOT = Path(__file__).resolve().parents[1]
STUDENTS = {"BERT_3": (3, 768, 12, 3072), "BERT_6": (6, 768, 12, 3072)}
TEACHER = (1, 64, 2, 128)  # their answers are stored: what they are costs the student nothing
PEAK = {
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA A100": 312e12,
}  # dense bf16 FLOP/s, from the vendor's data sheets
TARGETS = {"all teachers, stored": 0.95, "reinforce, paper1 on the next batch": 0.90, "reinforce, paper1 every 8": 0.90}


def correctness(folder: Path, device: str) -> dict[str, float]:
    """Largest relative difference of the batch losses to the CPU's in full precision, over eight steps of the same student."""
    work = Workload(TEACHER, (2, 128, 2, 512), 4096, 64, 512)
    here = folder / "correctness"
    here.mkdir()
    write_data(work, here)
    runs = {"cpu": ("cpu", "off"), "fp32": (device, "off"), "bf16": (device, "bf16")}
    losses: dict[str, np.ndarray] = {}
    for name, (where, amp) in runs.items():
        # Signals and warm start of the CPU serve all: only the student's steps differ.
        core = Core(configs.compose([*overrides(work, here), "budget.steps=8", f"device={where}", f"amp={amp}"]))
        process = core.process
        if name == "cpu":
            start = [w.cpu() for w in process.warm]
            logits = process.signals.logits(np.arange(len(process.labels)))
        process.begin(0)
        process.student.restore([w.to(process.device) for w in start])
        rng, out = np.random.default_rng(0), []
        while not process.done:
            assert process.current is not None
            process.current.logits = logits[process.current.rows]
            out.append(process.step((rng.random((32, 4)) < 0.5).astype(np.float32))[1].float().mean().item())
        losses[name] = np.array(out)
    return {name: float(np.abs(losses[name] / losses["cpu"] - 1).max()) for name in ("fp32", "bf16")}


def flops(core: Core, steps: int) -> float:
    """Of the first `steps` student steps of an episode, forward and backward."""
    process = core.process
    config, tokens, fast = process.student.model.config, process.tokens("train"), process.prepared.engine.fast
    h, inner, whole_layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers - fast
    # Weights that every token meets, and that the first one of a row meets alone: with `fast` the last layer's keys and
    # values are among the former, the rest of it is among the latter.
    of_tokens = whole_layers * (4 * h * h + 2 * h * inner) + fast * 2 * h * h
    of_rows = h * h + h * config.num_labels + fast * (2 * h * h + 2 * h * inner)
    process.begin(0)
    total, rows = 0.0, process.current.rows if process.current else process.stream.next()
    for _ in range(steps):
        padded, count = int(tokens.lengths[rows].max()), len(rows)
        attended = h * count * padded * (whole_layers * padded + fast)
        total += 6.0 * count * (of_tokens * padded + of_rows) + 12.0 * attended
        rows = process.stream.next()
    return total


def busy(core: Core, steps: int) -> float:
    """Share of a step's time in which a kernel ran."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        seconds = floor(core.process, steps)
    return sum(e.self_device_time_total for e in seen.key_averages()) / 1e6 / seconds


def speed(
    student: tuple[int, int, int, int], batch: int, length: int, amp: str, args: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """One row: examples/s of the floor and the ratios to it."""
    work = Workload(TEACHER, student, 4096, length, 16 * batch)
    here = folder / f"{student[0]}-{batch}-{length}-{amp}"
    here.mkdir()
    write_data(work, here)
    config = configs.compose(
        [
            *overrides(work, here),
            f"budget.batch_size={batch}",
            f"budget.steps={args.steps}",
            "budget.evals=1",
            f"device={args.device}",
            *(["threads=1"] if args.device == "cpu" else []),
            f"amp={amp}",
        ]
    )
    env: Any = gym.make_vec("envs:TeacherSelect-v0", num_envs=batch, config=config, autoreset_mode="disabled").unwrapped
    core, everyone = env.core, np.ones((batch, 4), np.float32)

    def fixed() -> float:
        core.process.begin(0)
        return clock(core.process.device, lambda: [core.process.step(everyone) for _ in range(args.steps)])

    def paper1(every: int, at: str = "batch") -> float:
        core.reward.settings = RewardSettings(name="paper1", every=every, at=at)
        with tempfile.TemporaryDirectory() as events, SummaryWriter(events) as writer:
            return train(env, ReinforceSettings(credit="shared", episodes=1), 0, writer)[1].seconds

    ways = {
        "floor": lambda: floor(core.process, args.steps),
        "all teachers, stored": fixed,
        "reinforce, paper1": lambda: paper1(1),
        "reinforce, paper1 on the next batch": lambda: paper1(1, "next"),
        "reinforce, paper1 every 8": lambda: paper1(8),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(args.turns + 1):
        for name, way in ways.items():
            seconds = way()
            if turn:
                times[name].append(seconds)
    best = statistics.median(times["floor"])
    on_gpu = core.process.device.type == "cuda"
    peak = next((v for k, v in PEAK.items() if on_gpu and torch.cuda.get_device_name().startswith(k)), None)
    return {
        "batch": batch,
        "length": length,
        "amp": amp,
        "examples_per_s": batch * args.steps / best,
        "ratio": {
            n: statistics.median(f / s for f, s in zip(times["floor"], v, strict=True)) for n, v in times.items()
        },
        "mfu": flops(core, args.steps) / best / peak if peak and amp == "bf16" else None,
        "launch_bound": 1 - busy(core, args.steps) if on_gpu else None,
        "memory_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None,
    }


def main() -> None:
    """Measure; print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="one small student, one turn: does it run?")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/gpu.json")
    args = parser.parse_args()
    grid = [(s, b, n, a) for s in STUDENTS for b in (32, 256) for n in (64, 128) for a in ("off", "bf16")]
    students = STUDENTS
    if args.small:
        grid, students = [("small", 8, 32, "off"), ("small", 8, 32, "bf16")], {"small": (1, 32, 2, 64)}
        args.steps, args.turns = 4, 1
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        apart = correctness(Path(temporary), args.device)
        for name, batch, length, amp in tqdm(grid, desc="students", disable=None):
            rows.append({"student": name, **speed(students[name], batch, length, amp, args, Path(temporary))})
    print(
        f"losses against the CPU, largest relative difference over 8 steps: fp32 {apart['fp32']:.1e}, bf16 {apart['bf16']:.1e}"
    )
    print(
        f"{'student':8s} {'batch':>5s} {'length':>6s} {'amp':>5s} {'floor ex/s':>11s} {'all':>5s} {'paper1':>6s} {'next':>5s} {'every 8':>7s} {'MFU':>5s} {'idle':>5s}"
    )
    for r in rows:
        _, everyone, each, coming, some = r["ratio"].values()
        told = [f"{100 * v:4.0f}%" if v is not None else "    -" for v in (r["mfu"], r["launch_bound"])]
        print(
            f"{r['student']:8s} {r['batch']:5d} {r['length']:6d} {r['amp']:>5s} {r['examples_per_s']:11.0f} "
            f"{everyone:5.2f} {each:6.2f} {coming:5.2f} {some:7.2f} {' '.join(told)}"
        )
    found = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() and args.device != "cpu" else args.device,
        "torch": torch.__version__,
        "steps": args.steps,
        "turns": args.turns,
        "correctness": apart,
        "targets": TARGETS,
        "rows": rows,
        "reproduce": "python -m benchmarks.gpu",
    }
    args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
