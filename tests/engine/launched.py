"""Processes as a launcher starts them, on one host or on two: network namespaces that a virtual cable connects."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KEY = "a key that only the tests know"


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens at now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@dataclass
class Command:
    """A process, and the lines that it has printed so far."""

    process: subprocess.Popen[str]
    output: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._readers = [
            threading.Thread(target=self._read, args=pair, daemon=True)
            for pair in ((self.process.stdout, self.output), (self.process.stderr, self.errors))
        ]
        for reader in self._readers:
            reader.start()

    def line(self, text: str, within_s: float = 120.0) -> str:
        """Wait for a line on standard error that has ``text``."""
        until = time.monotonic() + within_s
        while time.monotonic() < until:
            found = [line for line in list(self.errors) if text in line]
            if found:
                return found[0]
            assert self.process.poll() is None, self.errors
            time.sleep(0.02)
        raise AssertionError(f"no line with {text!r}: {self.errors}")

    def wait(self, within_s: float = 120.0) -> int:
        """Return the exit status."""
        status = self.process.wait(within_s)
        for reader in self._readers:
            reader.join(10)
        return status

    def _read(self, stream: Iterator[str], lines: list[str]) -> None:
        lines.extend(iter(stream))


@contextlib.contextmanager
def commands(argvs: Sequence[Sequence[str]], environments: Sequence[dict[str, str]]) -> Iterator[list[Command]]:
    """Start commands at the same time, each in a process group of its own; kill what is left of them at the end."""
    started = [
        Command(
            subprocess.Popen(
                list(argv),
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        for argv, environment in zip(argvs, environments, strict=True)
    ]
    try:
        yield started
    finally:
        for command in started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(command.process.pid, 9)
            command.process.wait()


def ranks(num_ranks: int, port: int, **more: str) -> list[dict[str, str]]:
    """Return the environment of each process of a launcher on one host."""
    return [
        {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(num_ranks),
            "LOCAL_WORLD_SIZE": str(num_ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "LOADMASTER_KEY": KEY,
            **more,
        }
        for rank in range(num_ranks)
    ]


def loadmaster(*args: str | Path) -> list[str]:
    """Return the command line that runs the package."""
    return [sys.executable, "-m", "loadmaster", *map(str, args)]


def stream(url: str, num_tokens: int | None = None) -> Iterator[dict[str, Any]]:
    """Yield the events of a completion that a server streams: to the model's length, or of ``num_tokens``."""
    model = json.load(urllib.request.urlopen(f"{url}/models"))["data"][0]["id"]
    body = {"model": model, "prompt": [3, 5, 7], "max_tokens": num_tokens, "temperature": 0}
    data = json.dumps({**body, "stream": True, "ignore_eos": True}).encode()
    request = urllib.request.Request(f"{url}/completions", data, {"content-type": "application/json"})
    with urllib.request.urlopen(request) as response:
        for line in response:
            if line.startswith(b"data: {"):
                yield json.loads(line[6:])


def can_make_hosts() -> bool:
    """Whether network namespaces can be made here."""
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("unshare") is None:
        return False
    name = f"lm-probe-{os.getpid()}"
    done = subprocess.run(["ip", "netns", "add", name], capture_output=True)
    subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return done.returncode == 0


class TwoHosts:
    """Two network namespaces with their own addresses and host names, and nothing but a cable between them."""

    addresses = ("10.77.0.1", "10.77.0.2")
    names = ("host-a", "host-b")

    def __init__(self) -> None:
        self._spaces = [f"lm-{os.getpid()}-{which}" for which in "ab"]

    def __enter__(self) -> TwoHosts:
        first, second = self._spaces
        for space in self._spaces:
            self._ip("netns", "add", space)
        self._ip("link", "add", "cable", "netns", first, "type", "veth", "peer", "name", "cable", "netns", second)
        for space, address in zip(self._spaces, self.addresses, strict=True):
            self._ip("-n", space, "addr", "add", f"{address}/24", "dev", "cable")
            for device in ("lo", "cable"):
                self._ip("-n", space, "link", "set", device, "up")
        return self

    def __exit__(self, *error: object) -> None:
        for space in self._spaces:
            subprocess.run(["ip", "netns", "del", space], capture_output=True)

    def on(self, host: int, argv: Sequence[str]) -> list[str]:
        """Return the command line that runs ``argv`` on a host."""
        name = f'hostname {self.names[host]} && exec "$@"'
        return ["ip", "netns", "exec", self._spaces[host], "unshare", "--uts", "sh", "-c", name, "sh", *argv]

    def torchrun(self, host: int, *args: str | Path) -> list[str]:
        """Return the command line that starts one rank on a host, of two."""
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(host)]
        launcher += ["--nproc-per-node", "1", "--master-addr", self.addresses[0], "--master-port", "29500"]
        return self.on(host, [*launcher, "-m", "loadmaster", *map(str, args)])

    def unplug(self) -> None:
        """Cut the cable: packets vanish, and no process is told."""
        self._ip("-n", self._spaces[1], "link", "set", "cable", "down")

    @staticmethod
    def _ip(*args: str) -> None:
        subprocess.run(["ip", *args], check=True, capture_output=True, text=True)


if __name__ == "__main__":  # a client on one of the hosts: URL
    events = stream(sys.argv[1])
    next(events)
    print("first token", file=sys.stderr, flush=True)
    print(json.dumps(list(events)[-1]))
