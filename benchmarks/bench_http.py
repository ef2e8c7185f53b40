"""What the HTTP layer costs: the same requests to the engine alone and through its server, and with idle connections open.

    python benchmarks/bench_http.py MODEL [--rounds 5] [--clients 1 8 32] [--idle 200] [--results DIR]

MODEL is a folder with a small dense model, such as SmolLM2-135M. One process has the engine and serves it. In each round and
for each number of clients, the same prompts are answered three times, in an order that changes: by `Engine.submit` in that
process, through HTTP as streams, and through HTTP while idle keep-alive connections are open. The client of the streams is
another process that only counts bytes and events, on the same cores. Ratios are those of one round; the figure is the median.

It also prints the CPU time that the server's process spends for each token, which a busy machine does not change much.
With ``--results`` the runs are kept in DIR/http.json; the same command continues where an interrupted one ended. On two
cores, SmolLM2 takes about 5 minutes a round; a first try: ``--rounds 1 --clients 32``, 2 minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import queue
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from bench_engine import Prompts, prompts
from http_load import Idle, answer_all

WAYS = ("engine", "server", "idle")

Run = dict[str, Any]


def serve(args: argparse.Namespace) -> None:
    """Serve the model until stdin ends. A line ``cpu`` is answered with seconds of CPU; others are prompts to answer."""
    from loadmaster.checkpoint import open_checkpoint
    from loadmaster.engine import Capacity, Engine, Tokenizer
    from loadmaster.engine.weights import plan_to_run
    from loadmaster.parallel import ParallelLayout
    from loadmaster.plan import ProvenPlan, build_plan, prove
    from loadmaster.server.address import listen
    from loadmaster.server.serve import serve
    from loadmaster.server.service import Service

    checkpoint = open_checkpoint(args.model)

    def build(dtype: str | None, target: str) -> ProvenPlan:
        return prove(build_plan(checkpoint, ParallelLayout(1), dtype=dtype, target=target)).require_proven()

    bound = listen("127.0.0.1", 0)
    run = plan_to_run(build, device="cpu")
    with Engine(run.plan, capacity=Capacity(enable_prefix_caching=False), max_model_len=512) as engine:
        service = Service(engine, Tokenizer(run.plan.model_path), ["model"])

        def obey() -> None:
            while not service.is_ready:
                time.sleep(0.1)
            print(bound.getsockname()[1], flush=True)
            for line in sys.stdin:
                answer: object
                if line == "cpu\n":
                    used = resource.getrusage(resource.RUSAGE_SELF)
                    answer = used.ru_utime + used.ru_stime
                else:
                    answer = drive(engine, **json.loads(line))
                print(json.dumps(answer), flush=True)
            os.kill(os.getpid(), 15)

        threading.Thread(target=obey, daemon=True).start()
        serve(service, bound)


def drive(engine: Any, prompts: Prompts, count: int, clients: int) -> float:
    """Answer ``prompts`` with the engine, ``clients`` at a time, with ``count`` tokens each. Return the seconds."""
    from loadmaster.workers import SamplingParams

    params = SamplingParams(max_tokens=count, temperature=0, ignore_eos=True)
    ended: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def on_event(event: Any) -> None:
        if isinstance(event, Exception) or event.finish_reason is not None:
            ended.put(event)

    waiting = iter(prompts)
    begin = time.monotonic()
    for prompt in islice(waiting, clients):
        engine.submit(prompt, params, on_event)
    for _ in prompts:
        event = ended.get()
        if isinstance(event, Exception):
            raise event
        for prompt in islice(waiting, 1):
            engine.submit(prompt, params, on_event)
    return time.monotonic() - begin


class Server:
    """The process of `serve`, as the measurement sees it."""

    def __init__(self, model: Path) -> None:
        command = [sys.executable, __file__, str(model), "--serve"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.port = int(self._line())

    def ask(self, question: str) -> float:
        """Send a line and return the number that answers it."""
        assert self._process.stdin is not None
        self._process.stdin.write(question + "\n")
        self._process.stdin.flush()
        return float(self._line())

    def close(self) -> None:
        """End it, and wait."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the server ended with exit code {self._process.wait()}")
        return line


