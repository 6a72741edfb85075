"""The whole process: warm start, budget, reproducibility, and that a step follows the gradient of the loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from distill import process
from distill.checks import RoleError
from distill.losses import distillation_loss, soft_labels
from distill.process import Distillation, Prepared
from distill.settings import LossSettings, RunSettings
from distill.state import check_state, pack, unpack
from distill.student import Student
from distill.teachers.checkpoint import ModelTeacher

Make = Callable[..., Distillation]


@pytest.fixture(scope="session")
def make(tiny_config: Callable[..., dict[str, Any]], prepared: Prepared) -> Make:
    return lambda *overrides: Distillation(RunSettings.from_config(tiny_config(*overrides)))


@pytest.fixture(scope="session")
def tiny(make: Make) -> Distillation:
    return make()


def actions(seed: int, steps: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2, (steps, 8, 4)).astype(np.float32)


def apart(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """Mean distance of two students' weights. Padding changes the rounding, and AdamW enlarges small differences."""
    return float(torch.cat([(a - b).abs().flatten() for a, b in zip(one, other, strict=True)]).mean())


def run(d: Distillation, seed: int, chosen: np.ndarray, **how: Any) -> list[torch.Tensor]:
    d.begin(seed, **how)
    for a in chosen:
        d.step(a)
    return d.student.weights()


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# --- one run ----------------------------------------------------------------------------------------------------------


def test_the_same_actions_give_the_same_student(tiny: Distillation, make: Make) -> None:
    first = run(tiny, 3, actions(0))
    assert same(first, run(tiny, 3, actions(0)))
    assert same(first, run(make(), 3, actions(0))), "another process object"
    assert not same(first, run(tiny, 4, actions(0))), "other batches"
    assert not same(first, run(tiny, 3, actions(1))), "other subsets"
    flipped = actions(0)
    flipped[2, 5, 1] = 1 - flipped[2, 5, 1]
    assert not same(first, run(tiny, 3, flipped)), "one bit"


