"""The server against vLLM's server for CPUs, with vLLM's load generator: tokens a second, to the first token, between tokens.

    python benchmarks/bench_server.py MODEL --peer PYTHON [--rounds 3] [--results DIR] [--clients 1 8 32]

MODEL is a folder with a small dense model, such as SmolLM2-135M-Instruct (``make demo`` makes one in .cache/demo).
``--peer`` is the Python of an environment that has vLLM for CPUs (``make test-vllm`` makes one). It runs ``vllm bench serve``
against both servers, and the server that ours is compared with. Servers run one at a time and take turns; the figure is the
median of the rounds.

Prompts are random, of fixed length, the same for all servers; so are the lengths of the answers (``ignore_eos``).
``closed``: each client sends its next request when its last one is answered. ``fixed`` and ``poisson``: requests arrive at
equal distances, or at random, as often as the slowest server answered them in the first round of ``closed``; a client that
is free takes the next.

With ``--results`` the runs are kept in DIR/server.json, and the tables in DIR/server.md. The same command continues where an
interrupted one ended. On two cores, SmolLM2 takes about 10 minutes a round and server; a first try: ``--rounds 1 --clients 8
--arrivals closed``, 3 minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # for tools, also when run as a script

from tools.served import Served, loadmaster_command, served

ARRIVALS = ("closed", "fixed", "poisson")

FIGURES = {
    "output_throughput": ("output tokens/s", 1, True),
    "median_ttft_ms": ("to the first token, ms", 0, False),
    "p99_ttft_ms": ("the same, 99th percentile", 0, False),
    "median_itl_ms": ("between tokens, ms", 1, False),
    "p99_itl_ms": ("the same, 99th percentile", 1, False),
    "median_tpot_ms": ("per token after the first, ms", 1, False),
}
"""Field of vLLM's result → its title, its digits, and whether more is better."""

BURSTINESS = {"closed": "1", "poisson": "1", "fixed": "1e6"}
"""The shape of the gamma distribution of the times between requests: 1 is Poisson, a large one gives equal times."""

SHARED = ("--max-model-len", "2048", "--max-num-seqs", "64")
PEER_ENV = {"VLLM_CPU_KVCACHE_SPACE": "4"}  # GiB, as loadmaster's default

Run = dict[str, Any]


def num_requests(clients: int) -> int:
    """Return how many requests a run has: enough for a median, few enough for half a minute to a minute."""
    return max(6, 3 * clients) if clients < 16 else 2 * clients


def seed_of(number: int, clients: int, arrivals: str) -> int:
    """Return the seed of a run's prompts: all differ, so none is found in the cache."""
    return 10_000 * number + 10 * clients + ARRIVALS.index(arrivals)


def ways(args: argparse.Namespace) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Return the command and environment of each server."""
    servers = {"loadmaster": (loadmaster_command(args.model, *SHARED), {})}
    for dtype in args.dtypes:
        command = [
            *(args.peer, "-m", "vllm.entrypoints.cli.main", "serve", str(args.model), "--dtype", dtype),
            *("--served-model-name", "model", "--host", "127.0.0.1", *SHARED),
        ]
        servers[f"vllm {dtype}"] = (command, {**PEER_ENV, **dict(pair.split("=", 1) for pair in args.peer_env)})
    return servers


def bench(args: argparse.Namespace, server: Served, clients: int, arrivals: str, seed: int, rate: float) -> Run:
    """Run ``vllm bench serve`` once, and return the figures of its result.

    Raises:
        SystemExit: it failed, or a request did.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(args.peer, "-m", "vllm.entrypoints.cli.main", "bench", "serve", "--backend", args.backend),
            *("--endpoint", "/v1/chat/completions" if args.backend == "openai-chat" else "/v1/completions"),
            *("--base-url", server.url, "--model", str(args.model), "--served-model-name", "model"),
            *("--dataset-name", "random", "--random-input-len", str(args.input)),
            *("--random-output-len", str(args.output), "--ignore-eos", "--extra-body", '{"temperature": 0}'),
            *("--num-prompts", str(num_requests(clients)), "--max-concurrency", str(clients)),
            *("--num-warmups", str(min(clients, 4)), "--seed", str(seed), "--disable-tqdm"),
            *("--request-rate", "inf" if arrivals == "closed" else str(rate), "--burstiness", BURSTINESS[arrivals]),
            *("--save-result", "--result-dir", folder, "--result-filename", "result.json"),
        ]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        file = Path(folder) / "result.json"
        if done.returncode or not file.exists():
            raise SystemExit(f"vllm bench serve failed with {done.returncode}:\n{done.stdout[-4000:]}")
        result = json.loads(file.read_bytes())
    expected = num_requests(clients) * args.output
    if result["failed"] or result["total_output_tokens"] != expected:
        tokens = result["total_output_tokens"]
        raise SystemExit(
            f"{result['failed']} requests failed, {tokens} tokens of {expected}\n{server.log.read_text()[-2000:]}"
        )
    return {name: result[name] for name in (*FIGURES, "request_throughput", "duration", "completed")}