def measure(server: Server, args: argparse.Namespace, way: str, clients: int, seed: int) -> Run:
    """Answer the same prompts in one way. Return tokens a second, and the CPU time of the server's process a token."""
    work = prompts(clients * args.each, args.input, seed)
    if way == "engine":
        cpu = server.ask("cpu")
        seconds = server.ask(json.dumps({"prompts": work, "count": args.output, "clients": clients}))
        used = server.ask("cpu") - cpu
    else:
        seconds, used = asyncio.run(through_http(server, args, work, clients, args.idle if way == "idle" else 0))
    num_tokens = len(work) * args.output
    return {"tokens_per_s": num_tokens / seconds, "cpu_us_per_token": used / num_tokens * 1e6}


async def through_http(
    server: Server, args: argparse.Namespace, work: Prompts, clients: int, num_idle: int
) -> tuple[float, float]:
    """Answer prompts through the server while ``num_idle`` other connections are open. Return seconds, and those of the CPU."""
    async with Idle(server.port, num_idle):
        cpu = server.ask("cpu")
        seconds = await answer_all(server.port, work, args.output, clients)
        return seconds, server.ask("cpu") - cpu


def summary(args: argparse.Namespace, runs: Iterable[Run]) -> str:
    """Return the table: medians of tokens a second and of the ratios of each round."""
    lines = [
        "| clients | engine | server | × engine | with idle connections | × server | µs of CPU a token: engine, server |"
    ]
    lines.append("|---|---|---|---|---|---|---|")
    for clients in args.clients:
        rounds = [r for r in runs if r["clients"] == clients]
        if rounds:
            rate = {way: statistics.median(r[way]["tokens_per_s"] for r in rounds) for way in WAYS}
            cost = {way: statistics.median(r[way]["cpu_us_per_token"] for r in rounds) for way in WAYS}
            lines.append(
                f"| {clients} | {rate['engine']:.1f} | {rate['server']:.1f} | {ratio(rounds, 'server', 'engine'):.3f} | "
                f"{rate['idle']:.1f} | {ratio(rounds, 'idle', 'server'):.3f} | {cost['engine']:.0f}, {cost['server']:.0f} |"
            )
    return "\n".join(lines)


def ratio(rounds: Iterable[Run], way: str, other: str) -> float:
    """Return the median over the rounds of one way's rate divided by the other's."""
    return statistics.median(r[way]["tokens_per_s"] / r[other]["tokens_per_s"] for r in rounds)


def orders() -> Iterator[tuple[str, ...]]:
    """Return the order of the ways in each round: each is first, second and third equally often."""
    while True:
        for shift in range(3):
            yield WAYS[shift:] + WAYS[:shift]


def main() -> None:
    """Measure what is missing and print the table; or serve, for the measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--idle", type=int, default=200, help="idle connections (default: 200)")
    parser.add_argument("--input", type=int, default=16, help="tokens of a prompt (default: 16)")
    parser.add_argument("--output", type=int, default=48, help="tokens of an answer (default: 48)")
    parser.add_argument(
        "--each", type=int, default=1, help="requests of each client (default: 1; keep runs below 60 s)"
    )
    parser.add_argument("--results", type=Path)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.pop("OMP_NUM_THREADS", None)  # servers use all cores
    if args.serve:
        serve(args)
        return
    settings = {"model": args.model.name, **{n: getattr(args, n) for n in ("idle", "input", "output", "each")}}
    file = args.results / "http.json" if args.results else None
    state = json.loads(file.read_bytes()) if file and file.exists() else {"settings": settings, "runs": []}
    if state["settings"] != settings:
        raise SystemExit(f"{file} has other settings: {state['settings']}; choose another folder, or remove it")
    runs: list[Run] = state["runs"]
    server = Server(args.model)
    for way in WAYS:
        measure(server, args, way, 4, seed=-1)  # warm
    for number, order in zip(range(args.rounds), orders(), strict=False):
        for clients in args.clients:
            if any((r["round"], r["clients"]) == (number, clients) for r in runs):
                continue
            run: Run = {"round": number, "clients": clients, "load": os.getloadavg()[0]}
            runs.append({**run, **{way: measure(server, args, way, clients, number) for way in order}})
            print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
            if file:
                file.parent.mkdir(parents=True, exist_ok=True)
                partial = file.with_suffix(".partial")
                partial.write_text(json.dumps(state, indent=1) + "\n")
                partial.rename(file)
    server.close()
    print(summary(args, runs))


if __name__ == "__main__":
    main()
