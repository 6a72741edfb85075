"""The distillation process: task, teacher signals and student together. It knows nothing of rewards or agents.

`Distillation` is what an environment wraps: a batch comes in, a student step goes out.
"""

from __future__ import annotations

import copy
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from distill import cache, parallel
from distill.checks import UserError
from distill.data.load import files_of, load_task
from distill.data.splits import Split, Task
from distill.data.tokens import Batch, Stream, TokenizedSplit
from distill.losses import distillation_loss, label_loss, mix, soft_labels, teacher_weights
from distill.models.build import build_student
from distill.models.engine import Engine
from distill.models.loading import local_place, withheld_inputs
from distill.progress import Progress
from distill.settings import RunSettings, digest
from distill.state import Array, Optional, is_count, is_generator
from distill.student import StepResult, Student
from distill.teachers.calibrate import FORMAT as CALIBRATION
from distill.teachers.calibrate import CalibratedSignals, Confusion, Temperature, fit_calibration
from distill.teachers.encoders import ENCODERS, TransformerEncoder, make_encoder
from distill.teachers.finetune import vocabulary_texts
from distill.teachers.live import LiveSignals
from distill.teachers.signals import Source, TeacherSignals
from distill.teachers.sources import SOURCES, load_pool
from distill.teachers.store import StoredSignals, is_stored

FORMAT = 2  # of a warm start; raised whenever the student's training or the settings' identity changes
KEPT_IN_MEMORY = 4  # pools whose signals stay in memory for the next environment


