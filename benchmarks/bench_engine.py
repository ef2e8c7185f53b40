"""The engine against transformers and vLLM for CPUs: tokens a second, time to the first token, pipelines, long contexts.

    python benchmarks/bench_engine.py MODEL [--rounds 5] [--peer PYTHON …] [--results DIR] [--only NAME …]

MODEL is a folder with a small dense model, such as SmolLM2-135M (``python -m demo.smollm2 FOLDER`` makes one). Every
measurement is a process of its own, which loads the model, warms up, and measures all its cases. Processes take turns: one
of each way in a round, and the figure is the median of the rounds. ``--peer`` is the Python of an environment that has vLLM
for CPUs; without it vLLM is not measured. transformers is measured in the environment of this script, in float32 and in
the checkpoint's dtype; the better one counts for each case.

Answers are greedy and of fixed length (``ignore_eos``), prompts are random tokens with a fixed seed, so that no way can
profit from cached prefixes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

VOCAB = 40_000
"""Token ids of prompts are smaller than this: all vocabularies have them."""

ANSWER = 48
"""Tokens of an answer, where the case does not say otherwise."""

Prompts = list[list[int]]


def prompts(count: int, length: int, seed: int = 0) -> Prompts:
    """Return ``count`` prompts of ``length`` random tokens."""
    numbers = random.Random(seed)
    return [[numbers.randrange(100, VOCAB) for _ in range(length)] for _ in range(count)]


def mixed(count: int) -> list[tuple[list[int], int]]:
    """Return prompts of 16 to 256 tokens, and the lengths of their answers, 8 to 64 tokens."""
    numbers = random.Random(1)
    return [
        ([numbers.randrange(100, VOCAB) for _ in range(numbers.randint(16, 256))], numbers.randint(8, 64))
        for _ in range(count)
    ]


Generate = Callable[[Sequence[tuple[list[int], int]]], tuple[float, float]]
"""Answers all prompts together, each with so many tokens. Returns the seconds to the first token and to the last."""


def measure(generate: Generate, cases: Sequence[str]) -> dict[str, float]:
    """Return the figure of each case, with a way to generate."""
    generate([(p, 4) for p in prompts(2, 32, seed=9)])
    figures: dict[str, float] = {}
    for case in cases:
        match case.split("-"):
            case ["streams", count]:
                requests = [(p, ANSWER) for p in prompts(int(count), 64)]
                first, last = generate(requests)
                figures[case] = len(requests) * (ANSWER - 1) / (last - first)
            case ["first", length]:
                figures[case] = generate([(p, 1) for p in prompts(1, int(length), seed=2)])[1]
            case ["mixed", count]:
                figures[case] = generate(mixed(int(count)))[1]
            case ["context", length]:
                first, last = generate([(p, ANSWER) for p in prompts(1, int(length), seed=3)])
                figures[case] = (ANSWER - 1) / (last - first)
    return figures


def run_loadmaster(args: argparse.Namespace) -> dict[str, Any]:
    """Measure this package's engine with ``args.stages`` stages."""
    from loadmaster.checkpoint import open_checkpoint
    from loadmaster.engine import Engine
    from loadmaster.engine.weights import plan_to_run
    from loadmaster.parallel import ParallelLayout
    from loadmaster.plan import ProvenPlan, build_plan, prove
    from loadmaster.workers import SamplingParams

    checkpoint = open_checkpoint(args.model)

    def build(dtype: str | None, target: str) -> ProvenPlan:
        layout = ParallelLayout(args.stages)
        return prove(build_plan(checkpoint, layout, dtype=dtype, target=target)).require_proven()

    run = plan_to_run(build, device="cpu")
    with Engine(run.plan) as engine:
        engine.wait_ready()

        def generate(requests: Sequence[tuple[list[int], int]]) -> tuple[float, float]:
            begin = time.monotonic()
            streams = [
                engine.submit(prompt, SamplingParams(max_tokens=count, temperature=0, ignore_eos=True))
                for prompt, count in requests
            ]
            for stream, (_, count) in zip(streams, requests, strict=True):
                assert sum(len(output.token_ids) for output in stream) == count
            timings = [stream.timing for stream in streams]
            return (
                max((t.first_token or 0) - begin for t in timings),
                max((t.ended or 0) - begin for t in timings),
            )

        before = engine.statistics().stages
        figures = measure(generate, args.only)
        time.sleep(1)
        after = engine.statistics().stages
    spent = [
        {
            "busy": a.busy_s - b.busy_s,
            "input": a.input_s - b.input_s,
            "engine": a.engine_s - b.engine_s,
            "batches": a.num_batches - b.num_batches,
        }
        for a, b in zip(after, before, strict=True)
    ]
    return {"figures": figures, "choice": run.choice, "stages": spent}


