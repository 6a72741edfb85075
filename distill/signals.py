"""TeacherSignals: what the teachers, and the encoder behind the state, said of every instance of a split.

One interface, two ways to have it. Stored: each source passes over a split once, and its output is kept on disk as an
array keyed by the hash of the split's ids and texts and by the source's own fingerprint; a second run
loads no model. Live: the models run whenever they are asked.
"""

from __future__ import annotations

import hashlib
import mmap
import re
import shutil
import zlib
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from . import cache, parallel
from .models import (
    Engine,
    check_length,
    check_tokens,
    load_config,
    load_encoder,
    load_tokenizer,
    resolve,
    takes_token_types,
)
from .settings import EncoderSettings, UserError, check, digest
from .tasks import Split
from .tokens import Batch, TokenizedSplit, run_over, run_rows

FORMAT = 2  # of stored arrays; raised whenever what is stored changes


class Source(Protocol):
    """Something that says a vector of `width` numbers about an instance: a teacher (its logits) or an encoder."""

    name: str
    fingerprint: str
    width: int

    def compute(self, split: Split) -> np.ndarray:
        """Float32 `[N, width]`, in the split's order."""
        ...

    def at(self, split: Split, rows: np.ndarray) -> np.ndarray:
        """Float32 `[B, width]` of a few instances of a split: what was prepared for the split is kept for the next call."""
        ...

    def release(self) -> None:
        """Forget what was loaded and prepared; it may be asked again."""
        ...


class TeacherSignals(Protocol):
    """What is known of instances, by row of one split. K teachers, C classes, D numbers of the encoder."""

    names: tuple[str, ...]
    width: int
    selective: bool  # whether asking for chosen pairs alone is cheaper than asking for all

    def logits(self, rows: np.ndarray, chosen: np.ndarray | None = None) -> np.ndarray:
        """Teacher logits, float32 `[B,K,C]`; with `chosen` (bool `[B,K]`) those of other pairs may be zeros."""
        ...

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """Encoder vectors of unit length, float32 `[B,D]`."""
        ...


class StoredSignals:
    """Signals read from the store."""

    selective = False

    def __init__(self, split: Split, teachers: list[Source], encoder: Source, home: Path) -> None:
        self.names, self.width = tuple(t.name for t in teachers), encoder.width
        self._logits = [stored(t, split, home) for t in teachers]
        self._vectors = stored(encoder, split, home)

    def logits(self, rows: np.ndarray, chosen: np.ndarray | None = None) -> np.ndarray:
        """Teacher logits, float32 `[B,K,C]`, of all pairs."""
        return np.stack([array[rows] for array in self._logits], 1)

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """Encoder vectors of unit length, float32 `[B,D]`."""
        return self._vectors[rows]


class LiveSignals:
    """Signals computed on demand: a forward of a teacher for the instances that ask for it, and for no other."""

    selective = True

    def __init__(self, split: Split, teachers: list[Source], encoder: Source) -> None:
        self.names, self.width = tuple(t.name for t in teachers), encoder.width
        self.split, self.teachers, self.encoder = split, teachers, encoder

    def logits(self, rows: np.ndarray, chosen: np.ndarray | None = None) -> np.ndarray:
        """Teacher logits, float32 `[B,K,C]`; with `chosen` (bool `[B,K]`) zeros elsewhere, where no teacher is run.

        Raises `UserError` for a number that is not finite, as the store does.
        """
        out = np.zeros((len(rows), len(self.teachers), self.teachers[0].width), np.float32)
        for k, teacher in enumerate(self.teachers):
            asking = np.arange(len(rows)) if chosen is None else np.flatnonzero(chosen[:, k])
            if len(asking):
                out[asking, k] = checked(teacher.at(self.split, rows[asking]), len(asking), teacher)
        return out

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """Encoder vectors of unit length, float32 `[B,D]`."""
        return checked(self.encoder.at(self.split, rows), len(rows), self.encoder)


BLOCK = 64  # rows under one checksum
SHARD = 8192  # instances between two points that a killed build goes on from
RESIDENT = 64 << 20  # bytes of a file that may stay mapped before they are given back
AROUND = 2 << 20  # bytes the kernel may map around a row


