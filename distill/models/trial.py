"""Trying a model out before anything is trained or stored: padding, the longest input, a backward pass, saving.

What a checkpoint can do is not looked up in lists of architectures. It runs on a few texts of the task, and what fails
there ends in one line. All of it happens on the CPU: on a GPU an index beyond a table ends the process.
"""

from __future__ import annotations

import inspect
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from distill import cache
from distill.checks import UserError
from distill.data.tokens import Batch, Padding, TokenizedSplit
from distill.models.engine import isolated_rng
from distill.models.loading import SAFELY, check_tokens, gives_token_types, quiet, reason, vocabulary
from distill.settings import digest

log = logging.getLogger(__name__)

Texts = Sequence[tuple[str, ...]]
LOOKED_AT = 200  # texts that the samples are taken from
PADDED = 128  # tokens of the padded batch, at most
LONGEST = 4096  # tokens of the longest input that is tried, at most
POOLING = ("funnel",)  # families that pool over neighbouring tokens by a function, which no module shows
CLOSE = 2e-3  # difference that counts as rounding, as a share of the largest output


def settle_padding(model: Any, tokenizer: Any) -> Padding:
    """What fills the shorter rows of a batch, from the model and the tokenizer together.

    The model's own padding token goes first: classification heads and positions are computed with it. Where it has
    none, the configuration gets the tokenizer's, or else another special token, so that a head that reads the last real
    token (GPT-2, Llama) finds it. The tokenizer is changed to agree, so that both are saved as they were used.
    """
    text = model.config.get_text_config()
    known = vocabulary(model)

    def usable(token: Any) -> bool:
        return isinstance(token, int) and token >= 0 and (known is None or token < known)

    chosen = next((t for t in (getattr(text, "pad_token_id", None), tokenizer.pad_token_id) if usable(t)), None)
    if chosen is None:
        # A token that ends every text cannot be padding: the head would not see the text's own.
        last = tokenizer("a")["input_ids"][-1:]
        special = (tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.sep_token_id, 0, 1)
        chosen = next(t for t in special if usable(t) and [t] != last)
    for config in (text, model.config):
        if getattr(config, "pad_token_id", None) != chosen:
            config.pad_token_id = chosen
    if tokenizer.pad_token_id != chosen and chosen in tokenizer.all_special_ids:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(chosen)
    return Padding.of(tokenizer, chosen)


def padded_fingerprint(weights: str, config: Any, tokenizer: Any) -> str:
    """The fingerprint of a checkpoint, and of how it is padded where its model and tokenizer do not say the same.

    Outputs stored for such a checkpoint by earlier versions, which padded as the tokenizer says, are not used.
    """
    given = getattr(config.get_text_config(), "pad_token_id", None)
    agree = tokenizer.padding_side == "right" and tokenizer.pad_token_id == given
    return weights if agree else digest(weights, "padding settled")


def logits_of(model: Any) -> Callable[[Batch], Tensor]:
    """A function from a padded batch to a classifier's logits `[B,C]`; `UserError` if the model gives none."""

    def run(batch: Batch) -> Tensor:
        logits = getattr(model(**batch), "logits", None)
        expected = (len(batch["input_ids"]), model.config.num_labels)
        if not isinstance(logits, Tensor) or tuple(logits.shape) != expected:
            raise UserError(f"{type(model).__name__} gives no logits of shape {expected}")
        return logits

    return run


@dataclass(frozen=True)
class Trial:
    """A model with everything that it takes to run on texts.

    Attributes:
        model: the model, on the CPU.
        tokenizer: its tokenizer.
        max_length: longest text, in tokens.
        what: how error messages name the model.
        run: from a padded batch to outputs `[B, width]`.
    """

    model: Any
    tokenizer: Any
    max_length: int
    what: str
    run: Callable[[Batch], Tensor]

    def tokens(self, texts: Texts, max_length: int, padding: Padding) -> TokenizedSplit:
        """Texts in tokens.

        Raises:
            UserError: for a tokenizer that fails, or gives tokens that the model does not know.
        """
        types = gives_token_types(self.model, self.tokenizer)
        tokens = tokenize(texts, self.tokenizer, max_length, self.what, types=types, padding=padding)
        check_tokens(self.model, self.tokenizer, int(tokens.ids.max()))
        return tokens

    def outputs(self, batch: Batch) -> Tensor:
        """Outputs `[B, width]`. Models that draw random numbers (LSH attention) draw the same ones every time."""
        with isolated_rng(0), torch.no_grad():
            return self.run(batch).float()

    def refusal(self, error: Exception, doing: str) -> UserError:
        """The error for a model that fails while `doing` something."""
        said = str(error) if isinstance(error, UserError) else reason(error)
        return UserError(f"{self.what}: {type(self.model).__name__} cannot {doing} ({said}); use another checkpoint")


