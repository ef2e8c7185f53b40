"""Serving: the port is open from the first moment, the process ends as its engine does."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
import threading
from collections.abc import Callable, Generator

import uvicorn

from loadmaster.errors import LoadmasterError, RunError
from loadmaster.server.app import build_app
from loadmaster.server.service import Service

GRACE_S = 5
"""How long running requests have to end, after a signal to stop."""

FAILED_FOR_S = 2.0
"""How long a server whose engine failed still answers, so that whoever watches ``/health`` learns of it."""


def listen(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address; port 0 takes a free one.

    Raises:
        RunError: the address cannot be had.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
        bound = socket.socket(family, kind)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(128)
    except OSError as error:
        raise RunError(
            f"cannot listen on {host} port {port}: {error.strerror}", hint="choose another --port"
        ) from error
    return bound


def serve(service: Service, bound: socket.socket, *, api_key: str | None = None) -> None:
    """Serve until SIGINT or SIGTERM; ``service`` is closed at the end, however it comes.

    Raises:
        LoadError, RunError: loading failed, or the engine did.
        KeyboardInterrupt: SIGINT came before the model was loaded.
    """
    try:
        interrupted = asyncio.run(_serve(service, bound, api_key))
    finally:
        service.close()
        bound.close()
    if service.failed is not None:
        raise service.failed
    if interrupted:
        raise KeyboardInterrupt


async def _serve(service: Service, bound: socket.socket, api_key: str | None) -> bool:
    """Serve; return whether SIGINT ended it before the model was loaded."""
    config = uvicorn.Config(
        build_app(service, api_key),
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=GRACE_S,
        timeout_keep_alive=60,
    )
    server = _Server(config)
    loop = asyncio.get_running_loop()
    interrupted = False

    def interrupt() -> None:
        nonlocal interrupted
        interrupted = interrupted or (not service.is_ready and not server.should_exit)
        server.stop()

    loop.add_signal_handler(signal.SIGINT, interrupt)
    loop.add_signal_handler(signal.SIGTERM, server.stop)
    watch = asyncio.create_task(_watch(service, server, bound))
    try:
        await server.serve(sockets=[bound])
    finally:
        await asyncio.to_thread(service.close)
        watch.cancel()  # it may wait for an import, in a thread that is left behind
        with contextlib.suppress(asyncio.CancelledError):
            await watch
    return interrupted


async def _watch(service: Service, server: _Server, bound: socket.socket) -> None:
    """Say when the model is loaded; stop the server a moment after its engine has ended."""
    with contextlib.suppress(LoadmasterError):
        await _in_daemon(service.load)
        address = bound.getsockname()
        print(f"ready: {service.names[0]} at http://{address[0]}:{address[1]}/v1", file=sys.stderr, flush=True)
        await asyncio.to_thread(service.engine.wait_ended)
    if not server.should_exit:
        await asyncio.sleep(FAILED_FOR_S)
        server.stop()


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
    """uvicorn, told to stop by its caller: signals end it with grace and not the process behind its back."""

    def stop(self) -> None:
        """End: at once, if asked twice."""
        self.force_exit = self.should_exit
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield
