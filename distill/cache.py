"""Cache entries: folders that appear whole or not at all, carry a manifest, and are built by one process at a time.

`python -m distill.cache list|prune` lists the entries and removes old ones (see `distill.prune`).
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from distill import parallel
from distill.checks import UserError, expand
from distill.settings import digest

MANIFEST = "manifest.json"
# Ends of the files that decide what a checkpoint computes; `.spm` and `.codes` are vocabularies.
CHECKPOINT_FILES = (".json", ".safetensors", ".txt", ".model", ".spm", ".codes")
SEAL = "seal"  # key of a JSON file's checksum over itself
SMALL, FEW = 4 << 20, 200  # bytes and files up to which files are read to see whether they have changed
FULL = {errno.ENOSPC, errno.EDQUOT}
WRITE_ERRORS = FULL | {errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


# --- files ------------------------------------------------------------------------------------------------------------


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, as hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_fingerprint(folder: Path) -> str:
    """SHA-256 over the names and contents of the files that decide what a checkpoint computes."""
    kept = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in CHECKPOINT_FILES and p.name != MANIFEST)
    lines = [f"{p.name} {file_sha256(p)}" for p in kept]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def stamp(path: str | Path) -> list[Any]:
    """What shows that the files at a path have changed: their names and contents.

    Of a file above `SMALL` bytes, and in a folder of more than `FEW` files, size, times and inode stand for the content. A
    path without a file, such as a hub id, is its name.
    """
    place = expand(str(path))
    files = sorted(f for f in place.rglob("*") if f.is_file()) if place.is_dir() else [place] * place.is_file()
    largest = SMALL if len(files) <= FEW else -1
    return [str(path), *([str(f.relative_to(place)), *_content(f, largest)] for f in files)]


def _content(path: Path, largest: int) -> list[Any]:
    """The hash of a file of up to `largest` bytes; size, times and inode of others; nothing where it cannot be read."""
    try:
        facts = path.stat()
        if facts.st_size <= largest:
            return [file_sha256(path)]
        # A copy may keep the time of its last change. The time of the last change of the inode cannot be set.
        return [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino]
    except OSError:
        return []  # whoever reads it reports it


class Unchanged:
    """A checkpoint whose signals are named by its content, and which is loaded later: the content must still be the same.

    Args:
        folder: the checkpoint.
        fingerprint: its `folder_fingerprint`, or the digest of the files in its cache entry's manifest.
        what: how the message names it.
    """

    def __init__(self, folder: Path, fingerprint: str, what: str) -> None:
        self.folder, self.fingerprint, self.what = folder, fingerprint, what
        self._stamp = stamp(folder)

    def check(self) -> None:
        """Raise `UserError` if the content is another one."""
        if stamp(self.folder) == self._stamp or folder_fingerprint(self.folder) == self.fingerprint:
            return
        if (self.folder / MANIFEST).is_file() and digest(read_manifest(self.folder)["files"]) == self.fingerprint:
            return
        raise UserError(f"{self.what}: {self.folder} has changed since it was read; make the environment again")


@contextmanager
def writing(folder: Path, remedy: str) -> Iterator[None]:
    """Turn a failed write (full, read-only or failing disk, no permission) into a `UserError` with `folder` and `remedy`.

    Errors that name a file outside `folder` are not changed.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        number = getattr(error, "errno", None)
        if number is None and (code := re.search(r"\(os error (\d+)\)", str(error))):
            number = int(code.group(1))  # safetensors and tokenizers raise exceptions of their own
        place = getattr(error, "filename", None)
        if number not in WRITE_ERRORS or (isinstance(place, str) and not Path(place).is_relative_to(folder)):
            raise
        room = "free some space or " if number in FULL else ""
        raise UserError(f"{folder} cannot be written ({os.strerror(number)}); {room}{remedy}") from None


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that readers see the old or the new content, never a part. A failure leaves the old file unchanged."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Any) -> None:
    """`write_whole` of JSON; `ValueError` for a number that is not finite."""
    write_whole(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def npy(array: np.ndarray) -> bytes:
    """The bytes that `np.save` writes. `np.save` itself does not report when the end of a small array does not fit on the disk."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder to fill, which then replaces `folder`. After a failure nothing is left of it."""
    temporary = folder.with_name(f".{folder.name}.building")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed
    try:
        temporary.mkdir(parents=True)
        yield temporary
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """JSON-able `content` with a checksum over itself, for `read_sealed`."""
    return {**content, SEAL: digest(dict(content))}


def read_sealed(path: Path) -> dict[str, Any]:
    """A sealed JSON file, without its seal; files of earlier versions have none.

    Raises:
        UserError: when the file cannot be read or is not what was written; the message names its cache entry.
    """
    entry = path.parent
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        seal = content.pop(SEAL, None)
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(
            f"cache entry {entry}: unreadable {path.name} ({type(error).__name__}){way_out(entry)}"
        ) from None
    if seal not in (None, digest(content)):
        raise UserError(f"cache entry {entry}: {path.name} is damaged{way_out(entry)}")
    return content


def check_files(entry: Path, files: Any) -> None:
    """Raise `UserError` unless `files` maps names in the entry to their checksums."""
    if not isinstance(files, Mapping):
        raise UserError(f"cache entry {entry}: its list of files is damaged{way_out(entry)}")
    for name, expected in files.items():
        path = entry / Path(name).name
        try:
            found = file_sha256(path) if path.is_file() else "no file"
        except OSError as error:
            raise UserError(f"cache entry {entry}: {name} cannot be read ({error.strerror}){way_out(entry)}") from None
        if found != expected:
            raise UserError(
                f"cache entry {entry}: {name} has checksum {found[:16]}, its manifest says {str(expected)[:16]}{way_out(entry)}"
            )


# --- entries ----------------------------------------------------------------------------------------------------------


def read_manifest(entry: Path) -> dict[str, Any]:
    """The entry's manifest, after checking that every file it names has the stated size and checksum.

    Raises:
        UserError: when something is missing or differs; the message names the entry.
    """
    manifest = read_sealed(entry / MANIFEST)
    check_files(entry, manifest.get("files"))
    sizes = manifest.get("sizes", {})
    if not isinstance(sizes, Mapping):
        raise UserError(f"cache entry {entry}: {MANIFEST} gives no sizes{way_out(entry)}")
    for name, size in sizes.items():
        path = entry / Path(name).name
        held = path.stat().st_size if path.is_file() else "no"
        if held != size:
            raise UserError(f"cache entry {entry}: {name} has {held} bytes, its manifest says {size}{way_out(entry)}")
    return manifest


def way_out(entry: Path) -> str:
    """The end of every message about a damaged entry."""
    return f"; delete {entry} to build it again"


def entry(
    folder: Path,
    facts: dict[str, Any],
    build: Callable[[Path], dict[str, Any] | None],
    checked_later: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Manifest of the cache entry `folder`, which is built first if it does not exist.

    The folder is renamed into place only when it is complete. Other processes wait on a lock. Processes that were
    launched together build together, and the files of the first one are kept. Nothing is written if the entry exists.

    Args:
        folder: of the entry.
        facts: what the entry depends on. They are written to the manifest, and compared with those of an existing entry.
        build: writes the entry's files to the folder it is given; may return more facts for the manifest.
        checked_later: files of which only the size is checked here, because their reader checks what it reads.

    Raises:
        UserError: when the facts differ (the message names both sides), when the entry is damaged, or when the disk is
            full or read-only. The cache is unchanged then.
    """
    if missing(folder):
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cache folder {folder.parent} cannot be made ({error.strerror}); set TEACHER_SELECT_HOME to a writable place"
            ) from None
        lock = FileLock(f"{folder}.lock") if parallel.is_first() else nullcontext()
        with writing(folder.parent, "set TEACHER_SELECT_HOME to a writable place"), lock:
            if missing(folder):
                _build(folder, facts, build, checked_later)
                keep(folder)
        parallel.wait()
    manifest = read_manifest(folder)
    for key, value in facts.items():
        if manifest.get(key) != value:
            raise UserError(
                f"cache entry {folder}: {key} is {manifest.get(key)!r} there but {value!r} here; delete it to build it again"
            )
    return manifest


def missing(folder: Path) -> bool:
    """Whether an entry must be built. The first process decides for all. One that exists is kept by `keep`."""
    return bool(parallel.from_first(np.array([not keep(folder)], np.int8))[0])


# --- entries in use ---------------------------------------------------------------------------------------------------

HELD = 128  # entries at most that a process keeps, so that it does not run out of open files
_held: OrderedDict[Path, int] = OrderedDict()  # the open manifest of each entry that this process uses


def keep(folder: Path) -> bool:
    """Keep the entry from being removed by `distill.prune` for as long as this process runs, and note that it is used.

    The process holds a shared lock on the manifest: nothing is written. The time of the last use is the folder's time.

    Returns:
        Whether the entry exists.
    """
    path = folder / MANIFEST
    try:
        if folder in _held and is_same_file(_held[folder], path):
            _held.move_to_end(folder)
            return True
        opened = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:  # whoever reads it reports it
        return path.is_file()
    with suppress(OSError):  # a disk without locks
        fcntl.flock(opened, fcntl.LOCK_SH)
    if not is_same_file(opened, path):  # it was removed meanwhile
        os.close(opened)
        return False
    release(folder)
    _held[folder] = opened
    while len(_held) > HELD:
        os.close(_held.popitem(last=False)[1])
    with suppress(OSError):  # a read-only cache
        os.utime(folder)
    return True


def is_same_file(opened: int, path: Path) -> bool:
    """Whether the open file is the one at the path."""
    try:
        return os.path.samestat(os.fstat(opened), path.stat())
    except OSError:
        return False


def release(folder: Path) -> None:
    """End what `keep` began."""
    if folder in _held:
        os.close(_held.pop(folder))


# --- building ---------------------------------------------------------------------------------------------------------


def _build(
    folder: Path,
    facts: dict[str, Any],
    build: Callable[[Path], dict[str, Any] | None],
    checked_later: tuple[str, ...],
) -> None:
    if not parallel.is_first():
        with tempfile.TemporaryDirectory() as aside:
            build(Path(aside))
        return
    with whole_folder(folder) as temporary:  # a folder left by a process that was killed may go: we hold the lock
        more = build(temporary) or {}
        made = sorted(p for p in temporary.iterdir() if p.is_file())
        files = {p.name: file_sha256(p) for p in made if p.name not in checked_later}
        sizes = {p.name: p.stat().st_size for p in made if p.name in checked_later}
        for path in made:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        manifest = {**facts, **more, "files": files, **({"sizes": sizes} if sizes else {})}
        write_json(temporary / MANIFEST, sealed(manifest))


if __name__ == "__main__":
    import runpy

    runpy.run_module("distill.prune", run_name="__main__")
