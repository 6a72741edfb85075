"""TextBrewer on the work that benchmarks/throughput.py wrote to a folder. It runs in its own environment (requirements-peers.txt).

    PYTHON benchmarks/peer_textbrewer.py FOLDER MODE TURNS THREADS

MODE `fed`: every batch comes with the teachers' logits. `live`: the teachers run on every batch. `own`: as `fed`, with batches as its
users make them, from a DataLoader that shuffles instances padded to one length. Prints one JSON line with the seconds of every turn;
the student of the last turn is left in FOLDER/MODE.safetensors. In `fed` and `live` the batches are ready in memory, which favours it.
"""

import json
import logging
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import textbrewer
import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification

logging.disable(logging.WARNING)
folder, mode, turns, threads = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(threads)
facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
work = {k: torch.from_numpy(v) for k, v in np.load(folder / "work.npz", allow_pickle=False).items()}
teachers = [
    AutoModelForSequenceClassification.from_pretrained(p).eval().requires_grad_(False) for p in facts["teachers"]
]


def batch(rows, longest):
    """One batch, with cached values as TextBrewer's documentation describes."""
    inputs = {k: work[k][rows, :longest] for k in ("input_ids", "attention_mask", "token_type_ids")}
    inputs["labels"] = work["labels"][rows]
    if mode == "live":
        return inputs
    return {"teacher": {}, "student": inputs, "teacher_cache": list(work["logits"][rows].unbind(-2))}


def loader():
    """The same batches in the same order, or those of a user's own loader."""
    if mode == "own":
        whole = work["input_ids"].shape[1]
        items = [batch(i, whole) for i in range(len(work["labels"]))]
        return DataLoader(
            items, batch_size=facts["batch"], shuffle=True, drop_last=True, generator=torch.Generator().manual_seed(0)
        )
    return DataLoader([batch(rows, int(work["lengths"][rows].max())) for rows in work["order"]], batch_size=None)


seconds = []
for turn in range(turns + 1):  # the first is not counted
    student = AutoModelForSequenceClassification.from_pretrained(facts["student"])
    decayed = [p for p in student.parameters() if p.ndim > 1]
    rest = [p for p in student.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": facts["weight_decay"]}, {"params": rest, "weight_decay": 0.0}],
        lr=facts["lr"],
    )
    batches = loader()
    with tempfile.TemporaryDirectory() as out:
        distiller = textbrewer.MultiTeacherDistiller(
            textbrewer.TrainingConfig(
                device="cpu", output_dir=out, log_dir=None, ckpt_frequency=1, ckpt_epoch_frequency=10**6
            ),
            textbrewer.DistillationConfig(
                temperature=facts["temperature"],
                # TextBrewer does not multiply by the squared temperature
                kd_loss_weight=(1 - facts["alpha"]) * facts["temperature"] ** 2,
                hard_label_weight=facts["alpha"],
                kd_loss_type="ce",
            ),
            teachers,
            student,
            lambda inputs, out: {"logits": out if torch.is_tensor(out) else out.logits},
            lambda inputs, out: {"logits": out.logits, "losses": out.loss},
        )
        epochs = facts["epochs"] if mode == "own" else 1
        started = time.perf_counter()
        with distiller:
            distiller.train(optimizer, batches, num_epochs=epochs, max_grad_norm=facts["clip"], callback=None)
        if turn:
            seconds.append(time.perf_counter() - started)
save_file({k: v.contiguous() for k, v in student.state_dict().items()}, folder / f"{mode}.safetensors")
print(json.dumps({"version": textbrewer.__version__, "seconds": seconds}))