def tokenize(texts: Texts, tokenizer: Any, max_length: int, what: str, **more: Any) -> TokenizedSplit:
    """`TokenizedSplit.build`; `UserError` for a tokenizer that fails."""
    try:
        return TokenizedSplit.build(texts, tokenizer, max_length, **more)
    except Exception as error:  # tokenizers raise exceptions of many classes
        raise UserError(f"{what}: its tokenizer fails on the texts ({reason(error)}); use another checkpoint") from None


def try_out(
    model: Any,
    tokenizer: Any,
    texts: Texts,
    max_length: int,
    what: str,
    run: Callable[[Batch], Tensor] | None = None,
    trains: bool = False,
) -> None:
    """Run a model on a few texts before anything depends on it.

    Afterwards model and tokenizer agree on padding: on its token, and on a side that leaves the outputs alone. The model
    is in eval mode.

    Args:
        model: the model, on the CPU.
        tokenizer: its tokenizer.
        texts: texts of the task; a few are used.
        max_length: longest text, in tokens.
        what: how error messages name the model.
        run: from a padded batch to outputs `[B, width]`; None: the logits of a classifier.
        trains: whether the model will be trained: a backward pass is tried too.

    Raises:
        UserError: for a model that cannot run on the texts, has fewer positions than `max_length`, cannot be trained,
            or gives other outputs for a text in a padded batch than alone.
    """
    model.eval()  # without dropout
    trial = Trial(model, tokenizer, max_length, what, run or logits_of(model))
    padding = settle_padding(model, tokenizer)
    samples = _samples(texts)
    length = min(max_length, PADDED)
    tokens = trial.tokens([*samples, _long(samples, tokenizer, length)], length, padding)
    # The longest comes last. It is what the others are padded to.
    alone = torch.cat([_one(trial, tokens, row) for row in range(len(samples))])
    _try_longest(trial, samples, padding)
    if alone.isfinite().all():  # outputs that are not are refused by name, where they are stored
        _try_padding(trial, tokens, alone)
    if trains:
        _try_training(trial, tokens)


