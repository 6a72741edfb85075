"""Distillation = task + signals + student: the whole process an environment wraps, with no notion of reward or agent."""

from __future__ import annotations

import copy
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from distill import cache, parallel
from distill.checks import UserError, check
from distill.data.load import load_task
from distill.data.splits import Split, Task
from distill.data.tokens import Batch, Stream, TokenizedSplit
from distill.losses import distillation_loss, soft_labels
from distill.models.build import build_student
from distill.models.engine import Engine
from distill.settings import ProcessSettings, digest
from distill.student import Student
from distill.teachers.encoders import make_encoder
from distill.teachers.finetune import vocabulary_texts
from distill.teachers.live import LiveSignals
from distill.teachers.signals import Source, TeacherSignals
from distill.teachers.sources import load_pool
from distill.teachers.store import StoredSignals

FORMAT = 1  # of a warm start; raised whenever the student's training changes


class Prepared:
    """What every run on one task and pool shares: the data, the teachers and their signals. Heavy, and read-only."""

    def __init__(self, settings: ProcessSettings) -> None:
        self.settings, self.home = settings, settings.home_dir
        self.engine = Engine.pick(settings.device, settings.amp, settings.fast)
        self.task: Task = load_task(settings.task, settings.data_dir)
        self.encoder: Source = make_encoder(settings.encoder, self.engine)
        self.teachers: list[Source] = []
        self._signals: dict[str, TeacherSignals] = {}

    def load(self) -> None:
        """Load or fine-tune the teachers, and store what they say of train."""
        started = time.perf_counter()
        s = self.settings
        self.teachers = load_pool(s.teachers, self.task, self.home, self.engine)
        self.teacher_fit_s = time.perf_counter() - started
        started = time.perf_counter()
        self.signals("train")
        self.signals_s = time.perf_counter() - started

    def signals(self, role: str) -> TeacherSignals:
        """The signals of one split."""
        if role not in self._signals:
            split = self.task.splits[role]
            if self.settings.teachers.signals == "live":
                self._signals[role] = LiveSignals(split, self.teachers, self.encoder)
            else:
                self._signals[role] = StoredSignals(split, self.teachers, self.encoder, self.home)
        return self._signals[role]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the data, the teachers and the encoder."""
        return digest(self.task.fingerprint, [t.fingerprint for t in self.teachers], self.encoder.fingerprint)

    def teacher_scores(self) -> list[dict[str, Any]]:
        """Metrics of every teacher, and last of their averaged probabilities (`ensemble`), on train, dev and the tests.

        Train is what the student is told; far above dev, the teachers are over-confident there (see `teachers.folds`).
        """
        rows: list[dict[str, Any]] = [{"name": t.name, "fingerprint": t.fingerprint} for t in self.teachers]
        rows.append({"name": "ensemble"})
        for role in ("train", "dev", *self.task.tests):
            split = self.task.splits[role]
            started = time.perf_counter()
            logits = self.signals(role).logits(np.arange(len(split)))
            self.signals_s += time.perf_counter() - started
            mean = np.log(soft_labels(torch.from_numpy(logits), 1.0).mean(1).numpy() + 1e-12)
            for row, values in zip(rows, [*logits.swapaxes(0, 1), mean], strict=True):
                row[role] = self.task.scores(values, split.labels)
        return rows


_PREPARED: OrderedDict[str, Prepared] = OrderedDict()


def prepare(settings: ProcessSettings, first: Callable[[Task], None] | None = None) -> Prepared:
    """`Prepared` for these settings; the last few are kept in memory, so a second environment costs nothing.

    `first` is given the task before any teacher is loaded or fine-tuned: what it refuses has cost nothing.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    parts = (
        settings.task,
        settings.teachers,
        settings.encoder,
        settings.device,
        settings.amp,
        settings.fast,
        settings.data_dir,
        settings.home,
    )
    key = digest([p if isinstance(p, str | bool | None) else asdict(p) for p in parts])
    prepared = _PREPARED.get(key) or Prepared(settings)
    if first is not None:
        first(prepared.task)
    if key not in _PREPARED:
        prepared.load()
        _PREPARED[key] = prepared
        while len(_PREPARED) > 4:
            _PREPARED.popitem(last=False)
    _PREPARED.move_to_end(key)
    return _PREPARED[key]


