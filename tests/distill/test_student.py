"""The student: its steps and schedule, reading without changing, first-order probes, weights and saving."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers

from distill.checks import UserError
from distill.data.splits import Task
from distill.data.tokens import Batch, TokenizedSplit
from distill.losses import label_loss
from distill.models.build import fresh_classifier, word_tokenizer
from distill.models.engine import Engine
from distill.models.loading import load_classifier, load_tokenizer
from distill.settings import STUDENT_KINDS, CheckpointStudent, StudentSettings, TruncateStudent
from distill.student import Student
from distill.teachers.finetune import vocabulary_texts

CPU = Engine(torch.device("cpu"))
Make = Callable[..., Student]


@pytest.fixture
def make(small_task: Task) -> Make:
    tokenizer = word_tokenizer(vocabulary_texts(small_task), 32)

    def build(dropout: float = 0.0, **settings: Any) -> Student:
        config = {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "initializer_range": 0.3,
            "hidden_dropout_prob": dropout,
            "attention_probs_dropout_prob": dropout,
        }
        model = fresh_classifier(config, tokenizer, small_task.label_names, 0, "student")
        return Student(model, tokenizer, StudentSettings(**{"lr": 0.01, "max_length": 32} | settings), CPU)

    return build


@pytest.fixture
def batch(small_task: Task, make: Make) -> tuple[Batch, torch.Tensor]:
    split = small_task.splits["train"]
    tokens = TokenizedSplit.build(split.texts, make().tokenizer, 32)
    return tokens.batch(np.arange(8)), torch.from_numpy(split.labels[:8])


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def grads(student: Student, batch: tuple[Batch, torch.Tensor]) -> list[torch.Tensor]:
    return list(torch.autograd.grad(F.cross_entropy(student.model(**batch[0]).logits, batch[1]), student.params))


# --- steps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [1, 1, 1, 1, 1]),
        ({"schedule": "linear"}, [1, 0.8, 0.6, 0.4, 0.2]),
        ({"warmup": 0.6}, [1 / 3, 2 / 3, 1, 1, 1]),
        ({"schedule": "linear", "warmup": 0.4}, [0.5, 1, 1, 2 / 3, 1 / 3]),
        ({"schedule": "linear", "warmup": 0.2}, [1, 1, 0.75, 0.5, 0.25]),
    ],
)
def test_learning_rates(make: Make, batch: Any, settings: dict[str, Any], expected: list[float]) -> None:
    """They are what SGD really uses: weights move by lr times the gradient."""
    student = make(optimizer="sgd", clip=0.0, weight_decay=0.0, lr=0.01, **settings)
    student.begin(5)
    seen = []
    for rate in expected:
        assert student.lr == pytest.approx(0.01 * rate)
        before, slope = student.weights(), grads(student, batch)
        student.step(batch[0], label_loss(batch[1]))
        for b, g, after in zip(before, slope, student.params, strict=True):
            torch.testing.assert_close(after.detach(), b - 0.01 * rate * g, rtol=1e-4, atol=1e-7)
        seen.append(student.steps)
    assert seen == [1, 2, 3, 4, 5]


def test_what_a_step_returns(make: Make, batch: Any) -> None:
    student = make()
    before = student.forward(batch[0]).detach()
    norm = torch.cat([g.flatten() for g in grads(student, batch)]).norm()
    result = student.step(batch[0], label_loss(batch[1]))
    assert torch.equal(result.logits, before)
    assert torch.equal(result.losses, F.cross_entropy(before, batch[1], reduction="none"))
    assert not result.logits.requires_grad
    assert not result.losses.requires_grad
    assert result.lr == 0.01
    assert result.clip is not None
    torch.testing.assert_close(result.clip, (1 / norm).clamp_max(1), rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for p in student.params)
    assert not torch.equal(student.forward(batch[0]), before)


def test_clipping(make: Make, batch: Any) -> None:
    for clip in (0.01, 0.0):
        student = make(optimizer="sgd", lr=1.0, clip=clip, weight_decay=0.0)
        before, norm = student.weights(), torch.cat([g.flatten() for g in grads(student, batch)]).norm().item()
        factor = student.step(batch[0], label_loss(batch[1])).clip
        moved = torch.cat([(a - b).flatten() for a, b in zip(student.weights(), before, strict=True)]).norm().item()
        assert norm > 0.1
        assert moved == pytest.approx(clip or norm, rel=1e-3)
        assert factor is None if not clip else float(factor) == pytest.approx(clip / norm, rel=1e-3)


def test_decay_is_for_matrices_alone(make: Make, batch: Any) -> None:
    student = make(optimizer="adamw", weight_decay=0.5, lr=0.1)
    before = {n: p.detach().clone() for n, p in student.named.items()}
    student.step(batch[0], lambda logits: logits.sum(1) * 0)
    for name, p in student.named.items():
        torch.testing.assert_close(p.detach(), before[name] * (0.95 if p.ndim > 1 else 1.0))


def test_begin_forgets_the_optimiser(make: Make, batch: Any) -> None:
    student = make(schedule="linear")
    start, runs = student.weights(), []
    for _ in range(2):
        student.restore(start)
        student.begin(4)
        for _ in range(4):
            student.step(batch[0], label_loss(batch[1]))
        runs.append(student.weights())
    assert same(*runs)
    assert not same(start, runs[0])


def test_it_learns(make: Make, batch: Any) -> None:
    student = make()
    first, _ = student.score([batch])
    for _ in range(60):
        student.step(batch[0], label_loss(batch[1]))
    last, accuracy = student.score([batch])
    assert last < first / 4
    assert accuracy == 1


@pytest.mark.parametrize("amp", [None, torch.bfloat16])
def test_fast_forms_train_the_same_student(small_task: Task, amp: torch.dtype | None) -> None:
    """But for rounding: five steps of SGD, which does not enlarge it as AdamW does."""
    tokenizer = word_tokenizer(vocabulary_texts(small_task), 32)
    config = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config |= {"initializer_range": 0.3, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # type: ignore[dict-item]
    split, ended = small_task.splits["train"], []
    for fast in (True, False):
        model = fresh_classifier(config, tokenizer, small_task.label_names, 0, "student")
        settings = StudentSettings(optimizer="sgd", lr=0.1, max_length=32)
        student = Student(model, tokenizer, settings, Engine(CPU.device, amp, fast))
        start = student.weights()
        assert ("forward" in vars(model.bert.encoder.layer[-1])) == fast
        assert model.config._attn_implementation == ("eager" if fast and amp else "sdpa")
        tokens, gold = student.tokenize(split.texts), torch.from_numpy(split.labels)
        for i in range(5):
            rows = np.arange(8 * i, 8 * i + 8)
            student.step(tokens.batch(rows), label_loss(gold[rows]))
        ended.append(torch.cat([(a - b).flatten() for a, b in zip(student.weights(), start, strict=True)]))
    off = float((ended[0] - ended[1]).norm() / ended[1].norm())
    assert 0 < off < (1e-5 if amp is None else 0.02)


def test_frozen_embeddings(make: Make, batch: Any) -> None:
    student, free = make(freeze_embeddings=True), make()
    frozen = student.model.get_input_embeddings().weight
    before = frozen.detach().clone()
    student.step(batch[0], label_loss(batch[1]))
    assert torch.equal(frozen, before)
    assert set(free.named) - set(student.named) == {"bert.embeddings.word_embeddings.weight"}
    direction = {n: torch.ones_like(p) for n, p in student.named.items()}
    torch.testing.assert_close(
        student.directional(batch[0], direction, "exact"),
        student.directional(batch[0], direction, "central"),
        rtol=2e-2,
        atol=2e-2,
    )


# --- reading without changing -----------------------------------------------------------------------------------------


def test_reading_the_student_changes_nothing(make: Make, small_task: Task, batch: Any) -> None:
    student = make(dropout=0.3)
    tokens = TokenizedSplit.build(small_task.splits["dev"].texts, student.tokenizer, 32)
    student.begin(9)
    student.step(batch[0], label_loss(batch[1]))
    state = {k: v.clone() for k, v in student.model.state_dict().items()}
    moments = [s["exp_avg_sq"].clone() for s in student.optimizer.state.values()]
    outside = torch.get_rng_state()
    first = student.predict(tokens)
    student.score([batch])
    direction = student.precondition(student.gradient(*batch))
    for method in ("finite", "central", "exact"):
        student.directional(batch[0], direction, method)
    assert torch.equal(student.predict(tokens), first), "no dropout"
    assert torch.equal(torch.get_rng_state(), outside)
    assert all(torch.equal(v, state[k]) for k, v in student.model.state_dict().items())
    assert same(moments, [s["exp_avg_sq"] for s in student.optimizer.state.values()])
    assert student.steps == 1
    assert not student.model.training
    assert all(p.grad is None for p in student.params)
    assert all(p.requires_grad for p in student.params)


def test_predict_and_score(make: Make, small_task: Task) -> None:
    student, split = make(), small_task.splits["dev"]
    tokens = TokenizedSplit.build(split.texts, student.tokenizer, 32)
    logits = student.predict(tokens, batch_size=5)
    alone = torch.cat([student.forward(tokens.batch(np.array([i]))).detach() for i in range(len(split))])
    torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-5)
    gold = torch.from_numpy(split.labels)
    parts = [(tokens.batch(r), gold[torch.from_numpy(r)]) for r in tokens.by_length(7)]
    expected = small_task.scores(logits.numpy(), split.labels)
    assert student.score(parts) == pytest.approx((expected["loss"], expected["accuracy"]), rel=1e-5)


# --- first-order probes -----------------------------------------------------------------------------------------------


def test_gradient_is_autograds(make: Make, batch: Any) -> None:
    student = make()
    got = student.gradient(*batch)
    assert list(got) == list(student.named)
    assert all(torch.equal(a, b) for a, b in zip(got.values(), grads(student, batch), strict=True))
    assert all(g.abs().sum() > 0 for n, g in got.items() if "key.bias" not in n)


@pytest.fixture
def somewhere() -> Callable[[Student], dict[str, torch.Tensor]]:
    def direction(student: Student) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        return {n: torch.randn(p.shape, generator=generator) for n, p in student.named.items()}

    return direction


def test_exact_direction_against_brute_force(make: Make, batch: Any, somewhere: Any) -> None:
    """<grad of every logit, v>, one backward a logit."""
    student = make()
    v = somewhere(student)
    logits = student.forward(batch[0])
    brute = torch.zeros_like(logits)
    for i in range(logits.shape[0]):
        for c in range(logits.shape[1]):
            slope = torch.autograd.grad(logits[i, c], student.params, retain_graph=True, allow_unused=True)
            brute[i, c] = sum((g * v[n]).sum() for n, g in zip(student.named, slope, strict=True) if g is not None)
    assert brute.abs().min() > 0.01
    torch.testing.assert_close(student.directional(batch[0], v, "exact"), brute.detach(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("method", "off"), [("finite", 0.02), ("central", 0.004)])
def test_differences_agree_with_the_exact_derivative(
    make: Make, batch: Any, somewhere: Any, method: str, off: float
) -> None:
    student = make(dropout=0.3)  # it must have no effect
    v = somewhere(student)
    exact, near = student.directional(batch[0], v, "exact"), student.directional(batch[0], v, method)
    assert ((near - exact).norm() / exact.norm()).item() < off
    doubled = student.directional(batch[0], {n: 2 * x for n, x in v.items()}, method)
    torch.testing.assert_close(doubled, 2 * near, rtol=1e-3, atol=1e-2)
    zero = student.directional(batch[0], {n: 0 * x for n, x in v.items()}, method)
    assert zero.abs().max() == 0


def test_auto_is_finite_in_full_precision_and_exact_under_autocast(make: Make, batch: Any, somewhere: Any) -> None:
    student = make()
    v = somewhere(student)
    full = student.directional(batch[0], v, "exact")
    assert torch.equal(student.directional(batch[0], v, "auto"), student.directional(batch[0], v, "finite"))
    student.engine = Engine(CPU.device, torch.bfloat16)
    auto = student.directional(batch[0], v, "auto")
    assert auto.dtype == torch.float32
    assert torch.equal(auto, student.directional(batch[0], v, "exact"))
    assert 0 < (auto - full).norm() / full.norm() < 0.1


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_probe_uses_the_logits_of_the_step(
    make: Make, batch: Any, somewhere: Any, monkeypatch: pytest.MonkeyPatch, dropout: float
) -> None:
    """One forward instead of two; where the step's logits are noisy, it computes clean ones."""
    student = make(dropout=dropout)
    v = somewhere(student)
    expected = student.directional(batch[0], v, "finite")
    forwards = []
    student.model.register_forward_pre_hook(lambda *_: forwards.append(1))
    slope = student.probe(batch[0], v, "finite")
    assert len(forwards) == (1 if dropout == 0 else 2)
    logits = student.step(batch[0], label_loss(batch[1])).logits
    torch.testing.assert_close(slope(logits), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["finite", "central", "exact"])
