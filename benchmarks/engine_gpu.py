"""The engine on GPUs: tokens per second while decoding, and seconds for a prompt, against what reading the weights takes.

    python benchmarks/engine_gpu.py [--preset llama] [--config KEY=VALUE …] [--pipeline-parallel-size 1] [--streams 1 32]
        [--context 8000] [--results FILE]

The model has its published shapes (``--config`` changes values, such as the number of layers) and dtypes, and random weights,
made on the GPU; requests go through `Engine`, worker process included. The floor of a step is the time in which the weights
that it reads could be copied: their bytes over the bandwidth of a large copy on the device, bytes read plus bytes written,
measured in the same run. A step reads all weights but the embedding, and of a layer's experts those that its tokens choose: as
many as they would on average if they chose at random. With several stages, one for each GPU, it is the time in which one token
passes all of them.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from loadmaster.checkpoint import open_checkpoint
from loadmaster.distributed.tensor import TensorGroup
from loadmaster.engine import Capacity, Engine
from loadmaster.engine.request import Event, Output
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import ParamSpec, build_plan, prove
from loadmaster.synth import PRESETS, write_full_size
from loadmaster.workers import SamplingParams
from loadmaster.workers.builder import PlanBuilder, Stage

SHORT = 128
"""Tokens of a short prompt."""

WARM_UP = 16
"""Tokens of an answer before its rate is taken."""


class RandomBuilder(PlanBuilder):
    """Builds a rank with random weights, made where it computes."""

    def build(
        self, rank: int, device: str, on_progress: Callable[[int], None], group: TensorGroup | None = None
    ) -> Stage:
        import torch

        from loadmaster.architectures.registry import read_model
        from loadmaster.models import build_stage
        from loadmaster.torch_dtypes import TORCH

        plan, rank_plan = self._plan, self._plan.rank(rank)
        torch.manual_seed(rank)
        tensors = {}
        inputs_of_scale = {spec.scale: spec.shape[-1] for spec in rank_plan.specs if spec.scale is not None}
        for spec in rank_plan.specs:
            values = torch.randn(spec.shape, dtype=torch.bfloat16, device=device)
            if len(spec.shape) == 1:
                values = 1 + values / 10
            elif spec.name in inputs_of_scale:
                values = torch.full_like(values, 1 / math.sqrt(inputs_of_scale[spec.name]))
            elif "embed" not in spec.name and spec.scale is None:
                values = values / math.sqrt(spec.shape[-1])
            tensors[spec.name] = values.to(TORCH[spec.dtype])
            on_progress(spec.num_bytes)
        torch.cuda.empty_cache()
        return build_stage(
            read_model(plan.config),
            rank_plan.specs,
            tensors,
            layers=range(*rank_plan.layers),
            first=rank_plan.pp_rank == 0,
            last=rank_plan.pp_rank == plan.layout.pipeline_parallel_size - 1,
            dtype=TORCH[plan.dtype],
            group=group,
        )


class Answers:
    """When each token of some requests arrived."""

    def __init__(self, engine: Engine, prompts: Sequence[Sequence[int]], num_tokens: int) -> None:
        self.times: list[list[float]] = [[] for _ in prompts]
        self.error: Exception | None = None
        self._left = len(prompts)
        self._over = threading.Event()
        params = SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
        self.begin = time.perf_counter()
        for i, prompt in enumerate(prompts):
            engine.submit(prompt, params, self._listener(i))
        self._over.wait()
        if self.error is not None:
            raise self.error

    def _listener(self, i: int) -> Callable[[Event], None]:
        def listen(event: Event) -> None:
            if isinstance(event, Output):
                self.times[i] += [time.perf_counter()] * len(event.token_ids)
            else:
                self.error = event
            if not isinstance(event, Output) or event.finish_reason is not None:
                self._left -= 1
                if self._left == 0 or self.error is not None:
                    self._over.set()

        return listen

    @property
    def first_token_s(self) -> float:
        return min(times[0] for times in self.times) - self.begin

    @property
    def rate(self) -> float:
        """Tokens per second of all requests, while all of them decode."""
        begin = max(times[0] for times in self.times)
        begin = sorted(t for t in self.times[0] if t >= begin)[WARM_UP]
        end = min(times[-1] for times in self.times)
        return sum(begin < t <= end for times in self.times for t in times) / (end - begin)


def copy_bandwidth() -> float:
    """Return the bytes per second that a copy on the device reads and writes."""
    import torch

    source = torch.randint(0, 255, (1 << 32,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    seconds = []
    for _ in range(12):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        seconds.append(begin.elapsed_time(end) / 1e3)
    del source, target
    torch.cuda.empty_cache()
    return 2 * (1 << 32) / statistics.median(seconds[2:])


def measure(engine: Engine, vocab_size: int, context: int, streams: Sequence[int], repeats: int) -> dict[str, Any]:
    draw = random.Random(0)

    def prompts(count: int, length: int) -> list[list[int]]:
        return [[draw.randrange(vocab_size) for _ in range(length)] for _ in range(count)]

    for length in (SHORT, context):  # compiles kernels and makes graphs
        Answers(engine, prompts(1, length), WARM_UP)
    figures: dict[str, Any] = {"decode": [], "prefill": []}
    for length in (SHORT, context):
        for count in streams:
            Answers(engine, prompts(count, SHORT), 4)
            tokens = 256 if length == SHORT else 160
            rates = [Answers(engine, prompts(count, length), tokens).rate for _ in range(repeats if count == 1 else 2)]
            figures["decode"].append({"context": length, "streams": count, "rates": rates})
    for length in (SHORT, context // 2, context):
        seconds = [Answers(engine, prompts(1, length), 1).first_token_s for _ in range(2 * repeats)]
        figures["prefill"].append({"tokens": length, "seconds": seconds})
    return figures


def read_bytes(specs: Sequence[ParamSpec], config: Mapping[str, Any], num_tokens: int) -> int:
    """Return the bytes of the weights that a step of ``num_tokens`` reads."""
    stacks = {s.name: len(s.division.experts) for s in specs if s.division.experts}
    stacks |= {s.scale: stacks[s.name] for s in specs if s.name in stacks and s.scale is not None}
    total = 0.0
    for spec in specs:
        share = 1.0
        if spec.name in stacks:
            share -= (1 - config["num_experts_per_tok"] / stacks[spec.name]) ** num_tokens
        total += share * spec.num_bytes * (spec.name != "embed_tokens.weight")
    return round(total)


def show(found: dict[str, Any]) -> None:
    floors_s = {int(n): size / found["copy_bandwidth"] for n, size in found["read_bytes"].items()}
    print(f"{found['gpu']}, torch {found['torch']}: copies at {found['copy_bandwidth'] / 1e12:.2f} TB/s")
    for streams, floor_s in floors_s.items():
        size = found["read_bytes"][streams]
        print(
            f"{streams} streams: {size / 1e9:.2f} GB of weights, {1e3 * floor_s:.2f} ms, {streams / floor_s:.0f} tokens/s"
        )
    medians = {(x["context"], x["streams"]): statistics.median(x["rates"]) for x in found["decode"]}
    fewest = min(streams for _, streams in medians)
    shortest = min(context for context, _ in medians)
    print("| context | streams | tokens/s | ms a step | floor / step | × one stream | of short |")
    for (context, streams), rate in medians.items():
        of_1, of_short = rate / medians[context, fewest], rate / medians[shortest, streams]
        ms, floor_s = 1e3 * streams / rate, floors_s[streams]
        print(
            f"| {context} | {streams} | {rate:.1f} | {ms:.2f} | {1e3 * floor_s / ms:.2f} | {of_1:.1f} | {of_short:.2f} |"
        )
    print("| prompt | s to the first token | tokens/s |")
    for line in found["prefill"]:
        seconds = statistics.median(line["seconds"])
        print(f"| {line['tokens']} | {seconds:.4f} | {line['tokens'] / seconds:.0f} |")


def setting(text: str) -> tuple[str, Any]:
    """Read ``KEY=VALUE``, where the value is JSON."""
    key, _, value = text.partition("=")
    return key, json.loads(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="llama")
    parser.add_argument("--config", nargs="+", default=[], metavar="KEY=VALUE", type=setting)
    parser.add_argument("--pipeline-parallel-size", type=int, default=1)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--context", type=int, default=8000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--results", type=Path)
    args = parser.parse_args()
    import torch

    found: dict[str, Any] = {
        "preset": args.preset,
        "config": dict(args.config),
        "pipeline_parallel_size": args.pipeline_parallel_size,
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "copy_bandwidth": copy_bandwidth(),
    }
    with tempfile.TemporaryDirectory() as folder:
        write_full_size(PRESETS[args.preset], Path(folder) / "model", overrides=dict(args.config))
        layout = ParallelLayout(args.pipeline_parallel_size)
        plan = prove(build_plan(open_checkpoint(Path(folder) / "model"), layout, dtype="BF16")).require_proven()
        specs = [spec for rank in range(layout.pipeline_parallel_size) for spec in plan.rank(rank).specs]
        found["read_bytes"] = {n: read_bytes(specs, plan.config, n) for n in args.streams}
        capacity = Capacity(max_num_seqs=max(args.streams))
        begin = time.perf_counter()
        with Engine(
            plan,
            max_model_len=args.context + 512,
            capacity=capacity,
            builder="benchmarks.engine_gpu:RandomBuilder",
            device="cuda",
        ) as engine:
            engine.wait_ready()
            found["ready_s"] = time.perf_counter() - begin
            found |= measure(engine, plan.config["vocab_size"], args.context, args.streams, args.repeats)
    show(found)
    if args.results:
        args.results.parent.mkdir(parents=True, exist_ok=True)
        args.results.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
