"""Every setting of a run, as one tree of dataclasses: its type, its default, its help text and what it changes.

`RunSettings.from_config` parses a plain mapping (what `configs.compose` returns) once, at the entry point of a program.
`--help` and the configuration page of the documentation are generated from the same tree.

Each setting says in its metadata which results depend on it, as one of the scopes below; a scope contains those before it.
`RunSettings.fingerprint(scope)` is the only name by which a cache entry, a cell of a comparison or a run is identified.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, is_dataclass, make_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, TypeVar, get_args, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from distill.checks import UserError, check_rate, check_seed, expand, one_of, plain_name

T = TypeVar("T")

ROLES = ("train", "reward", "dev", "test")

# What a setting changes. A scope's fingerprint covers the settings of that scope and of all scopes before it.
SCOPES = (
    "signals",  # the data, the teachers, and what is stored of their answers
    "warm start",  # the student that every compared run starts from
    "cell",  # the student of one agent and one seed
    "run",  # what a run reports beside its student
)
# Two more values stand outside the scopes. "machine": the setting asks for a device or a precision; what was really used
# is part of every identity instead (`Engine.describe`). "nothing": no result depends on the setting.
OUTSIDE = ("machine", "nothing")


def option(default: Any, help: str, changes: str | None = None) -> Any:
    """A dataclass field with a help text; `changes` overrides what the section's other settings change.

    A list or dict as default is copied for each instance.
    """
    metadata = {"help": help, "changes": changes}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def section(cls: type, changes: str) -> Any:
    """A field that holds a group of settings; `changes` applies to all of them that do not say otherwise."""
    return field(default_factory=cls, metadata={"changes": changes, "help": (cls.__doc__ or "").splitlines()[0]})


# --- the task ---------------------------------------------------------------------------------------------------------


@dataclass
class CorpusSettings:
    """The bundled corpus: the number of reviews of each role, and how wrong the training labels are."""

    train: int = option(2000, "training reviews")
    reward: int = option(500, "reviews of the reward split")
    dev: int = option(500, "reviews of the dev split")
    test: int = option(4000, "reviews of the test split")
    pool: int = option(4000, "correctly labelled reviews of its own domain that each specialist is trained on")
    noise: float = option(0.35, "share of training labels that are flipped")
    seed: int = option(0, "seed of the generator")

    def __post_init__(self) -> None:
        for key in (*ROLES, "pool"):
            if getattr(self, key) < 2:
                raise UserError(f"task.corpus.{key}={getattr(self, key)} is too few; use at least 2")
        if not 0 <= self.noise < 0.5:
            raise UserError(f"task.corpus.noise={self.noise} must lie in [0, 0.5)")
        check_seed(self.seed, "task.corpus.seed")


@dataclass
class TaskSettings:
    """What is learnt, and where the data comes from."""

    name: str = option("bundled", "bundled, files, afrisenti, or a GLUE task: sst2 mrpc qqp mnli qnli rte cola")
    source: str = option(
        "auto", "GLUE, AfriSenti. files: TSV files under data_dir; hub; auto: files where there are some"
    )
    metric: str = option("accuracy", "what model selection on dev maximises: accuracy, f1 or matthews")
    reward_size: float = option(0.1, "size of the reward split: a share of train below 1, a number of instances from 1")
    dev_size: float = option(0.1, "size of the dev split, where it is cut from train")
    labels: int | None = option(
        None,
        "know only this many labels of the training data: half for reward and half for dev; all else is unlabelled",
    )
    train_limit: int | None = option(None, "keep only this many training instances (stratified)")
    split_seed: int = option(0, "seed of the split; separate from `seed`, so that runs share teachers and signals")
    train: str | None = option(None, "task=files: path of the training data")
    dev: str | None = option(None, "task=files: path of the dev data; cut from train if null")
    test: str | None = option(None, "task=files: path of the test data")
    text: list[str] = option([], "task=files: one or two text columns")
    label: str = option("label", "task=files: label column")
    id: str | None = option(None, "task=files: column of unique ids; row numbers if null")
    unlabelled: str | None = option(None, "task=files: path of more training texts, without labels")
    owner: str | None = option(None, "task=files: column that names the right teacher of a row; only oracles read it")
    languages: list[str] = option([], "task=afrisenti: languages, for example [hau, ibo, yor, pcm]")
    corpus: CorpusSettings = field(default_factory=CorpusSettings)

    def __post_init__(self) -> None:
        plain_name(self.name, "task.name")
        one_of(self.source, ("auto", "files", "hub"), "task.source")
        one_of(self.metric, ("accuracy", "f1", "matthews"), "task.metric")
        for key in ("reward_size", "dev_size"):
            if getattr(self, key) <= 0:
                raise UserError(
                    f"task.{key}={getattr(self, key)} must be positive: a share below 1 or a number of instances"
                )
        for key in ("train_limit", "labels"):
            value = getattr(self, key)
            if value is not None and value <= 0:
                raise UserError(f"task.{key}={value} must be positive, or null for all")
        check_seed(self.split_seed, "task.split_seed")


# --- the teachers -----------------------------------------------------------------------------------------------------


@dataclass
class TeacherSettings:
    """What every kind of teacher has."""

    kind: ClassVar[str] = ""
    name: str = option("teacher", "name of the teacher")

    def __post_init__(self) -> None:
        plain_name(self.name, "teacher name")

    @property
    def what(self) -> str:
        """How error messages name the teacher."""
        return f"teacher {self.name}"


def _check_length(max_length: int, what: str) -> None:
    if max_length <= 2:
        raise UserError(f"{what}max_length={max_length} must be above 2")


@dataclass
class FinetuneTeacher(TeacherSettings):
    """A teacher that is fine-tuned here."""

    kind: ClassVar[str] = "finetune"
    path: str | None = option(None, "checkpoint: a folder, a hub id or package:NAME/FOLDER; null: random weights")
    config: dict[str, Any] = option({}, "BertConfig fields of a teacher with random weights")
    layers: int | None = option(None, "keep only the first so many layers")
    pool: str | None = option(None, "a pool of the task to train on (bundled: a domain) instead of train")
    share: float = option(1.0, "share of the training data that it sees (stratified)")
    seed: int = option(0, "seed of its head, data share and batches")
    lr: float = option(5e-5, "learning rate")
    epochs: int = option(3, "epochs")
    batch_size: int = option(32, "instances in a batch")
    max_length: int = option(128, "longest text, in tokens")
    freeze_embeddings: bool = option(False, "do not train the word embeddings")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share <= 1:
            raise UserError(f"{self.what}: share={self.share} must lie in (0, 1]")
        check_seed(self.seed, f"{self.what}: seed")
        check_rate(self.lr, f"{self.what}: lr")
        for key in ("epochs", "batch_size", "layers"):
            value = getattr(self, key)
            if value is not None and value <= 0:
                raise UserError(f"{self.what}: {key}={value} must be positive")
        _check_length(self.max_length, f"{self.what}: ")


@dataclass
class CheckpointTeacher(TeacherSettings):
    """A fine-tuned classifier, used as it is."""

    kind: ClassVar[str] = "checkpoint"
    path: str | None = option(None, "checkpoint: a folder, a hub id or package:NAME/FOLDER")
    labels: list[str] | None = option(
        None, "labels in the order of its outputs, when the checkpoint does not name them"
    )
    max_length: int = option(128, "longest text, in tokens")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.path is None:
            raise UserError(f"{self.what}: kind=checkpoint needs path=FOLDER-or-hub-id")
        _check_length(self.max_length, f"{self.what}: ")


@dataclass
class PredictionsTeacher(TeacherSettings):
    """A file of answers, computed elsewhere: probabilities, or labels with or without a confidence."""

    kind: ClassVar[str] = "predictions"
    path: str | None = option(
        None, "CSV, TSV, JSONL or Parquet file: `id` and one column a label, or `id,label`, or `id,label,confidence`"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.path is None:
            raise UserError(f"{self.what}: kind=predictions needs path=FILE")


@dataclass
class SklearnTeacher(TeacherSettings):
    """A logistic regression on character n-grams, fitted here with scikit-learn in seconds."""

    kind: ClassVar[str] = "sklearn"
    pool: str | None = option(None, "a pool of the task to train on (afrisenti: a language) instead of train")
    ngrams: list[int] = option([1, 4], "shortest and longest n-gram, in characters")
    max_features: int = option(30_000, "most frequent n-grams that are kept")
    c: float = option(10.0, "inverse of the ridge penalty")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.ngrams) != 2 or not 0 < self.ngrams[0] <= self.ngrams[1]:
            raise UserError(f"{self.what}: ngrams={self.ngrams} must be the shortest and the longest length, as [1, 4]")
        if self.max_features <= 0 or self.c <= 0:
            raise UserError(f"{self.what}: max_features={self.max_features} and c={self.c} must be positive")


TEACHER_KINDS: dict[str, type[TeacherSettings]] = {
    cls.kind: cls for cls in (FinetuneTeacher, CheckpointTeacher, PredictionsTeacher, SklearnTeacher)
}


@dataclass
class TeachersSettings:
    """The pool of teachers."""

    name: str = option("own", "name of the pool")
    pool: list[TeacherSettings] = option([], f"the teachers, each with its kind: {', '.join(TEACHER_KINDS)}")
    signals: str = option(
        "stored", "stored: computed once and kept on disk; live: computed whenever they are asked for"
    )
    folds: int = option(0, "from 2: cross-fitting, so that no teacher judges an instance it was fine-tuned on; 0: none")
    calibrate: str = option(
        "none",
        "auto: temperature scaling, or a confusion matrix for labels, on the reward split; none: answers as given",
    )

    def __post_init__(self) -> None:
        plain_name(self.name, "teachers.name")
        if self.folds != 0 and not 2 <= self.folds <= 20:
            raise UserError(f"teachers.folds={self.folds} must lie in [2, 20], or be 0 for none")
        one_of(self.signals, ("stored", "live"), "teachers.signals")
        one_of(self.calibrate, ("auto", "none"), "teachers.calibrate")
        names = [t.name for t in self.pool]
        if not names:
            raise UserError(
                "teachers.pool is empty: name teachers, for example "
                "'teachers.pool=[{name: a, kind: checkpoint, path: FOLDER}]'"
            )
        if len(set(names)) != len(names):
            raise UserError(f"teachers.pool: names must differ, got {', '.join(names)}")
        if len(names) > 32:
            raise UserError(f"teachers.pool has {len(names)} teachers; at most 32 are supported")


# --- the encoder ------------------------------------------------------------------------------------------------------


@dataclass
class EncoderSettings:
    """The fixed encoder behind the state's semantic vector."""

    kind: ClassVar[str] = ""


