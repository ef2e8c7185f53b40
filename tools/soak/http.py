"""As much of an HTTP client as a soak needs: it shows what arrives on a connection, and can break every rule."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any


class Connection:
    """A keep-alive connection. It is opened with the first request, and again after it was closed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.headers: dict[str, str] = {}

    async def send(self, method: str, path: str, body: bytes = b"", kind: str = "application/json") -> None:
        """Send a request."""
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        if body:
            head += f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        await self.send_raw(head.encode() + b"\r\n" + body)

    async def send_raw(self, data: bytes) -> None:
        """Send bytes as they are."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        self._streams[1].write(data)
        await self._streams[1].drain()

    async def status(self) -> int:
        """Return the status of an answer, and keep its headers.

        Raises:
            ConnectionError: the server closed the connection before.
        """
        line = await self._line()
        if not line.startswith("HTTP/1.1 "):
            raise ConnectionError(f"the answer begins with {line[:60]!r}")
        self.headers = {}
        while header := await self._line():
            name, _, value = header.partition(":")
            self.headers[name.lower()] = value.strip()
        return int(line.split()[1])

    async def parts(self) -> AsyncIterator[bytes]:
        """Return the parts of a body as they arrive: chunks, or one whole part."""
        if self.headers.get("transfer-encoding") == "chunked":
            while size := int(await self._line(), 16):
                yield await self._exactly(size)
                await self._line()
            await self._line()
        elif length := int(self.headers.get("content-length", "0")):
            yield await self._exactly(length)
        if self.headers.get("connection") == "close":
            self.close()

    async def body(self) -> bytes:
        """Return the whole body of an answer."""
        return b"".join([part async for part in self.parts()])

    async def json(self, method: str, path: str, value: Mapping[str, Any] | None = None) -> tuple[int, Any]:
        """Send a request and return the status and the value of its answer."""
        await self.send(method, path, b"" if value is None else json.dumps(value).encode())
        return await self.status(), json.loads(await self.body())

    def close(self) -> None:
        """Close the connection at once, whatever is on its way."""
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None

    async def _line(self) -> str:
        line = await self._reader().readline()
        if not line.endswith(b"\n"):
            raise ConnectionError(f"the server closed the connection after {line!r}")
        return line.decode().rstrip("\r\n")

    async def _exactly(self, size: int) -> bytes:
        try:
            return await self._reader().readexactly(size)
        except asyncio.IncompleteReadError as error:
            raise ConnectionError(
                f"the server closed the connection, {size - len(error.partial)} bytes early"
            ) from None

    def _reader(self) -> asyncio.StreamReader:
        assert self._streams is not None, "nothing was sent"
        return self._streams[0]
