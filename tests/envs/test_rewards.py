"""Rewards and credit, against closed forms, brute force and measurement."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, jvp

from configs import compose
from distill.checks import UserError
from distill.data import bundled
from distill.losses import distillation_loss, soft_labels
from distill.settings import CorpusSettings, LossSettings, RewardSettings
from distill.student import StepResult, Student
from envs.core import Core
from envs.credit import Influence, influence_shares
from envs.rewards import REWARDS, ValidationGain

K, B = 4, 8
Make = Callable[..., Core]
# First-order settings: plain SGD, the whole reward split measured at every step and behind v.
FIRST_ORDER = (
    "student.optimizer=sgd",
    "student.weight_decay=0",
    "student.clip=0",
    "reward.size=null",
    "reward.every=1",
    "credit.size=60",
    "credit.name=counterfactual",
)


@pytest.fixture(scope="module")
def make(tiny_config: Callable[..., dict[str, Any]]) -> Make:
    """`make("reward.every=1", ...)`: process, observation, reward and credit of the tiny run."""
    return lambda *overrides: Core(tiny_config(*overrides))


def subsets(rng: np.random.Generator, rows: int = B) -> np.ndarray:
    return (rng.random((rows, K)) < 0.5).astype(np.float32)


def play(core: Core, seed: int = 0, choose: Callable[[], np.ndarray] | None = None) -> tuple[np.ndarray, list[Any]]:
    """Rewards `[steps,B]` and infos of an episode, under random subsets if `choose` is not given."""
    rng = np.random.default_rng(seed)
    core.begin(seed)
    rewards, infos = [], []
    while not core.process.done:
        _, reward, _, info = core.step(choose() if choose else subsets(rng, core.batch_size))
        rewards.append(reward)
        infos.append(info)
    return np.array(rewards), infos


def value(core: Core) -> float:
    """V of the student over the measured rows, computed in another way than `ValidationGain.score`."""
    reward = core.reward
    logits = core.process.student.predict(core.process.tokens("reward"), 16).numpy()[reward.rows]
    scores = core.process.task.scores(logits, reward.labels[reward.rows])
    return scores["accuracy"] if reward.settings.metric == "accuracy" else -scores["loss"]


# --- the gain ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("metric", ["loss", "accuracy"])
@pytest.mark.parametrize("size", ["30", "null"])
def test_rewards_telescope(make, every, metric, size):
    core = make(f"reward.every={every}", f"reward.metric={metric}", f"reward.size={size}", "budget.steps=7")
    core.begin(0)
    start, measured = core.reward.score(), value(core)
    rewards, infos = play(core)
    end = core.reward.score()
    assert start != end
    assert len(core.reward.rows) == (30 if size == "30" else 60)
    np.testing.assert_allclose(rewards.sum(0), end - start, atol=1e-9, rtol=0)
    assert start == pytest.approx(measured, abs=1e-6)
    assert end == pytest.approx(value(core), abs=1e-6)
    due = [(step + 1) % every == 0 or step == 6 for step in range(7)]
    assert ["gain" in info for info in infos] == due
    assert not rewards[np.logical_not(due)].any()


def test_gains_count_from_where_a_continued_student_stands(make):
    core = make("reward.every=2")
    play(core)
    stands = core.reward.score()
    core.begin(1, restart=False)
    assert core.reward.value == stands
    assert core.reward.score() != pytest.approx(make().reward.score(), abs=1e-6)


def test_the_warm_starts_value_is_measured_once(make, monkeypatch):
    core = make()
    fresh, calls = core.reward.score(), []
    monkeypatch.setattr(core.reward, "score", lambda: (calls.append(1), ValidationGain.score(core.reward))[1])
    for seed, restart, count in ((0, True, 1), (1, True, 1), (2, False, 2), (3, True, 2)):
        core.begin(seed, restart)
        assert len(calls) == count
        assert core.reward.value == ValidationGain.score(core.reward)
        assert (core.reward.value == fresh) == restart
        core.step(np.ones((B, K), np.float32))


def test_shared_credit_gives_every_row_the_gain(make):
    rewards, infos = play(make("reward.every=1"))
    for reward, info in zip(rewards, infos, strict=True):
        assert set(reward) == {info["gain"][0]}


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("credit", ["influence", "counterfactual"])
def test_rows_average_to_the_measured_gain(make, every, credit):
    core = make(f"credit.name={credit}", f"reward.every={every}")
    rewards, infos = play(core)
    shared, _ = play(make(f"reward.every={every}"))
    np.testing.assert_allclose(rewards.mean(1), shared[:, 0], atol=1e-12, rtol=0)
    assert not infos[0]["row_credit"].any(), "AdamW has no scale before its first step"
    assert all(("teacher_advantage" in info) == (credit == "counterfactual") for info in infos)
    if credit == "counterfactual":
        assert not infos[0]["teacher_advantage"].any()
        assert all(info["teacher_advantage"].any() for info in infos[1:])
    for step, (reward, info) in enumerate(zip(rewards, infos, strict=True)):
        share = info["row_credit"]
        assert share.std() > 0 or step == 0
        np.testing.assert_allclose(reward - reward.mean(), B * (share - share.mean()), atol=1e-12, rtol=0)


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_the_value_does_not_depend_on_the_evaluation_batch(make, metric):
    core = make("reward.size=null", f"reward.metric={metric}")
    play(core)
    values = []
    for size in (7, 256):
        core.reward.batches = core.reward._prepare(size)
        assert sum(len(labels) for _, labels in core.reward.batches) == 60
        values.append(core.reward.score())
    assert values[0] == pytest.approx(values[1], abs=1e-6)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_measuring_moves_nothing(make, dropout):
    core = make(f"student.dropout={dropout}")
    play(core)
    student = core.process.student
    before = student.weights()
    optimizer = [t.clone() for state in student.optimizer.state.values() for t in state.values()]
    torch.manual_seed(3)
    rng, own = torch.get_rng_state(), core.process.rng_state.clone()
    assert core.reward.score() == core.reward.score()
    assert all(map(torch.equal, student.weights(), before))
    assert all(map(torch.equal, [t for state in student.optimizer.state.values() for t in state.values()], optimizer))
    assert all(p.grad is None for p in student.params)
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.equal(core.process.rng_state, own)
    assert not student.model.training


@pytest.mark.parametrize("reward", ["validation_gain", "paper3"])
def test_rewards_come_from_the_reward_split_alone(make, monkeypatch, reward):
    settings = (f"reward={reward}", "reward.every=1", "reward.size=null")
    core = make(*settings)
    asked: set[str] = set()
    tokens = core.process.tokens
    monkeypatch.setattr(core.process, "tokens", lambda role: asked.add(role) or tokens(role))
    expected, _ = play(core)
    assert asked <= {"train", "reward"}
    other = make(*settings, "task.corpus.dev=20", "task.corpus.test=30")
    np.testing.assert_array_equal(play(other)[0], expected)
    other = make(*settings, "task.corpus.reward=50")
    assert not np.allclose(play(other)[0], expected, atol=1e-7)


def test_the_reward_refuses_data_of_another_role(make):
    core = make()
    splits = {**core.process.task.splits, "reward": core.process.task.splits["dev"]}
    process = SimpleNamespace(task=SimpleNamespace(splits=splits))
    with pytest.raises(ValueError, match="role dev"):
        ValidationGain(RewardSettings(), process)


@pytest.mark.parametrize(
    "override",
    [
        "reward.name=gain",
        "reward.metric=f1",
        "credit.name=each",
        "+reward.method=finite",
        "+reward.credit=influence",
        "+reward.direction_decay=0.5",
        "+reward.horizon=1",
        "reward.every=0",
        "reward.size=0",
        "credit.size=0",
        "credit.every=-1",
        "reward.accuracy_weight=1.5",
        "reward.every=often",
        "+reward.sizes=3",
    ],
)
def test_wrong_settings_end_in_one_line(make, override):
    group, _, key = override.lstrip("+").partition("=")[0].partition(".")
    with pytest.raises(UserError, match=rf"^{group}.*{key}.*$"):
        make(override)


@pytest.mark.parametrize("credit", ["influence", "counterfactual"])
@pytest.mark.parametrize("reward", ["paper1", "paper2", "paper3"])
def test_credit_by_row_goes_with_the_gain_only(make, reward, credit):
    with pytest.raises(
        UserError, match=rf"^credit\.name={credit} [^\n]*validation_gain, not with reward={reward}; [^\n]*$"
    ):
        make(f"reward={reward}", f"credit.name={credit}")


@pytest.mark.parametrize("reward", ["validation_gain", "paper2"])
def test_an_environment_alone_shares_the_reward(make, reward):
    assert make(f"reward={reward}").settings.credit.name == "shared"


# --- the paper's rewards ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("paper1", -(math.log(2) - math.log(0.9) + math.log(10)) / 3),
        ("paper2", -(math.log(2) - math.log(0.9) + math.log(10)) / 3 - 4 * 0.5 * math.log(3) / 3),
        ("paper3", None),
    ],
)
def test_paper_rewards_by_hand(name, expected):
    """T = 2. Student (1/2, 1/2), (.9, .1), (.9, .1); at T: (1/2, 1/2), (3/4, 1/4), (3/4, 1/4). Labels 0, 0, 1.

    Row 0 has both teachers, whose mean is (1/2, 1/2): KL = 0. Row 1 has teacher (1/4, 3/4): KL = 1/2 ln 3. Row 2 has none.
    """
    student = torch.tensor([[0.0, 0.0], [2 * math.log(3), 0.0], [2 * math.log(3), 0.0]])
    right, wrong = [2 * math.log(3), 0.0], [0.0, 2 * math.log(3)]
    soft = torch.tensor([[right, wrong]] * 3).div(2).softmax(-1)
    audible = lambda actions: actions.astype(np.float32)  # noqa: E731  all teachers answer
    batch: Any = SimpleNamespace(
        inputs={}, gold=torch.tensor([0, 0, 1]), soft_for=lambda actions: soft, audible=audible
    )
    reward = object.__new__(REWARDS[name])
    reward.settings, reward.batches = RewardSettings(name=name, accuracy_weight=0.25), []
    reward.process = SimpleNamespace(
        student=SimpleNamespace(forward=lambda inputs: student, score=lambda batches: (9.0, 0.8)),
        settings=SimpleNamespace(loss=LossSettings(alpha=0.3, temperature=2.0)),
    )
    if expected is None:
        expected = 0.75 * (-(math.log(2) - math.log(0.9) + math.log(10)) / 3 - 2 * math.log(3) / 3) + 0.25 * 0.8
    actions, result = np.array([[1, 1], [0, 1], [0, 0]]), StepResult(student, torch.zeros(3), 0.1, None)
    assert reward.measure(batch, actions, result) == pytest.approx(expected, abs=1e-6)


def test_paper_rewards_are_paid_again_until_the_next_measurement(make):
    assert all(compose([f"reward=paper{i}"])["reward"]["every"] == 1 for i in (1, 2, 3))
    each, infos = play(make("reward=paper1", "reward.every=1"))
    assert all(info["measured"].all() for info in infos)
    third, infos = play(make("reward=paper1", "reward.every=4"))
    np.testing.assert_array_equal(third, [each[0] * 0] * 3 + [each[3]] * 2 + [each[5]])
    assert ["measured" in info for info in infos] == [False, False, False, True, False, True]


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_paper1_on_the_next_batch(make, monkeypatch, dropout):
    """-CE of the batch to come, after the step; without dropout no forward that the next step would not need."""
    core = make("reward=paper1", "reward.every=1", "reward.at=next", f"student.dropout={dropout}")
    core.begin(0)
    forwards, forward, student = [], core.process.student.forward, core.process.student
    monkeypatch.setattr(student, "forward", lambda batch: (forwards.append(1), forward(batch))[1])
    steps = 0
    while not core.process.done:
        _, rewards, _, _ = core.step(subsets(np.random.default_rng(steps)))
        coming = core.process.batch
        with torch.no_grad():
            expected = -F.cross_entropy(forward(coming.inputs), coming.gold).item()
        np.testing.assert_allclose(rewards, expected, atol=1e-6)
        steps += 1
    assert len(forwards) == (2 * steps if dropout else steps + 1)


@pytest.mark.parametrize("name", ["paper2", "paper3", "validation_gain"])
def test_only_paper1_can_be_measured_on_the_next_batch(make, name):
    with pytest.raises(UserError, match=rf"^reward\.at=next goes with paper1, not with {name}"):
        make(f"reward={name}", "reward.at=next")


@pytest.mark.parametrize("name", ["paper1", "paper2", "paper3"])
def test_paper_rewards_look_at_the_student_after_the_step(make, name):
    core = make(f"reward={name}", "reward.every=1", "loss.temperature=3", "reward.accuracy_weight=0.4")
    core.begin(0)
    rng = np.random.default_rng(0)
    for _ in range(3):
        batch, actions = core.process.batch, subsets(rng)
        actions[0] = 0
        _, rewards, _, info = core.step(actions)
        with torch.no_grad():
            z = core.process.student.forward(batch.inputs).double().numpy()
        log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
        log_pt = z / 3 - np.log(np.exp(z / 3).sum(1, keepdims=True))
        expected = log_p[np.arange(B), batch.labels].mean()
        if name != "paper1":
            soft = np.exp(batch.logits.astype(np.float64) / 3)
            soft /= soft.sum(-1, keepdims=True)
            kl = []
            for row in range(B):
                chosen = soft[row][actions[row] > 0]
                q = chosen.mean(0) if len(chosen) else None
                kl.append(0.0 if q is None else 9 * (q * (np.log(q) - log_pt[row])).sum())
            expected -= np.mean(kl)
        if name == "paper3":
            logits = core.process.student.predict(core.process.tokens("reward")).numpy()[core.reward.rows]
            accuracy = (logits.argmax(1) == core.reward.labels[core.reward.rows]).mean()
            expected = 0.6 * expected + 0.4 * accuracy
        np.testing.assert_allclose(rewards, expected, atol=2e-6)
        assert set(info) == {"measured"}


# --- influence: the formula -------------------------------------------------------------------------------------------


class Toy:
    """A float64 network, its reward gradient v, and `<grad l_i, v>` by brute force for any subset."""

    def __init__(self, classes: int, loss: LossSettings, rows: int = 7) -> None:
        g = torch.Generator().manual_seed(classes)
        self.loss, self.k = loss, 3
        self.net = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.Tanh(), torch.nn.Linear(6, classes)).double()
        with torch.no_grad():
            for p in self.net.parameters():
                p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64))
        self.x = torch.randn(rows, 5, generator=g, dtype=torch.float64)
        self.labels = torch.randint(classes, (rows,), generator=g)
        teachers = 3 * torch.randn(rows, self.k, classes, generator=g, dtype=torch.float64)
        self.soft = soft_labels(teachers, loss.temperature)
        held = torch.randn(11, 5, generator=g, dtype=torch.float64)
        wanted = torch.randint(classes, (11,), generator=g)
        self.params = dict(self.net.named_parameters())
        self.v = torch.autograd.grad(F.cross_entropy(self.net(held), wanted), list(self.params.values()))
        base = {n: p.detach() for n, p in self.params.items()}
        self.logits, self.slope = jvp(
            lambda w: functional_call(self.net, w, (self.x,)), (base,), (dict(zip(base, self.v, strict=True)),)
        )

    def shares(self, actions: Tensor) -> Tensor:
        out = []
        for i in range(len(self.x)):
            row = slice(i, i + 1)
            loss = distillation_loss(self.net(self.x[row]), self.labels[row], actions[row], self.soft[row], self.loss)
            grads = torch.autograd.grad(loss.sum(), list(self.params.values()))
            out.append(sum((a * b).sum() for a, b in zip(grads, self.v, strict=True)))
        return torch.stack(out)

    def formula(self, actions: Tensor) -> Any:
        return influence_shares(self.logits, self.slope, self.labels, actions, self.soft, self.loss)


BITS = torch.tensor([[n >> k & 1 for k in range(3)] for n in range(8)], dtype=torch.float64)  # all subsets
LOSSES = [LossSettings(0.3, 1.0), LossSettings(0.5, 5.0), LossSettings(0.0, 2.0), LossSettings(1.0, 2.0)]


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda s: f"alpha{s.alpha}-T{s.temperature}")
@pytest.mark.parametrize("weights", [False, True])
def test_shares_equal_brute_force(classes, loss, weights):
    """All 8 subsets of 3 teachers, as bits or as weights; every bit flipped, also the one that empties the subset."""
    toy = Toy(classes, loss, rows=8)
    scale = torch.tensor([0.2, 1.7, 0.9], dtype=torch.float64) if weights else torch.ones(3, dtype=torch.float64)
    actions = BITS * scale
    found = toy.formula(actions)
    torch.testing.assert_close(found.rows, toy.shares(actions), rtol=1e-9, atol=1e-12)
    for k in range(3):
        on, off = actions.clone(), actions.clone()
        on[:, k] = torch.where(actions[:, k] > 0, actions[:, k], 1.0)
        off[:, k] = 0
        expected = toy.shares(on) - toy.shares(off)
        torch.testing.assert_close(found.advantage[:, k], expected, rtol=1e-9, atol=1e-12)
    if loss.alpha < 1:
        assert (found.advantage.abs().max(0).values > 1e-3).all()


# --- influence: in the environment ------------------------------------------------------------------------------------


@pytest.fixture
def derivative(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`derivative("exact")`: credit takes the slope of the logits by this method of `Student.probe`."""
    true = Student.probe

    def use(method: str) -> None:
        monkeypatch.setattr(Student, "probe", lambda self, batch, direction: true(self, batch, direction, method))

    return use


