"""A tokenised split as one buffer, and padded batches cut from it without a DataLoader."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill import parallel
from distill.progress import Progress

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Padding:
    """What fills the shorter rows of a batch.

    Attributes:
        id: token id.
        type: token type.
        left: whether it goes on the left (XLNet).
    """

    id: int
    type: int
    left: bool

    @classmethod
    def of(cls, tokenizer: Any, known: int | None = None) -> Padding:
        """As the tokenizer says; with `known`, that token id."""
        return cls(
            id=(tokenizer.pad_token_id or 0) if known is None else known,
            # XLNet was trained with a separate token type for padding, which its tokenizer no longer reports.
            type=3 if "XLNet" in type(tokenizer).__name__ else getattr(tokenizer, "pad_token_type_id", 0) or 0,
            left=tokenizer.padding_side == "left",
        )


@dataclass
class TokenizedSplit:
    """The token ids of N instances, one after the other in one tensor on one device.

    Attributes:
        ids: token ids, int32 `[total]`.
        types: token types, int8 `[total]`, for models that use them; else None.
        offsets: where each instance begins and ends, int64 `[N+1]`. It stays on the host, so that the shape of a batch
            is known without waiting for the device.
        padding: what fills the shorter rows of a batch.
        multiple: batches are padded to a length that is a multiple of this, as far as some instance is that long.
    """

    ids: Tensor
    types: Tensor | None
    offsets: np.ndarray
    padding: Padding
    multiple: int = 1

    def __post_init__(self) -> None:
        self.lengths = np.diff(self.offsets)
        self._starts = torch.from_numpy(self.offsets[:-1]).to(self.ids.device)
        self._sizes = torch.from_numpy(self.lengths).to(self.ids.device)
        self._columns = torch.arange(int(self.lengths.max(initial=1)), device=self.ids.device)

    def __len__(self) -> int:
        return len(self.lengths)

    @classmethod
    def build(
        cls,
        texts: Sequence[tuple[str, ...]],
        tokenizer: Any,
        max_length: int,
        device: torch.device | str = "cpu",
        types: bool = True,
        multiple: int = 1,
        padding: Padding | None = None,
    ) -> TokenizedSplit:
        """Tokenise single texts or pairs of texts.

        Args:
            texts: one or two texts for each instance.
            tokenizer: a tokenizer of `transformers`.
            max_length: longest instance, in tokens. The longer text of a pair is cut first.
            device: where the tensors are kept.
            types: whether the model uses token types.
            multiple: see the class.
            padding: see the class; None: as the tokenizer says.
        """
        fill = padding or Padding.of(tokenizer)
        ids: list[np.ndarray] = []
        kinds: list[np.ndarray] = []
        for i in range(0, len(texts), 10_000):
            columns = [list(c) for c in zip(*texts[i : i + 10_000], strict=True)]
            out = tokenizer(
                *columns,
                truncation=True,
                max_length=max_length,
                padding=False,
                return_attention_mask=False,
                return_token_type_ids=types,
            )
            # A text without any token (an empty one, where no special tokens are added) becomes one token of padding:
            # a model has no output for nothing.
            ids += [np.asarray(row or [fill.id], np.int32) for row in out["input_ids"]]
            if types:
                kinds += [np.asarray(row or [fill.type], np.int8) for row in out["token_type_ids"]]
        return cls(
            ids=torch.from_numpy(np.concatenate(ids)).to(device),
            types=torch.from_numpy(np.concatenate(kinds)).to(device) if types else None,
            offsets=np.cumsum([0, *map(len, ids)], dtype=np.int64),
            padding=fill,
            multiple=multiple,
        )

    def batch(self, rows: np.ndarray) -> Batch:
        """Padded model inputs of `rows` (int64 `[B]`).

        Returns:
            `input_ids`, `attention_mask` and, for models that use them, `token_type_ids`; each int64 `[B, length]`, as long as the
            longest row or, with `multiple`, a little longer.
        """
        device = self.ids.device
        index = torch.from_numpy(np.asarray(rows, np.int64)).to(device, non_blocking=True)
        longest = int(self.lengths[rows].max())
        longest = min(-(-longest // self.multiple) * self.multiple, len(self._columns))
        columns = self._columns[:longest].expand(len(rows), longest)
        sizes = self._sizes[index, None]
        if self.padding.left:
            columns = columns - (longest - sizes)
        inside = (columns >= 0) & (columns < sizes)
        where = torch.where(inside, self._starts[index, None] + columns, 0)
        out = {
            "input_ids": torch.where(inside, self.ids[where], self.padding.id).long(),
            "attention_mask": inside.long(),
        }
        if self.types is not None:
            out["token_type_ids"] = torch.where(inside, self.types[where], self.padding.type).long()
        return out

    def by_length(self, batch_size: int) -> list[np.ndarray]:
        """All rows once, in batches of similar length, shortest first: this needs the least padding."""
        order = np.argsort(self.lengths, kind="stable")
        return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


class Stream:
    """Endless batches of exactly `batch_size` rows: one random permutation of the instances after another.

    Rows that do not fill a batch at the end of an epoch begin the next one. So no batch is short, and every instance
    comes once in an epoch.

    Args:
        lengths: lengths of the instances in tokens, int64 `[N]`.
        batch_size: rows in a batch, B.
        seed: seed of the permutations.
        group: put instances of similar length into one batch, which saves padding: each run of 50 batches is sorted by
            length. The order of the batches stays random.
    """

    RUN = 50  # batches that are sorted by length together

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int, group: bool = True) -> None:
        self.lengths, self.batch_size, self.group = lengths, batch_size, group
        self.rng = np.random.default_rng(seed)
        self.carry = np.empty(0, np.int64)
        self.queue: list[np.ndarray] = []

    def next(self) -> np.ndarray:
        """Rows of the next batch, int64 `[batch_size]`."""
        while not self.queue:
            self._refill()
        return self.queue.pop(0)

    def _refill(self) -> None:
        rows = np.concatenate([self.carry, self.rng.permutation(len(self.lengths))])
        whole = len(rows) // self.batch_size * self.batch_size
        rows, self.carry = rows[:whole], rows[whole:]
        if not self.group:
            self.queue = list(rows.reshape(-1, self.batch_size))
            return
        for i in range(0, whole, self.RUN * self.batch_size):
            part = rows[i : i + self.RUN * self.batch_size]
            part = part[np.argsort(self.lengths[part], kind="stable")].reshape(-1, self.batch_size)
            self.queue += list(part[self.rng.permutation(len(part))])

    def state_dict(self) -> dict[str, Any]:
        """Everything that the coming batches depend on.

        Returns:
            `rng`: state of the generator, JSON values; `carry`: rows that begin the next epoch, int64 `[<B]`; `queue`:
            batches that are ready, int64 `[Q,B]`.
        """
        ready = np.stack(self.queue) if self.queue else np.empty((0, self.batch_size), np.int64)
        return {"rng": self.rng.bit_generator.state, "carry": self.carry.copy(), "queue": ready}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the `state_dict()` of this stream, or of one with the same lengths and batch size."""
        self.rng.bit_generator.state = state["rng"]
        self.carry, self.queue = state["carry"].copy(), list(state["queue"].copy())


