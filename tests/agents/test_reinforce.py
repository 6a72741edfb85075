"""The paper's selector: its gradient against exact enumeration, its policy, its credit, its settings."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.reinforce import Advantages, Joint, Selector, initial_selector, log_prob, surrogate, train, update
from distill.checks import UserError
from distill.settings import ReinforceSettings, RunSettings, parse

K, S = 3, 4
SUBSETS = torch.tensor(list(itertools.product([0.0, 1.0], repeat=K)), dtype=torch.float64)  # [8,K]


@pytest.fixture
def tiny() -> tuple[Selector, Tensor, Tensor]:
    """A float64 selector with random weights, one state `[1,S]`, and a random reward for each of the 8 subsets."""
    g = torch.Generator().manual_seed(0)
    selector = Selector(S, K).double()
    with torch.no_grad():
        for p in selector.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64))
    return (
        selector,
        torch.randn(1, S, generator=g, dtype=torch.float64),
        torch.randn(8, generator=g, dtype=torch.float64),
    )


def gradient(selector: Selector, scalar: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(scalar, list(selector.parameters()))])


def chances(selector: Selector, state: Tensor) -> Tensor:
    """pi(a) of every subset, written out as a product."""
    p = torch.sigmoid(selector(state))
    return torch.where(SUBSETS > 0, p, 1 - p).prod(1)


def exact(selector: Selector, state: Tensor, rewards: Tensor) -> Tensor:
    """d/d theta of sum_a pi(a) R(a)."""
    return gradient(selector, (chances(selector, state) * rewards).sum())


def expected(selector: Selector, state: Tensor, advantages: Tensor) -> Tensor:
    """sum_a pi(a) grad surrogate(a, A(a))."""
    pi = chances(selector, state).detach()
    parts = []
    for n in range(len(pi)):
        scalar = surrogate(selector(state), SUBSETS[n : n + 1], advantages[n : n + 1])
        parts.append(pi[n] * gradient(selector, scalar))
    return torch.stack(parts).sum(0)


def flips(rewards: Tensor) -> Tensor:
    """`[8,K]`: R with bit k on minus R with it off, the other bits as they are."""
    out = torch.empty(8, K, dtype=torch.float64)
    for n, bits in enumerate(SUBSETS):
        for k in range(K):
            on, off = bits.clone(), bits.clone()
            on[k], off[k] = 1, 0
            place = [int((b == SUBSETS).all(1).nonzero()) for b in (on, off)]
            out[n, k] = rewards[place[0]] - rewards[place[1]]
    return out


# --- the gradient -----------------------------------------------------------------------------------------------------


def test_reinforce_is_unbiased(tiny):
    selector, state, rewards = tiny
    wanted = exact(selector, state, rewards)
    assert wanted.norm() > 0.05
    torch.testing.assert_close(expected(selector, state, rewards), wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("baseline", [-3.0, 0.7, 100.0])
def test_a_baseline_leaves_the_expected_gradient(tiny, baseline):
    selector, state, rewards = tiny
    torch.testing.assert_close(
        expected(selector, state, rewards - baseline), exact(selector, state, rewards), rtol=1e-9, atol=1e-11
    )


def test_the_counterfactual_form_is_unbiased(tiny):
    selector, state, rewards = tiny
    torch.testing.assert_close(
        expected(selector, state, flips(rewards)), exact(selector, state, rewards), rtol=1e-10, atol=1e-12
    )


def test_the_counterfactual_form_has_less_variance(tiny):
    selector, state, rewards = tiny
    pi = chances(selector, state).detach()

    def variance(advantages: Tensor) -> float:
        each = torch.stack(
            [gradient(selector, surrogate(selector(state), SUBSETS[n, None], advantages[n, None])) for n in range(8)]
        )
        mean = (pi[:, None] * each).sum(0)
        return float((pi[:, None] * (each - mean) ** 2).sum())

    best_baseline = min(variance(rewards - b) for b in np.linspace(-3, 3, 61))
    assert variance(flips(rewards)) < 0.5 * best_baseline


@pytest.mark.parametrize("per_teacher", [False, True])
def test_the_surrogate_is_the_mean_over_rows(tiny, per_teacher):
    selector, _, rewards = tiny
    states = torch.randn(8, S, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    advantages = flips(rewards) if per_teacher else rewards
    rows = [surrogate(selector(states[n, None]), SUBSETS[n, None], advantages[n, None]) for n in range(8)]
    torch.testing.assert_close(surrogate(selector(states), SUBSETS, advantages), torch.stack(rows).mean())


# --- the policy -------------------------------------------------------------------------------------------------------


def test_log_prob_is_bernoullis(tiny):
    selector, state, _ = tiny
    logits = selector(state).detach()
    wanted = torch.distributions.Bernoulli(logits=logits).log_prob(SUBSETS).sum(-1)
    found = log_prob(logits.expand(8, K), SUBSETS)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(found.exp().sum(), torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(found.exp(), chances(selector, state).detach())


def test_log_prob_stays_finite_far_out():
    logits = torch.tensor([[80.0, -80.0, 300.0]])
    assert log_prob(logits, torch.tensor([[1.0, 0.0, 1.0]])) == pytest.approx(0.0, abs=1e-6)
    assert log_prob(logits, torch.tensor([[0.0, 0.0, 1.0]])) == pytest.approx(-80.0, abs=1e-4)


@pytest.mark.parametrize(("bias", "on"), [(0.0, 1), (1.0, 1), (-1e-3, 0)])
def test_greedy_gives_ties_to_the_teachers(bias, on):
    states = np.random.default_rng(0).normal(size=(5, S)).astype(np.float32)
    np.testing.assert_array_equal(Selector(S, K, bias).greedy(states), np.full((5, K), on, np.float32))


def test_greedy_picks_the_likeliest_subset(tiny):
    selector, state, _ = tiny
    likeliest = SUBSETS[chances(selector, state).argmax()]
    np.testing.assert_array_equal(selector.float().greedy(state.float().numpy())[0], likeliest)


def test_samples_follow_the_policy_and_their_generator(tiny):
    selector, state, _ = tiny
    selector = selector.float()
    states = state.float().numpy().repeat(20_000, 0)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, again, other = (selector.sample(states, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert first.dtype == np.float32
    assert set(np.unique(first)) == {0.0, 1.0}
    p = torch.sigmoid(selector(state.float()))[0].detach().numpy()
    np.testing.assert_allclose(first.mean(0), p, atol=5 * 0.5 / 20_000**0.5)
    joint = np.array([(first == s.numpy()).all(1).mean() for s in SUBSETS])
    np.testing.assert_allclose(joint, chances(selector.double(), state).detach(), atol=0.02)


# --- credit -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
def test_influence_credit_is_standardised_over_rows(scale):
    rewards = scale * np.random.default_rng(0).normal(3, 1, 32)
    found = Advantages(0.9)(rewards, {"row_credit": rewards})
    assert found is not None
    assert found.shape == (32,)
    assert float(found.mean()) == pytest.approx(0, abs=1e-5)
    assert float(found.std(correction=0)) == pytest.approx(1, rel=1e-5)
    np.testing.assert_array_equal(np.argsort(found.numpy()), np.argsort(rewards))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
def test_counterfactual_credit_keeps_signs_and_ratios(scale):
    advantage = (scale * np.random.default_rng(0).normal(0.5, 1, (32, K))).astype(np.float32)
    found = Advantages(0.9)(np.zeros(32), {"teacher_advantage": advantage, "row_credit": np.zeros(32)})
    assert found is not None
    assert found.shape == (32, K)
    assert float(found.std(correction=0)) == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(found.numpy() / advantage, 1 / advantage.std(dtype=np.float64), rtol=1e-5)


@pytest.mark.parametrize(
    "info",
    [
        {"row_credit": np.zeros(32)},
        {"row_credit": np.zeros(32), "teacher_advantage": np.zeros((32, K), np.float32)},
    ],
    ids=["influence", "counterfactual"],
)
def test_equal_credit_gives_finite_advantages(info):
    found = Advantages(0.9)(np.full(32, 0.1), info)
    assert found is not None
    assert found.abs().max() < 1e-3


def test_a_batch_of_one_row_gives_finite_advantages():
    found = Advantages(0.9)(np.array([0.3]), {"row_credit": np.array([0.3])})
    assert found is not None
    assert found.isfinite().all()


def test_shared_credit_compares_with_a_running_mean():
    rng = np.random.default_rng(0)
    gains = rng.normal(0.02, 0.01, 300)
    runs = {}
    for scale in (1.0, 1e4):
        one = Advantages(0.9)
        first, *runs[scale] = [one(np.full(8, scale * g), {"measured": True}) for g in gains]
        assert first is None, "nothing to compare with yet"
        assert all(a is not None and a.shape == (1,) for a in runs[scale])
    small, large = (np.array([float(a[0]) for a in run]) for run in runs.values())
    np.testing.assert_allclose(small, large, rtol=1e-5)  # the reward's unit does not matter
    mean, away, wanted = gains[0], [], []
    for g in gains[1:]:
        away.append(abs(g - mean))
        decayed = 0.9 ** np.arange(len(away))[::-1]
        wanted.append((g - mean) / np.average(away, weights=decayed))
        mean = 0.9 * mean + 0.1 * g
    np.testing.assert_allclose(small, wanted, rtol=1e-4)
    late, better = small[100:], gains[101:] > 0.02
    assert abs(late.mean()) < 0.3
    assert late[better].mean() > 0.5
    assert late[~better].mean() < -0.5
    assert np.abs(late).max() < 10


def test_shared_credit_waits_for_a_measurement():
    one = Advantages(0.9)
    measured = {"measured": np.ones(8, bool)}
    assert one(np.zeros(8), {}) is None
    assert (one.mean, one.spread, one.count) == (0.0, 0.0, 0)
    assert one(np.full(8, 0.5), measured) is None
    assert (one.mean, one.count) == (0.5, 1)
    assert one(np.zeros(8), {}) is None
    assert (one.mean, one.count) == (0.5, 1)
    better = one(np.full(8, 0.7), measured)
    assert better is not None
    assert better.tolist() == pytest.approx([1.0], rel=1e-6)  # its distance is all that is known of the spread


# --- learning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["counterfactual", "influence"])
def test_the_selector_learns_the_best_teacher_of_a_context(kind):
    """Contexts are one-hot with noise; teacher `c` is right in context `c`, every other one does harm."""
    settings = ReinforceSettings(lr=0.03)
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    selector, to_advantage = Selector(K, K, settings.bias), Advantages(settings.baseline)
    optimizer = torch.optim.Adam(selector.parameters(), lr=settings.lr)

    def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
        best = np.eye(K, dtype=np.float32)[rng.integers(K, size=count)]
        return (best + rng.normal(0, 0.1, best.shape)).astype(np.float32), best

    states, best = draw(500)
    assert (selector.greedy(states) == best).all(1).mean() == 0
    for _ in range(300):
        states, best = draw(32)
        actions = selector.sample(states, generator)
        worth = np.where(best > 0, 1.0, -0.5).astype(np.float32)
        rewards = (actions * worth).sum(1)
        info = {"row_credit": rewards, **({"teacher_advantage": worth} if kind == "counterfactual" else {})}
        advantages = to_advantage(rewards, info)
        update(selector, optimizer, states, actions, advantages, entropy_weight=0.0)
    states, best = draw(500)
    assert (selector.greedy(states) == best).all(1).mean() > 0.98


def test_an_update_is_one_step_up_the_surrogate_and_the_entropy(tiny):
    """With plain SGD the weights move by lr times the gradient of surrogate + weight * entropy."""
    selector, _, rewards = tiny
    selector = selector.float()
    states = torch.randn(8, S, generator=torch.Generator().manual_seed(1))
    logits = selector(states)
    p = torch.sigmoid(logits)
    entropy = torch.distributions.Bernoulli(p).entropy().mean()
    objective = surrogate(logits, SUBSETS.float(), rewards.float()) + 0.3 * entropy
    wanted = [
        w + 0.5 * g
        for w, g in zip(selector.parameters(), torch.autograd.grad(objective, list(selector.parameters())), strict=True)
    ]
    optimizer = torch.optim.SGD(selector.parameters(), lr=0.5)
    found = update(selector, optimizer, states.numpy(), SUBSETS.float().numpy(), rewards.float(), entropy_weight=0.3)
    assert found == pytest.approx(float(entropy.detach()), rel=1e-5)
    for ours, theirs in zip(selector.parameters(), wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def train_from_all(env: Any, settings: ReinforceSettings, seed: int, writer: Any) -> Joint:
    """Joint training from all teachers."""
    start, fit = initial_selector(env.core, settings)
    return train(env, settings, start, fit, seed, writer)


class Recorder:
    """Stands in for TensorBoard's writer."""

    def __init__(self) -> None:
        self.seen: dict[str, list[float]] = {}

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.seen.setdefault(name, []).append(float(value))


