"""Cache entries: folders that appear whole or not at all, carry a manifest, and are built by one process at a time."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from .settings import UserError

MANIFEST = "manifest.json"


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


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that readers see the old file or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_manifest(entry: Path) -> dict[str, Any]:
    """The entry's manifest, after every file it names was found with the size and checksum it states.

    Raises `UserError` naming the entry when something is missing or differs.
    """
    try:
        manifest: dict[str, Any] = json.loads((entry / MANIFEST).read_text(encoding="utf-8"))
        files: dict[str, str] = dict(manifest["files"])
        sizes: dict[str, int] = dict(manifest.get("sizes", {}))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"cache entry {entry}: unreadable manifest ({type(error).__name__}){way_out(entry)}") from None
    for name, expected in files.items():
        path = entry / Path(name).name
        found = file_sha256(path) if path.is_file() else "no file"
        if found != expected:
            raise UserError(
                f"cache entry {entry}: {name} has checksum {found[:16]}, its manifest says {expected[:16]}{way_out(entry)}"
            )
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
    place only when complete; other processes wait on a lock. `facts` are compared with those of an entry found:
    a difference raises `UserError` naming both. Of the files `checked_later` only the size is checked here: whoever
    reads them checks what it reads.
    """
    if not (folder / MANIFEST).is_file():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cache folder {folder.parent} cannot be made ({error.strerror}); set TEACHER_SELECT_HOME to a writable place"
            ) from None
        with FileLock(f"{folder}.lock"):
            if not (folder / MANIFEST).is_file():
                _build(folder, facts, build, checked_later)
    manifest = read_manifest(folder)
    for key, value in facts.items():
        if manifest.get(key) != value:
            raise UserError(
                f"cache entry {folder}: {key} is {manifest.get(key)!r} there but {value!r} here; delete it to build it again"
            )
    return manifest


def _build(
    folder: Path,
    facts: dict[str, Any],
    build: Callable[[Path], dict[str, Any] | None],
    checked_later: tuple[str, ...],
) -> None:
    temporary = folder.with_name(f".{folder.name}.building")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a builder that was killed; the lock is ours now
    temporary.mkdir()
    try:
        more = build(temporary) or {}
        made = sorted(p for p in temporary.iterdir() if p.is_file())
        files = {p.name: file_sha256(p) for p in made if p.name not in checked_later}
        sizes = {p.name: p.stat().st_size for p in made if p.name in checked_later}
        for path in made:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        write_json(temporary / MANIFEST, {**facts, **more, "files": files, **({"sizes": sizes} if sizes else {})})
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
