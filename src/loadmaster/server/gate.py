"""What every request passes before the routes: the API key, and whether requests are accepted now."""

from __future__ import annotations

import asyncio
import hmac
from typing import Final

from fastapi import Response
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from loadmaster.server.failures import RETRY_AFTER, error_object, error_response
from loadmaster.server.service import Service, ShutdownError
from loadmaster.server.settings import Settings

OPEN: Final = frozenset(
    {"/", "/docs", "/health", "/live", "/load", "/metrics", "/openapi.json", "/ping", "/status", "/version"}
)
"""Paths that are answered in every state and need no API key. ``/status`` shows less without one."""

GUARDED: Final = ("/v1", "/v2", "/inference", "/cohere")
"""What the paths begin with that need an API key, if there is one: vLLM's."""


class Gate:
    """Checks the API key, then whether requests are accepted now, before every route that is not `OPEN`.

    ``scope["state"]["has_key"]`` says whether the request has a valid key, or needs none.
    """

    def __init__(self, app: ASGIApp, service: Service, settings: Settings) -> None:
        self._app, self._service = app, service
        self._keys = [f"Bearer {key}".encode() for key in settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request to the routes, or answer it with an error."""
        if scope["type"] == "http":
            has_key = scope.setdefault("state", {})["has_key"] = self._has_key(scope)
            if scope["path"] not in OPEN and (refusal := self._refusal(scope, has_key)) is not None:
                return await refusal(scope, receive, send)
        try:
            with self._service.answering():
                return await self._app(scope, receive, send)
        except asyncio.CancelledError:
            if not self._service.stopping.is_set():
                raise
            return None  # the server is shutting down, and this client reads too slowly

    def _has_key(self, scope: Scope) -> bool:
        authorization = dict(scope["headers"]).get(b"authorization", b"")
        same = [hmac.compare_digest(authorization, key) for key in self._keys]  # compares all, to take the same time
        return any(same) or not self._keys

    def _refusal(self, scope: Scope, has_key: bool) -> Response | None:
        if scope["path"].startswith(GUARDED) and not has_key:
            return error_response(401, "the API key is missing or wrong", headers={"WWW-Authenticate": "Bearer"})
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
        return None
