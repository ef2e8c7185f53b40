"""A plain range server on the loopback, with faults."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


@dataclass
class Site:
    """Serves ``files`` by name below ``/models/it/``.

    ``faults`` are, for each name, what goes wrong with its next answers, one after another; "ok" is none. ``requests`` are
    (name, range), ``tokens`` are (host, authorization), and ``queries`` the queries.
    """

    files: dict[str, bytes]
    faults: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    tokens: set[tuple[str, str | None]] = field(default_factory=set)
    queries: set[str] = field(default_factory=set)
    url: str = ""

    def start(self) -> ThreadingHTTPServer:
        """Serve until the server that is returned is shut down."""
        site = self

        class Handler(_Handler):
            served = site

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_port}/models/it/"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return server


class _Handler(BaseHTTPRequestHandler):
    served: Site
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        site, parts = self.served, urlsplit(self.path)
        name = unquote(parts.path).removeprefix("/models/it/")
        asked = self.headers.get("Range")
        site.requests.append((name, asked))
        site.tokens.add((self.headers["Host"].partition(":")[0], self.headers.get("Authorization")))
        site.queries.add(parts.query)
        fault = site.faults[name].pop(0) if site.faults[name] else "ok"
        if name not in site.files:
            self._answer(404, b"no such file")
        elif fault == "elsewhere":  # another host, to which no credentials are sent
            self._answer(302, b"", {"Location": f"{site.url.replace('127.0.0.1', 'localhost')}{name}"})
        elif fault == "around":
            self._answer(302, b"", {"Location": self.path})
        elif fault.isdecimal():
            self._answer(int(fault), b"")
        elif fault.startswith("after "):
            self._answer(503, b"", {"Retry-After": fault.removeprefix("after ")})
        elif fault == "drop":
            self.close_connection = True
        else:
            if fault == "slow":
                time.sleep(0.4)
            self._content(site.files[name], asked if fault != "whole" else None, fault)

    def _content(self, content: bytes, asked: str | None, fault: str) -> None:
        headers = {"ETag": '"another"' if fault == "another" else '"one"'}
        if asked is None:
            self._answer(200, content, headers)
            return
        content += b"+" * (fault == "grown")
        if not content:
            self._answer(416, b"", {"Content-Range": "bytes */0"})
            return
        first, last = map(int, asked.removeprefix("bytes=").split("-"))
        first += fault == "shifted"
        body = content[first : last + 1]
        if fault != "no-range":
            headers["Content-Range"] = f"bytes {first}-{first + len(body) - 1}/{len(content)}"
        if fault == "zipped":
            headers["Content-Encoding"] = "gzip"
        if fault == "short":
            self._answer(206, body[: len(body) // 2], headers | {"Content-Length": str(len(body))})
            self.close_connection = True
        else:
            self._answer(206, body, headers)

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