@pytest.mark.parametrize(
    ("optimizer", "method", "tolerance"),
    [("sgd", "exact", 1e-4), ("adamw", "exact", 1e-4), ("sgd", "central", 5e-3), ("sgd", "finite", 0.1)],
)
@pytest.mark.parametrize("clip", [0, 0.05])
def test_info_holds_brute_force_shares(make, derivative, optimizer, method, tolerance, clip):
    """`row_credit` and `teacher_advantage` of a real student against gradients by row, in units of V: lr/B, clipping included."""
    derivative(method)
    core = make(*FIRST_ORDER, f"student.optimizer={optimizer}", f"student.clip={clip}", "student.lr=0.01")
    process, student, reward = core.process, core.process.student, core.reward
    core.begin(0)
    rng = np.random.default_rng(5)
    core.step(subsets(rng))  # AdamW has its moments from here on
    now, actions = process.batch, subsets(rng)
    actions[0], actions[1] = 0, np.eye(K)[2]
    logits = student.forward(now.inputs)
    held = process.tokens("reward").batch(reward.rows)
    raw = torch.autograd.grad(F.cross_entropy(student.forward(held), reward.gold(reward.rows)), student.params)

    def gradients(chosen: np.ndarray) -> Tensor:
        losses = distillation_loss(logits, now.gold, torch.from_numpy(chosen), now.soft, process.settings.loss)
        grads = [torch.autograd.grad(one, student.params, retain_graph=True) for one in losses]
        return torch.stack([torch.cat([p.flatten() for p in g]) for g in grads]).double()

    given, flips = gradients(actions), []
    for k in range(K):
        on, off = actions.copy(), actions.copy()
        on[:, k], off[:, k] = 1, 0
        flips.append(gradients(on) - gradients(off))
    _, _, _, info = core.step(actions)
    assert core.credit.direction is not None
    v = torch.cat([d.flatten() for d in core.credit.direction.values()]).double()
    if optimizer == "sgd":
        torch.testing.assert_close(v, torch.cat([g.flatten() for g in raw]).double(), rtol=1e-4, atol=1e-7)
    norm = float(given.mean(0).norm())
    assert norm > clip
    scale = 0.01 / B * (clip / norm if clip else 1)
    expected, flipped = scale * given @ v, scale * torch.stack(flips, 1) @ v
    for found, wanted in ((info["row_credit"], expected), (info["teacher_advantage"], flipped)):
        np.testing.assert_allclose(found, wanted, atol=tolerance * float(wanted.abs().max()), rtol=0)


