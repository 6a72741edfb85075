"""Encoders: the fixed vector of a text in the state. One class for each kind, found in the registry `ENCODERS`.

A kind of your own is a dataclass in `distill.settings.ENCODER_KINDS` and a class in `ENCODERS`, both under its name.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill import cache
from distill.checks import UserError, one_of
from distill.data.splits import Split
from distill.data.tokens import Batch, TokenizedSplit, run_over, run_rows
from distill.models.engine import Engine
from distill.models.loading import (
    check_tokens,
    gives_token_types,
    load_config,
    load_encoder,
    load_tokenizer,
    resolve,
    withheld_inputs,
)
from distill.models.trial import padded_fingerprint, settle_padding, tokenize, try_out
from distill.settings import BagEncoderSettings, EncoderSettings, TransformerEncoderSettings, digest
from distill.teachers.signals import Source


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows `[N,D]` scaled to length 1, float32. Rows of zeros stay as they are."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, 1e-12), np.float32)


class BagEncoder:
    """Kind `bag`: a random projection of the bag of words. It needs no model.

    Every word has a fixed Gaussian vector, drawn with a seed from the word's hash. Words of up to three letters are
    left out: in most languages written with spaces they are function words, which all texts share. A word in the second
    text of a pair has another vector than in the first.
    """

    def __init__(self, settings: BagEncoderSettings, engine: Engine | None = None) -> None:
        self.width = dim = settings.dim
        self.name, self.fingerprint = "bag", digest("bag", 1, dim)

        @lru_cache(maxsize=100_000)
        def vector(word: str) -> np.ndarray:
            hashed = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            return np.random.default_rng(int.from_bytes(hashed, "little")).standard_normal(dim)

        self._vector = vector

    def compute(self, split: Split) -> np.ndarray:
        """Unit vectors: float32 `[N, dim]`."""
        out = np.zeros((len(split), self.width))
        for i, texts in enumerate(split.texts):
            for place, text in enumerate(texts):
                for word in re.findall(r"\w{4,}", text.lower()):
                    out[i] += self._vector(f"{place}:{word}")
        return unit(out)

    def at(self, split: Split, rows: np.ndarray) -> np.ndarray:
        """Unit vectors of a few rows: float32 `[B, dim]`."""
        return self.compute(split.take(rows))

    def release(self) -> None:
        """Nothing to free: there is no model."""


class TransformerEncoder:
    """Kind `transformer`: a pretrained encoder, used as it is.

    The vector is the mean of the last hidden states over the tokens, or the first token's (the paper's [CLS]).

    Raises:
        UserError: for a checkpoint that is not an encoder, or has fewer positions than `max_length` tokens.
    """

    def __init__(self, settings: TransformerEncoderSettings, engine: Engine) -> None:
        self.settings, self.engine = settings, engine
        self.folder = resolve(str(settings.path), "encoder")
        self.name = "encoder"
        config = load_config(self.folder, "encoder").get_text_config()
        if not hasattr(config, "hidden_size"):
            raise UserError(f"encoder: {settings.path} is not an encoder: its configuration has no hidden_size")
        self.width = int(config.hidden_size)
        content = cache.folder_fingerprint(self.folder)
        self._unchanged = cache.Unchanged(self.folder, content, "encoder")
        tokenizer = load_tokenizer(self.folder, "encoder")
        weights, inputs = padded_fingerprint(content, config, tokenizer), withheld_inputs(config, tokenizer)
        self.fingerprint = digest(weights, settings.pooling, settings.max_length, str(engine.amp), *inputs)
        self._model: Any = None
        self._tokenizer: Any = None
        self._prepared: tuple[str, TokenizedSplit] | None = None

    def compute(self, split: Split) -> np.ndarray:
        """Unit vectors: float32 `[N, hidden size]`."""
        return unit(run_over(self._tokens(split), self._pool, progress=f"encoder on {split.role}").numpy())

    def at(self, split: Split, rows: np.ndarray) -> np.ndarray:
        """Unit vectors of a few rows: float32 `[B, hidden size]`."""
        return unit(run_rows(self._tokens(split), rows, self._pool).numpy())

    def _tokens(self, split: Split) -> TokenizedSplit:
        self.load(split)
        if self._prepared is None or self._prepared[0] != split.fingerprint:
            tokens = tokenize(
                split.texts,
                self._tokenizer,
                self.settings.max_length,
                "encoder",
                device=self.engine.device,
                types=gives_token_types(self._model, self._tokenizer),
                multiple=self.engine.multiple,
                padding=settle_padding(self._model, self._tokenizer),
            )
            check_tokens(self._model, self._tokenizer, int(tokens.ids.max()))
            self._prepared = split.fingerprint, tokens
        return self._prepared[1]

    def load(self, split: Split) -> None:
        """Load the model and its tokenizer at the first call, and try them out on texts of the split.

        Raises:
            UserError: for a checkpoint that cannot be loaded, fails on the texts or has changed.
        """
        if self._model is not None:
            return
        model: Any = load_encoder(self.folder, "encoder")
        self._tokenizer = load_tokenizer(self.folder, "encoder")
        try:
            self._try_out(model, split)
        except UserError:
            if not model.config.is_encoder_decoder:
                raise
            model = model.get_encoder()  # the whole of T5 also needs what its decoder reads
            self._try_out(model, split)
        model = model.to(self.engine.device)
        self._unchanged.check()
        self._model = model

    def _try_out(self, model: Any, split: Split) -> None:
        def run(batch: Batch) -> Tensor:
            states = model(**batch).last_hidden_state
            expected = (*batch["input_ids"].shape, self.width)
            if tuple(states.shape) != expected:
                raise UserError(f"it gives states of shape {tuple(states.shape)}, not {expected}: one for each token")
            return pooled(states, batch["attention_mask"], self.settings.pooling)

        try_out(model, self._tokenizer, split.texts, self.settings.max_length, "encoder", run)

    def release(self) -> None:
        """Free the model and the tokens. They are loaded again when they are needed."""
        self._model = self._tokenizer = self._prepared = None

    def _pool(self, batch: Batch) -> Tensor:
        """Vectors `[B, hidden size]` of a padded batch, before they are scaled."""
        with self.engine.autocast():
            states: Tensor = self._model(**batch).last_hidden_state.float()
        return pooled(states, batch["attention_mask"], self.settings.pooling)


def pooled(states: Tensor, attention_mask: Tensor, pooling: str) -> Tensor:
    """One vector a row `[B,H]` from the states of its tokens `[B,L,H]`: their mean, or the first token's."""
    if pooling == "mean":
        mask = attention_mask.unsqueeze(-1).float()
        return (states * mask).sum(1) / mask.sum(1).clamp_min(1)
    first = attention_mask.argmax(1)  # 0, unless the batch is padded on the left
    return states[torch.arange(len(states), device=states.device), first]


ENCODERS: dict[str, Callable[[Any, Engine], Source]] = {
    BagEncoderSettings.kind: BagEncoder,
    TransformerEncoderSettings.kind: TransformerEncoder,
}


def make_encoder(settings: EncoderSettings, engine: Engine) -> Source:
    """The encoder of the kind that the settings have.

    Raises:
        UserError: for an unknown kind or a checkpoint that cannot be used.
    """
    one_of(settings.kind, tuple(ENCODERS), "encoder.kind")
    return ENCODERS[settings.kind](settings, engine)