def run_transformers(args: argparse.Namespace) -> dict[str, Any]:
    """Measure transformers' ``generate``: prompts of one length in one batch, others padded to the left."""
    import torch
    from transformers import AutoModelForCausalLM, LogitsProcessor

    torch.set_num_threads(args.threads)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype)).eval()

    class Clock(LogitsProcessor):
        """Notes when the first token of all sequences is known."""

        first: float | None = None

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            self.first = self.first or time.monotonic()
            return scores

    def generate(requests: Sequence[tuple[list[int], int]]) -> tuple[float, float]:
        longest, count = max(len(p) for p, _ in requests), max(n for _, n in requests)
        ids = torch.tensor([[0] * (longest - len(p)) + p for p, _ in requests])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p, _ in requests])
        clock = Clock()
        begin = time.monotonic()
        with torch.inference_mode():
            model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                logits_processor=[clock],
                pad_token_id=0,
            )
        return (clock.first or begin) - begin, time.monotonic() - begin

    return {"figures": measure(generate, args.only)}


def run_vllm(args: argparse.Namespace) -> dict[str, Any]:
    """Measure vLLM's engine. Time to the first token is that of a run that asks for one token."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        str(args.model), dtype=args.dtype, enable_prefix_caching=False, max_model_len=8192, disable_log_stats=True
    )

    def timed(requests: Sequence[tuple[list[int], int]]) -> float:
        begin = time.monotonic()
        llm.generate(
            [{"prompt_token_ids": p} for p, _ in requests],
            [SamplingParams(max_tokens=n, temperature=0, ignore_eos=True) for _, n in requests],
            use_tqdm=False,
        )
        return time.monotonic() - begin

    def generate(requests: Sequence[tuple[list[int], int]]) -> tuple[float, float]:
        return timed([(p, 1) for p, _ in requests]), timed(requests)

    return {"figures": measure(generate, args.only)}


WAYS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "loadmaster": run_loadmaster,
    "transformers": run_transformers,
    "vllm": run_vllm,
}

CASES = ("streams-1", "streams-8", "streams-16", "first-900", "mixed-64", "context-100", "context-7900")


def commands(args: argparse.Namespace) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Return the command and environment of each way: its name, dtype, stages and threads."""
    here = [sys.executable, __file__, str(args.model)]
    cases = ["--only", *args.only]
    pipeline = ["--only", *(c for c in args.only if c.startswith("streams-"))]
    one = {"OMP_NUM_THREADS": "1"}
    ways = {
        "loadmaster": ([*here, "--one", "loadmaster", *cases], {}),
        "loadmaster, 1 thread": ([*here, "--one", "loadmaster", *pipeline], one),
        "loadmaster, 2 stages of 1 thread": ([*here, "--one", "loadmaster", "--stages", "2", *pipeline], one),
    }
    for dtype in args.dtypes:
        ways[f"transformers {dtype}"] = ([*here, "--one", "transformers", "--dtype", dtype, *cases], {})
        if args.peer:
            peer = [args.peer, __file__, str(args.model)]
            ways[f"vllm {dtype}"] = ([*peer, "--one", "vllm", "--dtype", dtype, *cases], {})
    return ways


def main() -> None:
    """Run all ways in turns and print the medians; or one way in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer", help="the Python of an environment with vLLM for CPUs")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--only", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--one", choices=WAYS)
    parser.add_argument("--stages", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], help="dtypes of the peers")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    if args.one:
        print(json.dumps(WAYS[args.one](args)))
        return
    ways = commands(args)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for number in range(args.rounds):
        for name in list(ways) if number % 2 == 0 else reversed(list(ways)):
            command, environment = ways[name]
            done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
            if done.returncode:
                print(f"{name}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
                continue
            line = next(line for line in done.stdout.splitlines() if line.startswith('{"figures"'))  # beside logs
            runs[name].append(json.loads(line))
    medians = {
        name: {case: statistics.median(r["figures"][case] for r in results) for case in results[0]["figures"]}
        for name, results in runs.items()
        if results
    }
    print(f"{'':36}" + "".join(f"{case:>14}" for case in args.only))
    for name, figures in medians.items():
        print(f"{name:36}" + "".join(f"{figures[c]:14.2f}" if c in figures else " " * 14 for c in args.only))
    if args.results:
        args.results.mkdir(parents=True, exist_ok=True)
        (args.results / "engine.json").write_text(json.dumps({"medians": medians, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
