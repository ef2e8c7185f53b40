"""Memory on GPUs: what `plan` predicts of each rank, against what torch allocates and what nvidia-smi shows.

    python -m benchmarks.memory_gpu [--cases NAME …] [--results FILE]

Each case is a model of published width with few layers, random weights made on the GPU, and a layout; the engine runs it in its
worker processes. Each worker writes down torch's peak after every batch: parameters + KV cache + activations, which the
prediction has without CUDA's own memory. nvidia-smi shows the process as a whole. The largest batch is one prompt of
``--max-num-batched-tokens`` tokens, and then one of many requests. Every GPU of the layout must be free.

Where there are fewer GPUs than ranks, ranks share them: each then counts on its part of a GPU, and gets the KV cache that was
predicted instead of taking what is free. What NCCL takes is not seen then.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.engine_gpu import Answers, RandomBuilder
from loadmaster.checkpoint import open_checkpoint
from loadmaster.distributed.tensor import TensorGroup
from loadmaster.engine import Capacity, Engine
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.sizing import MemoryOptions, measure_proof
from loadmaster.sizing.devices import DRIVER_BYTES
from loadmaster.synth import PRESETS, write_full_size
from loadmaster.workers.builder import Stage

PEAKS = "LOADMASTER_BENCHMARK_PEAKS"
"""The folder in which workers write their peaks; workers inherit the environment."""


@dataclass(frozen=True)
class Case:
    """A preset with a changed config, on a layout."""

    preset: str
    layout: ParallelLayout
    config: dict[str, Any] = field(default_factory=dict)


CASES = {
    "llama": Case("llama", ParallelLayout()),
    "llama, pp 2": Case("llama", ParallelLayout(2)),
    "llama, tp 2": Case("llama", ParallelLayout(1, 2)),
    "qwen3-moe, 12 layers": Case("qwen3-moe", ParallelLayout(), {"num_hidden_layers": 12}),
    "qwen3-moe, 12 layers, tp 2": Case("qwen3-moe", ParallelLayout(1, 2), {"num_hidden_layers": 12}),
    "gemma-3": Case("gemma-3", ParallelLayout()),
    "gemma-3, pp 2": Case("gemma-3", ParallelLayout(2)),
    "glm-5.1, 3 layers": Case(
        "glm-5.1-fp8",
        ParallelLayout(),
        {"num_hidden_layers": 3, "first_k_dense_replace": 1, "num_nextn_predict_layers": 0},
    ),
    "glm-5.1, 3 layers, pp 2": Case(
        "glm-5.1-fp8",
        ParallelLayout(2),
        {"num_hidden_layers": 3, "first_k_dense_replace": 1, "num_nextn_predict_layers": 0},
    ),
}


class RecordingBuilder(RandomBuilder):
    """Builds a rank whose peak is written down after each batch."""

    def build(
        self, rank: int, device: str, on_progress: Callable[[int], None], group: TensorGroup | None = None
    ) -> Stage:
        import torch

        stage: Any = super().build(rank, device, on_progress, group)
        compute, file = stage.forward, Path(os.environ[PEAKS]) / f"{rank}.json"
        torch.cuda.reset_peak_memory_stats()

        def forward(*args: Any) -> Any:
            outputs = compute(*args)
            peaks = {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
            file.write_text(json.dumps({**peaks, "pid": os.getpid()}))
            return outputs

        stage.forward = forward
        built: Stage = stage
        return built


def shown_by_nvidia_smi() -> dict[int, int]:
    """Return the bytes of each process."""
    command = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return {int(pid): int(mib) * 2**20 for pid, mib in (line.split(",") for line in lines if line.strip())}


def total_memory() -> int:
    """Return the memory of the first device as nvidia-smi shows it."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[0]) * 2**20


def measure(case: Case, num_gpus: int, seqs: int, batched: int) -> list[dict[str, Any]]:
    """Return for each rank what was predicted, and what was measured."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        write_full_size(PRESETS[case.preset], model, overrides=case.config)
        proof = prove(build_plan(open_checkpoint(model), case.layout, dtype="BF16"))
        sharing = -(-case.layout.num_ranks // num_gpus)  # ranks on a GPU
        options = MemoryOptions((total_memory() // sharing,), 2 * batched, seqs, batched)
        predicted = measure_proof(proof, "native", options)
        cache_bytes = max(rank.cache_bytes or 0 for rank in predicted.ranks) if sharing > 1 else None
        os.environ[PEAKS] = folder
        capacity = Capacity(max_num_seqs=seqs, max_num_batched_tokens=batched, kv_cache_memory_bytes=cache_bytes)
        draw = random.Random(0)
        vocabulary = proof.plan.family.describe(proof.plan.config).size("vocab_size", 262_208)

        def prompt(length: int) -> list[int]:
            return [draw.randrange(vocabulary) for _ in range(length)]

        with Engine(
            proof.require_proven(),
            max_model_len=2 * batched,
            capacity=capacity,
            builder="benchmarks.memory_gpu:RecordingBuilder",
            device="cuda",
        ) as engine:
            engine.wait_ready()
            Answers(
                engine, [prompt(batched) for _ in range(case.layout.pipeline_parallel_size)], 8
            )  # they share a step
            Answers(engine, [prompt(32) for _ in range(seqs)], 8)
            shown = shown_by_nvidia_smi()
        lines = []
        for rank in predicted.ranks:
            peak = json.loads((Path(folder) / f"{rank.rank}.json").read_text())
            moving = rank.activations_bytes + rank.logits_bytes
            lines.append(
                {
                    "rank": rank.rank,
                    "predicted_allocated": rank.parameters_bytes + (rank.cache_bytes or 0) + moving,
                    "max_memory_allocated": peak["allocated"],
                    "max_memory_reserved": peak["reserved"],
                    "predicted_process": rank.fixed_bytes + (rank.cache_bytes or 0) - DRIVER_BYTES,
                    "nvidia_smi": shown.get(peak["pid"]),  # None inside some containers
                    "predicted": {
                        name: getattr(rank, f"{name}_bytes")
                        for name in ("parameters", "cache", "activations", "logits", "runtime", "graphs")
                    },
                }
            )
        return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--max-num-seqs", type=int, default=64)
    parser.add_argument("--max-num-batched-tokens", type=int, default=8192)
    parser.add_argument("--results", type=Path)
    args = parser.parse_args()
    import torch

    num_gpus = torch.cuda.device_count()
    found: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "gpus": num_gpus, "torch": torch.__version__}
    found["cases"] = {}
    print("| model, layout | rank | predicted GiB | allocated | off | process predicted | nvidia-smi | off |")
    for name in args.cases:
        found["cases"][name] = measure(CASES[name], num_gpus, args.max_num_seqs, args.max_num_batched_tokens)
        for r in found["cases"][name]:
            cells = []
            for a, b in (("predicted_allocated", "max_memory_allocated"), ("predicted_process", "nvidia_smi")):
                off = f"{r[a] / r[b] - 1:+.1%}" if r[b] else "-"
                cells += [f"{r[a] / 2**30:.2f}", f"{(r[b] or 0) / 2**30:.2f}", off]
            print(f"| {name} | {r['rank']} | {' | '.join(cells)} |", flush=True)
    if args.results:
        args.results.parent.mkdir(parents=True, exist_ok=True)
        args.results.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
