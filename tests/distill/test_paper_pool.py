"""The paper's pool, four families with four tokenizers, in miniature: `experiment=paper` with tiny checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from configs import compose
from distill.data import bundled
from distill.process import Distillation
from distill.settings import FinetuneTeacher, RunSettings, TransformerEncoderSettings, TruncateStudent

TASKS = ("sst2", "mrpc", "qqp", "mnli", "qnli", "rte", "cola")
POOL = {
    "bert-base-uncased": "bert",
    "roberta-base": "roberta",
    "xlnet-base-cased": "xlnet",
    "albert-base-v2": "albert",
}


@pytest.mark.parametrize("layers", [3, 6])
@pytest.mark.parametrize("task", TASKS)
def test_every_task_composes(task: str, layers: int) -> None:
    settings = RunSettings.from_config(compose(["experiment=paper", f"task={task}", f"student=bert{layers}"]))
    assert settings.task.name == task
    pool = [t for t in settings.teachers.pool if isinstance(t, FinetuneTeacher)]
    assert {t.name: t.path for t in pool} == dict(zip(POOL, POOL, strict=True))
    assert len(pool) == len(settings.teachers.pool)
    assert all((t.batch_size, t.max_length, t.epochs) == (32, 128, 4) for t in pool)
    student = settings.student
    assert isinstance(student, TruncateStudent)
    assert (student.path, student.layers) == ("bert-base-uncased", layers)
    assert student.max_length == 128
    encoder = settings.encoder
    assert isinstance(encoder, TransformerEncoderSettings)
    assert (encoder.path, encoder.pooling) == ("bert-base-uncased", "cls")
    assert settings.loss.temperature in (5, 10, 20)
    assert settings.loss.alpha in (0.2, 0.5, 0.7)
    assert student.lr in (1e-5, 2e-5, 5e-5)
    assert (settings.budget.batch_size, settings.budget.epochs) == (32, 4)
    if layers == 3:
        assert RunSettings.from_config(compose(["experiment=paper", f"task={task}"])) == settings


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RTE in official files (pairs, two classes), SST-2 (single texts)."""
    root = tmp_path_factory.mktemp("glue")
    for folder, header in (("RTE", "index\tsentence1\tsentence2\tlabel"), ("SST-2", "sentence\tlabel")):
        (root / folder).mkdir()
        for file, count in (("train", 70), ("dev", 20)):
            made = bundled.reviews(count, np.random.default_rng(count))
            lines = [header]
            for i, (text, y) in enumerate(zip(made.texts, made.labels, strict=True)):
                name = ("not_entailment", "entailment")[y]
                lines.append(f"{i}\t{text}\t{made.texts[i - 1]}\t{name}" if folder == "RTE" else f"{text}\t{y}")
            (root / folder / f"{file}.tsv").write_text("\n".join([*lines, ""]))
    return root


@pytest.fixture(scope="module")
def settings(zoo: dict[str, Path], data: Path, home: Path) -> Callable[[str, int], RunSettings]:
    def make(task: str, layers: int) -> RunSettings:
        config: dict[str, Any] = compose(
            [
                "experiment=paper",
                f"task={task}",
                f"student=bert{layers}",
                "device=cpu",
                "amp=off",
                f"data_dir={data}",
                "task.reward_size=10",
                "task.dev_size=10",
                "budget.batch_size=8",
                "budget.steps=3",
                "budget.warm_steps=2",
                "student.lr=1e-3",
            ]
        )
        for spec in config["teachers"]["pool"]:
            spec |= {"path": str(zoo[POOL[spec["path"]]]), "epochs": 2, "lr": 5e-3, "batch_size": 10}
        config["student"] |= {"path": str(zoo["bert"]), "layers": min(layers, 4)}
        config["encoder"] |= {"path": str(zoo["bert"])}
        return RunSettings.from_config(config)

    return make


@pytest.mark.parametrize(("task", "layers"), [("rte", 3), ("sst2", 3), ("rte", 6)])
def test_fine_tuning_signals_and_steps(settings: Callable[[str, int], RunSettings], task: str, layers: int) -> None:
    d = Distillation(settings(task, layers))
    kinds = [type(t.load().model).__name__ for t in d.prepared.teachers]  # type: ignore[attr-defined]
    assert kinds == [f"{n}ForSequenceClassification" for n in ("Bert", "Roberta", "XLNet", "Albert")]
    assert d.signals.names == tuple(POOL)
    assert [t.load().tokenizer.padding_side for t in d.prepared.teachers] == ["right", "right", "left", "right"]  # type: ignore[attr-defined]

    rows = np.arange(len(d.train_split))
    logits, vectors = d.signals.logits(rows), d.signals.vectors(rows)
    assert logits.shape == (50, 4, 2)
    assert logits.std(0).min() > 1e-3, "no teacher gives the same logits for all instances"
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    typed = (True, False, True, True)  # RoBERTa was trained without token types
    # Compared with transformers alone: each from its own folder, without padding.
    for k, (teacher, types) in enumerate(zip(d.prepared.teachers, typed, strict=True)):
        folder = teacher.folder  # type: ignore[attr-defined]
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
        assert tuple(model.config.id2label.values()) == d.task.label_names
        for i in (0, 7, 33):
            with torch.no_grad():
                said = tokenizer(*d.train_split.texts[i], return_tensors="pt", return_token_type_ids=types)
                alone = model(**said).logits[0]
            np.testing.assert_allclose(logits[i, k], alone.numpy(), atol=2e-4)

    assert d.student.model.config.num_hidden_layers == min(layers, 4)
    assert d.student.random, "BERT's own dropout is on"
    ends = []
    for subsets in (np.eye(4)[[0, 1, 2, 3, 0, 1, 2, 3]], np.zeros((8, 4)), np.eye(4)[[0, 1, 2, 3, 0, 1, 2, 3]]):
        d.begin(1)
        while not d.done:
            result = d.step(subsets.astype(np.float32))
            assert torch.isfinite(result.losses).all()
        ends.append(torch.cat([w.flatten() for w in d.student.weights()]))
    assert torch.equal(ends[0], ends[2])
    assert not torch.equal(ends[0], ends[1])
    assert set(d.evaluate("dev")) == {"accuracy", "loss", "brier", "ece", "f1", "matthews"}
