"""Checkpoints and data sets from the Hugging Face hub. Every failure ends in one line that says what to do.

The hub's client waits without limit for some answers, and its errors are many lines of many classes. Here every request
has a time limit, a hub that stays silent is given up after a few tries, and a copy in the client's cache is used
wherever the hub cannot be reached. The limits are those of the client's own environment variables.
"""

from __future__ import annotations

import difflib
import errno
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url, set_client_factory, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import _http
from huggingface_hub.utils import logging as logging_of_hub
from huggingface_hub.utils._paths import filter_repo_objects

from distill.cache import CHECKPOINT_FILES
from distill.checks import UserError

log = logging.getLogger(__name__)

T = TypeVar("T")

TRIES = 3  # how often the hub is asked whether it has a repository
FILES = [f"*{end}" for end in CHECKPOINT_FILES]  # all that is downloaded of a checkpoint; none holds a pickle
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
BUSY = (408, 429, 500, 502, 503, 504)  # answers of a server that may give another one soon

_one_at_a_time = threading.RLock()  # the hub's client and its factory belong to the whole process


def download(name: str, what: str) -> Path:
    """The local folder of the checkpoint `name` of the hub. What the cache does not hold yet is downloaded.

    Where the hub gives nothing, a complete copy in the cache is used, with a warning.

    Args:
        name: the repository, such as `google-bert/bert-base-uncased`.
        what: how messages name the model.

    Raises:
        UserError: if there is no such repository, if it asks for an agreement, if it has no safetensors weights, or if
            the hub does not answer; each only if the cache has no copy.
    """
    wanted = _Wanted("model", name, what, "give an existing folder")
    with _limits():
        if constants.is_offline_mode():
            folder = _cached(name)
            if folder is None:
                raise UserError(wanted.offline())
            return folder
        try:
            info = _ask(lambda: HfApi().model_info(name, timeout=_seconds()))
            folder = _get(name, info, what)
        except UserError:
            raise
        except Exception as error:  # the client raises errors of many classes
            folder = _cached(name)
            if folder is None:
                raise UserError(wanted.line(error)) from None
            log.warning("%s", wanted.from_cache(error))
            return folder
        _remember(name, str(info.sha))
        return folder


def _get(name: str, info: Any, what: str) -> Path:
    """The folder of the commit that `info`, the hub's description of a model, is about."""
    files = [str(file.rfilename) for file in info.siblings or ()]
    _check_files(files, name, what)
    folder = _storage(name) / "snapshots" / str(info.sha)
    if all((folder / file).is_file() for file in filter_repo_objects(files, allow_patterns=FILES)):
        return folder
    if info.gated:  # the hub describes such a model to everybody; find out before a bar is drawn
        get_hf_file_metadata(hf_hub_url(name, "config.json", revision=info.sha))
    # By its commit, and not by the name of the branch: the client would point the branch at the new commit before its
    # files are there, and a download that breaks off would hide the old copy.
    return Path(snapshot_download(name, revision=info.sha, allow_patterns=FILES))


def load_splits(name: str, parts: Sequence[tuple[str, str]], what: str, way_out: str) -> list[Any]:
    """Splits of a data set of the hub, from the cache where the hub gives nothing.

    Args:
        name: the repository, such as `nyu-mll/glue`.
        parts: for each split its configuration and its name.
        what: how messages name the task.
        way_out: what messages advise when the hub gives nothing.

    Raises:
        UserError: if a split can be read neither from the hub nor from the cache.
    """
    wanted = _Wanted("data set", name, what, way_out)
    problem, config = None, ""
    with _limits() as link:
        if not constants.is_offline_mode():
            try:
                _ask(lambda: HfApi().dataset_info(name, timeout=_seconds()))
            except Exception as error:  # the client raises errors of many classes
                problem = error
                link.closed = True  # no more waiting: the library now looks into its cache
        try:
            import datasets

            loaded = []
            for config, split in parts:
                loaded.append(datasets.load_dataset(name, config, split=split))
        except Exception as error:
            wanted = replace(wanted, part=f" ({config})")
            line = wanted.offline(error) if constants.is_offline_mode() else wanted.line(problem or error)
            raise UserError(line) from None
    if problem:
        log.warning("%s", wanted.from_cache(problem))
    return loaded


