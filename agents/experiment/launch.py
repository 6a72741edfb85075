"""Running a script as a Hydra application: one line for a user's mistake, one line that says how to go on after a stop."""

from __future__ import annotations

import atexit
import io
import os
import re
import shlex
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from hydra import main
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.utils import setup_globals
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from agents.interrupts import Interrupted, stop
from configs import _check_whole, _compose, _resolved
from distill import parallel
from distill.cache import writing
from distill.checks import UserError, check, plain_name


def launch(run: Callable[[Any], None], *defaults: str, config: str = "config") -> None:
    """Run `run(config)` as a Hydra application; `defaults` (`group=option`) hold unless the command line names the group.

    A user's mistake ends with one line on stderr and exit code 2; nothing is left behind. SIGTERM and Ctrl-C end with one
    that says how to go on, and exit code 143 or 130. Bugs keep their traceback.
    """
    words = [*sys.orig_argv[: len(sys.orig_argv) - len(sys.argv[1:])], *sys.argv[1:]]
    given = [a.partition("=")[0] for a in sys.argv[1:]]
    sys.argv[1:1] = [d for d in defaults if d.partition("=")[0] not in given]
    if not parallel.is_first():  # it takes part in the work, and leaves nothing behind
        aside = ExitStack()
        atexit.register(aside.close)
        sys.argv.append(f"hydra.run.dir={aside.enter_context(tempfile.TemporaryDirectory())}")
        aside.enter_context(redirect_stdout(io.StringIO()))
    arguments = sys.argv[1:]
    made: list[Path] = []  # folders of the run that did not exist before it
    found: list[Path] = []  # its own, where it did
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    def guarded(cfg: DictConfig) -> None:
        folder = Path(HydraConfig.get().runtime.output_dir)
        try:
            with stop.obeyed(), writing(folder, "set hydra.run.dir to a writable folder"), _errors_of_threads():
                _check_resume(cfg)
                run(_resolved(cfg))
        except UserError as error:
            _remove_empty([] if folder in found else [folder, *made])
            _fail(error)
        except Interrupted as told:
            name = signal.Signals(told.number).name
            print(f"stopped by {name}; to go on: {_go_on(words)}", file=sys.stderr)
            raise SystemExit(128 + told.number) from None

    setup_globals()  # Hydra's resolvers, such as ${now:}
    try:
        _check_whole(arguments)
    except UserError as error:
        _fail(error)
    if not any(a.startswith("-") for a in arguments):  # flags are Hydra's own: help, sweeps, printing the config
        try:
            whole = _compose(arguments, config, with_hydra=True)
            for group in ("task", "agent"):  # the run's folder is named after them
                plain_name(str(whole[group].get("name", "")), f"{group}.name")
            folder = Path(whole.hydra.run.dir).absolute()
            _check_output(folder)
            made += [place for place in folder.parents if not place.exists()]
            found += [folder] if folder.exists() else []
        except UserError as error:
            _fail(error)
    main(version_base="1.3", config_path="pkg://configs", config_name=config)(guarded)()


@contextmanager
def _errors_of_threads() -> Iterator[None]:
    """What the system refused to a thread (TensorBoard writes in one) is raised here at the end instead of printed there."""
    refused: list[OSError] = []
    before = threading.excepthook

    def keep(args: threading.ExceptHookArgs) -> None:
        if isinstance(args.exc_value, OSError):
            refused.append(args.exc_value)
        else:
            before(args)

    threading.excepthook = keep
    try:
        yield
        if refused:
            raise refused[0]
    finally:
        threading.excepthook = before


def _place() -> tuple[str, Any]:
    """The setting that names the folder of this run, or of this sweep, and Hydra's configuration with it unresolved."""
    hydra = HydraConfig.get()
    return ("sweep", hydra.sweep) if hydra.mode == RunMode.MULTIRUN else ("run", hydra.run)


def _check_resume(config: DictConfig) -> None:
    """Raise `UserError` when a run is to go on and nobody said which."""
    kind, place = _place()
    unnamed = "${now:" in OmegaConf.to_container(place)["dir"]  # type: ignore[call-overload,index,operator]
    if config.get("resume") and unnamed:
        raise UserError(f"resume=true needs the folder of the run that is to go on: add hydra.{kind}.dir=FOLDER")


def _go_on(words: Sequence[str]) -> str:
    """The command `words`, as it was typed, made into the one that goes on with this run."""
    kind, place = _place()
    folder = Path(place.dir).absolute()
    text = str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder)
    if not re.fullmatch(r"[\w/.:+@-]+", text):
        text = QuotedString(text, Quote.single).with_quotes()
    own = ("resume", f"hydra.{kind}.dir")
    kept = [w for w in words if w.lstrip("+~").partition("=")[0] not in own]
    return shlex.join([*kept, f"hydra.{kind}.dir={text}", "resume=true"])


def _fail(error: UserError) -> None:
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(2)


def _check_output(folder: Path) -> None:
    """Raise `UserError` unless the run's folder can be made, leaving nothing."""
    place = next(p for p in (folder, *folder.parents) if p.exists())
    try:
        with tempfile.TemporaryDirectory(dir=place):
            pass
    except OSError as error:
        raise UserError(f"hydra.run.dir={folder} cannot be written ({error.strerror}); name another folder") from None


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove folders, innermost first, as far as they are empty."""
    for place in folders:
        try:
            place.rmdir()
        except OSError:
            return
