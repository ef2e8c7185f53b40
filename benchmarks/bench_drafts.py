"""Speculative decoding with the trained model's MTP layer, in stages on a CPU: tokens a second with drafts and without.

    python benchmarks/bench_drafts.py [--model demo/glm] [--stages 1 2 4] [--drafts 0 1 2 3] [--streams 1 8] [--rounds 3]

Prompts are beginnings of sentences that the model was trained on; answers are greedy. Each rank has one thread. Layouts take
turns, and the figure is the median of the rounds. ``--context`` measures something else: one request's rate after a prompt
of so many tokens, in the longest context against the shortest, as the median ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from loadmaster.checkpoint import open_checkpoint
from loadmaster.engine import Capacity, Engine, Tokenizer
from loadmaster.engine.weights import plan_to_run
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import ProvenPlan, build_plan, prove
from loadmaster.workers import SamplingParams

SENTENCES = (
    "And it came to pass, that",
    "And the king said unto",
    "Blessed is the man that walketh not in",
    "In the beginning God created",
    "The word of the LORD came unto me, saying,",
    "And he spake a parable unto them,",
    "Now these are the generations of",
    "Praise ye the LORD.",
)

ANSWER = 96
"""Tokens of an answer."""


def plan_of(model: Path, num_stages: int, num_layers: int) -> ProvenPlan:
    """Return the plan of a layout, with weights in the form that is fastest here."""
    checkpoint = open_checkpoint(model)
    layout = ParallelLayout(num_stages, num_draft_layers=num_layers)

    def build(dtype: str | None, target: str) -> ProvenPlan:
        return prove(build_plan(checkpoint, layout, dtype=dtype, target=target)).require_proven()

    return plan_to_run(build, device="cpu").plan


def rate(engine: Engine, prompts: list[list[int]], num_tokens: int) -> float:
    """Return tokens per second from the first token of all requests to the last."""
    params = SamplingParams(max_tokens=num_tokens, temperature=0, ignore_eos=True)
    streams = [engine.submit(prompt, params) for prompt in prompts]
    for stream in streams:
        list(stream)
    begin = max(stream.timing.first_token or 0 for stream in streams)
    end = max(stream.timing.ended or 0 for stream in streams)
    return len(prompts) * (num_tokens - 1) / (end - begin)


def measure(model: Path, num_stages: int, num_drafts: int, streams: list[int]) -> dict[int, tuple[float, float | None]]:
    """Return for each number of streams the rate, and the tokens of a verifying step."""
    tokenizer = Tokenizer(model)
    plan = plan_of(model, num_stages, min(num_drafts, 1))
    figures: dict[int, tuple[float, float | None]] = {}
    with Engine(plan, max_model_len=256, num_speculative_tokens=num_drafts or None) as engine:
        engine.wait_ready()
        for count in streams:
            prompts = [tokenizer.encode(SENTENCES[i % len(SENTENCES)]) for i in range(count)]
            rate(engine, prompts, 8)
            before = engine.statistics().counters
            found = rate(engine, prompts, ANSWER)
            after = engine.statistics().counters
            spans = after.sampled_spans - before.sampled_spans
            figures[count] = found, (after.output_tokens - before.output_tokens) / spans if spans else None
    return figures


def contexts(model: Path, lengths: list[int], rounds: int) -> dict[int, float]:
    """Return the median rate of one request after prompts of some lengths."""
    numbers = random.Random(0)
    rates: dict[int, list[float]] = defaultdict(list)
    capacity = Capacity(enable_prefix_caching=False)
    with Engine(plan_of(model, 1, 0), max_model_len=max(lengths) + ANSWER, capacity=capacity) as engine:
        engine.wait_ready()
        vocab_size = engine.limits.vocab_size or 100
        for _ in range(rounds):
            for length in lengths:
                prompt = [numbers.randrange(vocab_size) for _ in range(length)]
                rates[length].append(rate(engine, [prompt], ANSWER))
    return {length: statistics.median(found) for length, found in rates.items()}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path(__file__).parents[1] / "demo" / "glm")
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--drafts", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--context", type=int, nargs="+")
    parser.add_argument("--results", type=Path)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    result: dict[str, Any] = {}
    if args.context:
        rates = contexts(args.model, args.context, args.rounds)
        for length, found in rates.items():
            print(f"{length} tokens of context: {found:.1f} tokens/s, {found / rates[min(rates)]:.2f} of the shortest")
        result["contexts"] = rates
    else:
        rows: dict[tuple[int, int, int], list[tuple[float, float | None]]] = defaultdict(list)
        for _ in range(args.rounds):
            for num_stages in args.stages:
                for num_drafts in args.drafts:
                    for count, found in measure(args.model, num_stages, num_drafts, args.streams).items():
                        rows[num_stages, count, num_drafts].append(found)
        print("| stages | streams | drafts | tokens/s | × without drafts | tokens a step |")
        print("|---|---|---|---|---|---|")
        medians = {key: statistics.median(r for r, _ in found) for key, found in rows.items()}
        for (num_stages, count, num_drafts), median in sorted(medians.items()):
            per_step = rows[num_stages, count, num_drafts][0][1]
            ratio = median / medians[num_stages, count, min(args.drafts)]
            print(f"| {num_stages} | {count} | {num_drafts} | {median:.1f} | {ratio:.2f} | {per_step or 1:.2f} |")
        result["rows"] = [[*key, found] for key, found in sorted(rows.items())]
    if args.results:
        args.results.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