def columns(data: Any, names: Sequence[str], what: str) -> list[list[Any]]:
    """Columns of a split that `load_splits` gave.

    Raises:
        UserError: if the data set has no column of a name, as when it was changed on the hub.
    """
    found = []
    for name in names:
        try:
            found.append(list(data[name]))
        except Exception:
            has = ", ".join(map(str, getattr(data, "column_names", data)))
            raise UserError(f"{what}: the data set on the hub has no column {name!r}; it has {has}") from None
    return found


@dataclass(frozen=True)
class _Wanted:
    """What is read from the hub, and the lines for everything that can prevent it.

    Attributes:
        kind: "model" or "data set".
        name: the repository.
        what: how messages name its user.
        way_out: what the user can do instead.
        part: which part of a data set, in brackets.
    """

    kind: str
    name: str
    what: str
    way_out: str
    part: str = ""

    def from_cache(self, error: Exception) -> str:
        """A warning for an `error` that does no harm."""
        return f"{self.what}: {self.name} is taken from the cache, since the hub cannot be read ({_brief(error)})"

    def offline(self, error: Exception | None = None) -> str:
        """The client must not use the network, and the cache is not enough."""
        lacks = f"{self.name} is neither a folder nor a complete copy in the hub's cache {constants.HF_HOME}"
        if error is not None:
            lacks = (
                f"{self.name}{self.part} could not be read from the hub's cache {constants.HF_HOME} ({_brief(error)})"
            )
        return f"{self.what}: {lacks}, and HF_HUB_OFFLINE=1 forbids a download; unset HF_HUB_OFFLINE, or {self.way_out}"

    def line(self, error: Exception) -> str:
        """The line for an `error` of the client."""
        if isinstance(error, RepositoryNotFoundError):  # a gated repository is one of them
            return self._gated() if isinstance(error, GatedRepoError) else self._missing()
        if isinstance(error, HFValidationError):
            return f"{self.what}: {self.name} is neither a folder nor a name that the hub allows; {self.way_out}"
        if isinstance(error, HfHubHTTPError):
            return self._answered(error.response.status_code)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            return (
                f"{self.what}: {self.name} could not be written to {constants.HF_HOME} ({error.strerror}); make room "
                f"there or set HF_HOME to another folder, or {self.way_out}"
            )
        no_folder, kept = "", ""
        if self.kind == "model":
            no_folder, kept = f"there is no folder {self.name}, and ", " (files already downloaded are kept)"
        return (
            f"{self.what}: {no_folder}the {self.kind} {self.name}{self.part} could not be read from the hub at "
            f"{constants.ENDPOINT} ({_brief(error)}); check the network and try again{kept}, or {self.way_out}"
        )

    def _gated(self) -> str:
        page = f"{constants.ENDPOINT}/{'datasets/' if self.kind == 'data set' else ''}{self.name}"
        return (
            f"{self.what}: the {self.kind} {self.name} is gated: accept its terms at {page}, then log in with "
            f"`hf auth login` or set HF_TOKEN; or {self.way_out}"
        )

    def _missing(self) -> str:
        near = _nearest(self.name) if self.kind == "model" else None
        hint = f"; did you mean {near}? If not," if near else ";"
        folder = f" (nor is there a folder {self.name})" if self.kind == "model" else ""
        return (
            f"{self.what}: the hub has no {self.kind} {self.name}{folder}{hint} check the name, log in with "
            f"`hf auth login` or set HF_TOKEN if it is private, or {self.way_out}"
        )

    def _answered(self, status: int) -> str:
        if status in (401, 403):
            return (
                f"{self.what}: the hub refuses access to the {self.kind} {self.name} (status {status}); log in again "
                f"with `hf auth login` or set another HF_TOKEN, or {self.way_out}"
            )
        return (
            f"{self.what}: the hub at {constants.ENDPOINT} answers with status {status} for the {self.kind} "
            f"{self.name}; try again later, or {self.way_out}"
        )


def _brief(error: BaseException) -> str:
    """What is behind an error, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())[:160]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class _NoAnswer(OfflineModeIsEnabled):
    """The hub stays silent. The client treats this as its offline mode: it asks no more and looks into its cache."""


class _Link:
    """The connection to the hub inside a `_limits` block.

    Attributes:
        closed: refuse all requests, as in the hub's offline mode.
    """

    def __init__(self) -> None:
        self.closed = False
        self._silent_since: float | None = None

    def wrap(self, send: Callable[..., Any]) -> Callable[..., Any]:
        """`send` of an HTTP client, with this connection's limits."""

        def limited(request: Any, **options: Any) -> Any:
            started = time.monotonic()
            silence = started - (started if self._silent_since is None else self._silent_since)
            if self.closed or silence > TRIES * (_seconds() + 2):  # 2: the pauses between the tries
                raise _NoAnswer(f"no answer from {request.url.host} for {silence:.0f} seconds")
            given = request.extensions.get("timeout", {})
            limits = {k: min(given.get(k) or math.inf, _seconds()) for k in ("connect", "read", "write", "pool")}
            request.extensions = {**request.extensions, "timeout": limits}
            try:
                answer = send(request, **options)
            except Exception:
                self._silent_since = started if self._silent_since is None else self._silent_since
                raise
            self._silent_since = None
            return answer

        return limited


