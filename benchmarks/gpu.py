"""On a GPU: correctness against the CPU, and the speed of BERT students against their own floor.

    python -m benchmarks.gpu                            BERT_3 and BERT_6, batch 32 and 256, length 64 and 128, fp32 and bf16
    python -m benchmarks.gpu --device cpu --small       the same program in half a minute, on any machine

Students have random weights and no dropout; tokens are random, texts are between half of and all of the length; signals are stored.
FLOPs are those of the padded batches: 6 for each token and each weight outside the embedding tables that it meets, and 12 for each
layer, unit of width, token and token attended to. What `fast` leaves out of the last layer is not counted. The share bound by launches
is the part of a step in which no kernel runs, by torch.profiler.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from tqdm.auto import tqdm

import configs
from benchmarks.throughput import (
    BERTS,
    REINFORCE,
    Shape,
    Workload,
    clock,
    floor,
    joint_training,
    median_ratio,
    overrides,
    run_in_turns,
    write_data,
)
from distill.process import Distillation
from distill.settings import RunSettings

ROOT = Path(__file__).resolve().parents[1]
TEACHER = (1, 64, 2, 128)  # the signals are stored, so the size of the teachers does not matter
PEAK = {
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA A100": 312e12,
}  # dense bf16 FLOP/s, from the vendor's data sheets
PAPER1 = ("reinforce, paper1", "reinforce, paper1 on the next batch", "reinforce, paper1 every 8")
TARGETS = {"all teachers, stored": 0.95, "reinforce, paper1 on the next batch": 0.90, "reinforce, paper1 every 8": 0.90}


def correctness(folder: Path, device: str) -> dict[str, float]:
    """Largest relative difference of the batch losses to those of the CPU in full precision, over eight steps of one student."""
    work = Workload(TEACHER, (2, 128, 2, 512), 4096, 64, 512)
    here = folder / "correctness"
    here.mkdir()
    write_data(work, here)
    runs = {"cpu": ("cpu", "off"), "fp32": (device, "off"), "bf16": (device, "bf16")}
    losses: dict[str, np.ndarray] = {}
    for name, (where, amp) in runs.items():
        words = [*overrides(work, here), "budget.steps=8", f"device={where}", f"amp={amp}"]
        process = Distillation(RunSettings.from_config(configs.compose(words)))
        # All runs use the CPU's signals and warm start, so that only the student's steps differ.
        if name == "cpu":
            start = [w.cpu() for w in process.warm]
            logits = process.signals.logits(np.arange(len(process.labels)))
        process.begin(0)
        process.student.restore([w.to(process.device) for w in start])
        rng, out = np.random.default_rng(0), []
        while not process.done:
            assert process.batch is not None
            process.batch.logits = logits[process.batch.rows]
            actions = (rng.random((32, 4)) < 0.5).astype(np.float32)
            out.append(process.step(actions).losses.float().mean().item())
        losses[name] = np.array(out)
    return {name: float(np.abs(losses[name] / losses["cpu"] - 1).max()) for name in ("fp32", "bf16")}


def flops(process: Distillation, steps: int) -> float:
    """FLOPs of the first `steps` student steps of an episode, forward and backward."""
    config, tokens, fast = process.student.model.config, process.tokens("train"), process.prepared.engine.fast
    h, inner, whole_layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers - fast
    # Weights that every token meets, and weights that only the first token of a row meets. With `fast`, the keys and
    # values of the last layer are among the former, and the rest of that layer is among the latter.
    of_tokens = whole_layers * (4 * h * h + 2 * h * inner) + fast * 2 * h * h
    of_rows = h * h + h * config.num_labels + fast * (2 * h * h + 2 * h * inner)
    process.begin(0)
    total, rows = 0.0, process.batch.rows if process.batch else process.stream.next()
    for _ in range(steps):
        padded, count = int(tokens.lengths[rows].max()), len(rows)
        attended = h * count * padded * (whole_layers * padded + fast)
        total += 6.0 * count * (of_tokens * padded + of_rows) + 12.0 * attended
        rows = process.stream.next()
    return total


def busy(process: Distillation, steps: int) -> float:
    """Share of a step's time in which a kernel ran."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        seconds = floor(process, steps)
    return sum(e.self_device_time_total for e in seen.key_averages()) / 1e6 / seconds


