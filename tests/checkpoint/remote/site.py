"""A plain range server on the loopback, with faults."""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from tests.checkpoint.loopback import LoopbackHandler, serving


@dataclass
class Site:
    """Serves ``files`` by name below ``/models/it/``.

    ``faults`` are, for each name, what goes wrong with its next answers, one after another; "ok" is none. ``requests`` are
    (name, range), ``sent`` the parts (name, first byte, byte after the last) that were sent as they should be, ``tokens``
    (host, authorization), and ``queries`` the queries.
    """

    files: dict[str, bytes]
    faults: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    sent: list[tuple[str, int, int]] = field(default_factory=list)
    tokens: set[tuple[str, str | None]] = field(default_factory=set)
    queries: set[str] = field(default_factory=set)
    num_connections: int = 0
    has_etags: bool = True
    url: str = ""

    @contextmanager
    def serving(self) -> Iterator[Site]:
        """Serve until the end of the block."""
        with serving(type("Handler", (_Handler,), {"served": self})) as url:
            self.url = f"{url}/models/it/"
            yield self


class _Handler(LoopbackHandler):
    served: Site

    def setup(self) -> None:
        super().setup()
        self.served.num_connections += 1

    def get(self) -> None:
        site, parts = self.served, urlsplit(self.path)
        name = unquote(parts.path).removeprefix("/models/it/")
        asked = self.headers.get("Range")
        site.requests.append((name, asked))
        site.tokens.add((self.headers["Host"].partition(":")[0], self.headers.get("Authorization")))
        site.queries.add(parts.query)
        fault = site.faults[name].pop(0) if site.faults[name] else "ok"
        if name not in site.files:
            self.answer(404, b"no such file")
        elif fault == "elsewhere":  # another host, to which no credentials are sent
            self.answer(302, b"", {"Location": f"{site.url.replace('127.0.0.1', 'localhost')}{name}"})
        elif fault == "around":
            self.answer(302, b"", {"Location": self.path})
        elif fault.isdecimal():
            self.answer(int(fault), b"")
        elif fault.startswith("after "):
            self.answer(503, b"", {"Retry-After": fault.removeprefix("after ")})
        elif fault == "drop":
            self.close_connection = True
        else:
            if fault == "slow":
                time.sleep(0.4)
            self._content(name, asked if fault != "whole" else None, fault)

    def _content(self, name: str, asked: str | None, fault: str) -> None:
        content = self.served.files[name]
        etag = "another" if fault == "another" else hashlib.md5(content).hexdigest()
        headers = {"ETag": f'"{etag}"'} if self.served.has_etags else {}
        if asked is None:
            self.answer(200, content, headers)
            return
        content += b"+" * (fault == "grown")
        if not content:
            self.answer(416, b"", {"Content-Range": "bytes */0"})
            return
        first, last = map(int, asked.removeprefix("bytes=").split("-"))
        first += fault == "shifted"
        body = content[first : last + 1]
        if fault != "no-range":
            headers["Content-Range"] = f"bytes {first}-{first + len(body) - 1}/{len(content)}"
        if fault == "zipped":
            headers["Content-Encoding"] = "gzip"
        if fault == "short":
            self.answer(206, body[: len(body) // 2], headers | {"Content-Length": str(len(body))})
            self.close_connection = True
        else:
            if fault in ("ok", "slow"):
                self.served.sent.append((name, first, first + len(body)))
            self.answer(206, body, headers)