@contextmanager
def _limits() -> Iterator[_Link]:
    """Time limits for all requests to the hub inside the block; afterwards the client is as it was before."""
    link = _Link()
    with _one_at_a_time:
        before = _http._GLOBAL_CLIENT_FACTORY  # the library can set a factory but not tell which one is set

        def client() -> Any:
            made: Any = before()
            made.send = link.wrap(made.send)
            return made

        verbosity = logging_of_hub.get_verbosity()
        if verbosity == logging.WARNING:  # the default: a warning of three lines for every try
            logging_of_hub.set_verbosity_error()
        set_client_factory(client)
        try:
            yield link
        finally:
            set_client_factory(before)
            logging_of_hub.set_verbosity(verbosity)


def _ask(question: Callable[[], T]) -> T:
    """The answer to `question`, which is asked again while the hub is silent or busy."""
    for wait in range(1, TRIES):
        try:
            return question()
        except Exception as error:
            if not _may_pass(error):
                raise
        time.sleep(wait)
    return question()


def _may_pass(error: Exception) -> bool:
    """Whether the same request may succeed a little later."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in BUSY
    return not isinstance(error, HFValidationError)


def _seconds() -> float:
    """The longest time in seconds that a request waits for the next bytes of its answer."""
    return float(constants.HF_HUB_DOWNLOAD_TIMEOUT)


def _cached(name: str) -> Path | None:
    """The folder of a complete copy in the cache."""
    try:
        folder = Path(snapshot_download(name, allow_patterns=FILES, local_files_only=True))
    except Exception:  # no copy, or part of one
        return None
    return folder if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")) else None


def _check_files(files: list[str], name: str, what: str) -> None:
    """Raise `UserError` if the repository is no checkpoint that can be read. Nothing is downloaded before."""
    top = [file for file in files if "/" not in file]
    if "config.json" not in top:
        raise UserError(f"{what}: {name} on the hub has no config.json; name a transformers model")
    if any(file.endswith(".safetensors") for file in top):
        return
    pickled = sorted(file for file in top if file.endswith(PICKLES))
    if pickled:
        raise UserError(
            f"{what}: {name} on the hub has only pickled weights ({pickled[0]}), which can run code and are never read; "
            "name a repository with safetensors weights"
        )
    raise UserError(f"{what}: {name} on the hub has no safetensors weights; name a repository that has them")


def _storage(name: str) -> Path:
    """The folder of a model in the cache."""
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")


def _remember(name: str, commit: str) -> None:
    """Write into the cache which commit the main branch is at, where the client looks for it without a network."""
    ref = _storage(name) / "refs" / "main"
    try:
        if not ref.is_file() or ref.read_text() != commit:
            ref.parent.mkdir(parents=True, exist_ok=True)
            temporary = ref.with_name(f".main.{os.getpid()}.tmp")  # readers see the old or the new commit
            temporary.write_text(commit)
            os.replace(temporary, ref)
    except OSError:  # a cache that cannot be written holds the files all the same
        log.debug("%s could not be written", ref)


def _nearest(name: str) -> str | None:
    """The model of the hub whose name is most like `name`, as far as the hub's search finds it."""
    last = name.rpartition("/")[2]
    # The search looks for names that contain its words: shorter and shorter beginnings reach across a typing error.
    words = dict.fromkeys([last, last.rpartition("-")[0] or last[: len(last) // 2], last[:4]])
    for word in filter(None, words):
        try:
            found = [str(model.id) for model in HfApi().list_models(search=word, limit=50)]
        except Exception:  # no suggestion is better than another error
            return None
        by_last = {id.rpartition("/")[2].lower(): id for id in reversed(found)}
        near = difflib.get_close_matches(name, found, 1, 0.8)
        near = near or [by_last[n] for n in difflib.get_close_matches(last.lower(), by_last, 1, 0.8)]
        if near:
            return near[0]
    return None
