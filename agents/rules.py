"""Fixed and heuristic rules: what a learnt selector has to beat. Each is called like one: `rule(states, batch) -> [B,K]`.

Actions are subsets or non-negative weights of the teachers. Rules may read the batch's labels and the student, as the
published ones do, but of the splits only what their line in `RULES` says.

Sources: the paper's baselines (arXiv 2012.06048), CA-MKD (arXiv 2201.00007), EBKD (Kwon et al., ICASSP 2020), AEKD (Du et
al., NeurIPS 2020), DynamicKD (arXiv 2109.11295), MTKD-RL (arXiv 2502.18510).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Tensor, nn

from distill.checks import UserError, check, one_of
from distill.losses import soft_labels
from distill.models.engine import isolated_rng
from distill.process import Current, Distillation
from envs.rewards import Reward, RewardSettings
from envs.teacher_select import Core


class Rule(ABC):
    """What chooses teachers: states `[B,S]` and the coming batch -> actions `[B,K]` float32."""

    needs_states = False  # states are built only for those that look at them
    remembers = False  # whether its choices depend on earlier ones; its runs are not taken up in the middle

    @abstractmethod
    def __call__(self, states: np.ndarray, batch: Current) -> np.ndarray:
        """Actions `[B,K]`."""


class Policy(Rule):
    """A learnt policy, fixed: a function from states to actions."""

    needs_states = True

    def __init__(self, act: Callable[[np.ndarray], np.ndarray]) -> None:
        self.act = act

    def __call__(self, states: np.ndarray, batch: Current) -> np.ndarray:
        return self.act(states)


# --- no look at the instance ------------------------------------------------------------------------------------------


class Constant(Rule):
    """The same weights `[K]` for every instance."""

    def __init__(self, weights: np.ndarray) -> None:
        self.weights = np.asarray(weights, np.float32)

    def __call__(self, states: np.ndarray, batch: Current) -> np.ndarray:
        return np.tile(self.weights, (len(batch.rows), 1))


class RandomSingle(Rule):
    """One random teacher for every batch (the paper's Rand-Single-Ensemble)."""

    remembers = True

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng((seed, 2))

    def __call__(self, states: np.ndarray, batch: Current) -> np.ndarray:
        rows, teachers = batch.shape
        return np.tile(np.eye(teachers, dtype=np.float32)[self.rng.integers(teachers)], (rows, 1))


class RandomSubset(Rule):
    """Every teacher of every instance by the toss of a coin."""

    remembers = True

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng((seed, 3))

    def __call__(self, states: np.ndarray, batch: Current) -> np.ndarray:
        return (self.rng.random(batch.shape) < 0.5).astype(np.float32)


def tuned_weights(probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Weights `[K]` on the simplex under which mixed probabilities `[N,K,C]` have the smallest cross-entropy on labels `[N]`."""
    gold = probs[np.arange(len(labels)), :, labels]  # [N,K]: what each teacher gives the right class

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        weights = np.exp(x - x.max())
        weights /= weights.sum()
        mixed = gold @ weights + 1e-12
        slope = -(gold / mixed[:, None]).mean(0)
        return float(-np.log(mixed).mean()), weights * (slope - weights @ slope)

    x = minimize(loss, np.zeros(probs.shape[1]), jac=True, method="L-BFGS-B").x
    weights: np.ndarray = np.exp(x - x.max())
    return weights / weights.sum()


def logistic_weights(probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Weights `[K]` by logistic regression on the teachers' log-probabilities `[N,K,C]`, negative ones cut to 0.

    One coefficient a teacher, shared by the classes: every (instance, class) is one case, right or wrong, described by
    each teacher's log-probability of that class over the mean of all classes. Where no teacher helps, all count alike.
    """
    from sklearn.linear_model import LogisticRegression

    logs = np.log(probs + 1e-6)
    cases = (logs - logs.mean(2, keepdims=True)).swapaxes(1, 2).reshape(-1, probs.shape[1])
    right = (labels[:, None] == np.arange(probs.shape[2])).ravel()
    weights: np.ndarray = LogisticRegression(max_iter=1000).fit(cases, right).coef_[0].clip(0)
    return weights / weights.sum() if weights.sum() > 0 else np.full(len(weights), 1 / len(weights))


def _outputs(process: Distillation, role: str) -> tuple[np.ndarray, np.ndarray]:
    """Teacher probabilities `[N,K,C]` and labels `[N]` of a whole split."""
    split = process.task.splits[role].require("train", "dev")
    logits = process.prepared.signals(role).logits(np.arange(len(split)))
    return soft_labels(torch.from_numpy(logits), 1.0).numpy(), split.labels


# --- by what the teachers say -----------------------------------------------------------------------------------------


class BestSingle(Rule):
    """The teacher with the lowest loss on the instance's gold label (the paper's Best-Single-Ensemble)."""

    def __call__(self, states: np.ndarray, batch: Current) -> np.ndarray:
        losses = batch.teacher_losses
        return np.eye(losses.shape[1], dtype=np.float32)[losses.argmin(1)]


class Confidence(Rule):
    """CA-MKD: `w_k = (1 - softmax_k(CE)) / (K - 1)`, so a teacher far from the gold label counts less; K = 1 counts in full."""

    def __call__(self, states: np.ndarray, batch: Current) -> np.ndarray:
        return confidence(torch.from_numpy(batch.teacher_losses)).numpy()


def confidence(losses: Tensor) -> Tensor:
    """CA-MKD's weights `[B,K]` from teacher losses `[B,K]`."""
    if losses.shape[1] == 1:
        return torch.ones_like(losses)
    return (1 - F.softmax(losses, -1)) / (losses.shape[1] - 1)


class Entropy(Rule):
    """EBKD-style: `w = softmax(-H)` over the teachers' entropies H (nats): the sure ones count more, right or wrong."""

    def __call__(self, states: np.ndarray, batch: Current) -> np.ndarray:
        probs = torch.from_numpy(batch.probs)
        entropy = -torch.xlogy(probs, probs).sum(-1)
        return F.softmax(-entropy, -1).numpy()


class Oracle(Rule):
    """The specialist of every instance, where the task knows it (the bundled one)."""

    def __init__(self, process: Distillation) -> None:
        pools = [s.pool for s in process.settings.teachers.pool]
        if process.task.specialist is None or set(process.task.pools) > set(pools):
            raise UserError(
                f"oracle: task={process.task.name} with these teachers does not say who is right; leave oracle out"
            )
        assert process.task.specialist is not None
        self.teacher = np.array([pools.index(name) for name in process.task.pools])[process.task.specialist]
        self.teachers = len(pools)

    def __call__(self, states: np.ndarray, batch: Current) -> np.ndarray:
        return np.eye(self.teachers, dtype=np.float32)[self.teacher[batch.rows]]


# --- by how the student stands to them --------------------------------------------------------------------------------


class AgreeingGradients(Rule):
    """AEKD: one weighting a batch, the point of smallest norm among mixtures of the teachers' gradients on the student's logits.

    No teacher may count for more than `most`, so that one that is at odds with all others does not take over.
    """

    def __init__(self, process: Distillation, most: float = 0.6) -> None:
        self.process, self.most = process, max(most, 1 / process.num_teachers)

    def __call__(self, states: np.ndarray, batch: Current) -> np.ndarray:
        logits = _student_logits(self.process, batch)
        student = F.softmax(logits / self.process.settings.loss.temperature, -1)
        gradients = (student[:, None] - batch.soft).transpose(0, 1).flatten(1).double().cpu().numpy()  # [K, B*C]
        k = len(gradients)
        gram = gradients @ gradients.T
        found = minimize(
            lambda w: (w @ gram @ w, 2 * gram @ w),
            np.full(k, 1 / k),
            jac=True,
            method="SLSQP",
            bounds=[(0, self.most)] * k,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(k)},
        )
        return np.tile(found.x.clip(0).astype(np.float32), (len(batch.rows), 1))


class StudentEntropy(Rule):
    """DynamicKD-style: the surer the student is of an instance, the stronger (on dev) the one teacher it is given.

    A batch is ranked by the student's entropy and cut into K equal parts.
    """

    def __init__(self, process: Distillation) -> None:
        self.process = process
        probs, labels = _outputs(process, "dev")
        self.order = np.argsort(-(probs.argmax(2) == labels[:, None]).mean(0), kind="stable")  # strongest first

    def __call__(self, states: np.ndarray, batch: Current) -> np.ndarray:
        probs = F.softmax(_student_logits(self.process, batch), -1)
        entropy = -torch.xlogy(probs, probs).sum(-1).cpu().numpy()
        rank = np.argsort(np.argsort(entropy, kind="stable"), kind="stable")
        k = len(self.order)
        return np.eye(k, dtype=np.float32)[self.order[rank * k // len(rank)]]


class MTKDRL(Rule):
    """MTKD-RL's weights: the mean of an agent's softmax, CA-MKD's confidence and a softmax of minus KL to the student.

    The agent is trained as published, on `-R sum_k log w_k` with R the last batch's minus loss, standardised and cut to
    [0, 1]. Its flaw, kept here: for any R that objective is smallest at equal weights, so the agent learns to be
    uniform and not which teacher is good.
    """

    needs_states = True
    remembers = True

    def __init__(self, core: Core, seed: int, lr: float = 0.1) -> None:
        self.process = core.process
        with isolated_rng(seed):
            self.agent = nn.Linear(core.observe.space.shape[0], core.process.num_teachers)
        self.optimizer = torch.optim.SGD(self.agent.parameters(), lr=lr)
        self.last: tuple[Tensor, Current] | None = None

    def __call__(self, states: np.ndarray, batch: Current) -> np.ndarray:
        if self.last is not None:
            self._learn(*self.last)
        seen = torch.from_numpy(states)
        with torch.no_grad():
            student = F.log_softmax(_student_logits(self.process, batch), -1).cpu()
            teachers = torch.from_numpy(batch.log_probs)
            kl = (teachers.exp() * (teachers - student[:, None])).sum(-1)
            parts = (
                F.softmax(self.agent(seen), -1),
                confidence(torch.from_numpy(batch.teacher_losses)),
                F.softmax(-kl, -1),
            )
            weights: np.ndarray = torch.stack(parts).mean(0).numpy()
        self.last = (seen, batch)
        return weights

    def _learn(self, states: Tensor, batch: Current) -> None:
        with torch.no_grad():
            reward = -F.cross_entropy(_student_logits(self.process, batch), batch.gold, reduction="none").cpu()
            reward = ((reward - reward.mean()) / (reward.std(correction=0) + 1e-6)).clamp(0, 1)
        loss = -(reward * F.log_softmax(self.agent(states), -1).sum(-1)).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


class Headroom(Rule):
    """No rule to use but a ceiling to know: the subset that credit calls best, chosen with the labels of the reward split.

    For every instance the subset with the largest first-order share of the gain, of all 2^K.
    """

    remembers = True

    def __init__(self, core: Core, seed: int) -> None:
        settings = RewardSettings(**{**vars(core.reward.settings), "name": "validation_gain", "credit": "influence"})
        self.reward = Reward(settings, core.process)
        self.reward.begin(seed, restart=True)
        k = core.process.num_teachers
        if k > 8:
            raise UserError(f"headroom tries all subsets of at most 8 teachers, this pool has {k}; leave headroom out")
        self.subsets = ((np.arange(2**k)[:, None] >> np.arange(k)) & 1).astype(np.float32)

    def __call__(self, states: np.ndarray, batch: Current) -> np.ndarray:
        shares = self.reward.shares_of(self.subsets)
        return self.subsets[shares.argmax(1)]


def _student_logits(process: Distillation, batch: Current) -> Tensor:
    with torch.no_grad():
        return process.student.forward(batch.inputs)


# --- by name ----------------------------------------------------------------------------------------------------------

Make = Callable[[Core, int], Rule]


def _all(core: Core, seed: int) -> Rule:
    return Constant(np.ones(core.process.num_teachers))


RULES: dict[str, tuple[Make, str]] = {
    "control": (_all, "all teachers, equal weights (U-Ensemble)"),
    "labels": (lambda core, _: Constant(np.zeros(core.process.num_teachers)), "no teacher: the student alone"),
    "rand_single": (lambda _, seed: RandomSingle(seed), "one random teacher a batch"),
    "rand_subset": (lambda _, seed: RandomSubset(seed), "a random subset an instance"),
    "w_ensemble": (
        lambda core, _: Constant(tuned_weights(*_outputs(core.process, "dev"))),
        "fixed weights tuned on dev",
    ),
    "lr_ensemble": (
        lambda core, _: Constant(logistic_weights(*_outputs(core.process, "train"))),
        "weights by logistic regression on train",
    ),
    "lr_dev": (
        lambda core, _: Constant(logistic_weights(*_outputs(core.process, "dev"))),
        "weights by logistic regression on dev",
    ),
    "best_single": (lambda *_: BestSingle(), "per instance the teacher with the lowest gold loss"),
    "ca_mkd": (lambda *_: Confidence(), "weights by closeness to the gold label"),
    "ebkd": (lambda *_: Entropy(), "weights by the teachers' certainty"),
    "aekd": (lambda core, _: AgreeingGradients(core.process), "weights that balance the teachers' gradients"),
    "dynamic_kd": (lambda core, _: StudentEntropy(core.process), "stronger teachers where the student is sure"),
    "mtkd_rl": (lambda core, seed: MTKDRL(core, seed), "MTKD-RL's published weights"),
    "oracle": (lambda core, _: Oracle(core.process), "the instance's specialist, where the task knows it"),
    "headroom": (lambda core, seed: Headroom(core, seed), "ceiling: the best subset by credit, reward labels seen"),
}


def make_rule(name: str, core: Core, seed: int) -> Rule:
    """The rule called `name`, or `single:TEACHER` for one teacher alone; `UserError` for an unknown one."""
    kind, _, teacher = name.partition(":")
    if kind == "single":
        names = core.process.signals.names
        one_of(teacher, names, "single: teacher")
        return Constant(np.eye(len(names))[list(names).index(teacher)])
    one_of(name, (*RULES, "single:TEACHER"), "rule")
    return RULES[name][0](core, seed)


def known_best(process: Distillation) -> Rule | None:
    """The oracle where the task knows it, else None."""
    try:
        return Oracle(process)
    except UserError:
        return None
