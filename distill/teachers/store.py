"""Signals stored on disk. Each source computes a split once; later runs load no model."""

from __future__ import annotations

import mmap
import shutil
import zlib
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from distill import cache, parallel
from distill.checks import UserError
from distill.data.splits import Split
from distill.progress import Progress
from distill.teachers.signals import Answers, Source, checked

FORMAT = 2  # of stored arrays; raised whenever their contents or layout change
BLOCK = 64  # rows that share a checksum
SHARD = 8192  # instances between two files from which an interrupted build continues
RESIDENT = 64 << 20  # bytes of a file that may stay in memory before they are given back
AROUND = 2 << 20  # bytes that the kernel may read around a row


class StoredSignals:
    """`TeacherSignals` read from disk. What is not stored yet is computed and stored when the object is made."""

    selective = False

    def __init__(self, split: Split, teachers: list[Source], encoder: Source, home: Path) -> None:
        self.names, self.width = tuple(t.name for t in teachers), encoder.width
        self._answers = Answers(split, teachers)
        self.complete = self._answers.complete
        self._logits = [stored(t, split, home) for t in teachers]
        self._vectors = stored(encoder, split, home)

    def answered(self, rows: np.ndarray) -> np.ndarray:
        """Which teachers have an answer for `rows` (int64 `[B]`): bool `[B,K]`."""
        return self._answers.at(rows)

    def logits(self, rows: np.ndarray, chosen: np.ndarray | None = None) -> np.ndarray:
        """Teacher logits of `rows` (int64 `[B]`): float32 `[B,K,C]`. All pairs are there, whatever `chosen` says."""
        return np.stack([array[rows] for array in self._logits], 1)

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """Encoder vectors of unit length: float32 `[B,D]`."""
        return self._vectors[rows]


class StoredArray:
    """A stored array `[N, width]` whose rows are read when they are needed.

    Each block of rows is checked against its checksum the first time one of its rows is read. The memory in use does
    not grow with the number of rows that have been read.

    Args:
        folder: the cache entry.
        count: N.
        width: length of a row.

    Raises:
        UserError: for an entry that cannot be read.
    """

    def __init__(self, folder: Path, count: int, width: int) -> None:
        self.folder, self.shape = folder, (count, width)
        try:  # the file has no header, so that the checksums cover all of it
            self._values: np.memmap[Any, Any] = np.memmap(folder / "values.f32", "<f4", "r", shape=self.shape)
            self._sums: np.ndarray = np.load(folder / "sums.npy", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError(f"cache entry {folder}: cannot be read ({error}){cache.way_out(folder)}") from None
        self._known = np.zeros(len(self._sums), bool)
        self._mapped = 0

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """A copy of `rows` (int64 `[B]`): float32 `[B, width]`.

        Raises:
            UserError: if a block with one of the rows does not match its checksum.
        """
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
            # Pages that are given back stay in the kernel's cache, so that reading them again costs little.
            self._values._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]
            self._mapped = 0
        return out


def _sum_of(block: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(block).data)


def stored(source: Source, split: Split, home: Path) -> StoredArray:
    """The outputs of a source for a split, `[N, width]`: from the cache, or computed and stored now.

    An interrupted build continues from its last shard.

    Raises:
        UserError: for outputs that are not finite, an entry that is damaged, or one of another split, source or
            format; the message names both.
    """
    facts = {
        "format": FORMAT,
        "split": split.fingerprint,
        "source": source.fingerprint,
        "name": source.name,
        "count": len(split),
    }
    folder = _entry(source, split, home)
    shards = folder.with_name(f".{folder.name}.shards")

    def build(temporary: Path) -> dict[str, Any]:
        path = temporary / "values.f32"
        starts = range(0, len(split), SHARD)
        whole = len(split) <= SHARD
        shards_shown = (
            nullcontext() if whole else Progress(f"storing {source.name} on {split.role}", len(starts), "shard")
        )
        # Not a memory map: on a full disk, writing to one kills the process (SIGBUS).
        with open(path, "wb") as file, shards_shown as shown:
            for start in starts:
                if whole:
                    values = checked(source.compute(split), len(split), source)
                else:
                    part = split.take(np.arange(start, min(start + SHARD, len(split))))
                    values = _shard(source, part, shards, start)
                file.write(values.astype("<f4").tobytes())
                if shown is not None:
                    shown.update()
        stored_values = np.memmap(path, "<f4", "r", shape=(len(split), source.width))
        sums = [_sum_of(stored_values[i : i + BLOCK]) for i in range(0, len(split), BLOCK)]
        (temporary / "sums.npy").write_bytes(cache.npy(np.array(sums, np.uint32)))
        (temporary / "ids.npy").write_bytes(cache.npy(split.ids.astype(np.str_)))
        source.release()  # the models of a pool need not fit into memory together
        return {"width": source.width}

    cache.entry(folder, facts, build, checked_later=("values.f32",))
    shutil.rmtree(shards, ignore_errors=True)
    return StoredArray(folder, len(split), source.width)


def _entry(source: Source, split: Split, home: Path) -> Path:
    return home / "signals" / split.fingerprint / f"{source.name}-{source.fingerprint}-v{FORMAT}"


def is_stored(source: Source, split: Split, home: Path) -> bool:
    """Whether there is an entry with the outputs of a source for a split. Its content is checked when it is read."""
    return _entry(source, split, home).is_dir()


def _shard(source: Source, part: Split, folder: Path, start: int) -> np.ndarray:
    """Outputs `[n, width]` for one shard: from an interrupted build, or computed now and kept for the next one.

    The name of a shard's file holds its first row and its checksum.
    """
    for path in folder.glob(f"{start}-*.f32"):
        data = path.read_bytes()
        if path.stem == f"{start}-{zlib.crc32(data)}" and len(data) == 4 * len(part) * source.width:
            return np.frombuffer(data, "<f4").reshape(len(part), source.width)
    values = checked(source.compute(part), len(part), source).astype("<f4", copy=False)
    if parallel.is_first():
        folder.mkdir(exist_ok=True)
        cache.write_whole(folder / f"{start}-{_sum_of(values)}.f32", values.tobytes())
    return values
