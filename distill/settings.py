"""Every option of the distillation side, as dataclasses: types, defaults, meaning and checks in one place.

The YAML groups in `configs/` fill them; `parse` turns a plain mapping into one of them and a user's mistake into one line.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

T = TypeVar("T")

ROLES = ("train", "reward", "dev", "test")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class UserError(ValueError):
    """A mistake in what the user gave: the message is one line that names the thing, the value and the way out.

    Whatever was quoted from data stays on that line: what cannot be printed is escaped, the middle of what is endless left out.
    """

    def __init__(self, message: str) -> None:
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)
        super().__init__(line if len(line) <= 1000 else f"{line[:650]} ... {line[-300:]}")


class NotFinite(UserError):
    """A training left the finite numbers: a loss, a gradient or a reward is NaN or infinite."""


class RoleError(ValueError):
    """Data of one role was handed to a function that must not see it (for example test data to training)."""


def check(ok: bool, message: str) -> None:
    """Raise `UserError(message)` unless `ok`."""
    if not ok:
        raise UserError(message)


def one_of(value: Any, choices: Sequence[Any], what: str) -> None:
    """Raise `UserError` unless `value` is one of `choices`, with the nearest choice suggested."""
    if value not in choices:
        near = difflib.get_close_matches(str(value), [str(c) for c in choices], 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"{what}={value} is not known; choose from {', '.join(map(str, choices))}{hint}")


def check_rate(value: float, what: str) -> None:
    """Raise `UserError` unless `value` serves as a learning rate: positive, and held by single precision when scaled."""
    check(0 < value <= 1e30, f"{what}={value} must be positive and at most 1e30; 1e-5 to 1e-2 is usual")


def check_seed(value: int, what: str) -> None:
    """Raise `UserError` unless every generator takes `value` as a seed."""
    check(0 <= value < 2**31, f"{what}={value} must not be negative, and at most {2**31 - 1}")


def plain_name(value: str, what: str) -> None:
    """Raise `UserError` unless `value` is safe as the name of a file or folder."""
    check(
        NAME.fullmatch(value) is not None,
        f"{what}={value!r} cannot name a folder: use up to 64 letters, digits, '.', '_' or '-'",
    )


def expand(path: str) -> Path:
    """A path with `~` as the home folder; a `~user` nobody is called stays as written."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def parse(cls: type[T], mapping: Any, where: str) -> T:
    """Build the dataclass `cls` from a mapping, checking keys and types; `where` is the config key named in errors."""
    if OmegaConf.is_config(mapping):
        mapping = OmegaConf.to_container(mapping, resolve=True)
    check(isinstance(mapping, Mapping), f"{where}={mapping!r} is not a group of settings")
    known = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    for key in mapping:
        one_of(key, known, f"{where}: key")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(cls), dict(mapping))
        made: T = OmegaConf.to_object(merged)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or ""
        first = str(error).splitlines()[0]
        raise UserError(f"{where}{'.' if key else ''}{key}: {first}") from None
    _check_finite(asdict(made), where)  # type: ignore[call-overload]
    return made


