"""A client of the completions API that costs little: for measuring a server on the machine that it runs on.

It speaks as much HTTP as that takes: requests on keep-alive connections, and answers in chunks, of which it looks for the end
alone. Used by `bench_http`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from types import TracebackType

OK = b"HTTP/1.1 200"
LAST_CHUNK = b"\r\n0\r\n\r\n"


class Idle:
    """Keep-alive connections on which nothing happens, each after one request. Open while the context is."""

    def __init__(self, port: int, count: int) -> None:
        self._port, self._count = port, count
        self._open: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def __aenter__(self) -> Idle:
        for _ in range(self._count):
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            writer.write(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            status = await reader.readline()
            if b" 200 " not in status:
                raise SystemExit(f"/health answers {status!r}")
            self._open.append((reader, writer))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        num_closed = 0
        for reader, writer in self._open:
            await asyncio.sleep(0)
            num_closed += reader.at_eof()
            writer.close()
        if num_closed and error is None:
            raise SystemExit(f"the server closed {num_closed} of {self._count} idle connections: the run was too long")


class _Client(asyncio.Protocol):
    """One connection: sends a body, waits for the end of its answer, sends the next."""

    def __init__(self, waiting: list[bytes], count: int, ended: asyncio.Future[None]) -> None:
        self._waiting, self._ended = waiting, ended
        self._usage = f'"completion_tokens":{count},'.encode()
        self._answer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._next()

    def data_received(self, data: bytes) -> None:
        """Take a part of an answer; after its end, check it, and send the next request."""
        self._answer += data
        if len(self._answer) >= len(OK) and not self._answer.startswith(OK):
            self._fail(f"the server answers {bytes(self._answer[:1000])!r}")
        if not self._answer.endswith(LAST_CHUNK):
            return
        complete = self._usage in self._answer
        if not complete or b"data: [DONE]" not in self._answer[-40:]:
            self._fail(f"an answer is not complete: {bytes(self._answer[:200])!r} … {bytes(self._answer[-300:])!r}")
            return
        self._answer.clear()
        self._next()

    def connection_lost(self, error: Exception | None) -> None:
        """Fail if this client had not ended."""
        self._fail(f"the server closed a connection: {error}")

    def _next(self) -> None:
        if self._waiting:
            self._transport.write(self._waiting.pop())
            return
        if not self._ended.done():
            self._ended.set_result(None)
        self._transport.close()

    def _fail(self, text: str) -> None:
        if not self._ended.done():
            self._ended.set_exception(SystemExit(text))


def _request(prompt: Sequence[int], count: int) -> bytes:
    fields = {"prompt": list(prompt), "max_tokens": count, "temperature": 0, "ignore_eos": True, "stream": True}
    body = json.dumps({**fields, "stream_options": {"include_usage": True}}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def answer_all(port: int, prompts: Sequence[Sequence[int]], count: int, clients: int) -> float:
    """Stream ``count`` tokens for each prompt, ``clients`` at a time. Return the seconds.

    Raises:
        SystemExit: an answer is not complete.
    """
    waiting = [_request(prompt, count) for prompt in reversed(prompts)]
    loop = asyncio.get_running_loop()
    begin = time.monotonic()
    ends = [loop.create_future() for _ in range(min(clients, len(prompts)))]
    for ended in ends:
        await loop.create_connection(lambda ended=ended: _Client(waiting, count, ended), "127.0.0.1", port)
    await asyncio.gather(*ends)
    return time.monotonic() - begin
