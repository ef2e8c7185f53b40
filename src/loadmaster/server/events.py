"""Streamed answers as server-sent events, and work that ends when its client leaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing, suppress
from typing import Any

import orjson
from fastapi import Response
from starlette.types import Receive, Scope, Send

from loadmaster.server.failures import failure_object, outcome_of
from loadmaster.server.records import Record
from loadmaster.server.service import ShutdownError

FAREWELL_S = 0.5
"""How long a client may take to receive the event that reports the server's shutdown."""


class EventStream(Response):
    """Server-sent events: one for each chunk, then ``[DONE]``. An error during the stream is an event too."""

    media_type = "text/event-stream"

    def __init__(self, chunks: AsyncGenerator[dict[str, Any], None], stopping: asyncio.Event, record: Record) -> None:
        super().__init__(headers={"Cache-Control": "no-cache"})
        del self.headers["content-length"]
        self._chunks, self._stopping, self._record = chunks, stopping, record

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all events. Stop early if the client leaves or the server shuts down."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if not await finish_unless_ended(self._write(send), receive, self._stopping) and self._stopping.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._end(send, ShutdownError()), FAREWELL_S)

    async def _write(self, send: Send) -> None:
        failure: Exception | None = None
        try:
            async with aclosing(self._chunks):
                async for chunk in self._chunks:
                    await self._send(send, self.event(chunk))
        except Exception as error:
            failure = error
        await self._end(send, failure)

    def event(self, chunk: dict[str, Any]) -> str:
        """Return a chunk as an event."""
        return _event(orjson.dumps(chunk).decode())

    def ending(self, failure: Exception | None) -> str:
        """Return the last events, after an error if there was one."""
        error = "" if failure is None else _event(json.dumps(failure_object(failure)))
        return error + _event("[DONE]")

    async def _end(self, send: Send, failure: Exception | None) -> None:
        if failure is not None:
            self._record.outcome = outcome_of(failure)
        await self._send(send, self.ending(failure))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, events: str) -> None:
        await send({"type": "http.response.body", "body": events.encode(), "more_body": True})


class NamedEventStream(EventStream):
    """The events of ``/v1/responses``: each has a name, its chunk's ``type``, and there is no ``[DONE]``."""

    _sequence_number = -1

    def event(self, chunk: dict[str, Any]) -> str:
        """Return a chunk as an event with its name."""
        self._sequence_number = chunk["sequence_number"]
        return f"event: {chunk['type']}\n" + super().event(chunk)

    def ending(self, failure: Exception | None) -> str:
        """Return an event of type ``error`` if there was one, as OpenAI defines it."""
        if failure is None:
            return ""
        error = failure_object(failure)["error"]
        named = {"code": error["type"], "message": error["message"], "param": error["param"]}
        return self.event({"type": "error", "sequence_number": self._sequence_number + 1, **named})


def _event(data: str) -> str:
    return f"data: {data}\n\n"


async def finish_unless_ended(work: Coroutine[Any, Any, None], receive: Receive, stopping: asyncio.Event) -> bool:
    """Run ``work``; cancel it if the client leaves or the server stops. Return whether it finished."""

    async def left() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(t) for t in (work, left(), stopping.wait())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            tasks[0].result()
            return True
        return False
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError, Exception):
                await task
