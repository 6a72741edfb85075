"""What each of the faster forms behind `fast=true` is worth: a student step and an evaluation, on random ragged tokens.

    python benchmarks/fast.py [--threads 2]

Students are BERT classifiers with random weights and no dropout, batches of 32. The forms take turns; milliseconds are medians, gains the
median over the turns of one turn's own ratio to transformers' form. The last column is how far the logits are from transformers' own.
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
from transformers import BertConfig, BertForSequenceClassification

from distill.losses import label_loss
from distill.models.engine import Engine
from distill.models.fast import trim_last_layer
from distill.settings import StudentSettings
from distill.student import Student
from distill.data.tokens import Batch

ROOT = Path(__file__).resolve().parents[1]
# (layers, width, heads, inner width), longest row
STUDENTS = {
    "nano: 2 layers, 64 wide": ((2, 64, 2, 256), 32),
    "mini: 2 layers, 128 wide": ((2, 128, 2, 512), 64),
    "MiniLM_2: 2 layers, 384 wide": ((2, 384, 12, 1536), 64),
    "MiniLM_6: 6 layers, 384 wide": ((6, 384, 12, 1536), 64),
    "BERT_3: 3 layers, 768 wide": ((3, 768, 12, 3072), 64),
}
FORMS = {
    "transformers": (False, False),
    "last layer where read": (True, False),
    "plain products": (False, True),
    "both": (True, True),
}


def student(shape: tuple[int, int, int, int], trimmed: bool, plain: bool, amp: torch.dtype | None) -> Student:
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
    made = Student(
        BertForSequenceClassification(config), None, StudentSettings(), Engine(torch.device("cpu"), amp, fast=False)
    )
    if trimmed:
        assert trim_last_layer(made.model)
    return made


def ragged(length: int, rows: int = 32) -> Batch:
    """Random tokens, rows half the length to the length."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 4096, (rows, length), generator=generator)
    sizes = torch.randint(length // 2, length + 1, (rows, 1), generator=generator)
    return {"input_ids": ids, "attention_mask": (torch.arange(length) < sizes).long()}


def measure(shape: tuple[int, int, int, int], length: int, amp: torch.dtype | None, turns: int) -> list[dict[str, Any]]:
    """A row for every form."""
    made = {name: student(shape, *form, amp) for name, form in FORMS.items()}
    batch, gold = ragged(length), torch.arange(32) % 2
    with torch.inference_mode():
        said = {name: one.forward(batch) for name, one in made.items()}
    steps: dict[str, list[float]] = {name: [] for name in made}
    looks: dict[str, list[float]] = {name: [] for name in made}
    for turn in range(turns + 2):
        for name, one in made.items():
            started = time.perf_counter()
            one.step(batch, label_loss(gold))
            stepped = time.perf_counter()
            with torch.inference_mode():
                one.forward(batch)
            if turn > 1:
                steps[name].append(stepped - started)
                looks[name].append(time.perf_counter() - stepped)

    def gain(times: dict[str, list[float]], name: str) -> float:
        return statistics.median(a / b for a, b in zip(times["transformers"], times[name], strict=True))

    return [
        {
            "form": name,
            "step_ms": 1e3 * statistics.median(steps[name]),
            "step_gain": gain(steps, name),
            "forward_ms": 1e3 * statistics.median(looks[name]),
            "forward_gain": gain(looks, name),
            "apart": float((said[name] - said["transformers"]).abs().max()),
        }
        for name in made
    ]


def main() -> None:
    """Measure; print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--only", help="students whose name begins so")
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
                    f"forward {row['forward_ms']:7.1f} ms, {row['forward_gain']:.2f}; logits apart {row['apart']:.0e}"
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