def _samples(texts: Texts) -> list[tuple[str, ...]]:
    """The shortest, a middle and a long text of the first ones."""
    alike = [t for t in texts[:LOOKED_AT] if len(t) == len(texts[0])] or [("a",)]
    looked = [t for t in alike if any(part.strip() for part in t)] or alike[:1]
    ordered = sorted(looked, key=lambda text: sum(map(len, text)))
    return [ordered[i] for i in sorted({0, len(ordered) // 2, len(ordered) * 9 // 10})]


def _long(samples: Texts, tokenizer: Any, length: int) -> tuple[str, ...]:
    """A text of at least `length` tokens, made of the samples, unless their tokens do not grow with the text."""
    columns = [" ".join(parts) or "a" for parts in zip(*samples, strict=True)]
    repeated = 1
    while repeated * sum(map(len, columns)) < 16 * length:  # nearly every tokenizer reads fewer letters a token
        repeated *= 2
    return tuple(" ".join([column] * repeated) for column in columns)


def _try_longest(trial: Trial, samples: Texts, padding: Padding) -> None:
    """Run one text of `max_length` tokens."""
    length = min(trial.max_length, LONGEST)
    tokens = trial.tokens([_long(samples, trial.tokenizer, length)], length, padding)
    _one(trial, tokens, 0)
    positions = getattr(trial.model.config.get_text_config(), "max_position_embeddings", None) or 0
    if 0 < positions < trial.max_length:
        log.warning(
            "%s: max_length=%d is more than the %d positions of its configuration; its positions are relative, so it runs",
            trial.what,
            trial.max_length,
            positions,
        )


def _one(trial: Trial, tokens: TokenizedSplit, row: int) -> Tensor:
    """Outputs `[1, width]` of one text alone.

    Raises:
        UserError: for a model that fails; if shorter texts work, with the number of its positions.
    """
    whole = tokens.batch(np.array([row]))
    length = int(tokens.lengths[row])
    try:
        return trial.outputs(whole)
    except Exception as error:
        first = error

    def works(count: int) -> bool:
        try:
            trial.outputs({key: value[:, :count] for key, value in whole.items()})
        except Exception:
            return False
        return True

    good, bad = 0, length
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if works(middle) else (good, middle)
    # Some models fail at lengths that do not divide by something: then a longer text works.
    if good and not any(map(works, range(bad, min(bad + 4, length)))):
        raise UserError(f"{trial.what}: max_length={trial.max_length} is more than its {good} positions")
    raise trial.refusal(first, f"run on {length} tokens")


def _try_padding(trial: Trial, tokens: TokenizedSplit, alone: Tensor) -> None:
    """Compare texts in a padded batch with the same texts alone `[n, width]`, on the tokenizer's side first."""
    tolerance = 1e-5 + CLOSE * float(alone.abs().max())
    first = tokens.padding.left
    apart = {}
    for left in (first, not first):
        sided = replace(tokens, padding=replace(tokens.padding, left=left))
        try:
            together = trial.outputs(sided.batch(np.arange(len(tokens))))[: len(alone)]
        except Exception as error:
            raise trial.refusal(error, "run on a padded batch") from None
        apart[left] = float((together - alone).abs().nan_to_num(torch.inf).max())
        if apart[left] <= tolerance:
            if left != first:
                log.info("%s: padded on the %s, where padding is harmless", trial.what, "left" if left else "right")
            trial.tokenizer.padding_side = "left" if left else "right"
            return
    trial.tokenizer.padding_side = "right"
    off = f"by {apart[False]:.2g}, where outputs reach {float(alone.abs().max()):.2g}"
    if not _reads_padding(trial.model):
        raise UserError(
            f"{trial.what}: {type(trial.model).__name__} gives a text other outputs in a padded batch than alone (off {off}); "
            "use a checkpoint whose model leaves padding out"
        )
    log.warning(
        "%s: %s mixes padding into its outputs by design (off %s): they depend on what else is in the batch",
        trial.what,
        type(trial.model).__name__,
        off,
    )


def _reads_padding(model: Any) -> bool:
    """Whether padding reaches the outputs by design: no attention mask (FNet), convolutions (ConvBERT), pooling (Funnel)."""
    if "attention_mask" not in inspect.signature(model.forward).parameters:
        return True
    if model.config.model_type in POOLING:
        return True
    return any(isinstance(m, nn.Conv1d | nn.Conv2d) and max(m.kernel_size) > 1 for m in model.modules())


def _try_training(trial: Trial, tokens: TokenizedSplit) -> None:
    """Run one backward pass; the gradients are dropped."""
    try:
        with isolated_rng(0), torch.enable_grad():
            trial.run(tokens.batch(np.arange(len(tokens)))).float().logsumexp(-1).sum().backward()
    except Exception as error:
        raise trial.refusal(error, "be trained") from None
    finally:
        trial.model.zero_grad(set_to_none=True)


def try_saving(model: Any, tokenizer: Any, what: str) -> None:
    """Save a classifier into a temporary folder and load it again.

    Raises:
        UserError: if that fails, or other weights come back.
    """
    way_out = "keep all its layers or use another checkpoint"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with cache.writing(folder, "set TMPDIR to another folder"):
            try:
                with quiet():
                    model.save_pretrained(folder)
                    tokenizer.save_pretrained(folder)
                    again = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, **SAFELY)
            except OSError:
                raise
            except Exception as error:
                raise UserError(
                    f"{what}: the model cannot be saved and loaded again ({reason(error)}); {way_out}"
                ) from None
    kept = dict(again.named_parameters())
    lost = [n for n, p in model.named_parameters() if n not in kept or not torch.equal(kept[n], p)]
    if lost:
        raise UserError(f"{what}: {lost[0]} is lost when the model is saved and loaded again; {way_out}")