def missing(args: argparse.Namespace, runs: Sequence[Run]) -> Iterator[tuple[int, str, list[tuple[int, str]]]]:
    """Yield what is still to be measured: the round, the server, and the cells (clients, arrivals) of one start of it."""
    names = list(ways(args))
    for number in range(args.rounds):
        parts = [[a for a in args.arrivals if (a == "closed") == is_closed] for is_closed in (True, False)]
        for half, part in enumerate(parts):
            for name in names if (number + half) % 2 == 0 else reversed(names):
                have = {(r["clients"], r["arrivals"]) for r in runs if (r["round"], r["way"]) == (number, name)}
                cells = [(c, a) for c in args.clients for a in part if (c, a) not in have]
                if cells:
                    yield number, name, cells


def slowest_rate(runs: Sequence[Run], clients: int) -> float:
    """Return the requests a second that the slowest server answered in the first round of ``closed``."""
    rates = [
        r["request_throughput"] for r in runs if (r["round"], r["clients"], r["arrivals"]) == (0, clients, "closed")
    ]
    return round(min(rates), 3)


def tables(args: argparse.Namespace, runs: Sequence[Run]) -> str:
    """Return a Markdown table for each figure: medians, and how many times better loadmaster is than the best peer."""
    names = list(ways(args))
    text = []
    for field, (title, digits, more) in FIGURES.items():
        text += [f"**{title}**", "", f"| clients | arrivals | {' | '.join(names)} | × |"]
        text.append(f"|{'---|' * (len(names) + 3)}")
        for clients in args.clients:
            for arrivals in args.arrivals:
                medians = [median(runs, name, clients, arrivals, field) for name in names]
                ours, peers = medians[0], [m for m in medians[1:] if m is not None]
                ratio = ""
                if ours and peers:
                    ratio = f"{ours / max(peers) if more else min(peers) / ours:.2f}"
                shown = ["" if m is None else f"{m:.{digits}f}" for m in medians]
                text.append(f"| {clients} | {arrivals} | {' | '.join(shown)} | {ratio} |")
        text.append("")
    return "\n".join(text)


def median(runs: Sequence[Run], way: str, clients: int, arrivals: str, field: str) -> float | None:
    """Return the median over the rounds, or None if there are no runs."""
    cell = (way, clients, arrivals)
    values = [r[field] for r in runs if (r["way"], r["clients"], r["arrivals"]) == cell]
    return statistics.median(values) if values else None


def kept(args: argparse.Namespace, settings: dict[str, Any]) -> list[Run]:
    """Return the runs of an interrupted measurement with the same settings.

    Raises:
        SystemExit: the results there have other settings.
    """
    file = args.results / "server.json" if args.results else None
    if file is None or not file.exists():
        return []
    state = json.loads(file.read_bytes())
    if state["settings"] != settings:
        raise SystemExit(f"{file} has other settings: {state['settings']}; choose another folder, or remove it")
    return list(state["runs"])


def keep(args: argparse.Namespace, settings: dict[str, Any], runs: Sequence[Run]) -> None:
    """Write the runs and their tables, each file whole or not at all."""
    if args.results is None:
        return
    args.results.mkdir(parents=True, exist_ok=True)
    texts = {"server.json": json.dumps({"settings": settings, "runs": runs}, indent=1), "server.md": tables(args, runs)}
    for name, text in texts.items():
        partial = args.results / f".{name}"
        partial.write_text(text + "\n")
        partial.rename(args.results / name)


def main() -> None:
    """Measure what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--peer", required=True, help="the Python of an environment with vLLM for CPUs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--arrivals", nargs="+", default=list(ARRIVALS), choices=ARRIVALS)
    parser.add_argument("--input", type=int, default=128, help="tokens of a prompt (default: 128)")
    parser.add_argument("--output", type=int, default=64, help="tokens of an answer (default: 64)")
    parser.add_argument("--backend", default="openai", choices=["openai", "openai-chat"], help="the API that is used")
    parser.add_argument(
        "--dtypes",
        nargs="*",
        default=["float32"],
        help="dtypes of vLLM (default: float32, its best without AMX or AVX512_BF16)",
    )
    parser.add_argument("--peer-env", nargs="*", default=[], metavar="NAME=VALUE", help="variables for vLLM's server")
    parser.add_argument("--results", type=Path)
    args = parser.parse_args()
    os.environ.pop("OMP_NUM_THREADS", None)  # servers use all cores
    if "closed" not in args.arrivals:
        parser.error("--arrivals needs closed: it decides how often requests arrive in the others")
    names = ("clients", "arrivals", "input", "output", "backend", "dtypes", "peer_env")
    settings = {"model": args.model.name, **{n: getattr(args, n) for n in names}, "env": PEER_ENV, "options": SHARED}
    settings = json.loads(json.dumps(settings))
    runs = kept(args, settings)
    servers = ways(args)
    with tempfile.TemporaryDirectory() as folder:
        for number, name, cells in missing(args, list(runs)):
            command, environment = servers[name]
            with served(command, Path(folder) / "log", environment) as server:
                for clients, arrivals in cells:
                    rate = 0.0 if arrivals == "closed" else slowest_rate(runs, clients)
                    run = bench(args, server, clients, arrivals, seed_of(number, clients, arrivals), rate)
                    head = {"round": number, "way": name, "clients": clients, "arrivals": arrivals, "rate": rate}
                    runs.append({**head, "load": os.getloadavg()[0], **run})
                    print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
                    keep(args, settings, runs)
    print(tables(args, runs))


if __name__ == "__main__":
    main()
