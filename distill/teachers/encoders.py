"""Encoders behind the state's semantic vector."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill import cache
from distill.checks import UserError
from distill.data.splits import Split
from distill.data.tokens import Batch, TokenizedSplit, run_over, run_rows
from distill.models.engine import Engine
from distill.models.loading import (
    check_length,
    check_tokens,
    load_config,
    load_encoder,
    load_tokenizer,
    resolve,
    takes_token_types,
)
from distill.settings import EncoderSettings, digest
from distill.teachers.signals import Source


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1; rows of zeros stay."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, 1e-12), np.float32)


class BagEncoder:
    """A random projection of the bag of words: every word has a fixed Gaussian vector, drawn from the word's hash.

    Words of up to three letters are left out: in most languages written with spaces they are function words, which
    every text shares. The second text of a pair has vectors of its own.
    """

    def __init__(self, dim: int) -> None:
        self.width = dim
        self.name, self.fingerprint = "bag", digest("bag", 1, dim)

        @lru_cache(maxsize=100_000)
        def vector(word: str) -> np.ndarray:
            seed = int.from_bytes(
                hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little"
            )
            return np.random.default_rng(seed).standard_normal(dim)

        self._vector = vector

    def compute(self, split: Split) -> np.ndarray:
        """Unit vectors, float32 `[N, dim]`."""
        out = np.zeros((len(split), self.width))
        for i, texts in enumerate(split.texts):
            for place, text in enumerate(texts):
                for word in re.findall(r"\w{4,}", text.lower()):
                    out[i] += self._vector(f"{place}:{word}")
        return unit(out)

    def at(self, split: Split, rows: np.ndarray) -> np.ndarray:
        """Unit vectors, float32 `[B, dim]`."""
        return self.compute(split.take(rows))

    def release(self) -> None:
        """There is no model: nothing to forget."""


class TransformerEncoder:
    """A pretrained encoder, used as it is: the mean of its last states over the tokens, or the first token's (the paper's [CLS])."""

    def __init__(self, settings: EncoderSettings, engine: Engine) -> None:
        self.settings, self.engine = settings, engine
        self.folder = resolve(str(settings.path), "encoder")
        self.name = "encoder"
        self.fingerprint = digest(
            cache.folder_fingerprint(self.folder), settings.pooling, settings.max_length, str(engine.amp)
        )
        config = load_config(self.folder, "encoder")
        self.width = int(config.hidden_size)
        check_length(SimpleNamespace(config=config), settings.max_length, "encoder")
        self._model: Any = None
        self._prepared: tuple[str, TokenizedSplit] | None = None

    def compute(self, split: Split) -> np.ndarray:
        """Unit vectors, float32 `[N, hidden size]`."""
        return unit(run_over(self._tokens(split), self._pool, progress=f"encoder on {split.role}").numpy())

    def at(self, split: Split, rows: np.ndarray) -> np.ndarray:
        """Unit vectors, float32 `[B, hidden size]`."""
        return unit(run_rows(self._tokens(split), rows, self._pool).numpy())

    def _tokens(self, split: Split) -> TokenizedSplit:
        if self._model is None:
            self._model = load_encoder(self.folder, "encoder").to(self.engine.device)
        if self._prepared is None or self._prepared[0] != split.fingerprint:
            tokenizer, types = load_tokenizer(self.folder, "encoder"), takes_token_types(self._model)
            tokens = TokenizedSplit.build(split.texts, tokenizer, self.settings.max_length, self.engine.device, types)
            check_tokens(self._model, tokenizer, int(tokens.ids.max()))
            self._prepared = split.fingerprint, tokens
        return self._prepared[1]

    def release(self) -> None:
        """Forget the model and the tokens; they are made again when asked."""
        self._model = self._prepared = None

    def _pool(self, batch: Batch) -> Tensor:
        with self.engine.autocast():
            states: Tensor = self._model(**batch).last_hidden_state.float()
        mask = batch["attention_mask"].unsqueeze(-1).float()
        if self.settings.pooling == "mean":
            return (states * mask).sum(1) / mask.sum(1).clamp_min(1)
        first = batch["attention_mask"].argmax(1)  # 0 unless padded on the left
        return states[torch.arange(len(states), device=states.device), first]


def make_encoder(settings: EncoderSettings, engine: Engine) -> Source:
    """The encoder that the settings describe."""
    if settings.kind == "bag":
        return BagEncoder(settings.dim)
    try:
        return TransformerEncoder(settings, engine)
    except AttributeError as error:
        raise UserError(
            f"encoder: {settings.path} is not an encoder with a hidden size ({type(error).__name__})"
        ) from None