@pytest.mark.parametrize("kind", ["shared", "influence", "counterfactual"])
def test_joint_training(tiny_config: Callable[..., dict[str, Any]], kind):
    from envs.teacher_select import TeacherSelectVectorEnv

    config = tiny_config(f"credit.name={kind}")
    settings = ReinforceSettings(start="all_on", episodes=3, warmup=2)
    outcome = []
    for _ in range(2):
        env = TeacherSelectVectorEnv(config=config, autoreset_mode="disabled")
        writer: Any = Recorder()
        joint = train_from_all(env, settings, 7, writer)
        selector, dev, weights = joint.kept.selector, joint.kept.best.dev, joint.kept.best.weights
        outcome.append((selector.state_dict(), weights))
        assert joint.elapsed > joint.spent > 0
        assert [point["episode"] for point in joint.curve] == [0, 1, 2]
        assert selector.units.weight.abs().max() > 0  # it learnt something
        assert len(writer.seen["dev/accuracy"]) == len(writer.seen["episode/gain"]) == 3
        assert dev["accuracy"] == max(writer.seen["dev/accuracy"])
        env.core.process.student.restore(weights)
        assert env.core.process.evaluate("dev") == dev
    assert all(map(torch.equal, outcome[0][1], outcome[1][1]))
    assert all(torch.equal(a, outcome[1][0][n]) for n, a in outcome[0][0].items())


