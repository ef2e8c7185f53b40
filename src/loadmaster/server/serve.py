"""Runs the server: the port is open from the start, and the server stops when its engine ends."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import math
import resource
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Generator
from typing import Any

import uvicorn

from loadmaster.errors import LoadmasterError
from loadmaster.server.address import BACKLOG
from loadmaster.server.app import build_app
from loadmaster.server.connection import connection_class
from loadmaster.server.log import LOGGER, notice
from loadmaster.server.service import Service
from loadmaster.server.settings import Settings
from loadmaster.workers.launch import Launch

CLOSE_WITHIN_S = 2
"""How long they may then take to send their clients the last event."""

EXHAUSTED_EVERY_S = 60.0
"""How often the warning about missing file descriptors is repeated."""

PROGRESS_EVERY_S = 10.0
"""How often the log says how far loading is."""

FAILED_FOR_S = 2.0
"""How long a server still answers after its engine has failed, so that ``/health`` can report it."""


def serve(service: Service, bound: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM. Always closes ``service`` at the end.

    After a signal new requests get a 503, and ``/health`` too. Running requests may continue for a time (see `Settings`); a
    second signal ends them at once. A stream that is cut short reports it in its last event; other requests get a 503.

    Raises:
        LoadError, RunError: loading or the engine failed.
        KeyboardInterrupt: SIGINT arrived before the model was loaded.
    """
    try:
        interrupted = asyncio.run(_serve(service, bound))
    finally:
        service.close()
        bound.close()
    if service.failed is not None:
        raise service.failed
    if interrupted:
        raise KeyboardInterrupt


async def _serve(service: Service, bound: socket.socket) -> bool:
    """Serve. Return whether SIGINT stopped the server before the model was loaded."""
    server = _Server(http_config(service), service)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_Exhaustion(server).handle)
    interrupted = False

    def interrupt() -> None:
        nonlocal interrupted
        interrupted = interrupted or (not service.is_ready and not service.is_draining)
        server.stop()

    loop.add_signal_handler(signal.SIGINT, interrupt)
    loop.add_signal_handler(signal.SIGTERM, server.stop)
    service.engine.on_leave = lambda: loop.call_soon_threadsafe(server.leave)
    watch = asyncio.create_task(_watch(service, server, base_url(bound, service.settings)))
    report = asyncio.create_task(_report_loading(service))
    try:
        await server.serve(sockets=[bound])
    finally:
        await asyncio.to_thread(service.close)
        report.cancel()
        watch.cancel()  # it may wait for a thread that still imports; that thread is abandoned
        with contextlib.suppress(asyncio.CancelledError):
            await watch
    return interrupted


def http_config(service: Service) -> uvicorn.Config:
    """Return uvicorn's configuration of a server.

    Raises:
        OSError: a file for TLS cannot be used (`loadmaster.server.tls.check_tls` says so early).
    """
    settings, tls = service.settings, service.settings.tls
    config = uvicorn.Config(
        build_app(service),
        http=connection_class(settings.client_timeout_s),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=CLOSE_WITHIN_S,
        timeout_keep_alive=60,
        backlog=BACKLOG,
        h11_max_incomplete_event_size=settings.max_head_bytes,
        ssl_certfile=tls.certfile if tls else None,
        ssl_keyfile=tls.keyfile if tls else None,
        ssl_ca_certs=tls.ca_certs if tls else None,
        ssl_cert_reqs=tls.cert_reqs if tls else ssl.CERT_NONE,
        ssl_ciphers=(tls.ciphers if tls else None) or "DEFAULT",
    )
    config.load()
    return config


async def _watch(service: Service, server: _Server, url: str) -> None:
    """Print a line when the model is loaded. Stop the server `FAILED_FOR_S` after its engine has ended."""
    with contextlib.suppress(LoadmasterError):
        await _in_daemon(service.load)
        output = service.output_format
        if output.tools or output.reasoning:
            notice(f"chat: {output}")
        notice(f"ready: {service.names[0]} at {url}/v1")
        await asyncio.to_thread(service.engine.wait_ended)
    if not server.should_exit:
        await asyncio.sleep(FAILED_FOR_S)
        server.end()


