"""A small Hugging Face hub on the loopback interface, with the faults that a real one has.

It answers the requests that `huggingface_hub` and `datasets` make to read a repository: its description, its list of
files, the files themselves (whole or from a byte on), and the search.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

TOKEN = "hf_of_somebody_who_accepted_the_terms"


@dataclass
class Repository:
    """A model or data set of the server.

    Attributes:
        files: content by name.
        gated: status of the refusal to give files to those without `TOKEN`; 0: everybody may read them.
        closed: refuse the description of the repository as well.
    """

    files: dict[str, bytes]
    gated: int = 0
    closed: bool = False

    @property
    def commit(self) -> str:
        digest = hashlib.sha1(usedforsecurity=False)
        for name, content in sorted(self.files.items()):
            digest.update(name.encode() + b"\0" + content)
        return digest.hexdigest()


@dataclass
class Fault:
    """What goes wrong with some requests.

    Attributes:
        where: regular expression of `METHOD path`.
        times: for how many requests.
        status: answer with this status; 0: do not answer.
        cut: answer, but break off after so many bytes of the content.
    """

    where: str
    times: float = float("inf")
    status: int = 0
    cut: int | None = None


@dataclass
class Hub:
    """A running server. Use it as a context manager.

    Attributes:
        models: repositories by name.
        datasets: repositories by name.
        faults: what goes wrong.
        rate: bytes of a file per second.
        seen: `METHOD path` of every request, with the first byte asked for where that is not 0.
    """

    models: dict[str, Repository] = field(default_factory=dict)
    datasets: dict[str, Repository] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    rate: float = float("inf")
    seen: list[str] = field(default_factory=list)

    def __enter__(self) -> Hub:
        self.stopped = threading.Event()
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.url = f"http://localhost:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Close the port, so that connections to it are refused."""
        if not self.stopped.is_set():
            self.stopped.set()  # ends the requests that are kept waiting
            self.server.shutdown()
            self.thread.join()
            self.server.server_close()

    def fault(self, line: str) -> Fault | None:
        """The fault that hits a request."""
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.where, line):
                    fault.times -= 1
                    return fault
        return None

    def count(self, where: str) -> int:
        """How many requests so far match a regular expression."""
        return sum(re.search(where, line) is not None for line in self.seen)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer()

    def answer(self) -> None:
        parts = urlsplit(self.path)
        path, start = unquote(parts.path), int((self.headers.get("Range") or "bytes=0-")[6:].split("-")[0])
        line = f"{self.command} {path}"
        self.hub.seen.append(f"{line} from {start}" if start else line)
        fault = self.hub.fault(line)
        self.cut = fault.cut if fault else None
        if fault and fault.cut is None:
            if fault.status:
                self.error(fault.status, "Fault")
            else:
                self.hub.stopped.wait(60)
                self.close_connection = True
            return
        try:
            self.route(path, {k: v[-1] for k, v in parse_qs(parts.query).items()}, start)
        except (BrokenPipeError, ConnectionResetError):  # the client has left
            self.close_connection = True

    def route(self, path: str, query: dict[str, str], start: int) -> None:
        if path == "/api/models":
            found = [name for name in self.hub.models if query.get("search", "").lower() in name.lower()]
            self.json([{"id": name, "modelId": name} for name in found])
        elif match := re.fullmatch(r"/api/(models|datasets)/([^/]+(?:/[^/]+)?)", path):
            self.describe(match[1], match[2])
        elif match := re.fullmatch(r"/api/(models|datasets)/(.+)/revision/([^/]+)", path):
            self.describe(match[1], match[2], match[3])
        elif match := re.fullmatch(r"/api/(models|datasets)/(.+)/tree/([^/]+)(?:/(.*))?", path):
            self.tree(match[1], match[2], match[4] or "", query.get("recursive", "").lower() in ("true", "1"))
        elif match := re.fullmatch(r"/api/(models|datasets)/(.+)/paths-info/([^/]+)", path):
            self.paths(match[1], match[2])
        elif match := re.fullmatch(r"/(datasets/)?(.+)/resolve/([^/]+)/(.+)", path):
            self.file("datasets" if match[1] else "models", match[2], match[4], start)
        else:
            self.error(404, "NotFound")

    def admitted(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def find(self, kind: str, name: str) -> Repository | None:
        repository = getattr(self.hub, kind).get(name)
        if repository is None:
            self.error(404, "RepoNotFound", "Repository not found")
        return repository  # type: ignore[no-any-return]

    def describe(self, kind: str, name: str, revision: str = "main") -> None:
        repository = self.find(kind, name)
        if repository is None:
            return
        if repository.closed and not self.admitted():
            self.error(repository.gated, "GatedRepo", f"Access to {name} is restricted")
        elif revision not in ("main", repository.commit):
            self.error(404, "RevisionNotFound")
        else:
            files = [{"rfilename": file} for file in repository.files]
            self.json(
                {
                    "id": name,
                    "sha": repository.commit,
                    "siblings": files,
                    "gated": "auto" if repository.gated else False,
                }
            )

    def tree(self, kind: str, name: str, folder: str, recursive: bool) -> None:
        if repository := self.find(kind, name):
            prefix = f"{folder}/" if folder else ""
            inside = sorted(file for file in repository.files if file.startswith(prefix))
            folders = sorted({prefix + f.removeprefix(prefix).split("/")[0] for f in inside if "/" in f[len(prefix) :]})
            shown = inside if recursive else [f for f in inside if "/" not in f[len(prefix) :]]
            self.json([entry(repository, path) for path in [*folders, *shown]])

    def paths(self, kind: str, name: str) -> None:
        if repository := self.find(kind, name):
            form = self.headers.get("Content-Type", "")
            asked = json.loads(self.body)["paths"] if "json" in form else parse_qs(self.body.decode()).get("paths", [])
            asked = [asked] if isinstance(asked, str) else asked
            known = [p for p in asked if any(f == p or f.startswith(f"{p}/") for f in repository.files)]
            self.json([entry(repository, path) for path in known])

    def file(self, kind: str, name: str, file: str, start: int) -> None:
        repository = self.find(kind, name)
        if repository is None:
            return
        if repository.gated and not self.admitted():
            self.error(repository.gated, "GatedRepo", f"Access to {name} is restricted")
        elif file not in repository.files:
            self.error(404, "EntryNotFound", commit=repository.commit)
        else:
            content = repository.files[file]
            headers = {"ETag": f'"{blob(content)}"', "X-Repo-Commit": repository.commit, "Accept-Ranges": "bytes"}
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.send(206 if start else 200, content[start:], headers)

    def json(self, content: Any) -> None:
        self.send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def error(self, status: int, code: str, message: str = "", commit: str = "") -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message, "X-Repo-Commit": commit}
        self.send(status, b"{}", {k: v for k, v in headers.items() if v} | {"Content-Type": "application/json"})

    def send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.cut is not None:
            content = content[: self.cut]
            self.close_connection = True
        step = len(content) or 1 if self.hub.rate == float("inf") else max(1, int(self.hub.rate / 20))
        for place in range(0, len(content), step):
            self.wfile.write(content[place : place + step])
            self.wfile.flush()
            if self.hub.rate != float("inf"):
                time.sleep(step / self.hub.rate)


