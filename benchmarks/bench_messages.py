"""What a step costs beside its arithmetic: scheduling, messages between the engine and its workers, waking processes.

    python benchmarks/bench_messages.py [--streams 1 16 64] [--stages 1 2] [--steps 2000]

The stages compute nothing and the vocabulary is small, so a step is messages, bookkeeping and a few tensors of T × 64 elements.
The cost of messages is the time of a step less the time that the workers are busy in it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loadmaster.checkpoint import open_checkpoint
from loadmaster.distributed.tensor import TensorGroup
from loadmaster.engine import Engine
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.synth import PRESETS, write_tiny
from loadmaster.workers import SamplingParams
from loadmaster.workers.builder import PlanBuilder, Stage

VOCAB = 128
HIDDEN = 64


class IdleStage:
    """A stage that computes nothing."""

    carries_in = carries_out = ("hidden_states",)
    draft = None
    is_capturable = False
    vocab_size = VOCAB

    def __init__(self, *, is_last: bool) -> None:
        import torch

        self.device = torch.device("cpu")
        self._is_last = is_last

    def page_bytes(self, page_size: int) -> int:
        """Return 1 byte a token."""
        return page_size

    def new_cache(self, num_pages: int, page_size: int) -> None:
        """Return no cache."""

    def forward(self, inputs: dict[str, Any], step: Any, cache: None) -> dict[str, Any]:
        """Return zeros."""
        import torch

        if self._is_last:
            return {"logits": torch.zeros(len(step.logit_rows_R), VOCAB)}
        return {"hidden_states": torch.zeros(step.num_tokens, HIDDEN)}


class IdleBuilder(PlanBuilder):
    """Builds stages that compute nothing."""

    def build(
        self, rank: int, device: str, on_progress: Callable[[int], None], group: TensorGroup | None = None
    ) -> Stage:
        """Return the stage of a rank."""
        on_progress(self._plan.rank(rank).needed_bytes)
        stage: Any = IdleStage(is_last=rank == self._plan.layout.pipeline_parallel_size - 1)
        return stage


def measure(path: Path, num_stages: int, num_streams: int, num_steps: int) -> tuple[float, float]:
    """Return microseconds of a step, and those in which a worker is busy."""
    layout = ParallelLayout(num_stages)
    plan = prove(build_plan(open_checkpoint(path), layout)).require_proven()
    params = SamplingParams(max_tokens=num_steps, temperature=0, ignore_eos=True)
    with Engine(plan, builder="benchmarks.bench_messages:IdleBuilder", max_model_len=num_steps + 16) as engine:
        engine.wait_ready()
        for stream in [engine.submit([1], params) for _ in range(num_streams)]:  # to warm up
            list(stream)
        before = engine.statistics(within_s=5).stages
        begin = time.perf_counter()
        for stream in [engine.submit([1], params) for _ in range(num_streams)]:
            list(stream)
        seconds = time.perf_counter() - begin
        after = engine.statistics(within_s=5).stages
    busy_s = sum(a.busy_s - b.busy_s for a, b in zip(after, before, strict=True))
    num_batches = after[0].num_batches - before[0].num_batches
    return 1e6 * seconds / num_batches, 1e6 * busy_s / num_batches / num_stages


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=2000)
    args = parser.parse_args()
    print("| stages | streams | µs a step | of them a worker busy | messages |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        write_tiny(PRESETS["llama"], Path(folder) / "tiny", overrides={"max_position_embeddings": 1 << 20})
        for num_stages in args.stages:
            for num_streams in args.streams:
                step, busy = measure(Path(folder) / "tiny", num_stages, num_streams, args.steps)
                print(f"| {num_stages} | {num_streams} | {step:.0f} | {busy:.0f} | {step - busy:.0f} |", flush=True)


if __name__ == "__main__":
    main()
