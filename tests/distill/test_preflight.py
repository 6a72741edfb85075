"""The check before training, against closed forms on made-up teachers."""

from __future__ import annotations

import numpy as np
import pytest

import configs
from distill import preflight as module
from distill.preflight import Preflight, fixed_weights, lines, mixed, of_pool, preflight
from distill.process import Prepared
from distill.selection import FLOOR
from distill.settings import RunSettings
from distill.teachers.__main__ import main

R, C = 400, 3
RNG = np.random.default_rng(5)
LABELS = RNG.integers(C, size=R)
STATES = RNG.standard_normal((R, 6))
AWAY = np.tile([0.34, 0.33, 0.33], (R, 1))


def giving(gold: np.ndarray | float) -> np.ndarray:
    """A teacher that gives the label this probability and shares out the rest evenly, `[R,C]`."""
    gold = np.broadcast_to(gold, R)
    out = np.repeat(((1 - gold) / (C - 1))[:, None], C, 1)
    out[np.arange(R), LABELS] = gold
    return out


def pool(*teachers: np.ndarray) -> np.ndarray:
    return np.stack(teachers, 1)


def check(*teachers: np.ndarray, states: np.ndarray = STATES) -> Preflight:
    return preflight(pool(*teachers), LABELS, states, [f"t{k}" for k in range(len(teachers))])


def row(found: Preflight, name: str) -> module.Choice:
    return next(c for c in found.choices if c.name == name)


def test_identical_teachers_leave_nothing_to_choose() -> None:
    noisy = giving(np.where(RNG.random(R) < 0.7, 0.8, 0.1))
    found = check(noisy, noisy, noisy)
    for choice in found.choices:
        assert choice.gain_loglik == pytest.approx((0, 0, 0), abs=1e-9)
        assert choice.gain_accuracy == pytest.approx((0, 0, 0), abs=1e-9)
    assert found.agreement == 1.0
    assert found.any_right == found.all_right == row(found, "average").accuracy
    assert found.sentence.startswith("Nothing to choose: two teachers agree on 100%")


def test_one_perfect_teacher_is_enough_alone() -> None:
    found = check(giving(1.0), AWAY, AWAY)
    average = np.log((1 + AWAY[np.arange(R), LABELS] * 2) / 3 + FLOOR).mean()
    assert row(found, "average").loglik == pytest.approx(average)
    for name in ("best single", "most confident"):
        assert row(found, name).loglik == pytest.approx(0, abs=1e-5)
        assert row(found, name).accuracy == 1.0
        assert row(found, name).gain_loglik[0] == pytest.approx(-average, abs=1e-5)
    assert row(found, "fixed weights").loglik == pytest.approx(0, abs=0.02)
    assert found.any_right == 1.0
    assert "is enough" in found.sentence or "are enough" in found.sentence


def test_a_gain_of_likelihood_alone_is_no_gain_of_accuracy() -> None:
    """Both teachers are always right, each is sure at home only."""
    home = STATES[:, 0] > 0
    found = check(giving(np.where(home, 0.95, 0.4)), giving(np.where(home, 0.4, 0.95)))
    assert row(found, "selector").gain_accuracy == (0, 0, 0)
    assert row(found, "selector").gain_loglik[1] > 0.1
    assert found.sentence.startswith(
        "Selecting per instance is expected to help the probabilities, not the accuracy: +0.000"
    )


def test_a_gain_that_rounding_explains_is_none() -> None:
    """The second teacher is better by a hair on half of the instances."""
    home = STATES[:, 0] > 0
    found = check(giving(np.where(home, 0.9, 0.899)), giving(np.where(home, 0.899, 0.9)))
    assert not found.sentence.startswith("Selecting")