@dataclass
class Current:
    """The batch the next step will train on. Arrays on the host for states, tensors on the device for the loss.

    What the teachers and the encoder say is asked for when it is first looked at: with live signals it costs a forward.
    """

    rows: np.ndarray  # [B]
    labels: np.ndarray  # [B]
    inputs: Batch
    gold: Tensor  # [B]
    signals: TeacherSignals
    temperature: float  # of the loss
    _asked: tuple[np.ndarray, Tensor] | None = None
    ahead: tuple[int, Tensor] | None = None  # the student's logits on it, and the version of the weights that gave them

    @property
    def shape(self) -> tuple[int, int]:
        """B, K."""
        return len(self.rows), len(self.signals.names)

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
        """Soft labels `[B,K,C]` that are right wherever `actions` `[B,K]` give weight; teachers nobody chose are not run."""
        if not self.signals.selective or "logits" in vars(self):
            return self.soft
        chosen = np.asarray(actions) > 0
        if self._asked is None or not np.array_equal(self._asked[0], chosen):
            logits = torch.from_numpy(self.signals.logits(self.rows, chosen))
            self._asked = chosen, soft_labels(logits.to(self.gold.device), self.temperature)
        return self._asked[1]

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
        """Teacher cross-entropies on the gold label, `[B,K]` nats."""
        losses: np.ndarray = -self.log_probs[np.arange(len(self.labels)), :, self.labels]
        return losses