def _check_finite(value: Any, where: str) -> None:
    """Raise `UserError` for a NaN or infinity anywhere in plain settings."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            _check_finite(inner, f"{where}.{key}")
    check(not isinstance(value, float) or math.isfinite(value), f"{where}={value} must be a finite number")


def digest(*parts: Any) -> str:
    """First 16 hex digits of SHA-256 over JSON of `parts`: names a cache entry."""
    text = json.dumps(
        [asdict(p) if is_dataclass(p) and not isinstance(p, type) else p for p in parts], sort_keys=True, default=str
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass
class CorpusSettings:
    """The bundled corpus: how many reviews of each role, and how wrong its training labels are."""

    train: int = 2000
    reward: int = 500
    dev: int = 500
    test: int = 4000
    pool: int = 4000  # clean reviews of its own domain that each specialist is trained on
    noise: float = 0.35  # share of training labels flipped
    seed: int = 0

    def __post_init__(self) -> None:
        for key in (*ROLES, "pool"):
            check(getattr(self, key) >= 2, f"task.corpus.{key}={getattr(self, key)} is too few; use at least 2")
        check(0 <= self.noise < 0.5, f"task.corpus.noise={self.noise} must lie in [0, 0.5)")
        check_seed(self.seed, "task.corpus.seed")


@dataclass
class TaskSettings:
    """What is learnt, and where its data comes from."""

    name: str = "bundled"  # bundled, files, or a GLUE task: sst2 mrpc qqp mnli qnli rte cola
    source: str = "auto"  # auto: local TSV files when there is a data_dir, else the hub
    metric: str = "accuracy"  # what dev selection maximises: accuracy, f1, matthews
    reward_size: float = 0.1  # below 1: share of the official train set; from 1: number of instances
    dev_size: float = 0.1
    train_limit: int | None = None  # keep only this many training instances (stratified), said in results.json
    split_seed: int = 0  # of the role split; kept apart from `seed`, so that runs share teachers and signals
    train: str | None = None  # task=files: paths
    dev: str | None = None
    test: str | None = None
    text: list[str] = field(default_factory=list)  # one or two text columns
    label: str = "label"
    id: str | None = None  # column of unique ids; row numbers when absent
    corpus: CorpusSettings = field(default_factory=CorpusSettings)

    def __post_init__(self) -> None:
        plain_name(self.name, "task.name")
        one_of(self.source, ("auto", "files", "hub"), "task.source")
        one_of(self.metric, ("accuracy", "f1", "matthews"), "task.metric")
        for key in ("reward_size", "dev_size"):
            check(
                getattr(self, key) > 0,
                f"task.{key}={getattr(self, key)} must be positive: a share below 1 or a number of instances",
            )
        check(self.train_limit is None or self.train_limit > 0, f"task.train_limit={self.train_limit} must be positive")
        check_seed(self.split_seed, "task.split_seed")


@dataclass
class TeacherSettings:
    """One teacher: fine-tuned here (the default), taken as it is (`fitted`), or a file of probabilities (`probs`)."""

    name: str = "teacher"
    path: str | None = None  # checkpoint folder, hub id or package:NAME/FOLDER; none: random weights from `config`
    config: dict[str, Any] = field(default_factory=dict)  # BertConfig of a teacher with random weights
    layers: int | None = None  # keep the first so many layers
    fitted: bool = False  # already fine-tuned for this task: no training
    probs: str | None = None  # CSV, JSONL or Parquet with an id column and one column a class
    labels: list[str] | None = None  # order of the outputs, when the checkpoint does not name them
    pool: str | None = None  # a pool of the task to train on (bundled: a domain) instead of train
    share: float = 1.0  # share of the training data seen (stratified)
    seed: int = 0
    lr: float = 5e-5
    epochs: int = 3
    batch_size: int = 32
    max_length: int = 128
    freeze_embeddings: bool = False

    def __post_init__(self) -> None:
        plain_name(self.name, "teacher name")
        what = f"teacher {self.name}"
        check(0 < self.share <= 1, f"{what}: share={self.share} must lie in (0, 1]")
        check_seed(self.seed, f"{what}: seed")
        check_rate(self.lr, f"{what}: lr")
        check(self.epochs > 0, f"{what}: epochs={self.epochs} must be positive")
        check(self.batch_size > 0, f"{what}: batch_size={self.batch_size} must be positive")
        check(self.max_length > 2, f"{what}: max_length={self.max_length} must be above 2")
        check(self.layers is None or self.layers > 0, f"{what}: layers={self.layers} must be positive")
        check(not (self.probs and self.path), f"{what}: give path or probs, not both")
        check(not self.fitted or self.path is not None, f"{what}: fitted=true needs path=FOLDER-or-hub-id")


@dataclass
class TeachersSettings:
    """The pool of teachers, and whether their signals are read from the store or computed live."""

    name: str = "own"
    pool: list[TeacherSettings] = field(default_factory=list)
    signals: str = "stored"  # stored: computed once and kept on disk; live: a forward whenever asked
    folds: int = 0  # from 2: signals of a training instance come from a copy of the teacher that never saw it

    def __post_init__(self) -> None:
        plain_name(self.name, "teachers.name")
        check(
            self.folds == 0 or 2 <= self.folds <= 20,
            f"teachers.folds={self.folds} must lie in [2, 20], or be 0 for none",
        )
        one_of(self.signals, ("stored", "live"), "teachers.signals")
        names = [t.name for t in self.pool]
        check(
            len(names) > 0,
            "teachers.pool is empty: name teachers, for example 'teachers.pool=[{name: a, path: FOLDER, fitted: true}]'",
        )
        check(len(set(names)) == len(names), f"teachers.pool: names must differ, got {', '.join(names)}")
        check(len(names) <= 32, f"teachers.pool has {len(names)} teachers; at most 32 are supported")


@dataclass
class EncoderSettings:
    """The fixed encoder behind the state's semantic vector."""

    kind: str = "bag"  # bag: random projection of the bag of words, needs no model; transformer: a checkpoint
    path: str | None = None
    pooling: str = "mean"  # mean over tokens, or cls: the first token's vector (the paper's)
    dim: int = 48  # bag only
    max_length: int = 128

    def __post_init__(self) -> None:
        one_of(self.kind, ("bag", "transformer"), "encoder.kind")
        one_of(self.pooling, ("mean", "cls"), "encoder.pooling")
        check(self.dim > 0, f"encoder.dim={self.dim} must be positive")
        check(self.max_length > 2, f"encoder.max_length={self.max_length} must be above 2")
        check(
            self.kind == "bag" or self.path is not None, "encoder.kind=transformer needs encoder.path=FOLDER-or-hub-id"
        )


