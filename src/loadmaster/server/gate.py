"""What every request passes before the routes: its host and headers, the API key, and whether requests are accepted now."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Final

from fastapi import Response
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from loadmaster.errors import clip
from loadmaster.server.failures import RETRY_AFTER, error_object, error_response, failure_response
from loadmaster.server.service import QueueFullError, Service, ShutdownError

OPEN: Final = frozenset(
    {"/", "/docs", "/health", "/live", "/load", "/metrics", "/openapi.json", "/ping", "/status", "/version"}
)
"""Paths that are answered in every state and need no API key. ``/status`` shows less without one."""

PROBES: Final = frozenset({"/health", "/live", "/ping", "/metrics"})
"""Paths that may have any Host header: Kubernetes and Prometheus ask for them by address."""


class Gate:
    """Refuses requests before every route: by Host, headers, API key and state of the service, in this order.

    ``scope["state"]["has_key"]`` says whether the request has a valid key, or needs none.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service, self._settings = app, service, service.settings
        self._keys = [key.encode() for key in service.settings.api_keys]
        self._num_posts = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request to the routes, or answer it with an error."""
        if scope["type"] == "http":
            scope["root_path"] = self._settings.root_path  # routes read it
            headers = dict(scope["headers"])
            has_key = scope.setdefault("state", {})["has_key"] = self._has_key(headers)
            if (refusal := self._refusal(scope, headers, has_key)) is not None:
                return await refusal(scope, receive, send)
        try:
            with self._service.answering(), self._counting(scope):
                return await self._app(scope, receive, send)
        except asyncio.CancelledError:
            if not self._service.stopping.is_set():
                raise
            return None  # the server is shutting down, and this client reads too slowly

    @contextmanager
    def _counting(self, scope: Scope) -> Generator[None, None, None]:
        self._num_posts += (is_post := scope.get("method") == "POST")
        try:
            yield
        finally:
            self._num_posts -= is_post

    def _refusal(self, scope: Scope, headers: Mapping[bytes, bytes], has_key: bool) -> Response | None:
        path = route_path(scope)
        if (refusal := self._malformed(scope, path, headers)) is not None:
            return refusal
        if path not in OPEN and not has_key:
            return error_response(401, "the API key is missing or wrong", headers={"WWW-Authenticate": "Bearer"})
        return None if path in OPEN else self._not_now(scope)

    def _malformed(self, scope: Scope, path: str, headers: Mapping[bytes, bytes]) -> Response | None:
        close = {"Connection": "close"}
        if scope["http_version"] not in ("1.0", "1.1"):
            return error_response(505, "this server speaks HTTP/1.1", headers=close)
        if len(scope["headers"]) > self._settings.max_headers:
            return error_response(
                431, f"the request has {len(scope['headers'])} headers, expected at most {self._settings.max_headers}"
            )
        if b"content-length" in headers and b"transfer-encoding" in headers:  # RFC 9112, 6.3: as a smuggler would
            return error_response(400, "the request has both Content-Length and Transfer-Encoding", headers=close)
        if self._settings.allowed_hosts and path not in PROBES:
            host = _host_name(headers.get(b"host", b"").decode("latin-1"))
            if not any(_matches(host, allowed) for allowed in self._settings.allowed_hosts):
                return error_response(400, f"this server is not {clip(repr(host))}", headers=close)
        return None

    def _has_key(self, headers: Mapping[bytes, bytes]) -> bool:
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        same = [hmac.compare_digest(given.strip(), key) for key in self._keys]  # compares all, to take the same time
        return not self._keys or (scheme.lower() == b"bearer" and any(same))

    def _not_now(self, scope: Scope) -> Response | None:
        if self._service.failed is not None:
            return JSONResponse(error_object(503, str(self._service.failed)), 503)
        if self._service.is_draining:
            return error_response(503, ShutdownError().message, headers={**RETRY_AFTER, "Connection": "close"})
        if not self._service.is_ready:
            done, total = self._service.engine.progress()
            return error_response(
                503,
                f"the model is loading: {done:,} of {total:,} bytes",
                headers=RETRY_AFTER,
            )
        limit = self._settings.max_queue
        if limit is None or scope["method"] != "POST":
            return None
        is_full = self._num_posts >= self._service.engine.capacity.max_num_seqs + limit
        return failure_response(QueueFullError(limit)) if is_full else None


def route_path(scope: Scope) -> str:
    """Return a request's path as routes know it: without the path of the proxy, whether or not the proxy removed it.

    >>> [route_path({"path": p, "root_path": "/llm"}) for p in ("/llm/v1/models", "/v1/models", "/llm", "/llmv1")]
    ['/v1/models', '/v1/models', '/', '/llmv1']
    """
    path, root = str(scope["path"]), str(scope.get("root_path", "")).rstrip("/")
    if root and (path == root or path.startswith(root + "/")):
        return path[len(root) :] or "/"
    return path


def _host_name(host: str) -> str:
    """Return a Host header without its port.

    >>> [_host_name(h) for h in ("Example.org:8000", "[::1]:80", "10.0.0.1")]
    ['example.org', '[::1]', '10.0.0.1']
    """
    name, colon, port = host.strip().lower().rpartition(":")
    return name if colon and port.isdecimal() and (not name.startswith("[") or name.endswith("]")) else host.lower()


def _matches(host: str, allowed: str) -> bool:
    if allowed == "*":
        return True
    allowed = allowed.lower()
    return host.endswith(allowed[1:]) if allowed.startswith("*.") else host == allowed
