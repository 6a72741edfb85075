"""A model in training: one step, evaluation, snapshot and restore, first-order probes, saving.

Teachers are fine-tuned by the same class, with labels as the only target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from distill import parallel
from distill.checks import NotFinite
from distill.data.tokens import Batch, TokenizedSplit, run_over
from distill.models.cut import save_cut
from distill.models.engine import Engine
from distill.models.fast import speed_up
from distill.models.loading import check_tokens, gives_token_types, quiet
from distill.models.trial import settle_padding, tokenize
from distill.settings import StudentSettings

Direction = dict[str, Tensor]


@dataclass(frozen=True)
class StepResult:
    """What one student step did. Tensors are detached and on the student's device.

    Attributes:
        logits: `[B,C]`, before the step.
        losses: `[B]`, nats.
        lr: learning rate of the step.
        clip: factor in (0, 1] that clipping scaled the gradient by, a scalar tensor; None: clipping is off.
    """

    logits: Tensor
    losses: Tensor
    lr: float
    clip: Tensor | None


class Student:
    """A sequence classifier with its optimiser and schedule, on one device.

    Args:
        model: any `transformers` sequence classifier.
        settings: optimiser, schedule, clipping.
        engine: where and how it computes.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        settings: StudentSettings,
        engine: Engine,
    ) -> None:
        device = engine.device
        self.model, self.tokenizer, self.settings = model.to(device).eval(), tokenizer, settings
        self.engine, self.device = engine, device
        if engine.fast:
            speed_up(model, engine)
        if settings.freeze_embeddings:
            model.get_input_embeddings().requires_grad_(False)
        self.named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.params = list(self.named.values())
        # Without dropout the model stays in eval mode: switching visits every module.
        self.random = any(isinstance(m, nn.Dropout) and m.p > 0 for m in model.modules())
        self.steps, self.budget = 0, 1
        # The sum of every loss and gradient norm since `begin`, on the device. It is finite as long as all of them are.
        self.trail = torch.zeros((), device=device)
        self.optimizer = self._optimizer()

    def _optimizer(self) -> torch.optim.Optimizer:
        s = self.settings
        decayed = [p for p in self.params if p.ndim > 1]
        groups = [
            {"params": decayed, "weight_decay": s.weight_decay},
            {"params": [p for p in self.params if p.ndim <= 1], "weight_decay": 0.0},
        ]
        if s.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=s.lr, fused=True)
        return torch.optim.AdamW(groups, lr=s.lr, fused=True)

    def begin(self, budget: int) -> None:
        """Start a run of `budget` steps: a fresh optimiser and schedule, the weights as they are."""
        self.optimizer.state.clear()
        self.steps, self.budget = 0, max(1, budget)
        self.trail = torch.zeros((), device=self.device)

    @property
    def lr(self) -> float:
        """Learning rate of the next step."""
        s, t = self.settings, (self.steps + 1) / self.budget
        rise = min(1.0, t / s.warmup) if s.warmup else 1.0
        fall = max(0.0, (1 - self.steps / self.budget) / (1 - s.warmup)) if s.schedule == "linear" else 1.0
        return s.lr * min(rise, fall)

    def tokenize(self, texts: Sequence[tuple[str, ...]]) -> TokenizedSplit:
        """Texts in this model's tokens, on its device; `UserError` for a tokenizer of another model."""
        tokens = tokenize(
            texts,
            self.tokenizer,
            self.settings.max_length,
            type(self.model).__name__,
            device=self.device,
            types=gives_token_types(self.model, self.tokenizer),
            multiple=self.engine.multiple,
            padding=settle_padding(self.model, self.tokenizer),
        )
        check_tokens(self.model, self.tokenizer, int(tokens.ids.max()))
        return tokens

    def forward(self, batch: Batch) -> Tensor:
        """Logits `[B,C]` in float32, under autocast if it is on."""
        with self.engine.autocast():
            return self.model(**batch).logits.float()

    @property
    def version(self) -> int:
        """A number that grows when weights are written. The same number between two steps means the same weights."""
        return sum(p._version for p in self.params)

    def step(self, batch: Batch, loss: Callable[[Tensor], Tensor], ahead: Tensor | None = None) -> StepResult:
        """One optimiser step on the mean of `loss(logits)` `[B]`. Several processes compute a part of the rows each.

        Args:
            ahead: `forward(batch)` at the present weights, if it was computed already. Its graph is freed.

        Raises:
            NotFinite: when a loss or gradient is not finite. On the CPU at once; elsewhere by the next call that waits
                for the device anyway.
        """
        if self.random:
            self.model.train()
        if parallel.world() == 1:
            logits = self.forward(batch) if ahead is None else ahead
            losses = loss(logits)
            mean = losses.mean()
            mean.backward()
        else:
            count = len(batch["input_ids"])
            mine = parallel.share(count)
            logits = parallel.join(self.forward({k: v[mine] for k, v in batch.items()}), count)
            losses = loss(logits)
            mean = losses.mean()
            (losses[mine].sum() / count).backward()
            parallel.sum_gradients(self.params)
        if self.random:
            self.model.eval()
        lr = self.lr
        clip = self.apply_gradients()
        self.trail += mean.detach()
        if self.device.type == "cpu":
            self.check_finite()
        return StepResult(logits.detach(), losses.detach(), lr, clip)

    def apply_gradients(self) -> Tensor | None:
        """Clip, step, clear. Returns the factor of `StepResult.clip`."""
        limit = self.settings.clip
        if limit:
            norm = nn.utils.clip_grad_norm_(self.params, limit)
        else:
            norm = nn.utils.get_total_norm([p.grad for p in self.params if p.grad is not None])
        self.trail += norm
        lr = self.lr
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        return (limit / (norm + 1e-6)).clamp_max(1) if limit else None

    def check_finite(self, *values: float) -> None:
        """Raise `NotFinite` unless `values` and every loss and gradient since `begin` are finite; waits for the device."""
        if not math.isfinite(sum(values, self.trail.item())):
            raise NotFinite(
                f"the student's loss or gradient is not finite after step {self.steps} "
                f"with student.lr={self.settings.lr:g}; lower student.lr"
            )

    def check_weights(self) -> None:
        """Raise `NotFinite` unless the weights are finite too. For weights that are about to be kept."""
        self.check_finite(*(float(p.detach().double().sum()) for p in self.params))

    # --- evaluation and probes -----------------------------------------------------------------------------------

    def predict(self, tokens: TokenizedSplit, batch_size: int = 256, progress: str | None = None) -> Tensor:
        """Logits of a whole split in its order: `[N,C]` float32, on the host."""
        return run_over(tokens, self.forward, batch_size, progress)

    @torch.inference_mode()
    def score(self, batches: Sequence[tuple[Batch, Tensor]]) -> tuple[float, float]:
        """Mean cross-entropy (nats) and accuracy over prepared batches. This waits for the device.

        Raises:
            NotFinite: when the cross-entropy, or a loss or gradient since `begin`, is not finite.
        """
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        right = torch.zeros((), dtype=torch.float64, device=self.device)
        count = 0
        for batch, labels in batches:
            logits = self.forward(batch)
            loss += F.cross_entropy(logits, labels, reduction="sum").double()
            right += (logits.argmax(-1) == labels).sum()
            count += len(labels)
        total, hits = torch.stack((loss, right)).tolist()
        self.check_finite(total)
        return total / count, hits / count

    def gradient(self, batch: Batch, labels: Tensor) -> Direction:
        """Gradient of the mean cross-entropy on `labels`, by parameter name; without dropout, leaving `.grad` alone."""
        with torch.enable_grad():
            grads = torch.autograd.grad(F.cross_entropy(self.forward(batch), labels), self.params, allow_unused=True)
        return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(self.named.items(), grads, strict=True)}

    def precondition(self, direction: Direction) -> Direction:
        """The direction as the optimiser scales it: AdamW divides by the root of its second moment, SGD does not change it.

        Weights that AdamW has never moved (words not seen since `begin`) get zero. AdamW's first step there is not a
        multiple of the gradient, and dividing by `eps` alone would outweigh everything else.
        """
        if self.settings.optimizer == "sgd":
            return direction
        eps, beta2 = self.optimizer.defaults["eps"], self.optimizer.defaults["betas"][1]
        correction = 1 - beta2 ** max(1, self.steps)
        out = {}
        for name, value in direction.items():
            state = self.optimizer.state.get(self.named[name])
            if not state:
                out[name] = torch.zeros_like(value)
                continue
            second = state["exp_avg_sq"] / correction
            out[name] = torch.where(second > 0, value / second.sqrt().add_(eps), 0.0)
        return out

    def directional(self, batch: Batch, direction: Direction, method: str = "auto", reach: float = 1e-2) -> Tensor:
        """d logits / d e at weights + e * direction: `[B,C]`, without dropout.

        Args:
            method: `exact`: forward-mode differentiation (`torch.func.jvp`), under autocast if it is on; `finite`: a
                forward difference over a step of norm `reach`; `central`: a central difference, twice the reach apart.
                Differences run in full precision. `auto` takes the cheaper one: exact with autocast, finite without.
        """
        with torch.no_grad():
            return self.probe(batch, direction, method, reach)(self.model(**batch).logits)

    def probe(
        self, batch: Batch, direction: Direction, method: str = "auto", reach: float = 1e-2
    ) -> Callable[[Tensor], Tensor]:
        """The first half of `directional`: a function from the logits `[B,C]` of the coming step to the slope `[B,C]`.

        The step computes its logits anyway, so a forward difference costs one more forward and not two. Where the step's
        logits are noisy or rounded (dropout, autocast), exact ones are computed here.
        """
        if method == "auto":
            method = "finite" if self.engine.amp is None else "exact"
        if method == "exact":
            base = {n: p.detach() for n, p in self.named.items()}

            def run(params: Direction) -> Tensor:
                return functional_call(self.model, params, kwargs=batch).logits.float()

            # The fused attention kernels have no forward-mode rule.
            with torch.no_grad(), self.engine.autocast(), sdpa_kernel(SDPBackend.MATH):
                tangent: Tensor = torch.func.jvp(run, (base,), (direction,))[1]
            return lambda logits: tangent
        with torch.no_grad():
            along = list(direction.values())
            eps = reach / torch.stack(torch._foreach_norm(along)).norm().clamp_min(1e-12)
            ahead = self._shifted(along, eps, batch)
            if method == "central":
                both = (ahead - self._shifted(along, -eps, batch)) / (2 * eps)
                return lambda logits: both
            clean = self.model(**batch).logits if self.random or self.engine.amp is not None else None
        return lambda logits: (ahead - (logits if clean is None else clean)) / eps

    def lookahead(self, batches: Iterable[tuple[Batch, Tensor]]) -> Direction:
        """The weights now minus those after an AdamW step on the cross-entropy of each batch; nothing changes.

        A direction as a gradient is: the loss falls against it. The optimiser is new, with the student's learning rate.
        """
        here = self.weights()
        optimizer = torch.optim.AdamW(self.params, lr=self.settings.lr, weight_decay=0.0, fused=True)
        try:
            with torch.enable_grad():
                for batch, labels in batches:
                    F.cross_entropy(self.forward(batch), labels).backward()
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
            after = self.weights()
        finally:
            self.restore(here)
        return {n: h - a for n, h, a in zip(self.named, here, after, strict=True)}

    def step_probe(self, batch: Batch, direction: Direction) -> Callable[[Tensor], Tensor]:
        """As `probe`, over the whole of a direction from `lookahead`: logits `[B,C]` -> logits minus those at its other end.

        The step is long, so autocast's rounding does not matter, and one forward is all it costs.
        """
        here = self.weights()
        with torch.no_grad():
            torch._foreach_sub_(self.params, list(direction.values()))
            try:
                ahead = self.forward(batch)
            finally:
                torch._foreach_copy_(self.params, here)
            clean = self.forward(batch) if self.random else None
        return lambda logits: (logits if clean is None else clean) - ahead

    def _shifted(self, along: list[Tensor], eps: Tensor, batch: Batch) -> Tensor:
        """Logits at weights + eps * along, in full precision. The weights are restored to the bit."""
        # Moving them in place costs two copies; functional_call would walk over every module of the model.
        here = self.weights()
        torch._foreach_add_(self.params, torch._foreach_mul(along, eps))
        try:
            logits: Tensor = self.model(**batch).logits
        finally:
            torch._foreach_copy_(self.params, here)
        return logits

    # --- weights ----------------------------------------------------------------------------------------------------

    def weights(self) -> list[Tensor]:
        """A copy of every trained parameter, in order."""
        return [p.detach().clone() for p in self.params]

    @torch.no_grad()
    def restore(self, weights: Sequence[Tensor]) -> None:
        """Copy `weights` back in place, without allocating memory."""
        torch._foreach_copy_(self.params, list(weights))

    def save(self, folder: Path, cut: bool = True) -> None:
        """Write the student in transformers format (safetensors), with its tokenizer, which names the inputs it was trained with.

        Args:
            folder: where it is written.
            cut: whether the saved tokenizer cuts texts to `max_length` by itself, see `distill.models.cut`.
        """
        names = list(self.tokenizer.model_input_names)
        if "token_type_ids" not in names and gives_token_types(self.model, self.tokenizer):
            self.tokenizer.model_input_names = [*names, "token_type_ids"]
            self.tokenizer.init_kwargs["model_input_names"] = self.tokenizer.model_input_names
        with quiet():
            self.model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
            if cut:
                save_cut(self.tokenizer, folder, self.settings.max_length)