def test_the_warm_up_is_all_teachers_and_leaves_the_selector_as_it_is(tiny_config, monkeypatch):
    """Learning to repeat it would saturate the units before the first choice is made."""
    from envs.teacher_select import TeacherSelectVectorEnv

    env = TeacherSelectVectorEnv(config=tiny_config("credit.name=counterfactual"), autoreset_mode="disabled")
    done: list[np.ndarray] = []
    step = env.step
    monkeypatch.setattr(env, "step", lambda actions: (done.append(actions), step(actions))[1])
    settings = ReinforceSettings(start="all_on", episodes=1, warmup=6, lr=1.0)
    selector = train_from_all(env, settings, 7, Recorder()).kept.selector
    assert len(done) == 6
    assert all((actions == 1).all() for actions in done)
    assert (selector.units.weight == 0).all()
    assert (selector.units.bias == 1).all()


@pytest.mark.parametrize("every", [1, 2, 4])
def test_a_measurement_answers_the_steps_since_the_last_one(tiny_config, monkeypatch, every):
    from agents import reinforce
    from envs.teacher_select import TeacherSelectVectorEnv

    env = TeacherSelectVectorEnv(
        config=tiny_config("credit.name=shared", f"reward.every={every}"), autoreset_mode="disabled"
    )
    taught: list[tuple[int, np.ndarray]] = []

    def spy(logits: Tensor, actions: Tensor, advantages: Tensor) -> Tensor:
        taught.append((len(advantages), actions.numpy()))
        return surrogate(logits, actions, advantages)

    done: list[np.ndarray] = []
    step = env.step
    monkeypatch.setattr(reinforce, "surrogate", spy)
    monkeypatch.setattr(env, "step", lambda actions: (done.append(actions), step(actions))[1])
    train_from_all(env, ReinforceSettings(start="all_on", episodes=3, warmup=2), 7, Recorder())
    assert {size for size, _ in taught} == {1}
    assert len(done) == 3 * 6
    measured = [t for t in range(18) if (t % 6 + 1) % every == 0 or t % 6 == 5]
    answers = [t for t in measured if t >= 2]  # the first two steps are the warm-up, which teaches nothing
    for (_, found), before, now in zip(taught, answers, answers[1:], strict=False):
        np.testing.assert_array_equal(found, np.concatenate(done[before + 1 : now + 1]))
    assert len(taught) == len(answers) - 1, "the first measurement has nothing to be compared with"


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("joint", "stop"),
        ("lr", 0),
        ("lr", "fast"),
        ("episodes", -1),
        ("episodes", 1.5),
        ("warmup", -1),
        ("baseline", 1.0),
        ("entropy", -0.1),
        ("schedule", "cosine"),
        ("start", "nowhere"),
        ("trust", -1.0),
        ("pull", 0.1),
        ("credit", "influence"),
        ("learning_rate", 0.1),
    ],
)
def test_wrong_settings_end_in_one_line(key, value):
    with pytest.raises(UserError, match=rf"^agent.*{key}.*$") as error:
        parse(ReinforceSettings, {key: value}, "agent")
    assert "\n" not in str(error.value)
    assert str(value) in str(error.value) or key in ("learning_rate", "pull", "credit")  # unknown keys


def test_the_yaml_and_the_code_agree_on_defaults():
    """On a task that chooses no other value; the bundled one does."""
    from configs import compose

    found = RunSettings.from_config(compose(["agent=reinforce", "task=mrpc"])).agent
    assert found == ReinforceSettings()
    assert found.lr == 0.005
    assert RunSettings.from_config(compose(["agent=reinforce"])).agent.lr > found.lr


def test_the_agent_prefers_counterfactual_credit(tiny_config, tmp_path):
    """credit.name=auto: counterfactual where the reward is a gain of V, shared for the paper's rewards."""
    from agents import reinforce

    for given, credit in (
        ((), "counterfactual"),
        (("reward=paper1",), "shared"),
        (("credit.name=influence",), "influence"),
    ):
        settings = RunSettings.from_config(tiny_config("agent.episodes=1", "agent.warmup=1", *given))
        core, learnt = reinforce.learn(settings, tmp_path)
        assert core.settings.credit.name == credit
        assert [point["episode"] for point in learnt.curve] == [0]
