"""Random requests through the engine in many layouts, against one process that runs one request at a time.

    python -m tools.equivalence [--requests 100] [--seed 0] [--model FOLDER …] [--device cuda]

Requests have random lengths, arrivals, cancellations and seeds; the KV cache is small, so that requests are preempted, and
prompts share prefixes. Greedy answers must be those of the reference. Sums have another order in a batch, a chunk or a
divided product, so a first difference is allowed where it is a near-tie: the two tokens' logits differ by less than 1e-5 of
the largest. Every near-tie is printed and counted; any other difference is a failure. Sampled answers must be those of the
first layout. The reference is computed on the CPU, also with --device cuda.

Without --model, tiny checkpoints of two architectures are made.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from loadmaster.architectures.registry import read_model
from loadmaster.checkpoint import Checkpoint, open_checkpoint
from loadmaster.engine import Capacity, Engine
from loadmaster.engine.request import Stream
from loadmaster.engine.support import DEVICES
from loadmaster.layers.step import Context, Step
from loadmaster.loader import load_rank
from loadmaster.models import Stage, build_stage
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import ProvenPlan, build_plan, prove
from loadmaster.synth import PRESETS, write_tiny
from loadmaster.workers import SamplingParams

NEAR = 1e-5
"""Two logits are a near-tie if they differ by less than this share of the largest logit, or of 1 if that is more."""

FREE_WITHIN_S = 10.0
"""By when the pages of a cancelled request must be free."""

LONGEST = 96
"""The most tokens of prompt and answer."""


def plan_of(checkpoint: Checkpoint, layout: ParallelLayout) -> ProvenPlan:
    """Return the plan of a layout, with weights decoded into float32."""
    return prove(build_plan(checkpoint, layout, dtype="F32", target="native-decoded")).require_proven()


class Reference:
    """One stage in this process, which computes a whole sequence at once."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        plan = plan_of(checkpoint, ParallelLayout())
        rank = plan.rank(0)
        self._stage: Stage = build_stage(
            read_model(plan.config),
            rank.specs,
            load_rank(plan, 0).tensors,
            layers=range(*rank.layers),
            first=True,
            last=True,
            dtype=torch.float32,
        )
        self._answers: dict[tuple[int, ...], list[int]] = {}

    def logits(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Return the logits after a sequence ``[V]``."""
        count = len(token_ids)
        cache = self._stage.new_cache(1, count)
        context = Context(0, count, 0, count, np.zeros(1, np.int32), count)
        step = Step([context], token_ids, range(count), range(count), [count - 1])
        return self._stage.forward({}, step, cache)["logits"][0]

    def difference(self, prompt: Sequence[int], answer: Sequence[int]) -> tuple[int, float] | None:
        """Return where an answer first differs from greedy decoding, and by how much the two logits differ; None: nowhere."""
        tokens = list(prompt)
        for place, token in enumerate(answer):
            logits = self.logits(tokens)
            best = int(logits.argmax())
            if best != token:
                gap = float(logits[best] - logits[token]) / max(1.0, float(logits.abs().max()))
                return place, gap
            tokens.append(token)
        return None


@dataclass(frozen=True)
class Case:
    """One request: when it arrives, and whether it is cancelled after so many tokens."""

    prompt: tuple[int, ...]
    params: SamplingParams
    delay_s: float
    cancel_after: int | None


def cases(count: int, seed: int, vocab_size: int) -> list[Case]:
    """Return random requests."""
    numbers = random.Random(seed)
    prefixes = [[numbers.randrange(vocab_size) for _ in range(48)] for _ in range(4)]
    made = []
    for _ in range(count):
        shared = numbers.choice(prefixes)[: numbers.choice([0, 0, 16, 33, 48])]
        prompt = (*shared, *(numbers.randrange(vocab_size) for _ in range(numbers.randint(1, 30))))
        max_tokens = numbers.randint(1, min(24, LONGEST - len(prompt)))
        greedy = numbers.random() < 0.7
        params = SamplingParams(
            max_tokens=max_tokens,
            temperature=0.0 if greedy else numbers.choice([0.5, 1.0]),
            top_p=1.0 if greedy else numbers.choice([0.8, 1.0]),
            seed=numbers.randrange(1000),
            ignore_eos=True,
        )
        cancel_after = numbers.randint(1, max_tokens) if numbers.random() < 0.15 else None
        made.append(Case(prompt, params, numbers.choice([0.0, 0.0, 0.01]), cancel_after))
    return made


def answers(engine: Engine, requests: Sequence[Case]) -> list[list[int]]:
    """Submit all requests as they arrive, and return their answers."""
    streams: list[Stream] = []
    for case in requests:
        time.sleep(case.delay_s)
        streams.append(engine.submit(case.prompt, case.params))
    results = []
    for case, stream in zip(requests, streams, strict=True):
        tokens: list[int] = []
        for output in stream:
            tokens += output.token_ids
            if case.cancel_after is not None and len(tokens) >= case.cancel_after:
                stream.cancel()
                break
        results.append(tokens)
    return results


def layouts(num_drafts: int) -> Iterator[tuple[str, ParallelLayout]]:
    """Yield the layouts that are tried, by name."""
    for drafts in range(num_drafts + 1):
        for stages, ranks in ((1, 1), (2, 1), (3, 1), (4, 1), (1, 2), (2, 2), (3, 2), (4, 2)):
            for experts in (False, True) if ranks > 1 else (False,):
                layout = ParallelLayout(stages, ranks, enable_expert_parallel=experts, num_draft_layers=drafts)
                name = f"-pp {stages} -tp {ranks}{' -ep' if experts else ''}{' MTP' if drafts else ''}"
                yield name, layout


def compare(
    checkpoint: Checkpoint, requests: Sequence[Case], options: Mapping[str, ParallelLayout], device: str
) -> int:
    """Run all layouts, print a line for each, and return the number of failures."""
    reference = Reference(checkpoint)
    sampled: list[list[int]] | None = None
    checked: dict[tuple[tuple[int, ...], tuple[int, ...]], tuple[int, float] | None] = {}
    failures = 0
    for name, layout in options.items():
        plan = plan_of(checkpoint, layout)
        capacity = Capacity(max_num_seqs=32, max_num_batched_tokens=64, num_gpu_blocks_override=3 * (LONGEST // 16))
        with Engine(plan, max_model_len=LONGEST, capacity=capacity, device=device) as engine:
            engine.wait_ready()
            results = answers(engine, requests)
            until = time.monotonic() + FREE_WITHIN_S
            while (statistics := engine.statistics()).num_used_pages and time.monotonic() < until:
                time.sleep(0.01)  # the last step of a request that was cancelled may still be in flight
        ties = 0
        if sampled is None:
            sampled = results
        for number, (case, tokens) in enumerate(zip(requests, results, strict=True)):
            if case.params.is_greedy:
                key = (case.prompt, tuple(tokens))
                if key not in checked:
                    checked[key] = reference.difference(case.prompt, tokens)
                if (difference := checked[key]) is not None:
                    place, gap = difference
                    ties += gap < NEAR
                    failures += gap >= NEAR
                    kind = "near-tie" if gap < NEAR else "FAILURE"
                    print(f"  {kind}: request {number}, token {place}: logits differ by {gap:.1e} of the largest")
            else:
                common = min(len(tokens), len(sampled[number]))
                if tokens[:common] != sampled[number][:common]:
                    failures += 1
                    print(f"  FAILURE: request {number}: another sampled answer than in the first layout")
        counters = statistics.counters
        drafts = (
            f", {counters.accepted_tokens} of {counters.drafted_tokens} drafts accepted"
            if layout.num_draft_layers
            else ""
        )
        print(
            f"{name}: {len(results)} requests, {sum(map(len, results)):,} tokens, {counters.preemptions} preemptions, "
            f"{counters.cached_tokens:,} cached tokens{drafts}; {ties} near-ties; "
            f"pages left in use: {statistics.num_used_pages}",
            flush=True,
        )
        failures += statistics.num_used_pages != 0
    return failures


def main() -> None:
    """Compare all layouts of each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", type=Path, action="append", default=[])
    parser.add_argument("--device", default="cpu", choices=DEVICES)
    args = parser.parse_args()
    torch.set_num_threads(1)
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        models = list(args.model)
        for preset in ("llama", "glm-5.1-fp8") if not models else ():
            models.append(Path(folder) / preset)
            write_tiny(PRESETS[preset], models[-1])
        for model in models:
            print(model.name)
            checkpoint = open_checkpoint(model)
            config = checkpoint.config or {}
            requests = cases(args.requests, args.seed, int(config["vocab_size"]))
            drafts = 1 if config.get("num_nextn_predict_layers") else 0
            failures += compare(checkpoint, requests, dict(layouts(drafts)), args.device)
    sys.exit(f"{failures} failures" if failures else 0)


if __name__ == "__main__":
    main()