class Prepared:
    """What every run on one task and pool shares: the data, the teachers and their signals. Heavy, and read-only.

    Making one reads the data only. `load` then loads or fine-tunes the teachers, so that a mistake found in between
    costs nothing.
    """

    def __init__(self, settings: RunSettings, task: Task | None = None) -> None:
        self.settings, self.home = settings, settings.home_dir
        self.engine = Engine.pick(settings.device, settings.amp, settings.fast)
        self.task: Task = task or load_task(settings.task, settings.data_dir)
        self.encoder: Source = make_encoder(settings.encoder, self.engine)
        self.teachers: list[Source] = []
        self.teacher_fit_s = self.signals_s = 0.0
        self._signals: dict[str, TeacherSignals] = {}

    @classmethod
    def of(cls, settings: RunSettings) -> Prepared:
        """The one for these settings and the present content of their files.

        The last few stay in memory, so a second environment costs nothing. A file that was written again is read again.
        """
        files, parts = files_of(settings.task, settings.data_dir), (*settings.teachers.pool, settings.encoder)
        # A task of the user's own may read files that nothing here knows, so it is loaded to see its content.
        task = load_task(settings.task, settings.data_dir) if files is None else None
        pools = {} if task is None else {name: pool.labelled_fingerprint for name, pool in task.pools.items()}
        paths = [path for part in parts if (path := getattr(part, "path", None))]
        content = digest(
            settings.identity("signals"),
            [settings.device, settings.amp, settings.fast, settings.data_dir, str(settings.home_dir)],
            [cache.stamp(local_place(path)) for path in (*(files or ()), *paths)],
            None if task is None else [task.fingerprint, task.metric, pools],
        )
        # Functions that the user has registered again under the same name are other functions.
        made_by = (*(SOURCES.get(part.kind) for part in settings.teachers.pool), ENCODERS.get(settings.encoder.kind))
        key = (content, *made_by)
        if key not in _PREPARED:
            _PREPARED[key] = cls(settings, task)
        _PREPARED.move_to_end(key)
        while len(_PREPARED) > KEPT_IN_MEMORY:
            _PREPARED.popitem(last=False)
        return _PREPARED[key]

    def load(self) -> Prepared:
        """Load or fine-tune the teachers, and store their signals on train. Does nothing the second time."""
        if self.teachers:
            return self
        started = time.perf_counter()
        s, train = self.settings, self.task.splits["train"]
        if isinstance(self.encoder, TransformerEncoder) and not is_stored(self.encoder, train, self.home):
            self.encoder.load(train)  # before a teacher is fine-tuned
        self.teachers = load_pool(s.teachers, self.task, self.home, self.engine)
        self.teacher_fit_s = time.perf_counter() - started
        started = time.perf_counter()
        self.signals("train")
        self.signals_s = time.perf_counter() - started
        return self

    def signals(self, role: str) -> TeacherSignals:
        """The signals of one split."""
        if role not in self._signals:
            signals, fitted = self._as_given(role), self.calibration
            if fitted:
                signals = CalibratedSignals(signals, self.task.splits[role], self.teachers, fitted)
            self._signals[role] = signals
        return self._signals[role]

    def _as_given(self, role: str) -> TeacherSignals:
        """The signals of one split before calibration."""
        split = self.task.splits[role]
        if self.settings.teachers.signals == "live":
            return LiveSignals(split, self.teachers, self.encoder)
        return StoredSignals(split, self.teachers, self.encoder, self.home)

    @cached_property
    def calibration(self) -> list[Temperature | Confusion]:
        """The calibration of each teacher, fitted on the reward split; an empty list with `teachers.calibrate=none`."""
        if self.settings.teachers.calibrate == "none":
            return []
        return fit_calibration(self.teachers, self._as_given("reward"), self.task.splits["reward"])

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the data, the teachers, their calibration and the encoder."""
        # Calibration follows from the answers and the labels of the reward split, which the task's hash covers.
        calibrated = [] if self.settings.teachers.calibrate == "none" else [["calibrated", CALIBRATION]]
        teachers = [t.fingerprint for t in self.teachers]
        return digest(self.task.fingerprint, teachers, self.encoder.fingerprint, *calibrated)

    def teacher_scores(self, roles: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Metrics of every teacher, and last of their averaged probabilities (`ensemble`), on `roles`.

        By default these are train, dev and the tests.

        Train is what the student learns from. Where it is far above dev, the teachers are over-confident on it (see
        `teachers.folds`). Each row counts the labelled instances that its teacher answers. It is None where there are
        none; `answered` then says, by split, the share of the instances that are answered.
        """
        rows: list[dict[str, Any]] = [{"name": t.name, "fingerprint": t.fingerprint} for t in self.teachers]
        for row, fitted in zip(rows, self.calibration, strict=False):
            row |= fitted.facts()
        rows.append({"name": "ensemble"})
        for role in roles or ("train", "dev", *self.task.tests):
            split = self.task.splits[role]
            known = np.flatnonzero(split.labelled)
            started = time.perf_counter()
            signals = self.signals(role)
            logits, answered = signals.logits(known), signals.answered(known)
            self.signals_s += time.perf_counter() - started
            soft = soft_labels(torch.from_numpy(logits), 1.0)
            everyone = torch.from_numpy(answered).float()
            average = soft.mean(1) if signals.complete else mix(teacher_weights(everyone), soft)
            mean = np.log(average.numpy() + 1e-12)
            everything = [*zip(logits.swapaxes(0, 1), answered.T, strict=True), (mean, np.asarray(answered.any(1)))]
            for row, (values, here) in zip(rows, everything, strict=True):
                row[role] = self.task.scores(values[here], split.labels[known][here]) if here.any() else None
            if not signals.complete:
                shares = signals.answered(np.arange(len(split))).mean(0).tolist()
                for row, share in zip(rows, shares, strict=False):
                    row.setdefault("answered", {})[role] = share
        return rows