@pytest.mark.parametrize("credit", ["influence", "counterfactual"])
def test_probing_moves_nothing(make, credit):
    """Credit by row only reads: the student of an episode is the same to the bit without it."""
    plain, probed = make("reward.every=1"), make("reward.every=1", f"credit.name={credit}")
    rewards, infos = play(plain)
    shown, more = play(probed)
    assert all(map(torch.equal, plain.process.student.weights(), probed.process.student.weights()))
    np.testing.assert_array_equal([i["value"] for i in infos], [i["value"] for i in more])
    assert not np.allclose(rewards, shown)


@pytest.mark.parametrize("method", ["exact", "finite"])
def test_shares_predict_the_measured_gain(make, derivative, method):
    """Sum over the batch against V(after) - V(before), 200 small SGD steps under random subsets."""
    derivative(method)
    core = make(*FIRST_ORDER, "student.lr=0.003", "budget.steps=200")
    _, infos = play(core)
    predicted = np.array([info["row_credit"].sum() for info in infos])
    measured = np.array([info["gain"][0] for info in infos])
    assert len(measured) == 200
    assert np.corrcoef(predicted, measured)[0, 1] >= 0.9
    assert np.polyfit(predicted, measured, 1)[0] == pytest.approx(1, abs=0.2)


def test_adamw_shares_are_of_the_order_of_the_gain(make, derivative):
    """Momentum spreads the effect of a step over the next ten: the slope is not 1, but they are correlated and of one order."""
    derivative("exact")
    core = make(*FIRST_ORDER, "student.optimizer=adamw", "student.lr=0.003", "budget.steps=30")
    _, infos = play(core)
    predicted = np.array([info["row_credit"].sum() for info in infos])
    measured = np.array([info["gain"][0] for info in infos])
    assert np.abs(predicted).max() < 50 * np.abs(measured).max()
    assert np.corrcoef(predicted[1:], measured[1:])[0, 1] > 0.3


