"""Whole runs in processes of their own, stopped by a signal at a known moment. They are forked from a process that has the imports."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[2]


def context() -> ForkServerContext:
    """Processes that start with everything imported and nothing run."""
    fork = multiprocessing.get_context("forkserver")
    fork.set_forkserver_preload(["agents.reinforce", "agents.sb3", "agents.compare", "sb3_contrib"])
    return fork


def _signal_at(event: int, delay: float, number: int) -> None:
    """Send this process a signal some time after the event-th gradient step of any model, or pass of a teacher over a split."""
    from distill.student import Student
    from distill.teachers.checkpoint import ModelTeacher

    count = 0

    def kill() -> None:
        time.sleep(delay)
        os.kill(os.getpid(), number)

    def counted(method):
        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count == event:
                threading.Thread(target=kill, daemon=True).start() if delay else kill()
            return method(*args, **kwargs)

        return call

    Student.apply_gradients = counted(Student.apply_gradients)
    ModelTeacher.compute = counted(ModelTeacher.compute)


def _play(script: str, arguments: list[str], log: str, moment: tuple[int, float, int] | None) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(ROOT)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    if moment:
        _signal_at(*moment)
    from tqdm.auto import tqdm

    from agents import reinforce
    from agents.experiment.launch import launch

    reinforce.EVENTS_EVERY = 1  # so that the curve of every step is compared
    tqdm.set_lock(threading.RLock())  # tqdm's own lock would stay behind when the process is killed
    module = importlib.import_module(f"agents.{script}")
    sys.orig_argv = ["python", f"agents/{script}.py", *arguments]
    sys.argv = sys.orig_argv[1:]
    launch(module.run, config={"reinforce": "config"}.get(script, script))
    sys.stdout.flush()


def play(
    folder: Path, *arguments: str, script: str = "reinforce", moment: tuple[int, float, int] | None = None
) -> SimpleNamespace:
    """A run in `folder`: exit code and output. `moment`: event, seconds after it, signal."""
    log = folder.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    words = [*arguments, f"hydra.run.dir={folder}"]
    process = context().Process(target=_play, args=(script, words, str(log), moment))
    process.start()
    process.join(300)
    assert process.exitcode is not None
    return SimpleNamespace(code=process.exitcode, out=log.read_text(), folder=folder)
