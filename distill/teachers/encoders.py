"""Encoders: the fixed vector of a text in the state. One class for each kind, found in the registry `ENCODERS`.

A kind of your own is a dataclass in `distill.settings.ENCODER_KINDS` and a class in `ENCODERS`, both under its name.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from functools import lru_cache
from types import SimpleNamespace
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
    check_length,
    check_tokens,
    gives_token_types,
    load_config,
    load_encoder,
    load_tokenizer,
    resolve,
    withheld_inputs,
)
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
        content = cache.folder_fingerprint(self.folder)
        self._unchanged = cache.Unchanged(self.folder, content, "encoder")
        config = load_config(self.folder, "encoder")
        if not hasattr(config, "hidden_size"):
            raise UserError(f"encoder: {settings.path} is not an encoder: its configuration has no hidden_size")
        self.width = int(config.hidden_size)
        check_length(SimpleNamespace(config=config), settings.max_length, "encoder")
        inputs = withheld_inputs(config, load_tokenizer(self.folder, "encoder"))
        self.fingerprint = digest(content, settings.pooling, settings.max_length, str(engine.amp), *inputs)
        self._model: Any = None
        self._prepared: tuple[str, TokenizedSplit] | None = None

    def compute(self, split: Split) -> np.ndarray:
        """Unit vectors: float32 `[N, hidden size]`."""
        return unit(run_over(self._tokens(split), self._pool, progress=f"encoder on {split.role}").numpy())

    def at(self, split: Split, rows: np.ndarray) -> np.ndarray:
        """Unit vectors of a few rows: float32 `[B, hidden size]`."""
        return unit(run_rows(self._tokens(split), rows, self._pool).numpy())

    def _tokens(self, split: Split) -> TokenizedSplit:
        if self._model is None:
            model = load_encoder(self.folder, "encoder").to(self.engine.device)
            self._unchanged.check()
            self._model = model
        if self._prepared is None or self._prepared[0] != split.fingerprint:
            tokenizer = load_tokenizer(self.folder, "encoder")
            types = gives_token_types(self._model, tokenizer)
            tokens = TokenizedSplit.build(
                split.texts, tokenizer, self.settings.max_length, self.engine.device, types, self.engine.multiple
            )
            check_tokens(self._model, tokenizer, int(tokens.ids.max()))
            self._prepared = split.fingerprint, tokens
        return self._prepared[1]

    def release(self) -> None:
        """Free the model and the tokens. They are loaded again when they are needed."""
        self._model = self._prepared = None

    def _pool(self, batch: Batch) -> Tensor:
        """Vectors `[B, hidden size]` of a padded batch, before they are scaled."""
        with self.engine.autocast():
            states: Tensor = self._model(**batch).last_hidden_state.float()
        mask = batch["attention_mask"].unsqueeze(-1).float()
        if self.settings.pooling == "mean":
            return (states * mask).sum(1) / mask.sum(1).clamp_min(1)
        first = batch["attention_mask"].argmax(1)  # 0, unless the batch is padded on the left
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
