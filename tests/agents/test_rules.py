"""Every rule: shapes, closed forms, and which data it reads."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from agents import rules
from agents.experiment.runs import follow
from distill.checks import UserError
from envs.core import Core

K, B = 4, 8


@pytest.fixture(scope="module")
def core(tiny_config) -> Core:
    core = Core(tiny_config())
    core.begin(0)
    return core


def batch(**more) -> SimpleNamespace:
    return SimpleNamespace(**more)


@pytest.mark.parametrize("name", [*rules.RULES, "single:food"])
def test_every_rule_trains_a_student(core, name):
    rule = rules.make_rule(name, core, 0)
    core.begin(0)
    if not hasattr(rule, "train"):  # those train a student in their own way, and do not act
        actions = rule(core.observe(), core.process.batch)
        assert actions.shape == (B, K)
        assert actions.dtype == np.float32
        assert (actions >= 0).all()
        assert np.isfinite(actions).all()
    run = follow(core, rules.make_rule(name, core, 0), 0, name)
    assert 0 <= run.tests["test"]["accuracy"] <= 1
    again = follow(core, rules.make_rule(name, core, 0), 0, name)
    assert all(torch.equal(a, b) for a, b in zip(run.weights, again.weights, strict=True))


def test_unknown_rules_are_reported_in_one_line(core):
    with pytest.raises(UserError, match=r"^rule=best_singel .*did you mean best_single\?$"):
        rules.make_rule("best_singel", core, 0)
    with pytest.raises(UserError, match=r"single: teacher=hotels is not known.*hotel"):
        rules.make_rule("single:hotels", core, 0)


def test_control_and_labels(core):
    now = core.process.batch
    assert (rules.make_rule("control", core, 0)(np.empty(0), now) == 1).all()
    assert (rules.make_rule("labels", core, 0)(np.empty(0), now) == 0).all()
    assert rules.make_rule("single:hotel", core, 0)(np.empty(0), now)[0].tolist() == [0, 0, 1, 0]


def test_random_rules_follow_their_seed(core):
    now = core.process.batch
    single = [rules.RandomSingle(core, s)(np.empty(0), now) for s in (0, 0, *range(1, 30))]
    assert (single[0] == single[1]).all()
    assert all((s.sum(1) == 1).all() and (s == s[0]).all() for s in single)
    assert {int(s[0].argmax()) for s in single} == set(range(K))
    drawn = rules.RandomSubset(core, 0)
    assert np.mean([drawn(np.empty(0), now) for _ in range(200)]) == pytest.approx(0.5, abs=0.03)


def test_best_single_has_the_lowest_loss(core):
    losses = np.array([[3.0, 1, 2], [0.1, 0.2, 0.3]], np.float32)
    assert rules.BestSingle(core, 0)(np.empty(0), batch(teacher_losses=losses, answered=losses >= 0)).tolist() == [
        [0, 1, 0],
        [1, 0, 0],
    ]
    silent = losses > 0.15  # what a silent teacher seems to lose does not count
    assert rules.BestSingle(core, 0)(np.empty(0), batch(teacher_losses=losses, answered=silent)).tolist() == [
        [0, 1, 0],
        [0, 1, 0],
    ]


def test_confidence_is_one_minus_a_softmax(core):
    """Losses 0 and log 3: softmax 1/4, 3/4, so weights 3/4, 1/4; a third equal teacher is checked by the sum."""
    losses = np.array([[0.0, np.log(3)]], np.float32)
    found = rules.Confidence(core, 0)(np.empty(0), batch(teacher_losses=losses))
    np.testing.assert_allclose(found, [[0.75, 0.25]], rtol=1e-6)
    three = rules.confidence(torch.tensor([[0.0, 1.0, 2.0]]))
    assert three.sum().item() == pytest.approx(1)
    assert rules.confidence(torch.tensor([[5.0]])).item() == 1


def test_entropy_prefers_the_sure(core):
    probs = np.array([[[0.5, 0.5], [1.0, 0.0]]], np.float32)
    weights = rules.Entropy(core, 0)(np.empty(0), batch(probs=probs))
    np.testing.assert_allclose(weights, [[1 / 3, 2 / 3]], rtol=1e-5)  # entropies log 2 and 0


def test_tuned_weights_find_the_good_teacher():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 400)
    good = np.where(labels[:, None] == np.arange(2), 0.9, 0.1)
    wild = rng.dirichlet([1, 1], 400)
    probs = np.stack([wild, good], 1)
    for weights in (rules.tuned_weights(probs, labels), rules.logistic_weights(probs, labels)):
        assert weights.sum() == pytest.approx(1)
        assert weights[1] > 0.8
    # the optimum: no other mixture on a grid has a lower loss
    tuned = rules.tuned_weights(probs, labels)[1]
    grid = [-np.log((1 - w) * wild + w * good)[np.arange(400), labels].mean() for w in np.linspace(0, 1, 201)]
    assert tuned == pytest.approx(np.linspace(0, 1, 201)[np.argmin(grid)], abs=0.01)
    useless = np.full((10, 3, 2), 0.5)
    np.testing.assert_allclose(rules.logistic_weights(useless, np.arange(10) % 2), 1 / 3)


def test_agreeing_gradients_have_the_smallest_norm(core):
    core.begin(0)
    now, process = core.process.batch, core.process
    rule = rules.AgreeingGradients(core, 0)
    weights = rule(np.empty(0), now)[0]
    assert weights.sum() == pytest.approx(1, abs=1e-5)
    assert weights.max() <= 0.6 + 1e-6
    with torch.no_grad():
        student = F.softmax(process.student.forward(now.inputs) / process.settings.loss.temperature, -1)

    def norm(w) -> float:
        return float((student - (torch.as_tensor(w, dtype=torch.float32)[:, None] * now.soft).sum(1)).norm())

    rng = np.random.default_rng(0)
    others = [w for w in rng.dirichlet(np.ones(K), 500) if w.max() <= 0.6]
    assert all(norm(weights) <= norm(w) + 1e-4 for w in others)


def test_sure_students_get_strong_teachers(core):
    core.begin(0)
    rule, now = rules.StudentEntropy(core, 0), core.process.batch
    chosen = rule(np.empty(0), now).argmax(1)
    with torch.no_grad():
        probs = F.softmax(core.process.student.forward(now.inputs), -1)
    entropy = -torch.xlogy(probs, probs).sum(-1).numpy()
    assert chosen[entropy.argmin()] == rule.order[0]
    assert chosen[entropy.argmax()] == rule.order[-1]
    assert np.bincount(chosen, minlength=K).tolist() == [B // K] * K


def test_mtkd_rl_learns_to_be_uniform(core, monkeypatch):
    """The flaw that its docstring names: whatever the reward, the agent ends at equal weights."""
    core.begin(0)
    monkeypatch.setattr(rules.MTKDRL, "lr", 0.5)
    rule, states = rules.MTKDRL(core, 0), torch.from_numpy(core.observe())
    before = F.softmax(rule.agent(states), -1).std().item()
    for _ in range(1000):
        rule._learn(states, core.process.batch)
    assert F.softmax(rule.agent(states), -1).std().item() < before / 5


def test_headroom_takes_the_best_of_all_subsets(core):
    core.begin(0)
    for _ in range(2):
        core.step(np.ones((B, K), np.float32))
    rule = rules.Headroom(core, 0)
    chosen = rule(np.empty(0), core.process.batch)
    index = (chosen @ (2 ** np.arange(K))).astype(int)
    assert (rule.subsets[index] == chosen).all()
    # The gradient is estimated on reward instances that are drawn anew at each call: draw the same ones again.
    again = rules.Headroom(core, 0)
    shares = again.credit.subset_credit(again.subsets)
    assert shares.shape == (B, 2**K)
    assert (shares.argmax(1) == index).all()
    assert len(set(index)) > 1


def test_the_oracle_knows_only_the_bundled_task(core):
    assert list(rules.references(core, 0, oracle=True)) == ["control", "oracle"]
    assert isinstance(rules.references(core, 0, oracle=True)["oracle"], rules.Oracle)
    assert list(rules.references(core, 0, oracle=False)) == ["control"]
    stranger = SimpleNamespace(
        process=SimpleNamespace(
            num_teachers=1,
            task=SimpleNamespace(owners=None, pools=[], name="mrpc"),
            settings=SimpleNamespace(teachers=SimpleNamespace(pool=[])),
        )
    )
    assert list(rules.references(stranger, 0, oracle=True)) == ["control"]
    with pytest.raises(UserError, match="task=mrpc"):
        rules.Oracle(stranger, 0)


def test_every_rule_says_what_it_is_and_what_it_reads():
    for name, rule in rules.RULES.items():
        assert rule.summary, name
        assert set(rule.reads) <= {"reward", "credit", "observation"}, name
    assert rules.find_rule("single:food", ("film", "food")).summary == "teacher food alone"