def test_advantages_predict_what_another_choice_would_have_gained(make, derivative):
    """Teacher k flipped in all rows: the sum of its advantages against the difference of two real steps."""
    derivative("exact")
    core = make(*FIRST_ORDER, "student.lr=0.003")
    process, student = core.process, core.process.student
    rng, predicted, measured = np.random.default_rng(0), [], []
    for seed in range(12):
        core.begin(seed)
        now, actions, base = process.batch, subsets(rng), student.weights()
        _, _, _, info = core.step(actions)
        kept = core.reward.score()
        for k in range(K):
            other = actions.copy()
            other[:, k] = 1 - other[:, k]
            student.restore(base)
            student.steps, process.batch = 0, now
            process.step(other)
            measured.append(core.reward.score() - kept)
            predicted.append((info["teacher_advantage"][:, k] * (other - actions)[:, k]).sum())
    assert np.corrcoef(predicted, measured)[0, 1] >= 0.9
    assert np.polyfit(predicted, measured, 1)[0] == pytest.approx(1, abs=0.2)


def test_one_direction_serves_several_steps(make, monkeypatch):
    core = make("credit.name=influence", "credit.every=3", "budget.steps=7")
    made, gradient = [], core.process.student.gradient
    monkeypatch.setattr(
        core.process.student, "gradient", lambda *a: made.append(core.process.student.steps) or gradient(*a)
    )
    play(core)
    assert made == [0, 1, 3, 6]  # AdamW has no scale before its first step, so the direction is computed again after it