@dataclass
class BagEncoderSettings(EncoderSettings):
    """A random projection of the bag of words; needs no model."""

    kind: ClassVar[str] = "bag"
    dim: int = option(48, "width of the vector")

    def __post_init__(self) -> None:
        if self.dim <= 0:
            raise UserError(f"encoder.dim={self.dim} must be positive")


@dataclass
class TransformerEncoderSettings(EncoderSettings):
    """A pretrained encoder, used as it is."""

    kind: ClassVar[str] = "transformer"
    path: str | None = option(None, "checkpoint: a folder, a hub id or package:NAME/FOLDER")
    pooling: str = option("mean", "mean over the tokens, or cls: the first token's vector, as in the paper")
    max_length: int = option(128, "longest text, in tokens")

    def __post_init__(self) -> None:
        if self.path is None:
            raise UserError("encoder.kind=transformer needs encoder.path=FOLDER-or-hub-id")
        one_of(self.pooling, ("mean", "cls"), "encoder.pooling")
        _check_length(self.max_length, "encoder.")


ENCODER_KINDS: dict[str, type[EncoderSettings]] = {
    cls.kind: cls for cls in (BagEncoderSettings, TransformerEncoderSettings)
}


# --- the student ------------------------------------------------------------------------------------------------------


@dataclass
class StudentSettings:
    """What every kind of student has: its optimiser and the length of its texts."""

    kind: ClassVar[str] = ""
    name: str = option("student", "name of the student")
    max_length: int = option(128, "longest text, in tokens")
    lr: float = option(5e-5, "learning rate")
    optimizer: str = option("adamw", "adamw or sgd")
    weight_decay: float = option(0.01, "weight decay; not for biases and norms")
    schedule: str = option("constant", "learning rate over the budget: constant, or linear (down to zero)")
    warmup: float = option(0.0, "share of the steps in which the learning rate rises")
    clip: float = option(1.0, "largest norm of the gradient; 0: no clipping")
    dropout: float | None = option(None, "dropout rate; null: as the checkpoint says")
    freeze_embeddings: bool = option(False, "do not train the word embeddings")

    def __post_init__(self) -> None:
        plain_name(self.name, "student.name")
        one_of(self.optimizer, ("adamw", "sgd"), "student.optimizer")
        one_of(self.schedule, ("constant", "linear"), "student.schedule")
        check_rate(self.lr, "student.lr")
        if self.weight_decay < 0:
            raise UserError(f"student.weight_decay={self.weight_decay} must not be negative")
        if not 0 <= self.warmup < 1:
            raise UserError(f"student.warmup={self.warmup} must lie in [0, 1)")
        if self.clip < 0:
            raise UserError(f"student.clip={self.clip} must not be negative; 0 turns clipping off")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise UserError(f"student.dropout={self.dropout} must lie in [0, 1)")
        _check_length(self.max_length, "student.")