_PREPARED: OrderedDict[tuple[Any, ...], Prepared] = OrderedDict()


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Torch computes with `count` threads inside (None: as it is), and with as many as before afterwards."""
    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass
class TrainingBatch:
    """The batch that the next step trains on: arrays on the host for states, tensors on the device for the loss.

    Signals are read when they are first needed: with live signals they cost a forward.
    """

    rows: np.ndarray  # [B]
    labels: np.ndarray  # [B]; -1: unlabelled
    inputs: Batch
    gold: Tensor  # [B]
    signals: TeacherSignals
    temperature: float  # of the loss
    _chosen: tuple[np.ndarray, Tensor] | None = None  # a subset [B,K] and the soft labels computed for it
    ahead: tuple[int, Tensor] | None = None  # the student's logits on it, and the version of the weights they came from

    @property
    def shape(self) -> tuple[int, int]:
        """B, K."""
        return len(self.rows), len(self.signals.names)

    @property
    def labelled(self) -> np.ndarray:
        """Whether the gold label of each row is known, bool `[B]`."""
        known: np.ndarray = self.labels >= 0
        return known

    @cached_property
    def answered(self) -> np.ndarray:
        """Which teachers have an answer for each row, bool `[B,K]`."""
        return self.signals.answered(self.rows)

    @cached_property
    def heard(self) -> Tensor | None:
        """`answered` as 0 and 1 in float32 `[B,K]`, on the device; None where all teachers answer every row."""
        return None if self.signals.complete else torch.from_numpy(self.answered).to(self.gold.device, torch.float32)

    def audible(self, actions: np.ndarray) -> np.ndarray:
        """Subsets or weights `[B,K]` in float32, with the weight of every silent teacher set to 0."""
        given = np.asarray(actions, np.float32)
        return given if self.signals.complete else given * self.answered

    @cached_property
    def logits(self) -> np.ndarray:
        """Of all teachers, `[B,K,C]`."""
        return self.signals.logits(self.rows)

    @cached_property
    def vectors(self) -> np.ndarray:
        """Of the encoder, `[B,D]`."""
        return self.signals.vectors(self.rows)

    @cached_property
    def soft(self) -> Tensor:
        """Soft labels of all teachers at the loss's temperature, on the device, `[B,K,C]`."""
        return soft_labels(torch.from_numpy(self.logits).to(self.gold.device), self.temperature)

    def soft_for(self, actions: np.ndarray) -> Tensor:
        """Soft labels `[B,K,C]`, correct wherever `actions` `[B,K]` give weight. Live teachers run only where chosen."""
        if not self.signals.selective or "logits" in vars(self):
            return self.soft
        chosen = self.audible(actions) > 0
        if self._chosen is None or not np.array_equal(self._chosen[0], chosen):
            logits = torch.from_numpy(self.signals.logits(self.rows, chosen))
            self._chosen = chosen, soft_labels(logits.to(self.gold.device), self.temperature)
        return self._chosen[1]

    @cached_property
    def log_probs(self) -> np.ndarray:
        """Teacher log-probabilities at temperature 1, `[B,K,C]`."""
        return torch.from_numpy(self.logits).log_softmax(-1).numpy()

    @cached_property
    def probs(self) -> np.ndarray:
        """Teacher probabilities at temperature 1, `[B,K,C]`."""
        return np.exp(self.log_probs)

    @cached_property
    def teacher_losses(self) -> np.ndarray:
        """Teacher cross-entropies on the gold label, `[B,K]` nats; 0 where there is no label."""
        losses: np.ndarray = -self.log_probs[np.arange(len(self.labels)), :, self.labels]
        losses[~self.labelled] = 0.0
        return losses


