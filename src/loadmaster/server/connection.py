"""A connection of the HTTP server that ends if its client keeps it waiting.

uvicorn limits how long a connection is idle between requests. It does not limit how long a client takes to send a request or
to read its answer: one that sends a byte a minute, or reads nothing, would keep its connection and the memory of its answer.
Here each connection has one timer, for what it waits for now:

* the head of a request, from the first byte on (for the first request: from the connection on), within the time limit;
* the next part of a body, within the time limit; the whole body at no less than `LEAST_RATE` on average;
* that the client reads anything of an answer that waits to be sent, within the time limit.

The answer to a late request is 408. A client that does not read is disconnected, and its request cancelled.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

LEAST_RATE: Final = 10_000
"""Bytes per second of a body. 16 MiB may take half an hour, and a few bytes no longer than the time limit."""

KEEPALIVE: Final = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
"""When the kernel asks whether a silent client is still there: after 30 s, three times (Linux). One whose host was lost is
noticed within a minute, also while nothing is sent to it."""


def connection_class(timeout_s: float) -> type[H11Protocol]:
    """Return the class of connections whose clients may take ``timeout_s`` seconds for each thing."""
    return type("Connection", (_Connection,), {"timeout_s": timeout_s})


class _Connection(H11Protocol):
    timeout_s: float
    _timer: asyncio.TimerHandle | None = None
    _waits_for: str = ""
    _body_began = 0.0
    _num_body_bytes = 0
    _unsent = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if (connected := transport.get_extra_info("socket")) is not None and connected.family != socket.AF_UNIX:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in KEEPALIVE.items():
                if hasattr(socket, name):
                    connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._wait_for("head")

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._look(len(data))

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._look()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._look()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._look()

    def _look(self, num_bytes: int = 0) -> None:
        """Find what the connection waits for now. ``num_bytes`` have just arrived."""
        is_unsent = self.transport.get_write_buffer_size() > 0
        if self.transport.is_closing() or self.flow.write_paused:
            self._wait_for("reader" if is_unsent else "")
        elif self.conn.their_state is h11.SEND_BODY:
            if self._waits_for != "body":
                self._body_began, self._num_body_bytes = self.loop.time(), 0
            self._num_body_bytes += num_bytes
            self._wait_for("body", anew=num_bytes > 0)
        elif self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._wait_for("head")
        else:
            self._wait_for("reader" if is_unsent else "")

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_for("")
        super().connection_lost(exc)

    def _wait_for(self, what: str, *, anew: bool = False) -> None:
        """Start the timer for ``what``; it goes on if it runs for that already and is not to start ``anew``."""
        if what == self._waits_for and not anew:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._waits_for = what
        if what:
            self._unsent = self.transport.get_write_buffer_size()
            timeout_s = self.timeout_s
            if what == "body":
                allowed_s = self._body_began + timeout_s + self._num_body_bytes / LEAST_RATE - self.loop.time()
                timeout_s = min(timeout_s, max(allowed_s, 0.0))
            self._timer = self.loop.call_later(timeout_s, self._is_late)

    def _is_late(self) -> None:
        self._timer = None
        waited_for, self._waits_for = self._waits_for, ""
        if waited_for == "reader":
            unsent = self.transport.get_write_buffer_size()
            if unsent == 0:
                return
            if unsent < self._unsent:
                self._wait_for("reader")
            else:
                self.transport.abort()
            return
        if self.conn.our_state is h11.IDLE and self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]:
            self.transport.close()  # it has sent nothing
        elif self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not self._has_begun():
            self._answer_late()
        else:
            self.transport.abort()

    def _has_begun(self) -> bool:
        return self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete

    def _answer_late(self) -> None:
        body = b'{"error":{"message":"the request did not arrive in time","type":"RequestTimeout","param":null,"code":408}}'
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("Connection", "close")]
        try:
            head = self.conn.send(h11.Response(status_code=408, headers=headers, reason=b"Request Timeout"))
            data = self.conn.send(h11.Data(data=body))
            self.transport.write((head or b"") + (data or b""))
        except h11.LocalProtocolError:
            self.transport.abort()
            return
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()
        self._wait_for("reader")