@dataclass
class TruncateStudent(StudentSettings):
    """The first layers of a checkpoint, with a new head."""

    kind: ClassVar[str] = "truncate"
    path: str | None = option(None, "checkpoint: a folder, a hub id or package:NAME/FOLDER")
    layers: int | None = option(None, "number of layers to keep")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.path is None:
            raise UserError("student.kind=truncate needs student.path=FOLDER-or-hub-id")
        if self.layers is None or self.layers <= 0:
            raise UserError(f"student.kind=truncate needs student.layers > 0, got {self.layers}")


@dataclass
class FreshStudent(StudentSettings):
    """A BERT classifier with random weights."""

    kind: ClassVar[str] = "fresh"
    config: dict[str, Any] = option({}, "BertConfig fields")
    path: str | None = option(None, "checkpoint whose tokenizer is used; null: a word-level vocabulary made from train")


@dataclass
class CheckpointStudent(StudentSettings):
    """A whole checkpoint, with a new head."""

    kind: ClassVar[str] = "checkpoint"
    path: str | None = option(None, "checkpoint: a folder, a hub id or package:NAME/FOLDER")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.path is None:
            raise UserError("student.kind=checkpoint needs student.path=FOLDER-or-hub-id")


STUDENT_KINDS: dict[str, type[StudentSettings]] = {
    cls.kind: cls for cls in (TruncateStudent, FreshStudent, CheckpointStudent)
}


# --- distillation -----------------------------------------------------------------------------------------------------


@dataclass
class LossSettings:
    """The loss of an instance: alpha * CE + (1 - alpha) * T^2 * KL."""

    alpha: float = option(0.5, "weight of the hard label")
    temperature: float = option(5.0, "temperature T of both soft distributions")

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise UserError(f"loss.alpha={self.alpha} must lie in [0, 1]: it weighs the hard label")
        if not 0 < self.temperature < float("inf"):
            raise UserError(f"loss.temperature={self.temperature} must be positive and finite")


EPOCHS = 4.0  # of a run and of a warm start, where no length is given
FEWEST_STEPS = 200  # of both, where no length is given: four epochs of a few hundred instances train nothing


@dataclass
class BudgetSettings:
    """How long the student trains. All counts are student steps (batches)."""

    batch_size: int = option(32, "instances in a batch", "warm start")
    epochs: float | None = option(
        None,
        f"length of one run from the warm start, when steps is not given; null: {EPOCHS:g}, and {FEWEST_STEPS} student "
        "steps at least, so that a few hundred instances are enough to learn from",
    )
    steps: int | None = option(None, "length of one run from the warm start, in student steps")
    warm_epochs: float | None = option(
        None,
        f"length of the warm start, when warm_steps is not given; null: {EPOCHS:g}, and {FEWEST_STEPS} student steps "
        "at least",
        "warm start",
    )
    warm_steps: int | None = option(None, "length of the warm start, in student steps", "warm start")
    evals: int = option(6, "evaluations on dev in a run; the best one is kept")
    patience: int | None = option(
        None,
        "stop a run early after so many evaluations on dev in a row without a better score; null: use the whole budget",
    )
    group_lengths: bool = option(True, "batch texts of similar length together, which saves padding", "warm start")

    def __post_init__(self) -> None:
        if self.batch_size <= 0:
            raise UserError(f"budget.batch_size={self.batch_size} must be positive")
        if (self.epochs is not None and self.epochs <= 0) or (self.warm_epochs is not None and self.warm_epochs < 0):
            raise UserError("budget.epochs must be positive and budget.warm_epochs not negative")
        if self.steps is not None and self.steps <= 0:
            raise UserError(f"budget.steps={self.steps} must be positive")
        if self.warm_steps is not None and self.warm_steps < 0:
            raise UserError(f"budget.warm_steps={self.warm_steps} must not be negative")
        if self.evals <= 0:
            raise UserError(f"budget.evals={self.evals} must be positive")
        if self.patience is not None and self.patience <= 0:
            raise UserError(f"budget.patience={self.patience} must be positive, or null for the whole budget")

    def run_steps(self, instances: int) -> int:
        """Student steps of one run from the warm start, with `instances` training instances."""
        return self.steps or max(1, self._of(self.epochs, instances))

    def warm_start_steps(self, instances: int) -> int:
        """Student steps of the warm start, with `instances` training instances."""
        return self._of(self.warm_epochs, instances) if self.warm_steps is None else self.warm_steps

    def _of(self, epochs: float | None, instances: int) -> int:
        per_epoch = max(1, round(instances / self.batch_size))
        return max(FEWEST_STEPS, round(EPOCHS * per_epoch)) if epochs is None else round(epochs * per_epoch)


