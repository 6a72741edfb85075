"""Cache entries: folders that appear whole or not at all, carry a manifest, and are built by one process at a time."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from distill import parallel
from distill.checks import UserError, expand
from distill.settings import digest

MANIFEST = "manifest.json"
SEAL = "seal"  # key of a JSON file's checksum over itself
FULL = {errno.ENOSPC, errno.EDQUOT}
REFUSED = FULL | {errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


# --- files ------------------------------------------------------------------------------------------------------------


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, as hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_fingerprint(folder: Path) -> str:
    """SHA-256 over the names and contents of the files that decide what a checkpoint computes."""
    kept = sorted(
        p
        for p in folder.iterdir()
        if p.is_file() and p.suffix in {".json", ".safetensors", ".txt", ".model"} and p.name != MANIFEST
    )
    lines = [f"{p.name} {file_sha256(p)}" for p in kept]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def stamp(path: str) -> list[Any]:
    """What shows that the local files behind a path have changed: names, sizes, times and inodes. Hub ids and packages
    are their name."""
    place = expand(path)
    files = sorted(f for f in place.rglob("*") if f.is_file()) if place.is_dir() else [place] * place.is_file()
    return [path, *([f.name, (s := f.stat()).st_size, s.st_mtime_ns, s.st_ino] for f in files)]


@contextmanager
def writing(folder: Path, remedy: str) -> Iterator[None]:
    """What a disk refuses to write (full, read-only, not permitted, failing) raises `UserError` with `folder` and `remedy`.

    Errors that name a file elsewhere pass as they are.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        number = getattr(error, "errno", None)
        if number is None and (told := re.search(r"\(os error (\d+)\)", str(error))):
            number = int(told.group(1))  # safetensors and tokenizers raise exceptions of their own
        place = getattr(error, "filename", None)
        if number not in REFUSED or (isinstance(place, str) and not Path(place).is_relative_to(folder)):
            raise
        room = "free some space or " if number in FULL else ""
        raise UserError(f"{folder} cannot be written ({os.strerror(number)}); {room}{remedy}") from None


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that readers see the old one or the new one, never a part; a failure leaves the old one alone."""
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
    """What `np.save` writes, which itself says nothing when the end of a small array no longer fits on the disk."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder to fill, which then takes the place of `folder`; on a failure nothing is left of it."""
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
    """A sealed JSON file, without its seal; files of earlier versions carry none.

    Raises `UserError` naming the entry `path` lies in when it cannot be read or is not what was written.
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
    """The entry's manifest, after every file it names was found with the size and checksum it states.

    Raises `UserError` naming the entry when something is missing or differs.
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
    """How every message about a damaged entry ends."""
    return f"; delete {entry} to build it again"


def entry(
    folder: Path,
    facts: dict[str, Any],
    build: Callable[[Path], dict[str, Any] | None],
    checked_later: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Manifest of the cache entry `folder`, built first when it does not exist.

    `build(temporary)` writes the entry's files and may return more facts for the manifest. The folder is renamed into
    place only when complete; other processes wait on a lock. A full or read-only disk raises `UserError` and leaves
    the cache as it was; where the entry is there nothing is written at all. `facts` are compared with those of an
    entry found: a difference raises `UserError` naming both. Of the files `checked_later` only the size is checked
    here: whoever reads them checks what it reads. Processes started together build together, and the first one's
    files are kept.
    """
    if _missing(folder):
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cache folder {folder.parent} cannot be made ({error.strerror}); set TEACHER_SELECT_HOME to a writable place"
            ) from None
        lock = FileLock(f"{folder}.lock") if parallel.is_first() else nullcontext()
        with writing(folder.parent, "set TEACHER_SELECT_HOME to a writable place"), lock:
            if _missing(folder):
                _build(folder, facts, build, checked_later)
        parallel.wait()
    manifest = read_manifest(folder)
    for key, value in facts.items():
        if manifest.get(key) != value:
            raise UserError(
                f"cache entry {folder}: {key} is {manifest.get(key)!r} there but {value!r} here; delete it to build it again"
            )
    return manifest


def _missing(folder: Path) -> bool:
    """Whether an entry must be built; the first process looks for all of them."""
    return bool(parallel.from_first(np.array([not (folder / MANIFEST).is_file()], np.int8))[0])


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
    with whole_folder(folder) as temporary:  # one left by a builder that was killed is nobody's: the lock is ours
        more = build(temporary) or {}
        made = sorted(p for p in temporary.iterdir() if p.is_file())
        files = {p.name: file_sha256(p) for p in made if p.name not in checked_later}
        sizes = {p.name: p.stat().st_size for p in made if p.name in checked_later}
        for path in made:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        manifest = {**facts, **more, "files": files, **({"sizes": sizes} if sizes else {})}
        write_json(temporary / MANIFEST, sealed(manifest))
