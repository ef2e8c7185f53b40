"""A server as a process of its own, for benchmarks, the soak and evaluations: started, waited for, and ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

READY_WITHIN_S = 1200.0  # vLLM compiles for minutes where the machine is busy
ENDS_WITHIN_S = 60.0


@dataclass(frozen=True, slots=True)
class Served:
    """A server that runs: its process, its address, and the file that its output goes to."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def stop(self) -> int:
        """Send SIGTERM, and return the exit code. After `ENDS_WITHIN_S` the server is killed; the code is then negative."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            return self.process.wait(ENDS_WITHIN_S)
        kill(self.process)
        return self.process.wait()


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a server and what it started, all of which is in its process group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def free_port() -> int:
    """Return a port of the loopback interface that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def loadmaster_command(model: Path, *options: str) -> list[str]:
    """Return the command that serves ``model`` with this environment's loadmaster, as the model named ``model``."""
    return [
        *(sys.executable, "-m", "loadmaster", "serve", str(model), "--engine", "native"),
        *("--served-model-name", "model", *options),
    ]


@contextmanager
def served(command: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> Iterator[Served]:
    """Run ``command`` with ``--port`` added, and yield the server when its ``/health`` answers 200. Always ends it.

    Raises:
        SystemExit: it ended, or was not ready within `READY_WITHIN_S`; has the last lines of its log.
    """
    port = free_port()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=None if env is None else {**os.environ, **env},
            start_new_session=True,
        )
    server = Served(process, f"http://127.0.0.1:{port}", log)
    try:
        signal.signal(signal.SIGTERM, _exit)  # its default would leave the server behind
        _wait_ready(server)
        yield server
    finally:
        server.stop()
        kill(process)  # what it may have left


def _exit(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def _wait_ready(server: Served) -> None:
    limit = time.monotonic() + READY_WITHIN_S
    while server.process.poll() is None and time.monotonic() < limit:
        with suppress(OSError, urllib.error.URLError), urllib.request.urlopen(f"{server.url}/health", timeout=10):
            return
        time.sleep(0.2)
    lines = server.log.read_text(errors="replace").splitlines()[-20:]
    state = f"ended with exit code {server.process.poll()}" if server.process.poll() is not None else "is not ready"
    raise SystemExit("\n".join([f"the server {state}: {' '.join(map(str, server.process.args))}", *lines]))  # type: ignore[arg-type]