# --- the environment --------------------------------------------------------------------------------------------------

PARTS = (
    "encoder",
    "teacher_probs",
    "teacher_loss",
    "answered",
    "labelled",
    "student_probs",
    "student_loss",
    "divergence",
    "progress",
)


@dataclass
class ObservationSettings:
    """The parts of the state, in order. The paper's state is encoder, teacher_probs and teacher_loss."""

    parts: list[str] | None = option(
        None,
        f"some of {', '.join(PARTS)}; null: the paper's three, without teacher_loss where train has unlabelled "
        "instances, with answered where a teacher may be silent, with labelled where only some instances have a label",
    )

    def __post_init__(self) -> None:
        if self.parts is None:
            return
        if not self.parts:
            raise UserError("observation.parts is empty; name some of " + ", ".join(PARTS))
        for part in self.parts:
            if ":" not in part:  # else an import path of the user's own part
                one_of(part, PARTS, "observation.parts")
        if len(set(self.parts)) != len(self.parts):
            raise UserError(f"observation.parts={self.parts} names a part twice")


@dataclass
class RewardSettings:
    """The reward: what a student step was worth."""

    name: str = option("validation_gain", "validation_gain, paper1, paper2, paper3, or my_package.module:MyReward")
    metric: str = option("loss", "validation_gain: V is minus the mean cross-entropy (loss, nats) or accuracy")
    every: int = option(8, "student steps between two measurements")
    size: int | None = option(512, "reward instances that are measured (fixed, stratified); null: all")
    at: str = option("batch", "paper1: measured on the batch learnt from, or on the next one, which costs no forward")
    accuracy_weight: float = option(0.5, "paper3: weight of the accuracy; the paper's value is not known")

    def __post_init__(self) -> None:
        one_of(self.metric, ("loss", "accuracy"), "reward.metric")
        one_of(self.at, ("batch", "next"), "reward.at")
        if self.every <= 0:
            raise UserError(f"reward.every={self.every} must be positive")
        if self.size is not None and self.size <= 0:
            raise UserError(f"reward.size={self.size} must be positive, or null for the whole split")
        if not 0 <= self.accuracy_weight <= 1:
            raise UserError(f"reward.accuracy_weight={self.accuracy_weight} must lie in [0, 1]")
        if self.at != "batch" and self.name != "paper1":
            raise UserError(
                f"reward.at=next goes with paper1, not with {self.name}: the teachers of the next batch are not chosen yet"
            )


@dataclass
class CreditSettings:
    """How the reward of a step is shared out among the rows and the teachers."""

    name: str = option(
        "auto",
        "shared, influence, counterfactual, lookahead, or my_package.module:MyCredit; "
        "auto: counterfactual for reinforce, influence for Stable-Baselines3, shared for an environment alone",
    )
    size: int | None = option(64, "reward instances behind the gradient v, drawn anew each time; null: all")
    every: int = option(1, "student steps that one v serves")
    period: int = option(1, "student steps between two that get credit by row; the others are paid the shared reward")
    center: bool = option(True, "credit only what sets a row apart from its batch: no class prior, no confidence")
    steps: int = option(128, "lookahead: student steps on reward instances behind one direction")
    center_teachers: bool = option(False, "center the advantages over the teachers of a row: somebody should teach it")

    def __post_init__(self) -> None:
        for key in ("size", "every", "period", "steps"):
            value = getattr(self, key)
            if value is not None and value <= 0:
                raise UserError(f"credit.{key}={value} must be positive")


# --- the agents -------------------------------------------------------------------------------------------------------


@dataclass
class AgentSettings:
    """What every agent has."""

    after_fit: ClassVar[int] = 0  # joint episodes after a fitted start, by default
    name: str = option("", "reinforce, or an algorithm of Stable-Baselines3")
    lr: float | None = option(None, "learning rate")
    episodes: int | None = option(
        None,
        "episodes of joint training, each of budget.steps student steps; null: 4 with start=all_on; "
        "with start=likelihood 0 for reinforce, whose start is used as it is, and 1 for Stable-Baselines3",
    )
    start: str = option("likelihood", "likelihood: fitted on the labels of the reward split; all_on: not fitted")
    oracle: bool = option(True, "also run the best known selection, where the task knows it", "run")

    def __post_init__(self) -> None:
        one_of(self.start, ("likelihood", "all_on"), "agent.start")
        if self.lr is not None:
            check_rate(self.lr, "agent.lr")
        if self.episodes is not None and self.episodes < 0:
            raise UserError(f"agent.episodes={self.episodes} must not be negative")

    @property
    def joint_episodes(self) -> int:
        """Episodes of joint training, the default included."""
        if self.episodes is not None:
            return self.episodes
        return 4 if self.start == "all_on" else self.after_fit


@dataclass
class ReinforceSettings(AgentSettings):
    """The paper's selector: K logistic units on the state, trained by REINFORCE."""

    name: str = option("reinforce", "reinforce")
    lr: float = option(0.005, "learning rate of the selector (Adam)")
    trust: float = option(0.1, "weight of the divergence from the start (nats a unit)")
    schedule: str = option("linear", "of lr: linear (down to zero) or constant")
    warmup: int = option(8, "student steps with all teachers before the selector chooses and learns")
    baseline: float = option(0.9, "decay of the running mean and spread of the shared reward")
    entropy: float = option(0.01, "weight of the entropy bonus")
    bias: float = option(1.0, "first logit of every unit; 1.0 switches 73 % of all teachers on")
    joint: str = option(
        "restart", "every episode from the warm start (restart), or from where the last ended (continue)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trust < 0:
            raise UserError(f"agent.trust={self.trust} must not be negative")
        one_of(self.schedule, ("linear", "constant"), "agent.schedule")
        one_of(self.joint, ("restart", "continue"), "agent.joint")
        if self.warmup < 0:
            raise UserError(f"agent.warmup={self.warmup} must not be negative")
        if not 0 <= self.baseline < 1:
            raise UserError(f"agent.baseline={self.baseline} must lie in [0, 1)")
        if self.entropy < 0:
            raise UserError(f"agent.entropy={self.entropy} must not be negative")


_ON_POLICY: dict[str, Any] = {"gamma": 0.0, "gae_lambda": 1.0}
_OFF_POLICY: dict[str, Any] = {
    "buffer_size": 20000,
    "learning_starts": 320,
    "batch_size": 256,
    "gamma": 0.0,
    "train_freq": 1,
}
_Q_LEARNING: dict[str, Any] = {
    **_OFF_POLICY,
    "gradient_steps": 2,
    "target_update_interval": 320,
    "exploration_fraction": 0.5,
    "exploration_final_eps": 0.05,
}
# Learning rate and constructor arguments of each algorithm. With credit by row a row is paid at once, so gamma is 0.
SB3_DEFAULTS: dict[str, tuple[float, dict[str, Any]]] = {
    "ppo": (
        0.01,
        {"n_steps": 8, "batch_size": 256, "n_epochs": 4, **_ON_POLICY, "ent_coef": 0.001, "normalize_advantage": True},
    ),
    "a2c": (
        0.01,
        {"n_steps": 2, **_ON_POLICY, "ent_coef": 0.001, "normalize_advantage": True, "use_rms_prop": False},
    ),
    "trpo": (0.003, {"n_steps": 8, "batch_size": 256, **_ON_POLICY, "target_kl": 0.02}),
    "dqn": (0.003, _Q_LEARNING),
    "qrdqn": (0.003, _Q_LEARNING),
    "sac": (0.003, {**_OFF_POLICY, "gradient_steps": 1}),
    "td3": (0.003, {**_OFF_POLICY, "gradient_steps": 1}),
}


@dataclass
class SB3Settings(AgentSettings):
    """An algorithm of Stable-Baselines3."""

    after_fit: ClassVar[int] = 1
    name: str = option("ppo", f"one of {', '.join(SB3_DEFAULTS)}")
    lr: float | None = option(None, "learning rate; null: the algorithm's default here (ppo and a2c 0.01, else 0.003)")
    params: dict[str, Any] = option({}, "constructor arguments of the algorithm, over the defaults here")
    env: str = option(
        "TeacherSelect-v0",
        "what it is trained on: TeacherSelect-v0, or TeacherSelect/Labels-v0 (the labels of the reward split, without a "
        "student; agent.start is not used, and an episode is a pass over the split; episodes=null: 100)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self.name, tuple(SB3_DEFAULTS), "agent")
        one_of(self.env, ("TeacherSelect-v0", "TeacherSelect/Labels-v0"), "agent.env")
        lr, params = SB3_DEFAULTS[self.name]
        self.lr = lr if self.lr is None else self.lr
        self.params = {**params, **self.params}

    @property
    def on_labels(self) -> bool:
        """Whether it is trained on the labels of the reward split, without a student."""
        return self.env != "TeacherSelect-v0"

    @property
    def passes(self) -> int:
        """Passes over the reward split of a training on labels, the default included."""
        return 100 if self.episodes is None else self.episodes


# --- the run ----------------------------------------------------------------------------------------------------------


@dataclass
class RunSettings:
    """All settings of one run."""

    task: TaskSettings = section(TaskSettings, "signals")
    teachers: TeachersSettings = field(
        default_factory=lambda: TeachersSettings(pool=[FinetuneTeacher()]), metadata={"changes": "signals"}
    )
    encoder: EncoderSettings = field(default_factory=BagEncoderSettings, metadata={"changes": "signals"})
    student: StudentSettings = field(default_factory=FreshStudent, metadata={"changes": "warm start"})
    loss: LossSettings = section(LossSettings, "warm start")
    budget: BudgetSettings = section(BudgetSettings, "cell")
    observation: ObservationSettings = section(ObservationSettings, "cell")
    reward: RewardSettings = section(RewardSettings, "cell")
    credit: CreditSettings = section(CreditSettings, "cell")
    agent: AgentSettings = field(default_factory=ReinforceSettings, metadata={"changes": "cell"})
    policy: str = option("linear", "agents of Stable-Baselines3: linear (the paper's policy) or mlp", "cell")
    seed: int = option(0, "seed of the run", "warm start")
    device: str = option("cpu", "auto, cpu, cuda or cuda:N", "machine")
    threads: int | None = option(None, "torch threads; null: torch's default", "machine")
    amp: str = option("auto", "bf16 autocast: auto (where the hardware computes it natively), off or bf16", "machine")
    fast: bool = option(True, "faster forms of the same forward pass; false: as transformers computes it", "machine")
    data_dir: str | None = option(
        None, "folder of the official GLUE or AfriSenti files; default: TEACHER_SELECT_DATA", "nothing"
    )
    home: str = option("~/.cache/teacher-select", "folder of all caches; default: TEACHER_SELECT_HOME", "nothing")
    ship: str | None = option(
        None,
        "whose student is left in student/. A run: its agent's (null) or control. compare.py: best (what its statistics "
        "recommend), control, an entry of agents, or null for none",
        "nothing",
    )
    plugins: list[str] = option([], "modules of your own that are imported first, to add kinds and tasks", "run")
    resume: bool = option(False, "continue the run in hydra.run.dir=FOLDER from its last checkpoint", "nothing")
    checkpoint_every: int | None = option(
        None,
        "student steps between two checkpoints; null: as often as costs under 1 % of the time",
        "nothing",
    )

    def __post_init__(self) -> None:
        one_of(self.amp, ("auto", "off", "bf16"), "amp")
        one_of(self.policy, ("linear", "mlp"), "policy")
        if re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device) is None:
            raise UserError(f"device={self.device} is not known; choose from auto, cpu, cuda, cuda:N")
        check_seed(self.seed, "seed")
        if self.threads is not None and self.threads <= 0:
            raise UserError(f"threads={self.threads} must be positive, or null for the default")
        if self.checkpoint_every is not None and self.checkpoint_every <= 0:
            raise UserError(f"checkpoint_every={self.checkpoint_every} must be positive, or null")

    @classmethod
    def from_config(cls, config: Any) -> RunSettings:
        """Parse a whole configuration: what `configs.compose` returns, or `to_config` of other settings.

        Raises:
            UserError: for an unknown key, a wrong type or a value out of range, naming the key.
        """
        plain = _plain(config, "config")
        for key in plain:
            one_of(key, [f.name for f in fields(cls)], "config: key")
        import_plugins(plain.get("plugins") or [])  # they add the kinds that the other settings may name
        scalars = {k: v for k, v in plain.items() if k not in _SECTIONS}
        groups = {name: read(plain.get(name, {})) for name, read in _SECTIONS.items() if name in plain}
        return _build(cls, scalars, "config", groups)

    def to_config(self) -> dict[str, Any]:
        """The settings as a plain mapping that `from_config` reads: JSON and YAML values only."""
        out: dict[str, Any] = _with_kinds(self)
        return out

    def identity(self, scope: str, sections: Sequence[str] | None = None) -> dict[str, Any]:
        """The values of all settings that results of `scope` depend on, as plain JSON values.

        Args:
            scope: one of `SCOPES`.
            sections: of the settings with scope `cell` and `run`, keep only those in these sections; null: all. A rule
                names the sections it reads, so that settings of agents make no other cell of it.
        """
        wanted = SCOPES[: SCOPES.index(scope) + 1]
        out: dict[str, Any] = {}
        for path, value, changes in _leaves(self):
            ours = sections is None or path[0] in sections or SCOPES.index(changes) < SCOPES.index("cell")
            if changes in wanted and ours:
                out[".".join(path)] = value
        return out

    def fingerprint(self, scope: str, sections: Sequence[str] | None = None) -> str:
        """Hash of `identity`: 16 hex digits."""
        return digest(self.identity(scope, sections))

    @property
    def home_dir(self) -> Path:
        """Folder of all caches, with `~` expanded. An empty `home` means the default."""
        return expand(self.home.strip() or "~/.cache/teacher-select")


@dataclass
class CompareSettings:
    """The grid of a comparison."""

    agents: list[str] = option(
        ["control", "best_single", "reinforce", "ppo"],
        'rules and agents; an entry may bring settings of its own: "reinforce credit.name=shared"',
    )
    seeds: int = option(3, "number of seeds: seed, seed+1, ...")
    jobs: int | None = option(None, "cells at a time; null: as many as the cores carry")
    cells: str = option("cells", "folder where finished cells are kept and found again")
    report: bool = option(True, "write report/index.html, figures and tables (extra `report`)")

    def __post_init__(self) -> None:
        if self.seeds <= 0:
            raise UserError(f"seeds={self.seeds} must be positive")
        if self.jobs is not None and self.jobs <= 0:
            raise UserError(f"jobs={self.jobs} must be positive, or null")
        if not self.agents:
            raise UserError("agents is empty; name some, for example agents=[control,reinforce]")


def import_plugins(modules: Sequence[str]) -> None:
    """Import the modules of `plugins`; `UserError` for one that cannot be imported."""
    names = [modules] if isinstance(modules, str) else modules
    if not isinstance(names, list):
        raise UserError(f"plugins={modules} must be a list of modules: plugins=[my_package.module]")
    for name in names:
        try:
            importlib.import_module(str(name))
        except (ImportError, ValueError) as error:
            raise UserError(f"plugins: {name} cannot be imported ({error}); give the names of modules") from None


# --- parsing ----------------------------------------------------------------------------------------------------------


def _plain(mapping: Any, where: str) -> dict[str, Any]:
    if OmegaConf.is_config(mapping):
        mapping = OmegaConf.to_container(mapping, resolve=True)
    if not isinstance(mapping, Mapping):
        raise UserError(f"{where}={mapping!r} is not a group of settings")
    return dict(mapping)


def parse(cls: type[T], mapping: Any, where: str) -> T:
    """Build the dataclass `cls` from a mapping, checking keys and types; `where` is the config key named in errors."""
    return _build(cls, _plain(mapping, where), where, {})


def _build(cls: type[T], plain: dict[str, Any], where: str, ready: dict[str, Any]) -> T:
    """The dataclass from plain values, and from `ready` ones that were parsed already."""
    for key in plain:
        one_of(key, [f.name for f in fields(cls)], f"{where}: key")  # type: ignore[arg-type]
    hints = get_type_hints(cls)
    nested = {k: parse(hints[k], v, f"{where}.{k}") for k, v in plain.items() if is_dataclass(hints[k])}
    prefix = "" if where in ("config", "compare") else f"{where}: " if " " in where else f"{where}."
    given = {k: _coerced(v, hints[k], prefix + k) for k, v in plain.items() if k not in nested}
    types = make_dataclass(f"{cls.__name__}Types", [(k, hints[k]) for k in given])
    try:  # OmegaConf converts and checks the values by their types
        values: dict[str, Any] = OmegaConf.to_container(OmegaConf.merge(OmegaConf.structured(types), given))  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        key = re.split(r"[.\[]", getattr(error, "full_key", None) or "")[0]
        if key not in given:
            raise UserError(f"{where}: {str(error).splitlines()[0]}") from None
        raise UserError(f"{prefix}{key}={given[key]!r} must be {_wanted(hints[key])}") from None
    _check_finite(values, where)
    return cls(**values, **nested, **ready)


def _coerced(value: Any, hint: Any, what: str) -> Any:
    """A value as it was meant: one word where a list of words belongs is a list of one.

    Raises:
        UserError: for true or false where a word belongs, because the word as it was written is lost.
    """
    base = _without_none(hint)
    words = base == list[str]
    if words and isinstance(value, str | int | float) and not isinstance(value, bool):
        return [str(value)]
    labels = what.endswith("labels")  # these may be True and False
    inner = value if words and isinstance(value, list) and not labels else [value]
    if (words or base is str) and any(isinstance(v, bool) for v in inner):
        raise UserError(f"{what}={value} is read as true or false; quote the word: \"{what}='true'\"")
    return value


def _without_none(hint: Any) -> Any:
    """The type of a setting that may also be null."""
    return next((t for t in get_args(hint) if t is not NoneType), hint) if isinstance(hint, UnionType) else hint


def _wanted(hint: Any) -> str:
    """A setting's type in words."""
    kinds = {
        str: "a text",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        list[str]: "a list of words, as [a, b]",
        list[int]: "a list of whole numbers, as [1, 4]",
    }
    base = _without_none(hint)
    return kinds.get(base, "a group, as {key: value}") + (" or null" if base != hint else "")


def _check_finite(value: Any, where: str) -> None:
    """Raise `UserError` for a NaN or an infinity anywhere in plain settings."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            _check_finite(inner, f"{where}.{key}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where}={value} must be a finite number")


def _of_kind(kinds: Mapping[str, type[Any]], mapping: Any, where: str, default: str) -> Any:
    """The settings of the kind that a mapping names. A key that the kind does not have is an error unless it is null."""
    plain = _plain(mapping, where)
    kind = plain.pop("kind", None) or default
    one_of(kind, tuple(kinds), f"{where}: kind" if " " in where else f"{where}.kind")
    cls = kinds[kind]
    known = [f.name for f in fields(cls)]
    others = {f.name for c in kinds.values() for f in fields(c)} - set(known)
    given = {}
    for key, value in plain.items():
        if key in others and value is not None:
            with_it = ", ".join(k for k, c in kinds.items() if key in {f.name for f in fields(c)})
            way_out = "take it out" if " " in where else f"set {where}.{key}=null"
            raise UserError(f"{where}: kind={kind} has no setting {key!r} (it belongs to kind={with_it}); {way_out}")
        if key not in others and (value is not None or key not in known):
            given[key] = value
    return parse(cls, given, where)


def _student(mapping: Any) -> StudentSettings:
    plain = _plain(mapping, "student")
    if plain.get("kind") == "path":
        notice("student.kind=path is now called kind=checkpoint")
        plain["kind"] = "checkpoint"
    made: StudentSettings = _of_kind(STUDENT_KINDS, plain, "student", "fresh")
    return made


def _encoder(mapping: Any) -> EncoderSettings:
    made: EncoderSettings = _of_kind(ENCODER_KINDS, mapping, "encoder", "bag")
    return made


def _agent(mapping: Any) -> AgentSettings:
    plain = {k: v for k, v in _plain(mapping, "agent").items() if v is not None}
    name = plain.get("name", "reinforce")
    one_of(name, ("reinforce", *SB3_DEFAULTS), "agent")
    cls: type[AgentSettings] = ReinforceSettings if name == "reinforce" else SB3Settings
    return parse(cls, plain, "agent")


def teacher(mapping: Any) -> TeacherSettings:
    """One entry of `teachers.pool`. The spelling of version 0.1 (`fitted`, `probs`, no kind) is read with a notice."""
    if not isinstance(mapping, Mapping) and not OmegaConf.is_config(mapping):
        kind = "predictions" if _is_table(mapping) else "checkpoint"
        raise UserError(f"teachers.pool: entry {mapping!r} must be a group: {{name: a, kind: {kind}, path: PATH}}")
    plain = _plain(mapping, "teachers.pool: entry")
    name = plain.get("name", "teacher")
    where, spelling = f"teacher {name}", ""
    table = next((key for key, value in plain.items() if key != "name" and _is_table(value)), None)
    if table is not None and table != "probs" and plain.get("kind") != "predictions":
        way_out = f"{{name: {name}, kind: predictions, path: {plain[table]}}}"
        raise UserError(f"{where}: {table}={plain[table]} is a file of answers; write it as {way_out}")
    if "kind" not in plain:
        plain, new = _old_teacher(plain, where)
        spelling = f"{where}: give its kind; this entry is now written {{name: {plain.get('name')}, {new}}}"
    made: TeacherSettings = _of_kind(TEACHER_KINDS, plain, where, "finetune")
    if spelling:
        notice(spelling)
    return made


def _is_table(value: Any) -> bool:
    """Whether a setting names a file of answers, by its suffix."""
    return isinstance(value, str) and value.lower().endswith((".csv", ".tsv", ".jsonl", ".ndjson", ".parquet"))


def _old_teacher(plain: dict[str, Any], where: str) -> tuple[dict[str, Any], str]:
    """An entry without a kind, in today's spelling, and how that is written."""
    fitted, probs = plain.pop("fitted", False), plain.pop("probs", None)
    if probs is not None and plain.get("path") is not None:
        raise UserError(f"{where}: give path or probs, not both")
    if probs is not None:
        return {**plain, "kind": "predictions", "path": probs}, f"kind: predictions, path: {probs}"
    if fitted:
        if plain.get("path") is None:
            raise UserError(f"{where}: fitted=true needs path=FOLDER-or-hub-id")
        return {**plain, "kind": "checkpoint"}, f"kind: checkpoint, path: {plain['path']}"
    return {**plain, "kind": "finetune"}, "kind: finetune, ..."


def _teachers(mapping: Any) -> TeachersSettings:
    plain = _plain(mapping, "teachers")
    pool = plain.pop("pool", None) or []
    if not isinstance(pool, list | tuple):
        raise UserError("teachers.pool must be a list: 'teachers.pool=[{name: a, kind: checkpoint, path: FOLDER}]'")
    return _build(TeachersSettings, plain, "teachers", {"pool": [teacher(entry) for entry in pool]})


_SECTIONS: dict[str, Any] = {
    "task": lambda m: parse(TaskSettings, m, "task"),
    "teachers": _teachers,
    "encoder": _encoder,
    "student": _student,
    "loss": lambda m: parse(LossSettings, m, "loss"),
    "budget": lambda m: parse(BudgetSettings, m, "budget"),
    "observation": lambda m: parse(ObservationSettings, m, "observation"),
    "reward": lambda m: parse(RewardSettings, m, "reward"),
    "credit": lambda m: parse(CreditSettings, m, "credit"),
    "agent": _agent,
}

_NOTICES: set[str] = set()


def notice(message: str) -> None:
    """Print a note on stderr, once a process."""
    if message not in _NOTICES:
        _NOTICES.add(message)
        print(f"note: {message}", file=sys.stderr)


# --- identity ---------------------------------------------------------------------------------------------------------


def _with_kinds(value: Any) -> Any:
    """Plain JSON values; a dataclass with a kind says it."""
    if is_dataclass(value) and not isinstance(value, type):
        own = {f.name: _with_kinds(getattr(value, f.name)) for f in fields(value)}
        kind = getattr(value, "kind", "")
        return {"kind": kind, **own} if kind else own
    if isinstance(value, list | tuple):
        return [_with_kinds(v) for v in value]
    return value


def _leaves(settings: Any, path: tuple[str, ...] = (), changes: str = "") -> Iterator[tuple[tuple[str, ...], Any, str]]:
    """Path, plain value and scope of every setting; pools and kinds are single values of their section's scope."""
    kind = getattr(settings, "kind", "")
    if kind:
        yield (*path, "kind"), kind, changes
    for f in fields(settings):
        value, own = getattr(settings, f.name), f.metadata.get("changes") or changes
        if own not in (*SCOPES, *OUTSIDE):
            raise ValueError(f"{'.'.join((*path, f.name))} does not say what it changes")
        if is_dataclass(value) and not isinstance(value, type):
            yield from _leaves(value, (*path, f.name), own)
        elif own not in OUTSIDE:
            yield (*path, f.name), _with_kinds(value), own


def keys_changing(what: str) -> list[str]:
    """The top-level settings of a run that change `what`, for example `nothing`."""
    return [f.name for f in fields(RunSettings) if f.metadata["changes"] == what]


def digest(*parts: Any) -> str:
    """First 16 hex digits of SHA-256 over JSON of `parts`."""
    text = json.dumps(
        [asdict(p) if is_dataclass(p) and not isinstance(p, type) else p for p in parts], sort_keys=True, default=str
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# --- defaults for Hydra, and their documentation ----------------------------------------------------------------------


def defaults() -> dict[str, Any]:
    """The tree with its defaults, as plain values. Where kinds differ in their settings, null stands for a kind's default."""
    out: dict[str, Any] = {}
    kinds: dict[str, Mapping[str, type[Any]]] = {
        "student": STUDENT_KINDS,
        "encoder": ENCODER_KINDS,
        "agent": {"a": ReinforceSettings, "b": SB3Settings},
    }
    for f in fields(RunSettings):
        if f.name in kinds:
            names = dict.fromkeys(g.name for cls in kinds[f.name].values() for g in fields(cls))
            first = {"encoder": {"kind": "bag"}, "student": {"kind": "fresh"}, "agent": {}}[f.name]
            out[f.name] = {**first, **dict.fromkeys(names)}
        elif f.name == "teachers":
            out["teachers"] = {g.name: default_of(g) for g in fields(TeachersSettings)}
        else:
            out[f.name] = _with_kinds(default_of(f))
    out["data_dir"] = "${oc.env:TEACHER_SELECT_DATA,null}"
    out["home"] = "${oc.env:TEACHER_SELECT_HOME,'~/.cache/teacher-select'}"
    return out


def default_of(f: Field[Any]) -> Any:
    """The default of a dataclass field."""
    return f.default if f.default is not MISSING else f.default_factory()  # type: ignore[misc,operator]


def register() -> None:
    """Give Hydra the tree's defaults under the names that `configs/*.yaml` start from."""
    store = ConfigStore.instance()
    store.store(name="run_schema", node=defaults())
    cells = "outputs/${folder_name:task.name,${task.name}}/cells"
    store.store(name="compare_schema", node={**asdict(CompareSettings()), "cells": cells})
    for name, (
        lr,
        params,
    ) in SB3_DEFAULTS.items():  # `agent=a2c` works as `agent=ppo` does, which has a documented file
        if name not in ("ppo", "dqn"):
            store.store(group="agent", name=name, node={"name": name, "lr": lr, "params": params})


register()