def test_a_look_ahead_gives_the_logits_of_the_step_at_no_further_forward(
    tiny: Distillation, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = run(tiny, 3, actions(0))
    forwards: list[int] = []
    forward = tiny.student.forward
    monkeypatch.setattr(tiny.student, "forward", lambda batch: (forwards.append(1), forward(batch))[1])
    tiny.begin(3)
    for a in actions(0):
        seen = tiny.look_ahead()
        assert torch.equal(tiny.look_ahead(), seen)
        assert not seen.requires_grad
        assert torch.equal(tiny.step(a).logits, seen)
    assert same(tiny.student.weights(), wanted)
    assert len(forwards) == len(actions(0))


def test_a_look_ahead_is_not_used_after_the_weights_have_changed(tiny: Distillation) -> None:
    tiny.begin(3)
    tiny.step(actions(0)[0])
    seen = tiny.look_ahead()
    other = [w + 0.1 for w in tiny.student.weights()]
    tiny.student.restore(other)
    assert not torch.allclose(tiny.look_ahead(), seen)
    tiny.look_ahead()
    tiny.student.restore(tiny.warm)
    logits = tiny.step(actions(0)[1]).logits
    tiny.begin(3)
    tiny.step(actions(0)[0])
    tiny.student.restore(tiny.warm)
    assert torch.equal(tiny.step(actions(0)[1]).logits, logits)


def test_a_look_ahead_without_gradients_is_not_used(tiny: Distillation) -> None:
    wanted = run(tiny, 3, actions(0))
    tiny.begin(3)
    for a in actions(0):
        with torch.inference_mode():
            tiny.look_ahead()
        tiny.step(a)
    assert same(tiny.student.weights(), wanted)


def test_with_dropout_a_look_ahead_is_clean_and_the_step_has_its_own_logits(make: Make) -> None:
    d = make("student.dropout=0.3")
    wanted = run(d, 3, actions(0))
    d.begin(3)
    for a in actions(0):
        seen = d.look_ahead()
        assert torch.equal(seen, d.student.forward(d.batch.inputs).detach())
        assert not torch.equal(d.step(a).logits, seen)
    assert same(d.student.weights(), wanted)


def test_kinds_of_actions(tiny: Distillation) -> None:
    first = run(tiny, 3, actions(0))
    for kind in (np.int8, bool, np.float64):
        assert same(first, run(tiny, 3, actions(0).astype(kind)))  # type: ignore[arg-type]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(first, run(tiny, 3, 0.25 * actions(0)), strict=True))


def test_a_step_is_the_gradient_of_the_loss(make: Make) -> None:
    d = make(
        "student.optimizer=sgd", "student.clip=0", "student.weight_decay=0", "student.lr=0.5", "loss.temperature=2"
    )
    d.begin(1)
    now, chosen = d.batch, actions(5)[0]
    assert now is not None
    texts = [d.train_split.texts[i] for i in now.rows]
    inputs = d.student.tokenizer([t[0] for t in texts], padding=True, return_tensors="pt")
    teachers = torch.from_numpy(d.prepared.signals("train").logits(now.rows))
    logits = d.student.model(**inputs).logits
    gold = torch.from_numpy(d.train_split.labels[now.rows])
    losses = distillation_loss(
        logits, gold, torch.from_numpy(chosen), soft_labels(teachers, 2.0), LossSettings(d.settings.loss.alpha, 2.0)
    )
    slope, before = torch.autograd.grad(losses.mean(), d.student.params), d.student.weights()
    result = d.step(chosen)
    torch.testing.assert_close(result.logits, logits.detach())
    torch.testing.assert_close(result.losses, losses.detach())
    assert result.lr == 0.5
    assert result.clip is None
    for b, g, p in zip(before, slope, d.student.params, strict=True):
        torch.testing.assert_close(p.detach(), b - 0.5 * g, rtol=1e-4, atol=1e-6)


def test_the_training_batch(tiny: Distillation) -> None:
    tiny.begin(2)
    now = tiny.batch
    assert now is not None
    assert now.rows.shape == now.labels.shape == (8,)
    assert now.logits.shape == now.probs.shape == (8, 4, 2)
    assert now.vectors.shape == (8, 8)
    e = np.exp(now.logits.astype(np.float64))
    p = e / e.sum(-1, keepdims=True)
    np.testing.assert_allclose(now.probs, p, atol=1e-6)
    np.testing.assert_allclose(now.teacher_losses, -np.log(p[np.arange(8), :, now.labels]), atol=1e-5)
    np.testing.assert_array_equal(now.labels, tiny.train_split.labels[now.rows])
    np.testing.assert_allclose(np.linalg.norm(now.vectors, axis=1), 1, atol=1e-5)


def test_budget(tiny: Distillation, make: Make) -> None:
    tiny.begin(0)
    done = []
    for a in actions(0):
        done.append(tiny.done)
        tiny.step(a)
    assert done == [False] * 6
    assert tiny.done
    tiny.begin(0, budget=1)
    assert not tiny.done
    tiny.step(actions(0)[0])
    assert tiny.done
    by_epochs = make("budget.steps=null", "budget.epochs=0.5", "++budget.warm_steps=null", "budget.warm_epochs=0.2")
    assert (by_epochs.budget, by_epochs.warm_budget) == (12, 5)  # 200 / 8 = 25 steps an epoch


def test_begin_without_a_restart(tiny: Distillation) -> None:
    end = run(tiny, 0, actions(0))
    tiny.begin(1, restart=False)
    assert same(end, tiny.student.weights())
    assert tiny.student.steps == 0
    tiny.begin(1)
    assert same(tiny.warm, tiny.student.weights())


@pytest.mark.parametrize("more", [[], ["student.dropout=0.3"], ["student.optimizer=sgd"]], ids=str)
def test_a_state_continues_in_another_process_object(make: Make, more: list[str]) -> None:
    d, other = make(*more), make(*more)
    check_state(unpack(pack(d.state_dict())), d.state_template())  # before any run
    run(d, 5, actions(0)[:3])
    state = pack(d.state_dict())
    end = [d.step(a) for a in actions(0)[3:]]
    assert {"student/classifier.weight", "stream/queue", "rng", "rows"} <= state.keys()
    tree = unpack(state)
    check_state(tree, d.state_template())
    other.load_state_dict(tree)
    assert (other.student.steps, other.student.budget, other.done) == (3, 6, False)
    for a, wanted in zip(actions(0)[3:], end, strict=True):
        result = other.step(a)
        assert torch.equal(result.logits, wanted.logits)
        assert torch.equal(result.losses, wanted.losses)
        assert result.lr == wanted.lr
    assert same(other.student.weights(), d.student.weights())
    assert other.done


def test_a_step_reports_the_factor_of_clipping(make: Make) -> None:
    d, free = make("student.clip=0.05"), make("student.clip=0")
    for one in (d, free):
        one.begin(1)
        one.step(actions(0)[0])
    result = d.step(actions(0)[1])
    assert result.clip is not None
    assert 0 < float(result.clip) < 1
    assert result.lr == d.settings.student.lr
    assert free.step(actions(0)[1]).clip is None


# --- roles ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["reward", "dev", "test"])
def test_evaluate(tiny: Distillation, role: str) -> None:
    tiny.begin(0)
    before, split = tiny.student.weights(), tiny.task.splits[role]
    got = tiny.evaluate(role)
    assert got == tiny.task.scores(tiny.student.predict(tiny.tokens(role)).numpy(), split.labels)
    assert same(before, tiny.student.weights())
    assert len(split) == {"reward": 60, "dev": 60, "test": 80}[role]


def test_training_data_is_not_evaluated(tiny: Distillation) -> None:
    with pytest.raises(RoleError, match="role train"):
        tiny.evaluate("train")


def test_teacher_scores(prepared: Prepared) -> None:
    rows = prepared.teacher_scores()
    assert [r["name"] for r in rows] == ["film", "food", "hotel", "electronics", "ensemble"]
    split = prepared.task.splits["dev"]
    logits = np.stack([t.compute(split) for t in prepared.teachers], 1).astype(np.float64)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    for row, probs in zip(rows, [*p.swapaxes(0, 1), p.mean(1)], strict=True):
        gold = probs[np.arange(60), split.labels]
        assert row["dev"]["accuracy"] == pytest.approx((probs.argmax(1) == split.labels).mean())
        assert row["dev"]["loss"] == pytest.approx(-np.log(gold).mean(), rel=1e-4)
        assert set(row) >= {"name", "dev", "test"}


# --- the warm start ---------------------------------------------------------------------------------------------------


def test_the_warm_start_is_distilled_from_all_teachers(tiny: Distillation, make: Make) -> None:
    cold = make("++budget.warm_steps=0")
    everyone = np.ones((4, 8, 4), np.float32)
    assert same(run(cold, 1_000_003, everyone, budget=4), tiny.warm)
    assert not same(cold.warm, tiny.warm)


def test_the_warm_start_is_made_once(make: Make, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make("student.name=once")
    (entry,) = [p for p in home.glob("warm/bundled-once-*") if p.is_dir()]
    stored = load_file(entry / "student.safetensors")
    assert same(first.warm, [stored[n] for n in first.student.named])

    def no_step(*_: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(Student, "step", no_step)
    again = make("student.name=once")
    assert same(first.warm, again.warm)
    assert same(again.warm, again.student.weights())
    for change in ("seed=1", "loss.alpha=0.9", "loss.temperature=3", "student.lr=0.5", "budget.batch_size=9"):
        with pytest.raises(AssertionError, match="trained again"):
            make("student.name=once", change)


def test_prepared_is_shared_and_the_seed_is_not_part_of_it(make: Make) -> None:
    first = make("seed=1").prepared
    assert make("seed=2").prepared is first
    assert make("task.corpus.seed=1").prepared is not first


def test_a_second_session_fine_tunes_and_computes_nothing(
    tiny_config: Any, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr("distill.teachers.finetune.fit", refuse)
    monkeypatch.setattr("distill.teachers.checkpoint.ModelTeacher.compute", refuse)
    monkeypatch.setattr("distill.teachers.encoders.BagEncoder.compute", refuse)
    monkeypatch.setattr(process, "_PREPARED", type(process._PREPARED)())
    again = Prepared.of(RunSettings.from_config(tiny_config())).load()
    assert again is not prepared
    assert again.fingerprint == prepared.fingerprint
    rows = np.arange(200)
    np.testing.assert_array_equal(again.signals("train").logits(rows), prepared.signals("train").logits(rows))


@pytest.fixture
def own_files(tiny_config: Any, tmp_path: Path) -> tuple[Callable[[int], None], Any]:
    """`write(seed)` writes a training file and a teacher's predictions for it; settings of a run on them."""
    train, test, said = (tmp_path / f"{name}.csv" for name in ("train", "test", "said"))
    test.write_text("id,text,label\n" + "".join(f"t{i},a film,{'bad' if i % 2 else 'good'}\n" for i in range(10)))

    def write(seed: int) -> None:
        labels = np.random.default_rng(seed).permutation(np.arange(60) % 2)
        rows = [
            f"r{i},{'fine' if y else 'dull'} film number {i},{'good' if y else 'bad'}" for i, y in enumerate(labels)
        ]
        train.write_text("\n".join(["id,text,label", *rows]) + "\n")
        rows = [f"r{i},{0.9 - 0.8 * y:.1f},{0.1 + 0.8 * y:.1f}" for i, y in enumerate(labels)]
        said.write_text("\n".join(["id,bad,good", *rows]) + "\n")

    write(0)
    overrides = [
        "task=files",
        f"task.train={train}",
        f"task.test={test}",
        "task.text=[text]",
        "task.id=id",
        "task.reward_size=10",
        "task.dev_size=10",
        f"teachers.pool=[{{name: llm, kind: predictions, path: {said}}}]",
    ]
    return write, RunSettings.from_config(tiny_config(*overrides))


def test_a_file_that_was_rewritten_is_read_again(own_files: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one process, with the same settings and the same names of files."""
    write, settings = own_files
    first = Distillation(settings)
    assert Distillation(settings).prepared is first.prepared
    write(1)  # of the same size to the byte
    second = Distillation(settings)
    assert second.prepared is not first.prepared
    assert second.prepared.fingerprint != first.prepared.fingerprint
    assert not same(first.warm, second.warm)
    monkeypatch.setattr(process, "_PREPARED", type(process._PREPARED)())
    fresh = Distillation(settings)  # as another process reads it
    for one, other in ((first, second), (fresh, second)):
        texts = one.train_split.texts == other.train_split.texts
        assert (texts, one.task.fingerprint == other.task.fingerprint) == (one is fresh, one is fresh)
    assert same(fresh.warm, second.warm)
    rows = np.arange(len(fresh.train_split))
    np.testing.assert_array_equal(fresh.signals.logits(rows), second.signals.logits(rows))
    np.testing.assert_array_equal(second.signals.logits(rows)[:, 0].argmax(1), second.labels)


def test_predictions_that_were_rewritten_are_read_again(own_files: Any, tmp_path: Path) -> None:
    _, settings = own_files
    first = Distillation(settings)
    path = tmp_path / "said.csv"
    path.write_text(path.read_text().replace("0.9", "0.7").replace("0.1", "0.3"))
    second = Distillation(settings)
    assert second.prepared is not first.prepared
    rows = np.arange(len(first.train_split))
    assert np.exp(first.signals.logits(rows)).max() == pytest.approx(0.9, abs=1e-4)
    assert np.exp(second.signals.logits(rows)).max() == pytest.approx(0.7, abs=1e-4)


def test_live_signals_train_the_same_student(tiny: Distillation, make: Make) -> None:
    live = make("teachers.signals=live")
    stored_run, live_run = run(tiny, 3, actions(0)), run(live, 3, actions(0))
    assert apart(stored_run, live_run) < 0.01 * apart(stored_run, tiny.warm)


def test_live_teachers_that_are_not_chosen_are_not_run(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The student is the same as when all of them are run and then left out."""
    asked: list[tuple[str, int]] = []
    real = ModelTeacher.at
    monkeypatch.setattr(
        ModelTeacher, "at", lambda self, split, rows: asked.append((self.name, len(rows))) or real(self, split, rows)
    )
    live, whole = make("teachers.signals=live"), make("teachers.signals=live")
    made = [actions(0)[0].copy() for _ in range(3)]
    made[0][:] = 0
    made[1][:, 1] = 0
    made[2][0] = 0
    live.begin(3)
    whole.begin(3)
    asked.clear()
    for a in made:
        live.step(a)
        counts = {name: int((a[:, k] > 0).sum()) for k, name in enumerate(live.signals.names)}
        assert dict(asked) == {name: count for name, count in counts.items() if count}
        asked.clear()
        assert whole.batch is not None
        assert whole.batch.logits.shape == (*whole.batch.shape, 2)  # all of them were read before
        asked.clear()
        whole.step(a)
        assert not asked, "logits that were read are not computed again"
    assert apart(live.student.weights(), whole.student.weights()) < 0.01 * apart(live.student.weights(), live.warm)


# --- dropout ----------------------------------------------------------------------------------------------------------


def test_dropout_draws_from_the_runs_own_stream(make: Make) -> None:
    d = make("student.dropout=0.3")
    runs = []
    for outside in (1, 2):
        torch.manual_seed(outside)
        before = torch.get_rng_state()
        d.begin(7)
        for a in actions(0):
            d.step(a)
            d.evaluate("dev")
        assert torch.equal(torch.get_rng_state(), before)
        torch.rand(outside)  # other code draws between two runs
        runs.append(d.student.weights())
    assert same(*runs)
    assert not same(runs[0], run(d, 8, actions(0)))


def test_dropout_is_on_in_steps_alone(make: Make) -> None:
    d = make("student.dropout=0.3")
    d.begin(7)
    assert d.batch is not None
    still = d.student.forward(d.batch.inputs).detach()
    assert torch.equal(still, d.student.forward(d.batch.inputs))
    noisy = d.step(actions(0)[0]).logits
    assert not torch.allclose(noisy, still, atol=1e-3)