class Distillation:
    """One student under distillation. `begin`, then `step` until the budget is spent.

    The student starts from the warm start: distilled from the average of all teachers, made once and kept on disk.
    `warm` holds its weights, `initial` those before any training.
    All randomness comes from the seed given to `begin`; torch's global generators stay as they were.

    Raises:
        UserError: for anything wrong with the settings, the data or a checkpoint; before a teacher is fine-tuned
            wherever possible.
    """

    def __init__(self, settings: RunSettings) -> None:
        self.settings = settings
        with torch_threads(settings.threads):
            self._build(settings)

    def _build(self, settings: RunSettings) -> None:
        # 1. What costs little and may be refused: the data and the student's architecture.
        self.prepared = Prepared.of(settings)
        self.task, self.device = self.prepared.task, self.prepared.engine.device
        budget, count = settings.budget, len(self.task.splits["train"])
        if budget.batch_size > count:
            raise UserError(
                f"budget.batch_size={budget.batch_size} is more than the {count} training instances; use a smaller one"
            )
        texts = vocabulary_texts(self.task)
        model, tokenizer = build_student(settings.student, self.task.label_names, texts, settings.seed)
        # 2. The teachers and their signals.
        self.signals = self.prepared.load().signals("train")
        # 3. The student and its batches.
        self.student = Student(model, tokenizer, settings.student, self.prepared.engine)
        self.train_split: Split = self.task.splits["train"].require("train")
        self.labels = self.train_split.labels
        self._tokens: dict[str, TokenizedSplit] = {}
        tokens = self.tokens("train")
        self.budget, self.warm_budget = budget.run_steps(len(tokens)), budget.warm_start_steps(len(tokens))
        self.stream = Stream(tokens.lengths, budget.batch_size, 0, budget.group_lengths)
        self.rng_state = torch.Generator().manual_seed(0).get_state()
        self._cuda_state: Tensor | None = None
        self._seed = 0
        self.batch: TrainingBatch | None = None
        # 4. The warm start, from the cache or made now.
        self.initial = self.student.weights()
        started = time.perf_counter()
        self.warm = self._warm_start()
        self.warm_start_s = time.perf_counter() - started

    @property
    def num_teachers(self) -> int:
        """K."""
        return len(self.prepared.teachers)

    def machine(self) -> dict[str, Any]:
        """Where and how the student computes, as far as digits depend on it."""
        return {"device": self.device.type, "threads": torch.get_num_threads(), **self.prepared.engine.describe()}

    def tokens(self, role: str) -> TokenizedSplit:
        """A split in the student's tokens."""
        if role not in self._tokens:
            texts = self.task.splits[role].texts
            self._tokens[role] = self.student.tokenize(texts)
        return self._tokens[role]

    # --- running ----------------------------------------------------------------------------------------------------

    def begin(self, seed: int, restart: bool = True, budget: int | None = None) -> None:
        """Start a run: batches and dropout follow `seed`. The student returns to the warm start unless `restart` is false."""
        if restart:
            self.student.restore(self.warm)
        self.student.begin(budget or self.budget)
        self.stream = Stream(self.stream.lengths, self.stream.batch_size, seed, self.stream.group)
        self.rng_state = torch.Generator().manual_seed(seed).get_state()
        self._cuda_state = None
        self._seed = seed
        self.batch = self.load(self.stream.next())

    @property
    def done(self) -> bool:
        """Whether the budget is spent."""
        return self.student.steps >= self.student.budget

    def train_on_labels(self, seed: int, steps: int) -> Iterator[int]:
        """Train the student as it is on the labels of reward and dev, for controls alone: step by step, yielding their number.

        These labels are otherwise never trained on. What was trained on them must not be measured or selected by them.
        """
        splits = [self.task.splits[role].require("reward", "dev") for role in ("reward", "dev")]
        tokens = self.student.tokenize([text for split in splits for text in split.texts])
        labels = torch.from_numpy(np.concatenate([split.labels for split in splits])).to(self.device)
        stream = Stream(tokens.lengths, min(self.stream.batch_size, len(tokens)), seed, self.stream.group)
        self.student.begin(steps)
        for step in range(1, steps + 1):
            rows = stream.next()
            gold = labels[torch.from_numpy(rows).to(self.device)]
            with self._own_rng():
                self.student.step(tokens.batch(rows), label_loss(gold))
            yield step

    def labelled_batch(self, role: str) -> TrainingBatch:
        """All instances of the reward or dev split as one batch: for fitting selectors on their labels, never for training."""
        split = self.task.splits[role].require("reward", "dev")
        rows = np.arange(len(split))
        gold = torch.from_numpy(split.labels).to(self.device)
        signals = self.prepared.signals(role)
        return TrainingBatch(
            rows, split.labels, self.tokens(role).batch(rows), gold, signals, self.settings.loss.temperature
        )

    def load(self, rows: np.ndarray) -> TrainingBatch:
        """The training batch of the instances `rows` `[B]`."""
        labels = self.labels[rows]
        return TrainingBatch(
            rows=rows,
            labels=labels,
            inputs=self.tokens("train").batch(rows),
            gold=torch.from_numpy(labels).to(self.device),
            signals=self.signals,
            temperature=self.settings.loss.temperature,
        )

    def look_ahead(self) -> Tensor:
        """The student's logits on the coming batch, `[B,C]`, detached and without dropout.

        Where the step would compute the very same logits (no dropout, one process), it reuses these, so they cost nothing.
        """
        now, student = self.batch, self.student
        assert now is not None, "begin() comes before look_ahead()"
        seen = self._ahead(now)
        if seen is None:
            with torch.set_grad_enabled(not student.random and parallel.world() == 1):
                seen = student.forward(now.inputs)
            now.ahead = student.version, seen
        return seen.detach()

    def _ahead(self, now: TrainingBatch) -> Tensor | None:
        """The logits that `look_ahead` computed for `now`, unless the weights have been written since."""
        return now.ahead[1] if now.ahead is not None and now.ahead[0] == self.student.version else None

    def step(self, actions: np.ndarray) -> StepResult:
        """Train on the current batch with subsets or weights `actions` `[B,K]`, then load the next batch.

        Teachers that have no answer for a row have no weight there, whatever its action says.
        """
        now = self.batch
        assert now is not None, "begin() comes before step()"
        chosen = torch.from_numpy(now.audible(actions)).to(self.device)
        soft = now.soft_for(actions)  # before the student's forward: teachers need no gradients
        seen = self._ahead(now)
        ahead = seen if seen is not None and seen.requires_grad else None
        now.ahead = None  # the step frees its graph
        with self._own_rng():
            result = self.student.step(
                now.inputs, lambda logits: distillation_loss(logits, now.gold, chosen, soft, self.settings.loss), ahead
            )
        self.batch = self.load(self.stream.next())
        return result

    @contextmanager
    def _own_rng(self) -> Iterator[None]:
        """Dropout draws from this process's own random stream. Without dropout nothing is drawn, so nothing is swapped."""
        if not self.student.random:
            yield
            return
        outside = torch.get_rng_state()
        on_cuda = self.device.type == "cuda"
        cuda_outside = torch.cuda.get_rng_state(self.device) if on_cuda else None
        torch.set_rng_state(self.rng_state)
        if on_cuda:
            if self._cuda_state is None:
                torch.cuda.manual_seed(self._seed)
            else:
                torch.cuda.set_rng_state(self._cuda_state, self.device)
        try:
            yield
        finally:
            self.rng_state = torch.get_rng_state()
            torch.set_rng_state(outside)
            if cuda_outside is not None:
                self._cuda_state = torch.cuda.get_rng_state(self.device)
                torch.cuda.set_rng_state(cuda_outside, self.device)

    def evaluate(self, role: str) -> dict[str, float]:
        """The student's metrics on a whole split (not train); `NotFinite` when its logits are not finite."""
        return self.task.scores(self.predict(role), self.task.splits[role].labels)

    def predict(self, role: str) -> np.ndarray:
        """The student's logits on a whole split (not train), float32 `[N,C]`; `NotFinite` when they are not finite."""
        self.task.splits[role].require("reward", "dev", "test")
        logits = self.student.predict(self.tokens(role)).numpy()
        self.student.check_finite(float(logits.sum(dtype=np.float64)))
        return logits

    # --- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that the coming steps depend on: weights, optimiser, schedule, batches and generators."""
        held = self.student.optimizer.state
        moments = {
            # Plain SGD keeps an empty momentum; AdamW keeps nothing of what it has not moved yet.
            name: {k: v.detach().cpu().numpy().copy() for k, v in held.get(parameter, {}).items() if v is not None}
            for name, parameter in self.student.named.items()
        }
        return {
            "student": {n: p.detach().cpu().numpy().copy() for n, p in self.student.named.items()},
            "optimizer": moments,
            "stream": self.stream.state_dict(),
            "rng": self.rng_state.numpy().copy(),
            "cuda_rng": None if self._cuda_state is None else self._cuda_state.cpu().numpy().copy(),
            "rows": None if self.batch is None else self.batch.rows.copy(),
            "steps": self.student.steps,
            "budget": self.student.budget,
            "seed": self._seed,
        }

    def state_template(self) -> dict[str, Any]:
        """The form of `state_dict()`, for `distill.state.check_state`."""
        size, count = self.stream.batch_size, len(self.labels)
        weights = {n: Array("float32", tuple(p.shape)) for n, p in self.student.named.items()}
        adam = self.settings.student.optimizer == "adamw"
        moments = {
            n: Optional({"exp_avg": w, "exp_avg_sq": w, "step": Array("float32", ())} if adam else {})
            for n, w in weights.items()
        }
        return {
            "student": weights,
            "optimizer": moments,
            "stream": {
                "rng": is_generator,
                "carry": Array("int64", (None,), count),
                "queue": Array("int64", (None, size), count),
            },
            "rng": Array("uint8", self.rng_state.shape),
            "cuda_rng": Optional(Array("uint8", (None,))),
            "rows": Optional(Array("int64", (size,), count)),
            "steps": is_count,
            "budget": lambda v: is_count(v) and v > 0,
            "seed": is_count,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()` of this process, or of one with the same settings."""
        student = self.student
        student.restore([torch.from_numpy(state["student"][n]) for n in student.named])
        student.optimizer.state.clear()
        for name, moments in state["optimizer"].items():
            parameter = student.named[name]
            for key, value in (moments or {}).items():
                student.optimizer.state[parameter][key] = torch.from_numpy(value.copy()).to(parameter.device)
        student.steps, student.budget, self._seed = state["steps"], state["budget"], state["seed"]
        self.stream.load_state_dict(state["stream"])
        self.rng_state = torch.from_numpy(state["rng"].copy())
        cuda = state["cuda_rng"]
        self._cuda_state = None if cuda is None else torch.from_numpy(cuda.copy())
        self.batch = None if state["rows"] is None else self.load(state["rows"])

    def fork(self) -> Distillation:
        """An independent copy of the process as it is now. Data, signals and warm start are shared."""
        other = copy.copy(self)
        other.student = Student(
            copy.deepcopy(self.student.model),
            self.student.tokenizer,
            self.settings.student,
            self.prepared.engine,
        )
        other.stream = Stream(self.stream.lengths, self.stream.batch_size, 0, self.stream.group)
        other.load_state_dict(self.state_dict())
        return other

    # --- the warm start ---------------------------------------------------------------------------------------------

    def _warm_start(self) -> list[Tensor]:
        """Weights of the student distilled from all teachers, from the cache or made now. The student has them afterwards."""
        s = self.settings
        facts = {
            "format": FORMAT,
            "settings": s.fingerprint("warm start"),
            "prepared": self.prepared.fingerprint,
            "checkpoint": self._initial_fingerprint(),
            "steps": self.warm_budget,
            "machine": self.machine(),
        }
        if withheld := withheld_inputs(self.student.model.config, self.student.tokenizer):
            facts["inputs"] = withheld
        folder = self.prepared.home / "warm" / f"{self.task.name}-{s.student.name}-{digest(facts)}"
        cache.entry(folder, facts, self._make_warm_start)
        try:
            saved = load_file(folder / "student.safetensors", device=str(self.device))
            weights = [saved[name] for name in self.student.named]
        except (SafetensorError, KeyError) as error:
            raise UserError(f"cache entry {folder}: cannot be read ({error}){cache.way_out(folder)}") from None
        self.student.restore(weights)
        return weights

    def _initial_fingerprint(self) -> str:
        """Hash of the student's weights before any training: covers its checkpoint, vocabulary and seed."""
        sums = [
            (n, float(p.detach().double().sum()), float(p.detach().double().square().sum()))
            for n, p in self.student.model.named_parameters()
        ]
        return digest(sums)

    def _make_warm_start(self, folder: Path) -> dict[str, Any]:
        everyone = np.ones((self.stream.batch_size, self.num_teachers), np.float32)
        if self.warm_budget:
            self.begin(self.settings.seed + 1_000_003, restart=False, budget=self.warm_budget)
            with Progress("warm start", self.warm_budget, budget=self.budget, trainings=0) as shown:
                for _ in range(self.warm_budget):
                    self.step(everyone)
                    shown.update()
        self.student.check_weights()
        save_file(
            {n: p.detach().contiguous().cpu() for n, p in self.student.named.items()}, folder / "student.safetensors"
        )
        return {"steps": self.warm_budget}
