"""One step of decoding on a GPU: how long its kernels take, and which of them.

    python benchmarks/step_gpu.py [--preset glm-5.1-fp8] [--config KEY=VALUE …] [--context 8000] [--streams 1] [--results FILE]

The stage is that of `engine_gpu.py`, in this process: `StageRunner` carries out batches of one token a request, as in a worker.
``wall``: from one batch to the next, the sampled token on the host included. ``busy``: the sum of the kernels' times.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.engine_gpu import RandomBuilder, setting
from loadmaster.checkpoint import open_checkpoint
from loadmaster.distributed.group import PipelineGroup
from loadmaster.plan import Plan, build_plan, prove
from loadmaster.synth import PRESETS, write_full_size
from loadmaster.workers import SamplingParams
from loadmaster.workers.batch import Batch, Span, Start
from loadmaster.workers.messages import Allocate
from loadmaster.workers.runner import StageRunner

PAGE_SIZE = 16
CHUNK = 2048
STEPS = 40


class Requests:
    """Some requests of one length on one rank, which decode together."""

    def __init__(self, runner: StageRunner, count: int, length: int, vocab_size: int) -> None:
        self._runner = runner
        self._number = 0
        draw = random.Random(0)
        self._tokens = [[draw.randrange(vocab_size) for _ in range(length)] for _ in range(count)]
        pages = (length + 4 * STEPS) // PAGE_SIZE + 1
        params = SamplingParams(temperature=0.0, ignore_eos=True)
        for request, tokens in enumerate(self._tokens):
            for first in range(0, length, CHUNK):
                stop = min(first + CHUNK, length)
                start = Start(params, tuple(tokens), length) if first == 0 else None
                new = tuple(range(request * pages, (request + 1) * pages)) if first == 0 else ()
                self._run([Span(request, first, tuple(tokens[first:stop]), new, int(stop == length), start)])

    def decode(self) -> None:
        """Compute the next token of every request."""
        self._run([Span(r, len(t) - 1, (t[-1],), (), 1, None) for r, t in enumerate(self._tokens)])

    def _run(self, spans: list[Span]) -> None:
        self._number += 1
        done = self._runner.run(Batch(self._number, tuple(spans)))
        assert done is not None
        for sampled in done.sampled:
            assert sampled.error is None, sampled.error
            self._tokens[sampled.request] += sampled.token_ids


def measure(plan: Plan, streams: int, context: int) -> dict[str, Any]:
    stage = RandomBuilder(plan.to_json()).build(0, "cuda:0", lambda _: None)
    num_pages = streams * ((context + 4 * STEPS) // PAGE_SIZE + 1)
    runner = StageRunner(stage, PipelineGroup(0, 1), Allocate(num_pages, PAGE_SIZE))
    requests = Requests(runner, streams, context, plan.config["vocab_size"])
    for _ in range(8):
        requests.decode()
    walls = []
    for _ in range(STEPS):
        begin = time.perf_counter()
        requests.decode()
        walls.append(time.perf_counter() - begin)
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(STEPS):
            requests.decode()
        torch.cuda.synchronize()
    kernels: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for event in found.events():
        if event.device_type == DeviceType.CUDA:
            kernels[event.name][0] += 1 / STEPS
            kernels[event.name][1] += event.device_time / STEPS
    return {
        "is_captured": runner._graphs is not None,
        "wall_us": 1e6 * statistics.median(walls),
        "busy_us": sum(us for _, us in kernels.values()),
        "kernels": [
            {"name": name, "launches": round(count, 2), "us": round(us, 2)}
            for name, (count, us) in sorted(kernels.items(), key=lambda item: -item[1][1])
        ],
    }


def show(found: dict[str, Any]) -> None:
    graphs = "with" if found["is_captured"] else "without"
    print(f"{found['gpu']}, {graphs} graphs: {found['wall_us']:.0f} µs a step, kernels {found['busy_us']:.0f} µs")
    print("| kernel | launches | µs |")
    for kernel in found["kernels"][:45]:
        print(f"| {kernel['name'][:100]} | {kernel['launches']} | {kernel['us']} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="glm-5.1-fp8")
    parser.add_argument("--config", nargs="+", default=[], metavar="KEY=VALUE", type=setting)
    parser.add_argument("--context", type=int, default=8000)
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--results", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_full_size(PRESETS[args.preset], Path(folder) / "model", overrides=dict(args.config))
        plan = prove(build_plan(open_checkpoint(Path(folder) / "model"), dtype="BF16")).require_proven()
        found: dict[str, Any] = {
            "preset": args.preset,
            "config": dict(args.config),
            "context": args.context,
            "streams": args.streams,
            "gpu": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            **measure(plan, args.streams, args.context),
        }
    show(found)
    if args.results:
        args.results.parent.mkdir(parents=True, exist_ok=True)
        args.results.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
