"""``python -m tools.soak``: thirty minutes of clients that stream, leave, send garbage, time out and come back.

It serves a tiny GLM-5.1 with random weights on two stages (``loadmaster serve``), with a KV cache that is too small for all
clients, so that requests are preempted too. It must hold:

- every request is answered as it must be, which is an error for some;
- neither memory nor file descriptors of the server and its workers grow after the warm-up (a fifth of the time);
- at the end no request is left, all pages of the KV cache are free, and so are the file descriptors of the connections;
- SIGTERM then ends the server with exit code 0, without a traceback in its log.

Exit code 1 if one does not. ``--minutes 0.5`` is a first try. ``--results DIR`` keeps the report in DIR/soak.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shlex
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from loadmaster.synth import PRESETS, write_tiny
from tools.served import Served, loadmaster_command, served
from tools.soak.clients import DEEDS, client
from tools.soak.http import Connection
from tools.soak.watch import Watched, processes_of, report, watch

MTP = ("--speculative-config", '{"method": "mtp", "num_speculative_tokens": 2}')
NUM_PAGES = 192  # of 16 tokens: about half of what 32 clients want
SHOWN_FAILURES = 20
IDLE_WITHIN_S = 30.0
GAUGES = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")


class Soak:
    """One soak of a running server: counts of deeds, and what was wrong."""

    def __init__(self, server: Served, minutes: float, clients: int, seed: int) -> None:
        self._server, self._seconds, self._num_clients, self._seed = server, minutes * 60, clients, seed
        self._port = int(server.url.rsplit(":", 1)[1])
        self.deeds: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.processes: dict[str, Any] = {}
        self.gauges: dict[str, float] = {}

    async def run(self) -> None:
        """Let the clients do their deeds, then look at what is left."""
        await self._warm()
        processes = processes_of(self._server.process.pid)
        for process in processes:
            process.sample()
        before = processes[0].samples[-1].num_fds
        watching = asyncio.create_task(watch(processes, max(0.2, self._seconds / 1000)))
        begin = time.monotonic()
        until = asyncio.get_running_loop().time() + self._seconds
        numbers = [random.Random(self._seed * 1000 + i) for i in range(self._num_clients)]
        await asyncio.gather(*(client(self._port, n, i, until, self._note) for i, n in enumerate(numbers)))
        watching.cancel()
        for process in processes:
            self.processes[process.name], grown = report(process, begin + self._seconds / 5)
            self.wrong += grown
        self.wrong += [f"{name}: no client did it" for name in DEEDS if not self.deeds[name]]
        await self._check_idle(processes[0], before)

    def summary(self) -> dict[str, Any]:
        """Return the report."""
        return {
            "seconds": self._seconds,
            "clients": self._num_clients,
            "seed": self._seed,
            "requests": dict(sorted(self.deeds.items())),
            "processes": self.processes,
            "left": self.gauges,
            "wrong": self.wrong,
        }

    def _note(self, name: str, failure: str | None) -> None:
        self.deeds[name] += 1
        if failure is not None:
            self.wrong.append(f"{name}: {failure}")

    async def _warm(self) -> None:
        """Start what starts with the first request, such as the processes that render chat templates."""
        connection = Connection(self._port)
        body = {"messages": [{"role": "user", "content": "warm"}], "max_tokens": 2}
        status, answer = await connection.json("POST", "/v1/chat/completions", body)
        connection.close()
        if status != 200:
            raise SystemExit(f"the first request is answered with {status}: {answer}")

    async def _check_idle(self, process: Watched, num_fds: int) -> None:
        """Wait until the server is idle: no requests, all pages free, the connections' descriptors closed."""
        limit = time.monotonic() + IDLE_WITHIN_S
        while True:
            self.gauges = await self._read_gauges()
            process.sample()
            left = process.samples[-1].num_fds - num_fds
            if len(self.gauges) == len(GAUGES) and not any(self.gauges.values()) and left <= 1:
                return
            if time.monotonic() > limit:
                self.wrong.append(
                    f"after {IDLE_WITHIN_S:.0f} s without clients: {self.gauges}, {left} more descriptors"
                )
                return
            await asyncio.sleep(0.5)

    async def _read_gauges(self) -> dict[str, float]:
        """Return the gauges of ``/metrics`` that must be 0 when nothing runs."""
        connection = Connection(self._port)
        await connection.send("GET", "/metrics")
        status, text = await connection.status(), (await connection.body()).decode()
        connection.close()
        if status != 200:
            raise SystemExit(f"/metrics is answered with {status}: {text[:200]}")
        found: dict[str, float] = {}
        for line in text.splitlines():
            name = line.split("{")[0].split(" ")[0].partition(":")[2]
            if name in GAUGES:
                found[name] = found.get(name, 0.0) + float(line.rsplit(" ", 1)[1])
        return found


def main() -> int:
    """Soak a server, end it, and print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mtp", action="store_true", help="with MTP layers as a draft model")
    parser.add_argument(
        "--options", type=shlex.split, default=[], help='more options of loadmaster serve, such as --options="-tp 2"'
    )
    parser.add_argument("--results", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tiny(PRESETS["glm-5.1-fp8"], folder / "model")
        options = ["-pp", "2", "--num-gpu-blocks-override", str(NUM_PAGES), *(MTP if args.mtp else ()), *args.options]
        log = folder / "log"
        with served(loadmaster_command(folder / "model", *options), log, {"OMP_NUM_THREADS": "1"}) as server:
            soak = Soak(server, args.minutes, args.clients, args.seed)
            asyncio.run(soak.run())
            code = server.stop()
        text = log.read_text(errors="replace")
    if code != 0:
        soak.wrong.append(f"after SIGTERM the exit code is {code}")
    if "Traceback" in text:
        soak.wrong.append("the log has a traceback")
    summary = {**soak.summary(), "mtp": args.mtp, "exit_code": code}
    if args.results:
        args.results.mkdir(parents=True, exist_ok=True)
        (args.results / "soak.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps({**summary, "wrong": soak.wrong[:SHOWN_FAILURES]}, indent=1))
    if soak.wrong:
        print(f"{len(soak.wrong)} things are wrong; the end of the log:\n{text[-3000:]}", file=sys.stderr)
    return 1 if soak.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