def test_the_direction_is_the_gradient_on_reward_instances_that_are_drawn_anew(make):
    """The gradient of the student as it is, on `credit.size` of the measured instances; a new episode begins without one."""
    core = make("credit.name=influence", "student.optimizer=sgd", "student.lr=0.05")
    process, seen = core.process, []
    core.begin(0)
    before, rng = process.student.weights(), np.random.default_rng((0, 1))
    for _ in range(2):
        core.credit.before(process.batch)
        rows = np.sort(rng.choice(core.reward.rows, 16, replace=False))
        expected = process.student.gradient(process.tokens("reward").batch(rows), core.reward.gold(rows))
        assert core.credit.direction.keys() == expected.keys()
        for name, value in core.credit.direction.items():
            torch.testing.assert_close(value, expected[name])
        seen.append(rows.tolist())
    assert seen[0] != seen[1]
    for now, then in zip(process.student.weights(), before, strict=True):
        assert torch.equal(now, then)
    core.begin(1)
    assert core.credit.direction is None


def test_credit_of_subsets_is_what_a_step_would_have_paid(make):
    """`subset_credit` for rules: unit shares, so the step's are those times lr / B."""
    core = make(*FIRST_ORDER, "credit.name=influence", "student.lr=0.01")
    chosen = np.array([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]])
    core.begin(0)
    fork = core.fork()
    assert isinstance(fork.credit, Influence)
    unit = fork.credit.subset_credit(chosen)
    assert unit.shape == (B, 3)
    for column, subset in enumerate(chosen):
        _, _, _, info = core.fork().step(np.tile(subset, (B, 1)))
        scale = float(np.abs(info["row_credit"]).max())
        np.testing.assert_allclose(info["row_credit"], unit[:, column] * 0.01 / B, atol=1e-3 * scale, rtol=0)