@pytest.mark.parametrize("name", ["roberta", "xlnet", "albert"])
def test_directions_of_other_families(
    zoo: dict[str, Path], small_task: Task, somewhere: Any, name: str, method: str
) -> None:
    tokenizer = load_tokenizer(zoo[name], "x")
    model = load_classifier(zoo[name], small_task.label_names, 0, "x", dropout=0.0)
    student = Student(model, tokenizer, StudentSettings(), CPU)
    batch = TokenizedSplit.build(small_task.splits["dev"].texts[:3], tokenizer, 32).batch(np.arange(3))
    v = somewhere(student)
    logits = student.forward(batch)
    slope = torch.autograd.grad(logits[1, 0], student.params, allow_unused=True)
    brute = sum((g * v[n]).sum() for n, g in zip(student.named, slope, strict=True) if g is not None)
    got = student.directional(batch, v, method)
    assert got.shape == (3, 2)
    assert got[1, 0].item() == pytest.approx(float(brute), rel=0.03, abs=0.01 * got.abs().max().item())


def test_precondition_is_adams_own_scale(make: Make, batch: Any) -> None:
    student = make(clip=0.0, weight_decay=0.0)
    ones = {n: torch.ones_like(p) for n, p in student.named.items()}
    still = student.precondition(ones)
    assert still.keys() == ones.keys()
    assert all(v.shape == ones[n].shape and not v.any() for n, v in still.items()), "no scale before the first step"
    moment = {n: torch.zeros_like(p) for n, p in student.named.items()}
    student.begin(10)
    for _ in range(3):
        for n, g in student.gradient(*batch).items():
            moment[n] = 0.999 * moment[n] + 0.001 * g**2
        student.step(batch[0], label_loss(batch[1]))
    got = student.precondition(ones)
    for name, m in moment.items():
        wanted = torch.where(m > 0, 1 / ((m / (1 - 0.999**3)).sqrt() + 1e-8), 0.0)
        torch.testing.assert_close(got[name], wanted, rtol=1e-2, atol=1e-4)
        assert torch.equal(got[name] == 0, m == 0), "what AdamW has never moved counts as still"
    words = got["bert.embeddings.word_embeddings.weight"]
    assert (words == 0).all(1).any()
    assert (words != 0).any()


