"""What a filter saves: the bytes that a rank's loader reads of full-size checkpoints, from their headers alone.

    python benchmarks/bench_filter.py [--results DIR]

For each model and layout, the rank that needs most: everything, as loaders without a filter read; with a filter by expert ids,
as vLLM 0.32 has under expert parallelism (not with copies of experts); the tensors that `loadmaster.needed` names, whole; and
their ranges. That parameters are the same is shown by tests/integrations/filter and tests/plan/test_needed.py.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from pathlib import Path

from loadmaster.checkpoint import open_checkpoint
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import Plan, build_plan, needed
from loadmaster.synth import PRESETS, write_full_size

CASES = {
    "GLM-5.1-FP8, -pp 8": ("glm-5.1-fp8", ParallelLayout(8)),
    "GLM-5.1-FP8, -tp 8, experts whole": ("glm-5.1-fp8", ParallelLayout(1, 8, enable_expert_parallel=True)),
    "GLM-5.1-FP8, -pp 2 -tp 8, experts whole": ("glm-5.1-fp8", ParallelLayout(2, 8, enable_expert_parallel=True)),
    "DeepSeek-V3, -tp 16, experts whole, 32 copies": (
        "deepseek-v3",
        ParallelLayout(1, 16, enable_expert_parallel=True, num_redundant_experts=32),
    ),
    "Kimi-K2 INT4, -tp 8, experts whole": ("kimi-k2-int4", ParallelLayout(1, 8, enable_expert_parallel=True)),
    "Qwen3-MoE, -tp 4": ("qwen3-moe", ParallelLayout(1, 4)),
}


def by_expert_ids(plan: Plan, rank: int) -> int | None:
    """Return the bytes that a filter by expert ids leaves; None where there is none: experts are not whole, or copied."""
    layout = plan.layout
    if not layout.enable_expert_parallel or layout.num_redundant_experts:
        return None
    table = plan.checkpoint.table
    experts = [re.search(r"\.experts\.(\d+)\.", name) for name in table.names]
    num_experts = 1 + max(int(found[1]) for found in experts if found)
    share = num_experts // layout.stage_size
    first = layout.coordinate(rank).stage_slot * share
    kept = [found is None or first <= int(found[1]) < first + share for found in experts]
    return int(table.nbytes[kept].sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path)
    args = parser.parse_args()
    figures = {}
    print("| | everything, GB | by expert ids | needed, whole tensors | ranges | seconds to list |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, (preset, layout) in CASES.items():
            model = Path(folder, preset)
            if not model.exists():
                write_full_size(PRESETS[preset], model)
            plan = build_plan(open_checkpoint(model), layout)
            rank = max(range(layout.num_ranks), key=lambda r: plan.rank(r).fetched_bytes)
            begin = time.perf_counter()
            found = needed(plan, rank)
            figures[name] = {
                "rank": rank,
                "everything": plan.checkpoint.table.payload_bytes,
                "by expert ids": by_expert_ids(plan, rank),
                "whole tensors": sum(t.num_bytes for t in found.values()),
                "ranges": sum(t.fetched_bytes for t in found.values()),
                "seconds": time.perf_counter() - begin,
            }
            *sizes, seconds = list(figures[name].values())[1:]
            cells = ["-" if size is None else f"{size / 1e9:.1f}" for size in sizes]
            print(f"| {name} | {' | '.join(cells)} | {seconds:.2f} |", flush=True)
    if args.results:
        args.results.mkdir(parents=True, exist_ok=True)
        (args.results / "filter.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