class StoredArray:
    """Rows of a stored array `[N, width]`, read as they are asked for, each block checked when it is first met.

    Opening costs nothing that grows with the width, and the memory held does not grow with what has been read.
    """

    def __init__(self, folder: Path, count: int, width: int) -> None:
        self.folder, self.shape = folder, (count, width)
        try:  # no header: nothing in the file is outside the checksums
            self._values: np.memmap[Any, Any] = np.memmap(folder / "values.f32", "<f4", "r", shape=self.shape)
            self._sums: np.ndarray = np.load(folder / "sums.npy", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError(f"cache entry {folder}: cannot be read ({error}){cache.way_out(folder)}") from None
        self._known = np.zeros(len(self._sums), bool)
        self._mapped = 0

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Float32 `[B, width]`, a copy; `UserError` where the file is not what was written."""
        blocks = np.unique(rows // BLOCK)
        for block in blocks[~self._known[blocks]]:
            if _sum_of(self._values[block * BLOCK : (block + 1) * BLOCK]) != self._sums[block]:
                raise UserError(
                    f"cache entry {self.folder}: values.f32 is damaged in rows {block * BLOCK} to "
                    f"{min((block + 1) * BLOCK, len(self)) - 1}{cache.way_out(self.folder)}"
                )
            self._known[block] = True
        out: np.ndarray = self._values[rows]
        self._mapped += len(blocks) * AROUND
        if min(self._mapped, self._values.nbytes) > RESIDENT and hasattr(mmap, "MADV_DONTNEED"):
            self._values._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]  # the kernel still has the pages
            self._mapped = 0
        return out


def _sum_of(block: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(block).data)


def stored(source: Source, split: Split, home: Path) -> StoredArray:
    """The source's output over a split `[N, width]`, computed and kept at the first call; a killed build goes on where it was.

    Raises `UserError` naming both sides when the entry found is of another split, source or format, or is damaged.
    """
    facts = {
        "format": FORMAT,
        "split": split.fingerprint,
        "source": source.fingerprint,
        "name": source.name,
        "count": len(split),
    }
    folder = home / "signals" / split.fingerprint / f"{source.name}-{source.fingerprint}-v{FORMAT}"
    shards = folder.with_name(f".{folder.name}.shards")

    def build(temporary: Path) -> dict[str, Any]:
        path = temporary / "values.f32"
        starts = range(0, len(split), SHARD)
        whole = len(split) <= SHARD
        with open(path, "wb") as file:  # not a map: writing to one on a full disk ends the process (SIGBUS)
            for start in tqdm(starts, desc=f"storing {source.name}", unit="shard", disable=True if whole else None):
                part = split if whole else split.take(np.arange(start, min(start + SHARD, len(split))))
                values = (
                    checked(source.compute(part), len(part), source) if whole else _shard(source, part, shards, start)
                )
                file.write(values.astype("<f4").tobytes())
        stored_values = np.memmap(path, "<f4", "r", shape=(len(split), source.width))
        sums = [_sum_of(stored_values[i : i + BLOCK]) for i in range(0, len(split), BLOCK)]
        (temporary / "sums.npy").write_bytes(cache.npy(np.array(sums, np.uint32)))
        (temporary / "ids.npy").write_bytes(cache.npy(split.ids.astype(np.str_)))
        source.release()  # a pool need not lie in memory whole
        return {"width": source.width}

    cache.entry(folder, facts, build, checked_later=("values.f32",))
    shutil.rmtree(shards, ignore_errors=True)
    return StoredArray(folder, len(split), source.width)


def _shard(source: Source, part: Split, folder: Path, start: int) -> np.ndarray:
    """One shard's values, from a build that was killed or computed now; a file carries its checksum in its name."""
    for path in folder.glob(f"{start}-*.f32"):
        data = path.read_bytes()
        if path.stem == f"{start}-{zlib.crc32(data)}" and len(data) == 4 * len(part) * source.width:
            return np.frombuffer(data, "<f4").reshape(len(part), source.width)
    values = checked(source.compute(part), len(part), source).astype("<f4", copy=False)
    if parallel.is_first():
        folder.mkdir(exist_ok=True)
        cache.write_whole(folder / f"{start}-{_sum_of(values)}.f32", values.tobytes())
    return values


def checked(values: np.ndarray, count: int, source: Source) -> np.ndarray:
    """`values` as contiguous float32 `[count, width]`; `UserError` for another shape or a number that is not finite."""
    values = np.ascontiguousarray(values, np.float32)
    check(
        values.shape == (count, source.width),
        f"{source.name}: gave shape {values.shape}, expected {(count, source.width)}",
    )
    bad = ~np.isfinite(values).all(1)
    check(
        not bad.any(),
        f"{source.name}: {int(bad.sum())} of {count} instances have NaN or infinite outputs; this teacher or encoder is broken",
    )
    return values


# --- encoders ---------------------------------------------------------------------------------------------------------


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
