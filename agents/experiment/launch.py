"""Running a script as a Hydra application.

A user's mistake ends with one line on stderr and exit code 2, and leaves nothing behind. Ctrl-C and SIGTERM end with one
line that says how to continue, and exit code 130 or 143. Bugs keep their traceback.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, redirect_stdout, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from hydra import main
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import configs
from agents.experiment.heap import return_large_blocks
from agents.experiment.help import help_text
from agents.experiment.interrupts import Interrupted, stop
from configs.overrides import check_overrides, flags_and_overrides
from distill import output, parallel
from distill.cache import writing
from distill.checks import UserError
from distill.settings import keys_changing

LONGEST_WORD = 40  # characters of a setting in the title of a table
REMEDY = "set hydra.run.dir to a writable folder"


@output.may_be_cut()
def launch(run: Callable[[dict[str, Any]], None], config: str = "config") -> None:
    """Run `run(configuration)` with the command line's settings over those of `configs/<config>.yaml`."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra's errors arrive here instead of being printed there
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return_large_blocks()
    if str(Path.cwd()) not in sys.path:  # import paths such as reward.name=my_module:MyReward may name a module here
        sys.path.append(str(Path.cwd()))
    arguments = sys.argv[1:]
    if "--help" in arguments or "-h" in arguments:
        print(help_text(config, Path(sys.argv[0]).name))
        return
    with ExitStack() as stack:
        if not parallel.is_first():  # it takes part in the work; the first process does the talking
            stack.enter_context(redirect_stdout(io.StringIO()))
        try:
            flags, overrides = flags_and_overrides(arguments)
            check_overrides(overrides)
            sys.argv[1:] = [*flags, *overrides]  # Hydra takes no override after a flag that follows another one
            main(version_base="1.3", config_path="pkg://configs", config_name=config)(lambda cfg: _job(run, cfg))()
        except UserError as error:
            _fail(error)
        except configs.ERRORS as error:
            _fail(UserError(configs.one_line(error)))
        except OSError as error:  # Hydra makes the run's folder
            place = Path(str(error.filename or ""))
            if not error.filename or not _is_parent(place, arguments):
                raise
            _fail(UserError(f"hydra.run.dir={place} cannot be written ({error.strerror}); name another folder"))


class NewFolders(Callback):
    """Hydra's callback before it makes the run's folder: remembers which folders do not exist yet."""

    made: ClassVar[list[Path]] = []

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Note the run's folder and those above it, innermost first, as far as Hydra will make them."""
        try:
            folder = Path(config.hydra.run.dir).absolute()
        except OmegaConfBaseException:  # a name that cannot be a folder: Hydra meets it again, and that one is reported
            return
        NewFolders.made = [place for place in (folder, *folder.parents) if not place.exists()]

    @classmethod
    def remove(cls) -> None:
        """Remove them again, as far as they are empty."""
        with suppress(OSError):
            for place in cls.made:
                place.rmdir()


def _job(run: Callable[[dict[str, Any]], None], cfg: DictConfig) -> None:
    """One job: the script itself, or one of a sweep."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        with stop.obeyed(), writing(folder, REMEDY):
            _check_resume(cfg)
            run(configs.resolved(cfg))
    except UserError as error:
        NewFolders.remove()
        _fail(error)
    except BrokenPipeError:
        if output.is_unread():
            print(f"stopped by SIGPIPE; to continue: {_resume_line()}", file=sys.stderr)
        raise
    except Interrupted as told:
        name = signal.Signals(told.number).name
        print(f"stopped by {name}; to continue: {_resume_line()}", file=sys.stderr)
        raise SystemExit(128 + told.number) from None
    finally:
        if not parallel.is_first():
            NewFolders.remove()


@lru_cache(maxsize=1)
def _other_folder() -> tempfile.TemporaryDirectory[str]:
    """Where processes other than the first leave what nobody reads; it is removed when the process ends."""
    return tempfile.TemporaryDirectory()


def run_folder() -> Path:
    """This run's folder, from Hydra."""
    return Path(HydraConfig.get().runtime.output_dir if parallel.is_first() else _other_folder().name)


def job_title() -> str:
    """What tells this job of a sweep from the others, for the titles of tables: its number and its short settings."""
    hydra = HydraConfig.get()
    if hydra.mode != RunMode.MULTIRUN:
        return ""
    words = [word for word in hydra.overrides.task if len(word) <= LONGEST_WORD]
    return f" (job {hydra.job.num}{': ' if words else ''}{' '.join(words)})"


def reproduce_line(script: str) -> str:
    """The command that gives this run again, without settings that change nothing: all that it leaves, so `ship` stays."""
    left_out = set(keys_changing("nothing")) - {"ship"}
    overrides = [o for o in HydraConfig.get().overrides.task if o.partition("=")[0] not in left_out]
    return shlex.join([*program(script), *config_dir(), *overrides])


def program(script: str) -> list[str]:
    """The words that start a script as it was started here: `python agents/NAME.py` or `teacher-select NAME`."""
    words = sys.argv[0].split()
    return words if words[:1] == ["teacher-select"] else ["python", script]


def config_dir() -> list[str]:
    """The words of the command line that name the user's own folder of YAML files, if there is one."""
    folders = configs.own_folders("command-line")
    return [word for folder in folders for word in ("--config-dir", folder.removeprefix("file://"))]


def _is_parent(place: Path, arguments: Sequence[str]) -> bool:
    """Whether a path lies on the way to a folder that Hydra makes for the run."""
    given = [a.partition("=")[2].strip("'\"") for a in arguments if re.match(r"hydra\.(run|sweep)\.dir=", a)]
    folder = Path(given[-1] if given else "outputs").absolute()
    return folder.is_relative_to(place.absolute()) or place.absolute().is_relative_to(folder)


def _place() -> tuple[str, Any]:
    """The setting that names the folder of this run, or of this sweep, and Hydra's configuration with it unresolved."""
    hydra = HydraConfig.get()
    return ("sweep", hydra.sweep) if hydra.mode == RunMode.MULTIRUN else ("run", hydra.run)


def _check_resume(config: DictConfig) -> None:
    """Raise `UserError` when a run is to be continued and nothing says which."""
    kind, place = _place()
    unnamed = "${now:" in OmegaConf.to_container(place)["dir"]  # type: ignore[call-overload,index,operator]
    if config.get("resume") and unnamed:
        raise UserError(f"resume=true needs the folder of the run to continue: add hydra.{kind}.dir=FOLDER")


def _resume_line() -> str:
    """The command as it was typed, changed into the one that continues this run."""
    words = [*sys.orig_argv[: len(sys.orig_argv) - len(sys.argv[1:])], *sys.argv[1:]]
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