def test_disjoint_specialists_are_worth_selecting() -> None:
    home = STATES[:, 0] > 0  # the state says whose instance it is
    right, wrong = giving(0.9), np.roll(giving(0.96), 1, axis=1)  # sure of a wrong class away from home
    found = check(np.where(home[:, None], right, wrong), np.where(home[:, None], wrong, right))
    assert row(found, "average").loglik == pytest.approx(np.log((0.9 + 0.02) / 2), abs=1e-3)
    assert row(found, "average").accuracy == 0.0
    assert row(found, "selector").gain_loglik[0] > 0.5
    assert row(found, "selector").accuracy > 0.8
    assert row(found, "best single").accuracy < 0.6
    assert row(found, "fixed weights").gain_loglik[0] == pytest.approx(0, abs=0.02)
    assert found.any_right == 1.0
    assert found.all_right == 0.0
    assert found.agreement == 0.0
    assert found.sentence.startswith("Selecting per instance is expected to help: +")


def test_specialists_that_no_state_tells_apart_are_not() -> None:
    home = RNG.random(R) > 0.5  # independent of the state
    found = check(giving(np.where(home, 0.95, 0.02)), giving(np.where(home, 0.02, 0.95)))
    assert "expected to help" not in found.sentence


def test_a_teacher_better_everywhere_needs_no_selector() -> None:
    good, poor = giving(np.where(RNG.random(R) < 0.9, 0.8, 0.1)), giving(np.where(RNG.random(R) < 0.4, 0.8, 0.1))
    found = check(good, poor)
    assert row(found, "fixed weights").gain_loglik[1] > 0
    assert "enough" in found.sentence


def test_an_over_confident_teacher_is_named() -> None:
    right = RNG.random(R) < 0.7
    found = check(giving(np.where(right, 0.999, 0.0005)), giving(np.where(RNG.random(R) < 0.7, 0.6, 0.2)))
    assert found.over_confident == ["t0"]
    calm = check(giving(np.where(right, 0.7, 0.15)), giving(np.where(right, 0.7, 0.15)))
    assert calm.over_confident == []


def test_fixed_weights_are_the_most_likely_ones() -> None:
    gold = np.stack([np.where(RNG.random(R) < p, 0.9, 0.05) for p in (0.8, 0.5)], 1)
    grid = np.linspace(0, 1, 2001)
    best = grid[np.argmax([np.log(w * gold[:, 0] + (1 - w) * gold[:, 1]).mean() for w in grid])]
    assert fixed_weights(gold, np.ones(gold.shape, bool))[0] == pytest.approx(best, abs=0.01)


def test_silent_teachers_have_no_weight() -> None:
    answered = np.ones((R, 2), bool)
    answered[::2, 0] = False
    probs = pool(giving(1.0), giving(0.5))
    probs[::2, 0] = 1 / C
    found = preflight(probs, LABELS, STATES, ["half", "whole"], answered)
    expected = np.where(answered[:, 0], np.log(0.75 + FLOOR), np.log(0.5 + FLOOR)).mean()
    assert row(found, "average").loglik == pytest.approx(expected)
    assert mixed(np.zeros((1, 2)), probs[:1])[0] == pytest.approx(probs[0].mean(0))


def test_the_numbers_do_not_depend_on_the_order_of_the_teachers() -> None:
    home = STATES[:, 0] > 0
    one, two = giving(np.where(home, 0.95, 0.1)), giving(np.where(home, 0.1, 0.9))
    here, there = check(one, two), check(two, one)
    for name in ("average", "best single", "fixed weights", "most confident"):
        assert row(here, name).loglik == pytest.approx(row(there, name).loglik, abs=1e-9)


def test_few_labels_say_nothing(tiny_config, monkeypatch) -> None:
    prepared = Prepared.of(RunSettings.from_config(tiny_config())).load()
    labels = len(prepared.task.splits["reward"])
    monkeypatch.setattr(module, "FEWEST", labels)
    assert of_pool(prepared) is not None
    monkeypatch.setattr(module, "FEWEST", labels + 1)
    assert of_pool(prepared) is None


def test_the_command_prints_the_table_and_the_sentence(tiny_overrides, capsys) -> None:
    assert main([*tiny_overrides, "threads=1"]) == 0
    out = capsys.readouterr().out
    assert "soft label" in out
    assert "two teachers agree:" in out
    found = of_pool(Prepared.of(RunSettings.from_config(configs.compose(tiny_overrides))).load())
    assert found is not None
    assert out.rstrip().endswith(found.sentence)
    assert lines(found)[-1] == found.sentence
