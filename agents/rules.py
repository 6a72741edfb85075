"""Fixed and heuristic rules: what a learnt selector has to beat. A rule is called as `rule(states, batch) -> [B,K]`.

Actions are subsets or non-negative weights of the teachers. Rules may read the labels of the training batch and the
student, as the published ones do. Of the splits they read only what their `summary` says.

Sources: the paper's baselines (arXiv 2012.06048), CA-MKD (arXiv 2201.00007), EBKD (Kwon et al., ICASSP 2020), AEKD (Du et
al., NeurIPS 2020), DynamicKD (arXiv 2109.11295), MTKD-RL (arXiv 2502.18510).
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Tensor, nn

from agents.experiment import runs
from distill.checks import UserError, one_of
from distill.losses import soft_labels
from distill.models.engine import isolated_rng
from distill.process import Distillation, TrainingBatch
from distill.progress import Progress
from distill.selection import fit_router, fit_selector
from envs.core import Core
from envs.credit import Influence
from envs.labels import label_problem
from envs.registry import find
from envs.rewards import ValidationGain


class Rule(ABC):
    """What chooses teachers. A subclass of one's own is used by its import path: `agents=[my_package.module:MyRule]`.

    Args:
        core: of the environment that the rule will act in.
        seed: of the run.

    Attributes:
        summary: one line for tables and the documentation.
        labels: whose labels its choices use. Beside them, dev picks the checkpoint of every student.
        reads: sections of the settings that its choices depend on, beside the task, the teachers and the student.
        needs_states: whether it looks at states; they are built only for rules that do.
        remembers: whether its choices depend on earlier ones. Its runs cannot be continued in the middle.
    """

    summary: ClassVar[str] = ""
    labels: ClassVar[str] = "none"
    reads: ClassVar[tuple[str, ...]] = ()
    needs_states: ClassVar[bool] = False
    remembers: ClassVar[bool] = False

    def __init__(self, core: Core, seed: int) -> None:
        self.process, self.seed = core.process, seed
        if "train" in self.labels.split(", ") and not core.process.train_split.labelled.all():
            raise UserError(
                f"rule {type(self).__name__} reads the labels of train, which has unlabelled instances; leave it out"
            )

    @abstractmethod
    def __call__(self, states: np.ndarray, batch: TrainingBatch) -> np.ndarray:
        """Actions `[B,K]`, float32, for states `[B,S]` and the coming batch."""


class Policy:
    """A learnt policy, fixed: a function from states `[B,S]` to actions `[B,K]`."""

    needs_states = True
    remembers = False

    def __init__(self, act: Callable[[np.ndarray], np.ndarray]) -> None:
        self.act = act

    def __call__(self, states: np.ndarray, batch: TrainingBatch) -> np.ndarray:
        return self.act(states)


# --- the same for every instance --------------------------------------------------------------------------------------


class Constant(Rule):
    """The same weights for every instance. A subclass says which, by `weights()` `[K]`."""

    def __init__(self, core: Core, seed: int) -> None:
        super().__init__(core, seed)
        self.fixed = np.asarray(self.weights(), np.float32)

    @abstractmethod
    def weights(self) -> np.ndarray:
        """Weights `[K]`."""

    def __call__(self, states: np.ndarray, batch: TrainingBatch) -> np.ndarray:
        return np.tile(self.fixed, (len(batch.rows), 1))


class AllTeachers(Constant):
    """All teachers with equal weights (U-Ensemble): the control of every comparison."""

    summary = "all teachers, equal weights (U-Ensemble)"

    def weights(self) -> np.ndarray:
        return np.ones(self.process.num_teachers)


class LabelsOnly(Constant):
    """No teacher."""

    summary = "no teacher: the labels of train alone"
    labels = "train"

    def weights(self) -> np.ndarray:
        return np.zeros(self.process.num_teachers)


class SingleTeacher(Constant):
    """One teacher for every instance; `single_teacher` makes one."""

    teacher: ClassVar[int] = 0

    def weights(self) -> np.ndarray:
        return np.eye(self.process.num_teachers)[self.teacher]


class TunedWeights(Constant):
    """Fixed weights with the smallest cross-entropy on dev."""

    summary = "fixed weights tuned on dev"
    labels = "dev"

    def weights(self) -> np.ndarray:
        return tuned_weights(*_outputs(self.process, "dev"))


class LogisticWeights(Constant):
    """Fixed weights by logistic regression on train."""

    summary = "weights by logistic regression on train"
    labels = "train"
    role: ClassVar[str] = "train"

    def weights(self) -> np.ndarray:
        return logistic_weights(*_outputs(self.process, self.role))


class LogisticDevWeights(LogisticWeights):
    """Fixed weights by logistic regression on dev."""

    summary = "weights by logistic regression on dev"
    labels = "dev"
    role = "dev"


class RandomSingle(Rule):
    """One random teacher for every batch (the paper's Rand-Single-Ensemble)."""

    summary = "one random teacher a batch"
    remembers = True

    def __init__(self, core: Core, seed: int) -> None:
        super().__init__(core, seed)
        self.rng = np.random.default_rng((seed, 2))

    def __call__(self, states: np.ndarray, batch: TrainingBatch) -> np.ndarray:
        rows, teachers = batch.shape
        return np.tile(np.eye(teachers, dtype=np.float32)[self.rng.integers(teachers)], (rows, 1))


class RandomSubset(Rule):
    """Every teacher of every instance with probability one half."""

    summary = "a random subset an instance"
    remembers = True

    def __init__(self, core: Core, seed: int) -> None:
        super().__init__(core, seed)
        self.rng = np.random.default_rng((seed, 3))

    def __call__(self, states: np.ndarray, batch: TrainingBatch) -> np.ndarray:
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


# --- by the teachers' answers -----------------------------------------------------------------------------------------


class BestSingle(Rule):
    """The teacher with the lowest loss on the instance's gold label (the paper's Best-Single-Ensemble)."""

    summary = "per instance the teacher with the lowest gold loss"
    labels = "train"

    def __call__(self, states: np.ndarray, batch: TrainingBatch) -> np.ndarray:
        losses = np.where(batch.answered, batch.teacher_losses, np.inf)
        return np.eye(losses.shape[1], dtype=np.float32)[losses.argmin(1)]


class Confidence(Rule):
    """CA-MKD: `w_k = (1 - softmax_k(CE)) / (K - 1)`, so a teacher far from the gold label counts less; K = 1 counts in full."""

    summary = "weights by closeness to the gold label"
    labels = "train"

    def __call__(self, states: np.ndarray, batch: TrainingBatch) -> np.ndarray:
        return confidence(torch.from_numpy(batch.teacher_losses)).numpy()


def confidence(losses: Tensor) -> Tensor:
    """CA-MKD's weights `[B,K]` from teacher losses `[B,K]`."""
    if losses.shape[1] == 1:
        return torch.ones_like(losses)
    return (1 - F.softmax(losses, -1)) / (losses.shape[1] - 1)


class MostConfident(Rule):
    """The teacher with the highest probability for its most likely class."""

    summary = "per instance the most confident teacher"

    def __call__(self, states: np.ndarray, batch: TrainingBatch) -> np.ndarray:
        confidence = np.where(batch.answered, batch.probs.max(2), 0)
        return np.eye(confidence.shape[1], dtype=np.float32)[confidence.argmax(1)]


class Entropy(Rule):
    """EBKD-style: `w = softmax(-H)` over the teachers' entropies H (nats): confident teachers count more, right or wrong."""

    summary = "weights by the teachers' certainty"

    def __call__(self, states: np.ndarray, batch: TrainingBatch) -> np.ndarray:
        probs = torch.from_numpy(batch.probs)
        entropy = -torch.xlogy(probs, probs).sum(-1)
        return F.softmax(-entropy, -1).numpy()


class Oracle(Rule):
    """The right teacher of every instance, where the task knows it: by `task.owner`, by language, or by the bundled domain.

    Upper bound, not a usable rule: nobody knows the right teacher of a new instance. Instances without a known owner are
    taught by all teachers.
    """

    summary = "upper bound: the right teacher of the instance, where the task knows it"
    labels = "right teacher"

    def __init__(self, core: Core, seed: int) -> None:
        super().__init__(core, seed)
        pool, owners = self.process.settings.teachers.pool, self.process.task.owners
        # An owner is the name of the pool that a teacher was trained on, or, where a task has no pools, of a teacher.
        pooled = bool(self.process.task.pools)
        place = {str(getattr(s, "pool", None)) if pooled else s.name: k for k, s in enumerate(pool)}
        if owners is None or not set(owners.tolist()) - {""} <= set(place):
            raise UserError(
                f"oracle: task={self.process.task.name} with these teachers does not say who is right; leave oracle out"
            )
        subsets = {name: np.eye(len(pool), dtype=np.float32)[k] for name, k in place.items()}
        self.subsets = np.stack([subsets.get(name, np.ones(len(pool), np.float32)) for name in owners.tolist()])

    def __call__(self, states: np.ndarray, batch: TrainingBatch) -> np.ndarray:
        return self.subsets[batch.rows]


# --- fitted on the labels of the reward split ---


class Likelihood(Rule):
    """The most likely subsets of the selector fitted by likelihood. All teachers where selecting shows no gain."""

    summary = "selector fitted by the likelihood of the reward labels: its most likely subsets"
    labels = "reward"
    reads = ("observation",)
    needs_states = True
    form = "taught"

    def __init__(self, core: Core, seed: int) -> None:
        super().__init__(core, seed)
        self.fit = fit_selector(label_problem(core), forms=[self.form])

    def __call__(self, states: np.ndarray, batch: TrainingBatch) -> np.ndarray:
        if not self.fit.helps:
            return np.ones(batch.shape, np.float32)
        return self.fit.choose(states, batch.answered)


class LikelihoodWeights(Likelihood):
    """The same fit, with its probabilities as weights of the teachers."""

    summary = "selector fitted by the likelihood of the reward labels: its probabilities as weights"
    form = "weights"


class Router(Rule):
    """For each teacher a logistic regression of being right; the teacher that is most likely right is chosen."""

    summary = "supervised router: the teacher that is most likely right"
    labels = "reward"
    reads = ("observation",)
    needs_states = True

    def __init__(self, core: Core, seed: int) -> None:
        super().__init__(core, seed)
        problem = label_problem(core)
        self.fit = fit_router(problem.states, problem.right, problem.answered > 0)

    def __call__(self, states: np.ndarray, batch: TrainingBatch) -> np.ndarray:
        right = np.where(batch.answered, self.fit.probabilities(states), 0)
        return np.eye(right.shape[1], dtype=np.float32)[right.argmax(1)]


# --- controls: the labels of reward and dev, trained on directly ---


class RewardLabels(Rule):
    """The student trained on the labels of reward and dev alone, from its initial weights, for as many steps as the others.

    A control: what the labels are worth without any teacher. There are no labels left to select a checkpoint by, so the
    last one is used, and its dev metrics are those of data it was trained on.
    """

    summary = "control: the student on the labels of reward and dev alone"
    labels = "reward, dev"
    remembers = True

    def __call__(self, states: np.ndarray, batch: TrainingBatch) -> np.ndarray:
        raise UserError(
            f"rule {type(self).__name__} trains its student in its own way; it cannot act in the environment"
        )

    def train(self, seed: int, name: str) -> runs.Run:
        """Train the student; the last checkpoint, evaluated once on test."""
        process, started = self.process, time.perf_counter()
        process.student.restore(process.initial)
        return self._on_labels(seed, process.warm_budget + process.budget, name, started)

    def _on_labels(self, seed: int, steps: int, name: str, started: float) -> runs.Run:
        process = self.process
        with Progress(name, steps) as shown:
            for _ in process.train_on_labels(seed, steps):
                shown.update()
        best = runs.Best(process)
        best.dev, best.step = process.evaluate("dev"), steps
        return runs.last(process, best, runs.Selected(process), time.perf_counter() - started)


class ControlPlusLabels(RewardLabels):
    """All teachers on train, then the labels of reward and dev for a few epochs. A control, as `reward_labels`."""

    summary = "control: all teachers on train, then the labels of reward and dev"
    epochs: ClassVar[int] = 3

    def __init__(self, core: Core, seed: int) -> None:
        super().__init__(core, seed)
        self.core = core

    def train(self, seed: int, name: str) -> runs.Run:
        """Train the student; the last checkpoint, evaluated once on test."""
        process, started = self.process, time.perf_counter()
        first = runs.follow(self.core, AllTeachers(self.core, seed), seed, name)
        process.student.restore(first.weights)
        count = len(process.task.splits["reward"]) + len(process.task.splits["dev"])
        steps = max(1, self.epochs * count // min(process.stream.batch_size, count))
        return self._on_labels(seed, steps, name, started)


# --- by the student and the teachers --------------------------------------------------------------------------------


class AgreeingGradients(Rule):
    """AEKD: one weighting a batch, the point of smallest norm among mixtures of the teachers' gradients on the student's logits.

    No teacher may count for more than `most`, so that a teacher that disagrees with all others does not take over.
    """

    summary = "weights that balance the teachers' gradients"

    def __init__(self, core: Core, seed: int, most: float = 0.6) -> None:
        super().__init__(core, seed)
        self.most = max(most, 1 / self.process.num_teachers)

    def __call__(self, states: np.ndarray, batch: TrainingBatch) -> np.ndarray:
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
    """DynamicKD-style: the more certain the student is of an instance, the stronger (on dev) the single teacher it gets.

    A batch is ranked by the student's entropy and cut into K equal parts.
    """

    summary = "stronger teachers where the student is sure"
    labels = "dev"

    def __init__(self, core: Core, seed: int) -> None:
        super().__init__(core, seed)
        probs, labels = _outputs(self.process, "dev")
        self.order = np.argsort(-(probs.argmax(2) == labels[:, None]).mean(0), kind="stable")  # strongest first

    def __call__(self, states: np.ndarray, batch: TrainingBatch) -> np.ndarray:
        probs = F.softmax(_student_logits(self.process, batch), -1)
        entropy = -torch.xlogy(probs, probs).sum(-1).cpu().numpy()
        rank = np.argsort(np.argsort(entropy, kind="stable"), kind="stable")
        k = len(self.order)
        return np.eye(k, dtype=np.float32)[self.order[rank * k // len(rank)]]


class MTKDRL(Rule):
    """MTKD-RL's weights: the mean of an agent's softmax, CA-MKD's confidence and a softmax of minus KL to the student.

    The agent is trained as published, on `-R sum_k log w_k` with R the last batch's minus loss, standardised and cut to
    [0, 1]. This objective has a flaw that is kept here: for any R it is smallest at equal weights, so the agent learns
    equal weights and not which teacher is good.
    """

    summary = "MTKD-RL's published weights"
    labels = "train"

    reads = ("observation",)
    needs_states = True
    remembers = True
    lr: ClassVar[float] = 0.1

    def __init__(self, core: Core, seed: int) -> None:
        super().__init__(core, seed)
        with isolated_rng(seed):
            self.agent = nn.Linear(core.observe.space.shape[0], core.process.num_teachers)
        self.optimizer = torch.optim.SGD(self.agent.parameters(), lr=self.lr)
        self.last: tuple[Tensor, TrainingBatch] | None = None

    def __call__(self, states: np.ndarray, batch: TrainingBatch) -> np.ndarray:
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

    def _learn(self, states: Tensor, batch: TrainingBatch) -> None:
        with torch.no_grad():
            reward = -F.cross_entropy(_student_logits(self.process, batch), batch.gold, reduction="none").cpu()
            reward = ((reward - reward.mean()) / (reward.std(correction=0) + 1e-6)).clamp(0, 1)
        loss = -(reward * F.log_softmax(self.agent(states), -1).sum(-1)).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


class Headroom(Rule):
    """For every instance the subset with the largest first-order share of the gain, of all 2^K.

    Upper bound, not a usable rule: it reads the reward labels.
    """

    summary = "upper bound: the best subset by credit; it reads the reward labels"
    labels = "train, reward"
    reads = ("reward", "credit")
    remembers = True

    def __init__(self, core: Core, seed: int) -> None:
        super().__init__(core, seed)
        k = core.process.num_teachers
        if k > 8:
            raise UserError(f"headroom tries all subsets of at most 8 teachers, this pool has {k}; leave headroom out")
        reward = ValidationGain(replace(core.settings.reward, name="validation_gain", at="batch"), core.process)
        self.credit = Influence(core.settings.credit, reward)
        self.credit.begin(seed)
        self.subsets = ((np.arange(2**k)[:, None] >> np.arange(k)) & 1).astype(np.float32)

    def __call__(self, states: np.ndarray, batch: TrainingBatch) -> np.ndarray:
        return self.subsets[self.credit.subset_credit(self.subsets).argmax(1)]


def _student_logits(process: Distillation, batch: TrainingBatch) -> Tensor:
    with torch.no_grad():
        return process.student.forward(batch.inputs)


# --- by name ----------------------------------------------------------------------------------------------------------

RULES: dict[str, type[Rule]] = {
    "control": AllTeachers,
    "labels": LabelsOnly,
    "rand_single": RandomSingle,
    "rand_subset": RandomSubset,
    "w_ensemble": TunedWeights,
    "lr_ensemble": LogisticWeights,
    "lr_dev": LogisticDevWeights,
    "best_single": BestSingle,
    "most_confident": MostConfident,
    "likelihood": Likelihood,
    "likelihood_weights": LikelihoodWeights,
    "router": Router,
    "reward_labels": RewardLabels,
    "control_plus_labels": ControlPlusLabels,
    "ca_mkd": Confidence,
    "ebkd": Entropy,
    "aekd": AgreeingGradients,
    "dynamic_kd": StudentEntropy,
    "mtkd_rl": MTKDRL,
    "oracle": Oracle,
    "home": Oracle,
    "headroom": Headroom,
}


def find_rule(name: str, teachers: tuple[str, ...]) -> type[Rule]:
    """The rule called `name`, `single:TEACHER` for one teacher alone, or the one at an import path.

    Raises:
        UserError: for an unknown rule, or a teacher that the pool `teachers` does not have.
    """
    kind, _, teacher = name.partition(":")
    if kind != "single":
        return find(name, RULES, Rule, "rule")  # type: ignore[type-abstract]
    one_of(teacher, teachers, "single: teacher")
    place = teachers.index(teacher)
    return type("Single", (SingleTeacher,), {"teacher": place, "summary": f"teacher {teacher} alone"})


def make_rule(name: str, core: Core, seed: int) -> Rule:
    """The rule called `name`, ready to act; `UserError` as for `find_rule`, or where the task does not suit it."""
    return find_rule(name, tuple(core.process.signals.names))(core, seed)


def references(core: Core, seed: int, oracle: bool) -> dict[str, Rule]:
    """The rules beside a learnt policy in every run: `control` and, where the task knows it and it is wanted, `oracle`."""
    out: dict[str, Rule] = {"control": AllTeachers(core, seed)}
    if oracle:
        with suppress(UserError):  # the task does not know who is right
            out["oracle"] = Oracle(core, seed)
    return out
