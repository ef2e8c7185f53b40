"""A stand-in for the hub on the loopback: model info, tree and resolve, as huggingface_hub asks for them.

It records what it was asked for and how many bytes of each file it sent, and has faults that a test switches on.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.checkpoint.loopback import LoopbackHandler, serving


@dataclass
class Commit:
    """The files of one commit, by name; a path is a large file on disk, whose hash is made of its name."""

    files: Mapping[str, bytes | Path]

    @cached_property
    def sha(self) -> str:
        """The commit, made of what it holds."""
        listing = json.dumps({n: hashlib.sha256(hashed(b)).hexdigest() for n, b in self.files.items()}, sort_keys=True)
        return hashlib.sha1(listing.encode()).hexdigest()

    @cached_property
    def blobs(self) -> dict[str, dict[str, Any]]:
        """What the hub's API says of each file; the larger ones are in LFS."""
        return {name: self._blob(name, content) for name, content in self.files.items()}

    @staticmethod
    def _blob(name: str, content: bytes | Path) -> dict[str, Any]:
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        said = {"size": size, "oid": hashlib.sha1(b"blob %d\0" % size + hashed(content)).hexdigest()}
        if name.endswith((".safetensors", ".bin", ".gguf", ".pth")):
            said["lfs"] = {"size": size, "oid": hashlib.sha256(hashed(content)).hexdigest(), "pointerSize": 130}
        return said

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """Return bytes of a file."""
        content = self.files[name]
        if isinstance(content, bytes):
            return content[start:stop]
        with content.open("rb") as file:
            file.seek(start)
            return file.read(-1 if stop is None else max(0, stop - start))


@dataclass
class StandIn:
    """The hub: ``commits`` by (model, revision), and what it was asked for.

    ``requests`` are (method, path); ``sent`` is bytes of content by file name, ``ranges`` what was requested of it, and
    ``tokens`` are (host, authorization). ``faults`` are names of what goes wrong: "drop-info" and "drop-files" break the
    connection off, "gated" and "private" refuse, "web-page" answers with one, and "busy" is HTTP status 503. Of ranges:
    "whole" sends the whole file instead, "grown" another size, "another" the ETag of another file, "expired" refuses what a
    redirect leads to after the first time.
    """

    commits: dict[tuple[str, str], Commit] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)
    faults: set[str] = field(default_factory=set)
    ranges: list[tuple[str, str]] = field(default_factory=list)
    tokens: set[tuple[str, str | None]] = field(default_factory=set)
    latency_s: float = 0.0
    url: str = ""

    def publish(self, model: str, files: Mapping[str, bytes | Path], revision: str = "main") -> Commit:
        """Put a commit of a model under a revision, and under its own name."""
        commit = Commit(dict(files))
        self.commits |= {(model, revision): commit, (model, commit.sha): commit}
        return commit

    @contextmanager
    def serving(self) -> Iterator[StandIn]:
        """Serve until the end of the block."""
        with serving(type("Handler", (_Handler,), {"standin": self})) as self.url:
            yield self


def hashed(content: bytes | Path) -> bytes:
    """Return what stands for a file's content in its hash."""
    return content if isinstance(content, bytes) else content.name.encode()


def folder_files(folder: Path) -> dict[str, bytes]:
    """Return a folder's files, as a commit has them."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class _Handler(LoopbackHandler):
    standin: StandIn

    def get(self) -> None:
        hub, path = self.standin, unquote(urlsplit(self.path).path)
        hub.requests.append((self.command, path))
        hub.tokens.add((self.headers["Host"].partition(":")[0], self.headers.get("Authorization")))
        if hub.latency_s:
            time.sleep(hub.latency_s)
        _, *parts = path.split("/")
        if parts[0] == "api":
            self._api("/".join(parts[2:4]), parts[4:])
        elif parts[0] == "lfs":
            self._file(
                next((c, n) for c in hub.commits.values() for n in c.files if f"{c.sha}/{n}" == "/".join(parts[1:]))
            )
        else:
            self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))

    def _api(self, model: str, rest: list[str]) -> None:
        hub = self.standin
        kind, revision = (rest[0], "/".join(rest[1:])) if rest else ("revision", "main")
        commit = hub.commits.get((model, revision))
        if "drop-info" in hub.faults:
            self.close_connection = True
        elif "busy" in hub.faults:
            self.answer(503, b"")
        elif "web-page" in hub.faults:
            self.answer(200, b"<html>Please sign in</html>", {"Content-Type": "text/html"})
        elif "private" in hub.faults:
            self.answer(401, b"", {"X-Error-Message": "Invalid username or password."})
        elif commit is None:
            self._absent(model)
        elif kind == "tree":
            self._json([{"type": "file", "path": n, **blob} for n, blob in commit.blobs.items()])
        else:
            info = {"id": model, "modelId": model, "sha": commit.sha, "private": False, "tags": []}
            self._json({**info, "siblings": [self._sibling(n, blob) for n, blob in commit.blobs.items()]})

    @staticmethod
    def _sibling(name: str, blob: dict[str, Any]) -> dict[str, Any]:
        said = {"rfilename": name, "size": blob["size"], "blobId": blob["oid"]}
        if "lfs" in blob:
            said["lfs"] = {"sha256": blob["lfs"]["oid"], "size": blob["size"], "pointerSize": 130}
        return said

    def _resolve(self, model: str, revision: str, name: str) -> None:
        hub = self.standin
        commit = hub.commits.get((model, revision))
        if commit is None:
            self._absent(model)
        elif "gated" in hub.faults:
            self.answer(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."})
        elif name not in commit.files:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit.sha})
        else:
            blob = commit.blobs[name]
            headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{blob["oid"]}"', "Accept-Ranges": "bytes"}
            if "lfs" not in blob:
                self._file((commit, name), headers)
                return
            oid = "0" * 64 if "another" in hub.faults else blob["lfs"]["oid"]
            linked = {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(blob["size"])}
            cdn = hub.url.replace("127.0.0.1", "localhost")  # another host, to which no token is sent
            self.answer(302, b"", {**headers, **linked, "Location": f"{cdn}/lfs/{commit.sha}/{name}"})

    def _file(self, at: tuple[Commit, str], headers: Mapping[str, str] | None = None) -> None:
        (commit, name), hub = at, self.standin
        size, status = commit.blobs[name]["size"], 200
        start, stop = 0, size
        made = dict(headers or {})
        asked = self.headers.get("Range") if "whole" not in hub.faults else None
        if asked and self.command == "GET":
            if "expired" in hub.faults and any(n == name for n, _ in hub.ranges):
                self.answer(403, b"")
                hub.faults.discard("expired")
                return
            hub.ranges.append((name, asked))
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last) + 1, size) if last else size
            made["Content-Range"] = f"bytes {start}-{stop - 1}/{size + ('grown' in hub.faults)}"
            status = 206
        if self.command == "HEAD":
            self.answer(status, b"", made | {"Content-Length": str(stop - start)})
            return
        content = commit.read(name, start, stop)
        if "drop-files" in hub.faults and name.endswith(".safetensors"):
            hub.sent[name] += len(content) // 2
            self.answer(status, content[: len(content) // 2], {**made, "Content-Length": str(len(content))})
            self.close_connection = True
            return
        hub.sent[name] += len(content)
        self.answer(status, content, made)

    def _absent(self, model: str) -> None:
        is_known = any(m == model for m, _ in self.standin.commits)
        code = "RevisionNotFound" if is_known else "RepoNotFound"
        self.answer(404, b"{}", {"X-Error-Code": code})

    def _json(self, value: object) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})