class Distillation:
    """One student under distillation. `begin`, then `step` until the budget is spent.

    The student starts from the warm start: distilled from the average of all teachers, made once and kept on disk.
    All randomness comes from the seed given to `begin`; torch's global generators are left as they were.
    """

    def __init__(self, settings: ProcessSettings) -> None:
        self.settings = settings
        born: list[tuple[Any, Any]] = []

        def build(task: Task) -> None:
            size, count = settings.budget.batch_size, len(task.splits["train"])
            if size > count:
                raise UserError(
                    f"budget.batch_size={size} is more than the {count} training instances; use a smaller one"
                )
            born.append(build_student(settings.student, task.label_names, vocabulary_texts(task), settings.seed))

        self.prepared = prepare(settings, build)
        self.task, self.device = self.prepared.task, self.prepared.engine.device
        self.signals = self.prepared.signals("train")
        model, tokenizer = born[0]
        self.student = Student(model, tokenizer, settings.student, self.prepared.engine)
        self.train_split: Split = self.task.splits["train"].require("train")
        self.labels = self.train_split.labels
        self._tokens: dict[str, TokenizedSplit] = {}
        tokens = self.tokens("train")
        budget, per_epoch = settings.budget, max(1, round(len(tokens) / settings.budget.batch_size))
        self.budget = budget.steps or max(1, round(budget.epochs * per_epoch))
        self.warm_budget = round(budget.warm_epochs * per_epoch) if budget.warm_steps is None else budget.warm_steps
        self.stream = Stream(tokens.lengths, budget.batch_size, 0, budget.group_lengths)
        self.rng_state = torch.Generator().manual_seed(0).get_state()
        self._cuda_state: Tensor | None = None
        self._seed = 0
        self.current: Current | None = None
        started = time.perf_counter()
        self.warm = self._warm_start()
        self.warm_start_s = time.perf_counter() - started

    @property
    def num_teachers(self) -> int:
        """K."""
        return len(self.prepared.teachers)

    def tokens(self, role: str) -> TokenizedSplit:
        """A split in the student's tokens."""
        if role not in self._tokens:
            texts = self.task.splits[role].texts
            self._tokens[role] = self.student.tokenize(texts)
        return self._tokens[role]

    # --- running ----------------------------------------------------------------------------------------------------

    def begin(self, seed: int, restart: bool = True, budget: int | None = None) -> None:
        """Start a run: batches and dropout follow `seed`; the student returns to the warm start unless `restart` is false."""
        if restart:
            self.student.restore(self.warm)
        self.student.begin(budget or self.budget)
        self.stream = Stream(self.stream.lengths, self.stream.batch_size, seed, self.stream.group)
        self.rng_state = torch.Generator().manual_seed(seed).get_state()
        self._cuda_state = None
        self._seed = seed
        self.current = self.load(self.stream.next())

    @property
    def done(self) -> bool:
        """Whether the budget is spent."""
        return self.student.steps >= self.student.budget

    def load(self, rows: np.ndarray) -> Current:
        """Everything known of the training instances `rows`."""
        labels = self.labels[rows]
        return Current(
            rows=rows,
            labels=labels,
            inputs=self.tokens("train").batch(rows),
            gold=torch.from_numpy(labels).to(self.device),
            signals=self.signals,
            temperature=self.settings.loss.temperature,
        )

    def look_ahead(self) -> Tensor:
        """The student's logits on the coming batch, `[B,C]`, detached and without dropout.

        Where the step would compute the very same (no dropout, one process), it takes these: the look is free.
        """
        now, student = self.current, self.student
        assert now is not None, "begin() comes before look_ahead()"
        seen = self._seen(now)
        if seen is None:
            with torch.set_grad_enabled(not student.random and parallel.world() == 1):
                seen = student.forward(now.inputs)
            now.ahead = student.version, seen
        return seen.detach()

    def _seen(self, now: Current) -> Tensor | None:
        """The logits of a look at `now`, unless weights were written since."""
        return now.ahead[1] if now.ahead is not None and now.ahead[0] == self.student.version else None

    def step(self, actions: np.ndarray) -> tuple[Tensor, Tensor]:
        """Train on the current batch with subsets or weights `actions` `[B,K]`, then load the next batch.

        Returns:
            Student logits `[B,C]` before the step, and per-instance losses `[B]`, on the device.
        """
        now = self.current
        assert now is not None, "begin() comes before step()"
        chosen = torch.from_numpy(np.asarray(actions, np.float32)).to(self.device)
        soft = now.soft_for(actions)  # before the student's forward: teachers need no gradients to be kept
        seen = self._seen(now)
        ahead = seen if seen is not None and seen.requires_grad else None
        now.ahead = None  # the step uses up its graph
        with self._own_rng():
            out = self.student.step(
                now.inputs, lambda logits: distillation_loss(logits, now.gold, chosen, soft, self.settings.loss), ahead
            )
        self.current = self.load(self.stream.next())
        return out

    @contextmanager
    def _own_rng(self) -> Iterator[None]:
        """Dropout draws from this process's own stream; without dropout nothing is drawn and nothing is swapped."""
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
        """The student's metrics on a whole split (not train); `NotFinite` when its logits are no numbers."""
        split = self.task.splits[role].require("reward", "dev", "test")
        logits = self.student.predict(self.tokens(role)).numpy()
        self.student.check_finite(float(logits.sum(dtype=np.float64)))
        return self.task.scores(logits, split.labels)

    # --- state ------------------------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Everything the coming steps depend on: arrays (weights, optimiser, stream, generators) and JSON-able facts."""
        stream = self.stream.state()
        arrays = {f"student/{n}": p.detach().cpu().numpy().copy() for n, p in self.student.named.items()}
        for name, parameter in self.student.named.items():
            for key, value in self.student.optimizer.state.get(parameter, {}).items():
                if value is not None:  # plain SGD keeps an empty momentum
                    arrays[f"optimizer/{key}/{name}"] = value.detach().cpu().numpy().copy()
        arrays |= {
            "stream/carry": stream["carry"],
            "stream/queue": stream["queue"],
            "rng/torch": self.rng_state.numpy().copy(),
        }
        if self.current is not None:
            arrays["rows"] = self.current.rows.copy()
        if self._cuda_state is not None:
            arrays["rng/cuda"] = self._cuda_state.cpu().numpy().copy()
        facts = {
            "steps": self.student.steps,
            "budget": self.student.budget,
            "seed": self._seed,
            "stream": stream["rng"],
        }
        return arrays, facts

    def set_state(self, arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
        """Go on from `state()`, of this process or of one with the same settings."""
        student = self.student
        student.restore([torch.from_numpy(arrays[f"student/{n}"]) for n in student.named])
        student.optimizer.state.clear()
        for path, value in arrays.items():
            if path.startswith("optimizer/"):
                _, key, name = path.split("/", 2)
                parameter = student.named[name]
                student.optimizer.state[parameter][key] = torch.from_numpy(value.copy()).to(parameter.device)
        student.steps, student.budget, self._seed = facts["steps"], facts["budget"], facts["seed"]
        self.stream.set_state(
            {"rng": facts["stream"], "carry": arrays["stream/carry"], "queue": arrays["stream/queue"]}
        )
        self.rng_state = torch.from_numpy(arrays["rng/torch"].copy())
        self._cuda_state = torch.from_numpy(arrays["rng/cuda"].copy()) if "rng/cuda" in arrays else None
        self.current = self.load(arrays["rows"]) if "rows" in arrays else None

    def fork(self) -> Distillation:
        """An independent copy of the process as it stands; data, signals and warm start are shared."""
        other = copy.copy(self)
        other.student = Student(
            copy.deepcopy(self.student.model),
            self.student.tokenizer,
            self.settings.student,
            self.prepared.engine,
        )
        other.stream = Stream(self.stream.lengths, self.stream.batch_size, 0, self.stream.group)
        other.set_state(*self.state())
        return other

    # --- the warm start ---------------------------------------------------------------------------------------------

    def _warm_start(self) -> list[Tensor]:
        """The student after distillation from all teachers, from the cache or made now; the student holds it afterwards."""
        s = self.settings
        facts = {
            "format": FORMAT,
            "prepared": self.prepared.fingerprint,
            "student": asdict(s.student),
            "checkpoint": self._student_fingerprint(),
            "loss": asdict(s.loss),
            "batches": [s.budget.batch_size, s.budget.group_lengths, self.warm_budget],
            "seed": s.seed,
            "amp": self.prepared.engine.form,
            "device": self.device.type,
            "threads": torch.get_num_threads(),
        }
        folder = self.prepared.home / "warm" / f"{self.task.name}-{s.student.name}-{digest(facts)}"
        cache.entry(folder, facts, self._make_warm_start)
        try:
            saved = load_file(folder / "student.safetensors", device=str(self.device))
            weights = [saved[name] for name in self.student.named]
        except (SafetensorError, KeyError) as error:
            raise UserError(f"cache entry {folder}: cannot be read ({error}){cache.way_out(folder)}") from None
        self.student.restore(weights)
        return weights

    def _student_fingerprint(self) -> str:
        """Hash of the weights the student is born with: covers its checkpoint, vocabulary and seed."""
        sums = [
            (n, float(p.detach().double().sum()), float(p.detach().double().square().sum()))
            for n, p in self.student.model.named_parameters()
        ]
        return digest(sums)

    def _make_warm_start(self, folder: Path) -> dict[str, Any]:
        everyone = np.ones((self.stream.batch_size, self.num_teachers), np.float32)
        if self.warm_budget:
            self.begin(self.settings.seed + 1_000_003, restart=False, budget=self.warm_budget)
            for _ in tqdm(range(self.warm_budget), desc="warm start", unit="step", disable=None, leave=False):
                self.step(everyone)
        self.student.check_weights()
        save_file(
            {n: p.detach().contiguous().cpu() for n, p in self.student.named.items()}, folder / "student.safetensors"
        )
        return {"steps": self.warm_budget}
