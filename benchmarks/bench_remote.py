"""Planning full-size checkpoints that are not on disk, from a hub on the loopback with added latency: seconds, requests, bytes.

    python benchmarks/bench_remote.py [--runs 3] [--latency-ms 20] [--results DIR] [--forms FORM …]

The hub is the tests' stand-in, in a process of its own; it waits before each answer, as a network would. Each run is a fresh
``loadmaster plan … -pp 8 --json``, with empty caches (cold), then with the cached headers (kept), then as a wrong model and a
wrong revision. Seconds are wall time. Bytes are those that the hub sent of the shards, beside the length of their headers, and
of the index and the configs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

FORMS = ("glm-5.1-fp8", "deepseek-v3", "kimi-k2", "kimi-k2-int4", "qwen3-moe")
MODEL = "owner/model"
LOADMASTER = [str(Path(sys.executable).with_name("loadmaster"))]


def serve(folder: Path, latency_s: float) -> None:
    """Be the hub: print the URL, and answer each line of standard input with what was asked since the last."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.checkpoint.standin import StandIn

    hub = StandIn(latency_s=latency_s)
    files = {p.name: p if p.suffix == ".safetensors" else p.read_bytes() for p in folder.iterdir()}
    hub.publish(MODEL, files)
    with hub.serving():
        print(hub.url, flush=True)
        for _ in sys.stdin:
            shards = sum(n for name, n in hub.sent.items() if name.endswith(".safetensors"))
            requests = [p for _, p in hub.requests if not p.startswith("/api/agent")]
            print(
                json.dumps({"requests": len(requests), "shards": shards, "small": hub.sent.total() - shards}),
                flush=True,
            )
            hub.requests.clear()
            hub.sent.clear()


def header_bytes(folder: Path) -> int:
    """Return the bytes of all headers, with their lengths."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            total += 8 + int.from_bytes(file.read(8), "little")
    return total


def measure(folder: Path, latency_s: float, runs: int) -> dict[str, Any]:
    """Return the figures of one model, by what is measured."""
    command = [sys.executable, __file__, "--serve", str(folder), "--latency-ms", str(latency_s * 1000)]
    taken: dict[str, list[dict[str, Any]]] = {}
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as hub,
        tempfile.TemporaryDirectory() as caches,
    ):
        assert hub.stdin is not None
        assert hub.stdout is not None
        url = hub.stdout.readline().strip()
        for run in range(runs):
            at = Path(caches, str(run))
            ours = os.environ | {
                "HF_ENDPOINT": url,
                "HF_HUB_CACHE": str(at / "hub"),
                "XDG_CACHE_HOME": str(at / "ours"),
            }
            for what, model, code in (
                ("cold", [MODEL], 0),
                ("kept", [MODEL], 0),
                ("wrong model", ["owner/modle"], 1),
                ("wrong revision", [MODEL, "--revision", "v9"], 1),
            ):
                begin = time.perf_counter()
                plan = [*LOADMASTER, "plan", *model, "-pp", "8", "--json"]
                done = subprocess.run(plan, env=ours, capture_output=True, text=True)
                seconds = time.perf_counter() - begin
                assert done.returncode == code, done.stderr
                hub.stdin.write("\n")
                hub.stdin.flush()
                taken.setdefault(what, []).append({"seconds": seconds, **json.loads(hub.stdout.readline())})
        hub.stdin.close()
    return {"header_bytes": header_bytes(folder), "runs": taken}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--latency-ms", type=float, default=20.0)
    parser.add_argument("--forms", nargs="+", default=FORMS)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args.latency_ms / 1000)
        return
    figures: dict[str, Any] = {}
    print(
        f"{'what':32s} {'s median':>9s} {'max':>6s} {'requests':>9s} {'shards MB':>10s} {'/ headers':>10s} {'small MB':>9s}"
    )
    with tempfile.TemporaryDirectory() as folder:
        for form in args.forms:
            model = Path(folder, form)
            subprocess.run(
                [*LOADMASTER, "synth", form, str(model), "--full-size"], check=True, stdout=subprocess.DEVNULL
            )
            figures[form] = measure(model, args.latency_ms / 1000, args.runs)
            for what, runs in figures[form]["runs"].items():
                seconds, last = [r["seconds"] for r in runs], runs[-1]
                print(
                    f"{form + ', ' + what:32s} {statistics.median(seconds):9.3f} {max(seconds):6.3f} {last['requests']:9d} "
                    f"{last['shards'] / 1e6:10.2f} {last['shards'] / figures[form]['header_bytes']:10.3f} "
                    f"{last['small'] / 1e6:9.2f}"
                )
    if args.results:
        args.results.mkdir(parents=True, exist_ok=True)
        figures["latency_ms"] = args.latency_ms
        (args.results / "remote.json").write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
