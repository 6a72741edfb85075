"""A grid of cells: one agent with one seed each. Every cell runs in a process of its own, and is kept when it has finished."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from agents.experiment.ship import drop_others
from distill import cache
from distill.progress import Progress
from distill.settings import RunSettings

FORMAT = 3  # of a cell; raised whenever what it would hold changes
RESULT, CHOICES = "result.json", "choices.npz"  # a cell has finished when its result is there
POLL = 0.05  # seconds between two looks at the running processes


@dataclass(frozen=True)
class Cell:
    """One agent with one seed: everything that its process needs to know.

    Attributes:
        entry: as in `agents=[...]`.
        settings: of the whole run, the entry's own settings included.
        folder: where its result is kept.
        reproduce: the command that gives the same cell.
        keep: whether its student may be shipped, so that it is kept beside the result.
    """

    entry: str
    seed: int
    settings: RunSettings
    folder: str
    reproduce: str
    keep: bool = False

    @property
    def name(self) -> str:
        """The rule or agent."""
        return self.entry.split()[0]

    @property
    def label(self) -> str:
        """For progress bars and messages."""
        return f"{self.entry}, seed {self.seed}"

    def to_json(self) -> str:
        """For the process that runs it."""
        return json.dumps({**vars(self), "settings": self.settings.to_config()})

    @classmethod
    def from_json(cls, text: str) -> Cell:
        """The cell that `to_json` described."""
        facts = json.loads(text)
        return cls(**{**facts, "settings": RunSettings.from_config(facts["settings"])})


def words_of(entry: str) -> list[str]:
    """The agent and the overrides of an entry of `agents=[...]`, split at spaces outside of brackets and quotes."""
    words: list[str] = []
    word, depth, quote = "", 0, ""
    for character in entry:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        else:
            depth += (character in "[{(") - (character in "]})")
        if character.isspace() and depth == 0 and not quote:
            words, word = [*words, word], ""
        else:
            word += character
    if depth or quote:
        return entry.split()  # each word is then checked, and the one that cannot be read is named
    return [w for w in (*words, word) if w]


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def finished(cell: Cell) -> dict[str, Any] | None:
    """The kept result of a cell, or None.

    Raises:
        UserError: when the result is not what was written; the message names its folder.
    """
    folder = Path(cell.folder)
    if not (folder / RESULT).is_file():
        return None
    result = cache.read_sealed(folder / RESULT)
    cache.check_files(folder, result.pop("files", {}))  # cells of version 0.1 have none
    # Another grid may have run it under another name for the same settings.
    return result | {"agent": cell.entry, "seed": cell.seed, "reproduce": cell.reproduce}


def run_grid(cells: Sequence[Cell], jobs: int) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Run the cells that have not finished, `jobs` at a time. A cell that fails is reported; the others run.

    Returns:
        Results of all finished cells, in their order, and the errors of the others by label.
    """
    results: dict[int, dict[str, Any]] = {i: r for i, c in enumerate(cells) if (r := finished(c)) is not None}
    errors: dict[str, str] = {}
    todo = [i for i in range(len(cells)) if i not in results]
    with (
        Progress("cells", len(cells), "cell", initial=len(results)) as shown,
        _processes() as running,
    ):
        while todo or running:
            while todo and len(running) < jobs:
                running.append(_Process(todo[0], cells[todo.pop(0)]))
            for process in [p for p in running if p.ended]:
                running.remove(process)
                error = process.error()
                if error is None:
                    results[process.place] = finished(process.cell) or {}
                    kept = [i for i in results if cells[i].keep]
                    drop_others([results[i] for i in kept], [Path(cells[i].folder) for i in kept])
                else:
                    errors[process.cell.label] = error
                    shown.write(f"failed: {process.cell.label}: {error}")
                shown.update()
            time.sleep(POLL)
    return [results[i] for i in sorted(results)], errors


class _Process:
    """The process of one cell: `python -m agents.cell`, with the cell on its standard input."""

    def __init__(self, place: int, cell: Cell) -> None:
        self.place, self.cell = place, cell
        self.log: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115  read and closed when the process has ended
        command = [sys.executable, "-m", "agents.cell", str(os.getpid())]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=self.log)
        assert self.process.stdin is not None
        with suppress(BrokenPipeError), self.process.stdin as pipe:
            pipe.write(cell.to_json().encode())

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        return self.process.poll() is not None

    def error(self) -> str | None:
        """None if the cell finished; else what went wrong, in one line. A traceback is kept in the cell's folder."""
        code = self.process.returncode
        self.log.seek(0)
        text = self.log.read().decode(errors="replace")
        self.log.close()
        if code == 0:
            return None
        lines = [line for line in text.splitlines() if line.strip()] or [""]
        told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        if code == 2 and told:
            return told[-1]
        if code in (130, 143):
            return "its process was told to stop; start the comparison again to continue"
        if code < 0:
            return f"its process died (signal {-code}; killed, or out of memory)"
        place = Path(self.cell.folder) / "error.txt"
        with suppress(OSError):  # the line itself must get through
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text, encoding="utf-8")
        return f"{lines[-1][:200]} (traceback in {place})"


@contextmanager
def _processes() -> Iterator[list[_Process]]:
    """A list of processes. Those that still run at its end are told to stop, and write a checkpoint first."""
    running: list[_Process] = []
    try:
        yield running
    finally:
        for each in running:
            each.process.terminate()
        for each in running:
            each.process.wait()
