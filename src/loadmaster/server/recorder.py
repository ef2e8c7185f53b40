"""Keeps a record of every request, and gives every answer its request's id. Outermost: it sees all answers, errors too."""

from __future__ import annotations

import asyncio
import re
import uuid
from typing import Final, cast

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loadmaster.server.records import Outcome, Record
from loadmaster.server.service import Service

REQUEST_ID: Final = re.compile(r"[!-~]{1,128}")
"""The ids that clients may choose: visible ASCII, up to 128 characters. Others are replaced."""


def record_of(request: HTTPConnection) -> Record:
    """Return the record of a request that has passed `Recorder`."""
    return cast(Record, request.state.record)


class Recorder:
    """Begins a `Record` for each HTTP request (``scope["state"]["record"]``) and ends it exactly once."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and watch its answer."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        record = _record(scope)
        scope.setdefault("state", {})["record"] = record
        watch = _Watch(record, receive, send)
        self._service.records.begin(record)
        try:
            return await self._app(scope, watch.receive, watch.send)
        except asyncio.CancelledError:
            watch.is_cut = True
            raise
        finally:
            record.route = getattr(scope.get("route"), "path", None)
            self._service.records.end(record, watch.outcome(self._service.stopping.is_set()))
            self._service.observations.end_request(record)
            self._service.request_log.ended(record)


def _record(scope: Scope) -> Record:
    headers = HTTPConnection(scope).headers
    client = scope.get("client")
    proposed = headers.get("x-request-id")
    is_usable = proposed is not None and REQUEST_ID.fullmatch(proposed) is not None
    return Record(
        id=proposed if proposed is not None and is_usable else uuid.uuid4().hex,
        has_own_id=is_usable,
        client=client[0] if client else "",
        method=scope["method"],
        path=scope["path"],
    )


class _Watch:
    """A request's messages in both directions."""

    def __init__(self, record: Record, receive: Receive, send: Send) -> None:
        self._record, self._receive, self._send = record, receive, send
        self._has_left = self._is_complete = self.is_cut = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self._is_complete:
            self._has_left = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._record.status = message["status"]
            MutableHeaders(raw=message.setdefault("headers", []))["X-Request-Id"] = self._record.id
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            self._is_complete = True  # before it is sent: a client may leave as soon as it has read everything
        await self._send(message)

    def outcome(self, is_stopping: bool) -> Outcome:
        """Return how the request ended, judged by its messages."""
        if self._has_left:
            return "cancelled"
        status = self._record.status
        if status is None or not self._is_complete:
            return "shut down" if is_stopping or self.is_cut else "failed"
        if status == 500:
            return "failed"
        return "refused" if status >= 400 else "finished"
