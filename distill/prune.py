"""`python -m distill.cache list|prune`: what the caches hold, and removing what was not used for long.

    python -m distill.cache list
    python -m distill.cache prune --older-than 30d --keep 2GB

`list` shows for each entry its size, when it was last used, and what it belongs to. `prune` removes entries that were last
used before `--older-than`, and then the least recently used ones until no more than `--keep` is left. It only shows what
it would remove until `--yes` is given. Entries that a running process uses are never removed. What was removed is built
again, with the same content, when it is needed.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from distill import cache, output
from distill.checks import UserError, expand

KINDS = {
    "teachers": "fine-tuned teachers",
    "signals": "stored outputs of teachers and encoders",
    "warm": "warm starts of students",
    "orders": "checks of the order of outputs",
    "unfinished": "interrupted builds",
}
LEFT = re.compile(r"\.(?P<name>.+)\.(building|shards|removed)")  # folders beside an entry that a process may have left
AGES = {"h": 3600, "d": 86400, "w": 7 * 86400}
SIZES = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}


@dataclass(frozen=True)
class Entry:
    """A folder of the cache.

    Attributes:
        folder: where it is.
        kind: a key of `KINDS`.
        size: bytes of its files.
        used: time of the last use, seconds since the epoch.
        about: what it belongs to.
    """

    folder: Path
    kind: str
    size: int
    used: float
    about: str


# --- what there is ----------------------------------------------------------------------------------------------------


def entries(home: Path) -> list[Entry]:
    """All entries under `home`, the least recently used first. Other files are left out.

    Raises:
        UserError: if there is no such folder.
    """
    if not home.is_dir():
        raise UserError(f"no cache at {home}; give --home, or set TEACHER_SELECT_HOME")
    found = []
    for kind in KINDS:
        for path in (home / kind).rglob(cache.MANIFEST):
            if not any(part.startswith(".") for part in path.relative_to(home).parts):
                found.append(_entry(path.parent, kind))
        for path in (home / kind).rglob(".*"):
            if LEFT.fullmatch(path.name) and path.is_dir():
                found.append(_entry(path, "unfinished"))
    return sorted(found, key=lambda e: (e.used, str(e.folder)))


def _entry(folder: Path, kind: str) -> Entry:
    """The entry in a folder. Files that vanish meanwhile count nothing."""
    size, used = 0, 0.0
    for path in (folder, *folder.rglob("*")):
        try:
            facts = path.stat()
        except OSError:
            continue
        if path == folder or kind == "unfinished":
            used = max(used, facts.st_mtime)
        size += 0 if path.is_dir() else facts.st_size
    return Entry(folder, kind, size, used, _about(folder, kind))


def _about(folder: Path, kind: str) -> str:
    """What an entry belongs to, from its manifest."""
    try:
        facts = json.loads((folder / cache.MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        facts = {}
    if not isinstance(facts, dict):
        facts = {}
    stem = folder.name.rpartition("-")[0]  # the task, and the teacher or student
    if kind == "signals":
        return f"outputs of {facts.get('name', '?')} for {facts.get('count', '?')} instances"
    if kind == "warm":
        machine: Any = facts.get("machine")
        device = machine.get("device", "?") if isinstance(machine, dict) else "?"
        return f"warm start of {stem}, {facts.get('steps', '?')} steps, {device}"
    if kind == "teachers":
        return f"teacher {stem}"
    return f"order of outputs of {stem}" if kind == "orders" else f"interrupted build of {_target(folder).name}"


# --- what to remove ---------------------------------------------------------------------------------------------------


def to_remove(found: Sequence[Entry], now: float, older_than: float | None, keep: float | None) -> list[Entry]:
    """The entries to remove, of `found` (the least recently used first).

    Args:
        found: from `entries`.
        now: seconds since the epoch.
        older_than: seconds since the last use; None: whatever their age.
        keep: bytes that may stay; None: as many as there are.
    """
    old = [e for e in found if older_than is not None and now - e.used > older_than]
    rest = [e for e in found if e not in old]
    total, most = sum(e.size for e in rest), float("inf") if keep is None else keep
    for entry in rest:
        if total > most:
            old.append(entry)
            total -= entry.size
    return old


def remove(entry: Entry) -> str:
    """Remove an entry, unless a process builds or uses it.

    Returns:
        Why it was not removed; an empty text if it was.
    """
    try:
        with FileLock(f"{_target(entry.folder)}.lock", timeout=0):  # processes that build an entry hold it
            if entry.kind != "unfinished":
                return _remove_unused(entry.folder)
            shutil.rmtree(entry.folder)
    except Timeout:
        return "it is being built"
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"it cannot be removed ({error.strerror})"
    return ""


def _remove_unused(folder: Path) -> str:
    """Remove an entry unless a process keeps it, which holds a shared lock on its manifest (`cache.keep`)."""
    aside = folder.with_name(f".{folder.name}.removed")
    opened = os.open(folder / cache.MANIFEST, os.O_RDWR)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(folder, aside)  # at once: a reader sees the whole entry or none
    except BlockingIOError:
        return "a running process uses it"
    finally:
        os.close(opened)
    shutil.rmtree(aside)
    return ""


def _target(folder: Path) -> Path:
    """The entry that a folder is, or was to become."""
    left = LEFT.fullmatch(folder.name)
    return folder if left is None else folder.with_name(left["name"])


# --- the command line -------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code. Arguments None: those of the process."""
    return output.exit_code(lambda: _run(arguments), "entries that were removed stay removed")