def test_precondition_leaves_sgd_alone(make: Make, batch: Any) -> None:
    student = make(optimizer="sgd")
    student.step(batch[0], label_loss(batch[1]))
    direction = student.gradient(*batch)
    assert student.precondition(direction) is direction


# --- weights ----------------------------------------------------------------------------------------------------------


def test_snapshot_and_restore_are_exact_and_in_place(make: Make, batch: Any) -> None:
    student = make()
    snapshot, places = student.weights(), [p.data_ptr() for p in student.params]
    logits = student.forward(batch[0]).detach()
    student.step(batch[0], label_loss(batch[1]))
    assert not same(snapshot, student.weights())
    student.restore(snapshot)
    assert same(snapshot, student.weights())
    assert torch.equal(student.forward(batch[0]), logits)
    assert [p.data_ptr() for p in student.params] == places
    student.step(batch[0], label_loss(batch[1]))
    assert not same(snapshot, student.weights()), "a snapshot is a copy"


def test_saved_students_load_anywhere(make: Make, small_task: Task, batch: Any, tmp_path: Path) -> None:
    student = make()
    for _ in range(5):
        student.step(batch[0], label_loss(batch[1]))
    student.save(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    assert not list(tmp_path.glob("*.bin"))
    pipe = transformers.pipeline("text-classification", model=str(tmp_path), device="cpu")
    split = small_task.splits["dev"]
    expected = torch.softmax(student.predict(TokenizedSplit.build(split.texts, student.tokenizer, 32)), -1)
    for (text,), p in zip(split.texts[:8], expected, strict=False):
        (said,) = pipe(text)
        assert said["label"] == small_task.label_names[int(p.argmax())]
        assert said["score"] == pytest.approx(float(p.max()), abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "adam"}, "student.optimizer=adam is not known; .*did you mean adamw"),
        ({"lr": -1.0}, "student.lr=-1.0 must be positive"),
        ({"warmup": 1.0}, r"student.warmup=1.0 must lie in \[0, 1\)"),
        ({"dropout": 1.0}, "student.dropout=1.0"),
        ({"clip": -0.5}, "student.clip=-0.5"),
        ({"max_length": 2}, "student.max_length=2 must be above 2"),
    ],
)
@pytest.mark.parametrize("kind", STUDENT_KINDS)
def test_refused_settings(settings: dict[str, Any], message: str, kind: str) -> None:
    needed = {"truncate": {"path": "x", "layers": 1}, "checkpoint": {"path": "x"}}.get(kind, {})
    with pytest.raises(UserError, match=message):
        STUDENT_KINDS[kind](**needed, **settings)


@pytest.mark.parametrize(
    ("make_settings", "message"),
    [
        (CheckpointStudent, "student.kind=checkpoint needs student.path"),
        (TruncateStudent, "student.kind=truncate needs student.path"),
        (lambda: TruncateStudent(path="x"), "needs student.layers > 0, got None"),
        (lambda: TruncateStudent(path="x", layers=0), "needs student.layers > 0, got 0"),
    ],
)
def test_what_a_kind_of_student_needs(make_settings: Callable[[], StudentSettings], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_settings()