async def _report_loading(service: Service) -> None:
    """Log every `PROGRESS_EVERY_S` how far loading is."""
    while True:
        await asyncio.sleep(PROGRESS_EVERY_S)
        loading = service.engine.loading()
        if service.is_ready or loading.loaded_bytes >= loading.total_bytes:
            return
        LOGGER.info("loading: %s", loading)


def base_url(bound: socket.socket, settings: Settings) -> str:
    """Return the address of a server, without a path."""
    host, port = bound.getsockname()[:2]
    host = f"[{host}]" if bound.family == socket.AF_INET6 else host
    return f"{'https' if settings.tls else 'http'}://{host}:{port}"


def listens(bound: socket.socket, settings: Settings, launch: Launch | None) -> list[str]:
    """Return the lines that say where this process listens, and who may use it."""
    url, is_local = base_url(bound, settings), _is_local(bound)
    who = f"{len(settings.api_keys)} API key(s)" if settings.api_keys else "without an API key"
    lines = [f"listens: HTTP at {url}, {'this host only' if is_local else 'open to the network'}, {who}"]
    if launch is not None:
        lines.append(f"listens: for the other ranks at {launch.rendezvous}, until all have joined")
    if not is_local and not settings.api_keys:
        lines.append("warning: everybody who reaches this address can use the model (--api-key-file, --host)")
    elif not is_local and settings.tls is None:
        lines.append("warning: the API key crosses the network unencrypted, unless a proxy encrypts (--ssl-certfile)")
    return lines


def _is_local(bound: socket.socket) -> bool:
    host = str(bound.getsockname()[0])
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback


async def _in_daemon(work: Callable[[], None]) -> None:
    """Run ``work`` in a thread that the process doesn't wait for when it ends, unlike those of `asyncio.to_thread`."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle(error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def run() -> None:
        error: BaseException | None = None
        try:
            work()
        except BaseException as caught:
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop was closed in the meantime
            loop.call_soon_threadsafe(settle, error)

    threading.Thread(target=run, name="load", daemon=True).start()
    await done


class _Server(uvicorn.Server):
    """uvicorn, without its own signal handlers: the caller stops it."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service, self._timeout_s = service, service.settings.shutdown_timeout_s
        self._draining: asyncio.Task[None] | None = None
        self._num_signals = 0

    def stop(self) -> None:
        """Handle a signal: the first lets running requests finish, the second ends them at once."""
        self._num_signals += 1
        if self._num_signals > 1:
            self.end()
        else:
            self.leave()

    def leave(self) -> None:
        """Refuse new requests, and end when running ones have ended, or after the timeout."""
        if self._draining is None:
            self._service.drain()
            self._draining = asyncio.create_task(self._drain())

    def end(self) -> None:
        """End running requests and the server."""
        self._service.stopping.set()
        self.should_exit = True

    async def _drain(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._service.idle.wait(), self._timeout_s)
            self.should_exit = True
        if not self.should_exit:
            self.end()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


class _Exhaustion:
    """Prints a warning every `EXHAUSTED_EVERY_S` while connections wait for file descriptors.

    asyncio itself would print a traceback for each attempt. It tries again every second, so the server continues when
    descriptors are free again.
    """

    def __init__(self, server: uvicorn.Server) -> None:
        self._server = server
        self._warned_at = -math.inf

    def handle(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Handle an error of the event loop: missing descriptors as one line, any other as asyncio does."""
        error = context.get("exception")
        if self._server.should_exit and "._start_serving" in context["message"]:
            return None  # a retry on a socket that is closed by now
        if not isinstance(error, OSError) or error.errno not in (
            errno.EMFILE,
            errno.ENFILE,
            errno.ENOBUFS,
            errno.ENOMEM,
        ):
            return loop.default_exception_handler(context)
        if loop.time() - self._warned_at >= EXHAUSTED_EVERY_S:
            self._warned_at = loop.time()
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            notice(
                f"new connections wait: {error.strerror} (the limit is {limit}; `ulimit -n` raises it)", logging.WARNING
            )
        return None