def _run(arguments: Sequence[str] | None) -> int:
    """List or prune; returns the exit code."""
    given = _parser().parse_args(arguments)
    home = expand(given.home or os.environ.get("TEACHER_SELECT_HOME") or "~/.cache/teacher-select")
    found = [e for e in entries(home) if given.kind in (None, e.kind)]
    if given.command == "list":
        _print(home, found[::-1])
        return 0
    if given.older_than is None and given.keep is None:
        raise UserError("prune: give --older-than AGE, --keep SIZE or both, for example --older-than 30d")
    chosen = to_remove(found, time.time(), given.older_than, given.keep)
    return _remove_all(chosen) if given.yes else _show(home, chosen)


def _parser() -> argparse.ArgumentParser:
    summary, _, rest = str(__doc__).partition("\n\n")
    parser = _Parser(
        prog="python -m distill.cache",
        description=summary.replace("`", ""),
        epilog=rest.replace("`", ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("list", "show all entries"), ("prune", "remove old entries")):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--home", help="folder of the caches (default: TEACHER_SELECT_HOME)")
        command.add_argument("--kind", choices=KINDS, help="only these entries")
        if name == "prune":
            command.add_argument("--older-than", type=_age, metavar="AGE", help="last used before: 12h, 30d, 8w")
            command.add_argument("--keep", type=_size, metavar="SIZE", help="largest total that may stay: 500MB, 2GB")
            command.add_argument("--yes", action="store_true", help="remove them; without it they are only shown")
    return parser


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are those of the other programs."""

    def error(self, message: str) -> Any:
        """Raise `UserError`."""
        raise UserError(f"{message}; --help shows what can be given")


def _age(text: str) -> float:
    """Seconds of `30d`."""
    return _amount(text, AGES, "30d")


def _size(text: str) -> float:
    """Bytes of `2GB`."""
    return _amount(text.upper(), SIZES, "2GB")


def _amount(text: str, units: dict[str, Any], example: str) -> float:
    parts = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]+)", text)
    if parts is None or parts[2] not in units:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number with a unit ({', '.join(units)}), such as {example}"
        )
    return float(parts[1]) * float(units[parts[2]])


def _remove_all(chosen: Sequence[Entry]) -> int:
    """Remove the entries; print what was removed and what was not. The exit code is 0: to leave an entry is no mistake."""
    freed = count = 0
    for entry in chosen:
        reason = remove(entry)
        if reason:
            print(f"left {entry.folder}: {reason}")
        else:
            freed, count = freed + entry.size, count + 1
    print(f"removed {_entries(count)}, {_bytes(freed)}")
    return 0


def _show(home: Path, chosen: Sequence[Entry]) -> int:
    if chosen:
        _print(home, chosen)
    freed = _bytes(sum(e.size for e in chosen))
    print(f"prune would remove {_entries(len(chosen))}, {freed}" + ("; add --yes to remove them" if chosen else ""))
    return 0


def _print(home: Path, shown: Sequence[Entry]) -> None:
    """Print one line for each entry, and the sum of each kind."""
    print(f"{home}\n{'size':>9}  {'last used':16}  what")
    for entry in shown:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        print(f"{_bytes(entry.size):>9}  {used:16}  {entry.about} ({entry.folder.relative_to(home)})")
    for kind, text in KINDS.items():
        of_kind = [e for e in shown if e.kind == kind]
        if of_kind:
            print(f"{_bytes(sum(e.size for e in of_kind)):>9}  {text}: {_entries(len(of_kind))}")
    print(f"{_bytes(sum(e.size for e in shown)):>9}  in all")


def _entries(count: int) -> str:
    return f"{count} entr{'y' if count == 1 else 'ies'}"


def _bytes(size: float) -> str:
    """`12.3 MB`."""
    unit = next((u for u in ("KB", "MB", "GB") if size < 1000 * SIZES[u]), "TB")
    return f"{size / SIZES[unit]:.1f} {unit}"


if __name__ == "__main__":
    with output.may_be_cut():
        raise SystemExit(main())