@dataclass
class StudentSettings:
    """The student's architecture and its optimiser."""

    name: str = "tiny"
    kind: str = (
        "fresh"  # truncate: first `layers` layers of `path`; fresh: random weights from `config`; path: as it is
    )
    path: str | None = None
    layers: int | None = None
    config: dict[str, Any] = field(default_factory=dict)
    max_length: int = 128
    lr: float = 5e-5
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    schedule: str = "constant"  # or linear: down to zero over the budget
    warmup: float = 0.0  # share of the steps with rising learning rate
    clip: float = 1.0  # largest norm of the gradient; 0: none
    dropout: float | None = None  # none: as the checkpoint says
    freeze_embeddings: bool = False

    def __post_init__(self) -> None:
        plain_name(self.name, "student.name")
        one_of(self.kind, ("truncate", "fresh", "path"), "student.kind")
        one_of(self.optimizer, ("adamw", "sgd"), "student.optimizer")
        one_of(self.schedule, ("constant", "linear"), "student.schedule")
        check(
            self.kind == "fresh" or self.path is not None,
            f"student.kind={self.kind} needs student.path=FOLDER-or-hub-id",
        )
        check(
            self.kind != "truncate" or (self.layers or 0) > 0,
            f"student.kind=truncate needs student.layers > 0, got {self.layers}",
        )
        check_rate(self.lr, "student.lr")
        check(self.weight_decay >= 0, f"student.weight_decay={self.weight_decay} must not be negative")
        check(0 <= self.warmup < 1, f"student.warmup={self.warmup} must lie in [0, 1)")
        check(self.clip >= 0, f"student.clip={self.clip} must not be negative; 0 turns clipping off")
        check(self.dropout is None or 0 <= self.dropout < 1, f"student.dropout={self.dropout} must lie in [0, 1)")
        check(self.max_length > 2, f"student.max_length={self.max_length} must be above 2")


@dataclass
class LossSettings:
    """alpha*CE + (1-alpha)*T^2*KL: weight of the hard label, and the temperature of both soft distributions."""

    alpha: float = 0.5
    temperature: float = 5.0

    def __post_init__(self) -> None:
        check(0 <= self.alpha <= 1, f"loss.alpha={self.alpha} must lie in [0, 1]: it weighs the hard label")
        check(0 < self.temperature < float("inf"), f"loss.temperature={self.temperature} must be positive and finite")


@dataclass
class BudgetSettings:
    """How long the student trains. All counts are student steps (batches)."""

    batch_size: int = 32
    epochs: float = 4.0  # of one run from the warm start, when steps is not given
    steps: int | None = None
    warm_epochs: float = 4.0  # of the warm start
    warm_steps: int | None = None
    evals: int = 6  # dev evaluations in a run; the best one is kept
    group_lengths: bool = True  # cut batches from runs of like length: less padding

    def __post_init__(self) -> None:
        check(self.batch_size > 0, f"budget.batch_size={self.batch_size} must be positive")
        check(
            self.epochs > 0 and self.warm_epochs >= 0,
            "budget.epochs must be positive and budget.warm_epochs not negative",
        )
        check(self.steps is None or self.steps > 0, f"budget.steps={self.steps} must be positive")
        check(
            self.warm_steps is None or self.warm_steps >= 0, f"budget.warm_steps={self.warm_steps} must not be negative"
        )
        check(self.evals > 0, f"budget.evals={self.evals} must be positive")


@dataclass
class ProcessSettings:
    """Everything a `Distillation` is built from."""

    task: TaskSettings = field(default_factory=TaskSettings)
    teachers: TeachersSettings = field(default_factory=lambda: TeachersSettings(pool=[TeacherSettings()]))
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    student: StudentSettings = field(default_factory=StudentSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    budget: BudgetSettings = field(default_factory=BudgetSettings)
    seed: int = 0
    device: str = "cpu"
    threads: int | None = None
    amp: str = "auto"
    fast: bool = True
    data_dir: str | None = None
    home: str = "~/.cache/teacher-select"

    def __post_init__(self) -> None:
        one_of(self.amp, ("auto", "off", "bf16"), "amp")
        check(
            re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device) is not None,
            f"device={self.device} is not known; choose from auto, cpu, cuda, cuda:N",
        )
        check_seed(self.seed, "seed")
        check(
            self.threads is None or self.threads > 0,
            f"threads={self.threads} must be positive, or null for the default",
        )

    @classmethod
    def from_config(cls, config: Any) -> ProcessSettings:
        """From a whole run configuration: keys that belong to envs and agents are left to them."""
        if OmegaConf.is_config(config):
            config = OmegaConf.to_container(config, resolve=True)
        own = {f.name: config[f.name] for f in fields(cls) if f.name in config}
        groups = {
            "task": TaskSettings,
            "teachers": TeachersSettings,
            "encoder": EncoderSettings,
            "student": StudentSettings,
        }
        groups |= {"loss": LossSettings, "budget": BudgetSettings}
        for name, group in groups.items():
            if name in own:
                own[name] = parse(group, own[name], name)
        scalars = {k: v for k, v in own.items() if k not in groups}
        settings: ProcessSettings = parse(cls, scalars, "config")
        for name in groups:
            if name in own:
                setattr(settings, name, own[name])
        return settings

    @property
    def home_dir(self) -> Path:
        """Folder of all caches, with `~` expanded."""
        return expand(self.home)