def test_centred_credit_ignores_what_a_batch_has_in_common(make):
    """All rows alike: what one gains all gain, and nothing is left to credit."""
    core = make("credit.name=counterfactual", "credit.center=true", "student.optimizer=sgd", "budget.steps=2")
    core.begin(0)
    now = core.process.batch
    core.credit.before(now)
    slope = core.credit.slope(core.process.student.forward(now.inputs).detach())
    assert slope.abs().max() > 1e-3
    torch.testing.assert_close(slope.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    core.process.batch = core.process.load(np.repeat(now.rows[:1], core.batch_size))
    _, _, _, info = core.step(np.ones((core.batch_size, K), np.float32))
    np.testing.assert_allclose(info["teacher_advantage"], 0, atol=1e-8)


# --- what a good choice is worth --------------------------------------------------------------------------------------


def test_an_oracle_earns_more_than_chance(make, tmp_path):
    """Teachers from files: each knows its own domain and guesses elsewhere, with confidence; training labels are noisy."""
    corpus = CorpusSettings(train=800, reward=200, dev=20, test=20, noise=0.0)
    clean = bundled.corpus(corpus)[0]["train"]
    rng, pool = np.random.default_rng(0), []
    for d, domain in enumerate(bundled.DOMAINS):
        positive = np.where(clean.domains == d, clean.labels, rng.integers(0, 2, 800)) * 0.96 + 0.02
        rows = [f"train-{i},{1 - p:.6f},{p:.6f}" for i, p in enumerate(positive)]
        path = tmp_path / f"{domain.name}.csv"
        path.write_text("\n".join(["id,negative,positive", *rows]) + "\n")
        pool.append(f"{{name: {domain.name}, kind: predictions, path: {path}}}")
    core = make(
        "task.corpus={train: 800, reward: 200, dev: 20, test: 20, pool: 2, noise: 0.35}",
        f"teachers.pool=[{', '.join(pool)}]",
        "++student.config={hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32, "
        "initializer_range: 0.1}",
        "student.lr=0.01",
        "budget.steps=100",
        "budget.batch_size=32",
        "reward.every=100",
        "reward.size=null",
    )
    specialist = core.process.task.specialist
    assert list(core.process.task.pools) == [domain.name for domain in bundled.DOMAINS]

    def earns(choose: Callable[[], np.ndarray] | None, seed: int) -> float:
        return float(play(core, seed, choose)[0].sum(0).mean())

    known = [earns(lambda: np.eye(K, dtype=np.float32)[specialist[core.process.batch.rows]], seed) for seed in range(2)]
    chance = [earns(None, seed) for seed in range(2)]
    assert min(known) > max(chance)