def blob(content: bytes) -> str:
    """The name that git gives to a content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def entry(repository: Repository, path: str) -> dict[str, Any]:
    """How the hub describes a file or a folder."""
    if path not in repository.files:
        return {"type": "directory", "path": path, "oid": blob(path.encode()), "size": 0}
    content = repository.files[path]
    return {"type": "file", "path": path, "oid": blob(content), "size": len(content)}


def data_set(configs: dict[str, dict[str, Iterable[dict[str, Any]]]], classes: tuple[str, ...] | None) -> Repository:
    """A data set as the hub stores it: Parquet files, and a README whose head describes them.

    Args:
        configs: for each configuration and split its rows.
        classes: names of the values of the column `label`; None: the column holds text.
    """
    files, parts, infos = {}, [], []
    for config, splits in configs.items():
        paths = []
        for split, rows in splits.items():
            table, buffer = pa.Table.from_pylist(list(rows)), io.BytesIO()
            pq.write_table(table, buffer)
            files[f"{config}/{split}-00000-of-00001.parquet"] = buffer.getvalue()
            paths.append(f"  - split: {split}\n    path: {config}/{split}-*\n")
        parts.append(f"- config_name: {config}\n  data_files:\n{''.join(paths)}")
        features = "".join(
            f"  - name: {name}\n    dtype: {'string' if pa.types.is_string(table.schema.field(name).type) else 'int64'}\n"
            for name in table.column_names
            if name != "label" or classes is None
        )
        if classes is not None:
            names = "".join(f"          '{i}': {name}\n" for i, name in enumerate(classes))
            features += f"  - name: label\n    dtype:\n      class_label:\n        names:\n{names}"
        infos.append(f"- config_name: {config}\n  features:\n{features}")
    head = f"---\nconfigs:\n{''.join(parts)}dataset_info:\n{''.join(infos)}---\n"
    return Repository(files | {"README.md": head.encode()})
