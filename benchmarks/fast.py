"""What each of the faster forms behind `fast=true` gains: a student step and an evaluation, on random tokens.

    python benchmarks/fast.py [--threads 2]

Students are BERT classifiers with random weights and no dropout, batches of 32. The forms run in turns. Milliseconds are medians; a
gain is the median over the turns of that turn's ratio to the form of transformers. The last column is the largest difference of the
logits from those of transformers.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from throughput import BERTS, WORKLOADS, Shape  # beside this script, so on the path when it is run
from transformers import BertConfig, BertForSequenceClassification

from distill.data.tokens import Batch
from distill.losses import label_loss
from distill.models.engine import Engine
from distill.models.fast import trim_last_layer
from distill.settings import FreshStudent
from distill.student import Student

ROOT = Path(__file__).resolve().parents[1]
NANO, MINI = WORKLOADS["nano"], WORKLOADS["mini"]
# Shape and longest text, in tokens
STUDENTS: dict[str, tuple[Shape, int]] = {
    "nano: 2 layers, 64 wide": (NANO.student, NANO.length),
    "mini: 2 layers, 128 wide": (MINI.student, MINI.length),
    "MiniLM_2: 2 layers, 384 wide": ((2, 384, 12, 1536), 64),
    "MiniLM_6: 6 layers, 384 wide": ((6, 384, 12, 1536), 64),
    "BERT_3: 3 layers, 768 wide": (BERTS["BERT_3"], 64),
}
FORMS = {
    "transformers": (False, False),
    "last layer where read": (True, False),
    "plain products": (False, True),
    "both": (True, True),
}


def student(shape: Shape, trimmed: bool, plain: bool, amp: torch.dtype | None) -> Student:
    """One student in one form."""
    layers, width, heads, inner = shape
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=4096,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="eager" if plain else "sdpa",
    )
    engine = Engine(torch.device("cpu"), amp, fast=False)
    made = Student(BertForSequenceClassification(config), None, FreshStudent(), engine)
    if trimmed:
        assert trim_last_layer(made.model)
    return made


def ragged(length: int, rows: int = 32) -> Batch:
    """Random tokens; a row is between half of and all of the length."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 4096, (rows, length), generator=generator)
    sizes = torch.randint(length // 2, length + 1, (rows, 1), generator=generator)
    return {"input_ids": ids, "attention_mask": (torch.arange(length) < sizes).long()}


def measure(shape: Shape, length: int, amp: torch.dtype | None, turns: int) -> list[dict[str, Any]]:
    """A row for every form."""
    made = {name: student(shape, *form, amp) for name, form in FORMS.items()}
    batch, gold = ragged(length), torch.arange(32) % 2
    with torch.inference_mode():
        logits = {name: one.forward(batch) for name, one in made.items()}
    steps: dict[str, list[float]] = {name: [] for name in made}
    forwards: dict[str, list[float]] = {name: [] for name in made}
    for turn in range(turns + 2):
        for name, one in made.items():
            started = time.perf_counter()
            one.step(batch, label_loss(gold))
            stepped = time.perf_counter()
            with torch.inference_mode():
                one.forward(batch)
            if turn > 1:
                steps[name].append(stepped - started)
                forwards[name].append(time.perf_counter() - stepped)

    def gain(times: dict[str, list[float]], name: str) -> float:
        return statistics.median(a / b for a, b in zip(times["transformers"], times[name], strict=True))

    return [
        {
            "form": name,
            "step_ms": 1e3 * statistics.median(steps[name]),
            "step_gain": gain(steps, name),
            "forward_ms": 1e3 * statistics.median(forwards[name]),
            "forward_gain": gain(forwards, name),
            "apart": float((logits[name] - logits["transformers"]).abs().max()),
        }
        for name in made
    ]


def main() -> None:
    """Measure; print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--only", help="measure only students whose name begins with this")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/fast.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for name, (shape, length) in STUDENTS.items():
        if not name.startswith(args.only or ""):
            continue
        for amp in (None, torch.bfloat16):
            for row in measure(shape, length, amp, args.turns):
                rows.append({"student": name, "amp": "bf16" if amp else "off", **row})
                print(
                    f"{name:30s} {rows[-1]['amp']:5s} {row['form']:22s} step {row['step_ms']:8.1f} ms, {row['step_gain']:.2f} times as fast; "
                    f"forward {row['forward_ms']:7.1f} ms, {row['forward_gain']:.2f}; logits differ by {row['apart']:.0e}"
                )
    facts = {
        "threads": args.threads,
        "turns": args.turns,
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "rows": rows,
        "reproduce": f"python benchmarks/fast.py --threads {args.threads}",
    }
    args.out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
