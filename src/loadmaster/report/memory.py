"""Prints the memory of all ranks, and turns it into the JSON object of ``plan --json``."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from loadmaster.findings import ranges
from loadmaster.report.console import print_wide, say, unit_of
from loadmaster.sizing.memory import ESTIMATED, NATIVE_SHARE, Memory, RankMemory

LEGEND = (
    "~ is an estimate, not measured: batch is the activations of --max-num-batched-tokens and their logits; CUDA is the driver, "
    "the context, communication and graphs"
)


def memory_object(memory: Memory) -> dict[str, Any]:
    """Return the object of all ranks' memory; sizes are bytes, null where they are not known."""
    workload, cache = memory.workload, memory.cache
    return {
        **dataclasses.asdict(workload),
        "kv_cache": {
            "unknown": memory.unknown,
            "block_size": None if cache is None else cache.block_size,
            "blocks_per_request": None if cache is None else cache.request_blocks(workload.max_model_len),
            "num_blocks": memory.num_blocks,
            "num_tokens": memory.num_tokens,
            "longest_request": memory.longest,
        },
        "estimated": [f"{name}_bytes" for name in ESTIMATED],
        "ranks": [dataclasses.asdict(r) for r in memory.ranks],
    }


def print_memory(console: Console, memory: Memory) -> None:
    """Print a line for all ranks with the same figures, and how many tokens fit."""
    unit, size = unit_of(max(r.fixed_bytes for r in memory.ranks))
    has_devices = memory.ranks[0].device_bytes is not None
    has_drafts = any(r.draft_bytes for r in memory.ranks)
    columns = [
        f"parameters {unit}",
        *(["of them MTP"] if has_drafts else []),
        "one request",
        "KV cache",
        "batch ~",
        "CUDA ~",
    ]
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for column in ("memory of rank", *columns, *(("device", "left ~") if has_devices else ("sum ~",))):
        table.add_column(column, justify="right", no_wrap=True)

    def shown(num_bytes: int | None) -> str:
        return "unknown" if num_bytes is None else f"{num_bytes / size:.2f}"

    for ranks in _alike(memory, size):
        r = ranks[0]
        known = [shown(r.parameters_bytes), *([shown(r.draft_bytes)] if has_drafts else []), shown(r.request_bytes)]
        known += [shown(r.cache_bytes), shown(r.activations_bytes + r.logits_bytes)]
        known.append(shown(r.runtime_bytes + r.graphs_bytes))
        last = (
            (shown(r.device_bytes), shown(r.left_bytes))
            if has_devices
            else (shown(r.fixed_bytes + (r.cache_bytes or 0)),)
        )
        table.add_row(ranges(other.rank for other in ranks), *known, *last)
    print_wide(console, table)
    for words in _summary(memory):
        say(console, words)


def _alike(memory: Memory, size: int) -> list[list[RankMemory]]:
    groups: dict[tuple[object, ...], list[RankMemory]] = defaultdict(list)
    for r in memory.ranks:
        sizes = (r.parameters_bytes, r.draft_bytes, r.request_bytes, r.cache_bytes, r.fixed_bytes, r.left_bytes)
        groups[tuple(None if n is None else round(n / size, 2) for n in (*sizes, r.device_bytes))].append(r)
    return list(groups.values())


def _summary(memory: Memory) -> Iterator[str]:
    workload = memory.workload
    asked = f"{workload.max_num_seqs} requests of {workload.max_model_len:,} tokens"
    batch = f"batches of {workload.max_num_batched_tokens:,} tokens"
    if memory.cache is None:
        yield f"{asked}, {batch}; {memory.unknown}, and is not counted"
    elif memory.num_blocks is None:
        yield f"KV cache for {asked} at a time, {batch}; add --device-memory to see what fits"
    else:
        divided = (
            f"{workload.gpu_memory_utilization:.0%} of a device as CUDA shows it"
            if workload.engine == "vllm"
            else f"the KV cache gets {NATIVE_SHARE:.0%} of what parameters and CUDA leave"
        )
        tokens = memory.num_tokens or 0
        also = f"{workload.max_num_seqs} asked for, " if workload.asked_seqs else ""
        requests = f"{tokens / workload.max_model_len:.1f} requests of {workload.max_model_len:,} tokens"
        yield f"{tokens:,} tokens fit at a time: {requests} ({also}{batch}; {divided})"
    yield LEGEND