def speed(student: Shape, batch: int, length: int, amp: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One row: examples/s of the floor and the ratios to it."""
    work = Workload(TEACHER, student, 4096, length, 16 * batch)
    here = folder / f"{student[0]}-{batch}-{length}-{amp}"
    here.mkdir()
    write_data(work, here)
    words = [*overrides(work, here), f"budget.batch_size={batch}", f"budget.steps={args.steps}", "budget.evals=1"]
    words += [f"device={args.device}", f"amp={amp}", *(["threads=1"] if args.device == "cpu" else [])]

    def make(*more: str) -> Any:
        config = configs.compose([*words, *more])
        return gym.make_vec("envs:TeacherSelect-v0", num_envs=batch, config=config, autoreset_mode="disabled").unwrapped

    process, everyone = make().core.process, np.ones((batch, 4), np.float32)

    def fixed() -> float:
        process.begin(0)
        return clock(process.device, lambda: [process.step(everyone) for _ in range(args.steps)])

    ways = {
        "floor": lambda: floor(process, args.steps),
        "all teachers, stored": fixed,
        **{name: partial(joint_training, make(*REINFORCE[name])) for name in PAPER1},
    }
    times = run_in_turns(ways, args.turns)
    best = statistics.median(times["floor"])
    on_gpu = process.device.type == "cuda"
    peak = next((v for k, v in PEAK.items() if on_gpu and torch.cuda.get_device_name().startswith(k)), None)
    return {
        "batch": batch,
        "length": length,
        "amp": amp,
        "examples_per_s": batch * args.steps / best,
        "ratio": {name: median_ratio(times["floor"], spent) for name, spent in times.items()},
        "mfu": flops(process, args.steps) / best / peak if peak and amp == "bf16" else None,
        "launch_bound": 1 - busy(process, args.steps) if on_gpu else None,
        "memory_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None,
    }


def main() -> None:
    """Measure; print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="one small student and one turn, to see that it runs")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/gpu.json")
    args = parser.parse_args()
    grid = [(s, b, n, a) for s in BERTS for b in (32, 256) for n in (64, 128) for a in ("off", "bf16")]
    students = BERTS
    if args.small:
        grid, students = [("small", 8, 32, "off"), ("small", 8, 32, "bf16")], {"small": (1, 32, 2, 64)}
        args.steps, args.turns = 4, 1
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        differences = correctness(Path(temporary), args.device)
        for name, batch, length, amp in tqdm(grid, desc="students", disable=None):
            rows.append({"student": name, **speed(students[name], batch, length, amp, args, Path(temporary))})
    print(
        f"losses against the CPU, largest relative difference over 8 steps: fp32 {differences['fp32']:.1e}, bf16 {differences['bf16']:.1e}"
    )
    print(
        f"{'student':8s} {'batch':>5s} {'length':>6s} {'amp':>5s} {'floor ex/s':>11s} {'all':>5s} {'paper1':>6s} {'next':>5s} {'every 8':>7s} {'MFU':>5s} {'idle':>5s}"
    )
    for r in rows:
        _, everyone, each, coming, eighth = r["ratio"].values()
        percents = [f"{100 * v:4.0f}%" if v is not None else "    -" for v in (r["mfu"], r["launch_bound"])]
        print(
            f"{r['student']:8s} {r['batch']:5d} {r['length']:6d} {r['amp']:>5s} {r['examples_per_s']:11.0f} "
            f"{everyone:5.2f} {each:6.2f} {coming:5.2f} {eighth:7.2f} {' '.join(percents)}"
        )
    found = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() and args.device != "cpu" else args.device,
        "torch": torch.__version__,
        "steps": args.steps,
        "turns": args.turns,
        "correctness": differences,
        "targets": TARGETS,
        "rows": rows,
        "reproduce": "python -m benchmarks.gpu",
    }
    args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