def run_over(
    tokens: TokenizedSplit, forward: Callable[[Batch], Tensor], batch_size: int = 256, progress: str | None = None
) -> Tensor:
    """Apply `forward` to a whole split, in batches of similar length.

    Several processes share out the batches. The batches do not depend on their number, so the results are the same to
    the bit.

    Args:
        tokens: the split.
        forward: from a padded batch to results `[B,...]`.
        batch_size: largest batch.
        progress: title of a progress bar; None: no bar.

    Returns:
        Float32 `[N,...]` in the order of the split, on the host.
    """
    out: Tensor | None = None
    world, rank = parallel.world(), parallel.rank()
    with (
        torch.inference_mode(),
        Progress(progress, len(tokens), "text", brief=True) if progress else nullcontext() as shown,
    ):
        # The longest batch comes first: if memory is too small, it fails at once.
        for turn, rows in enumerate(reversed(tokens.by_length(batch_size))):
            if turn == 0 or turn % world == rank:
                result = forward(tokens.batch(rows)).float()
                if out is None:  # every process computes the first batch, to know the shape of a result
                    out = torch.zeros(len(tokens), *result.shape[1:], device=result.device)
                if turn % world == rank:
                    out[torch.from_numpy(rows).to(result.device)] = result
            if shown is not None:
                shown.update(len(rows))
        assert out is not None
        out = parallel.total(out)
    return out.cpu().clone()


@torch.inference_mode()
def run_rows(
    tokens: TokenizedSplit, rows: np.ndarray, forward: Callable[[Batch], Tensor], batch_size: int = 256
) -> Tensor:
    """Apply `forward` to a few rows of a split, at most `batch_size` at a time.

    Returns:
        Float32 `[B,...]` in the order of `rows`, on the host.
    """
    parts = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    return torch.cat([forward(tokens.batch(part)).float().cpu() for part in parts])
