"""Prints the memory of all ranks, and turns it into the JSON object of ``plan --json``."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from loadmaster.report.console import print_wide, say, unit_of
from loadmaster.report.ranks import numbers
from loadmaster.sizing.memory import ESTIMATED, NATIVE_SHARE, Memory, RankMemory

LEGEND = (
    "~ is an estimate, not measured: batch is the activations of --max-num-batched-tokens and their logits; CUDA is the driver, "
    "the context, communication and graphs; host staging is the host's memory while loading"
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
    columns, rows = memory_table(memory)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    print_wide(console, table)
    for words in summary(memory):
        say(console, words)


def memory_table(memory: Memory) -> tuple[list[str], list[list[str]]]:
    """Return the columns of a table of all ranks' memory, and its rows; ranks with the same figures share one."""
    unit, size = unit_of(max(r.fixed_bytes for r in memory.ranks))
    has_devices = memory.ranks[0].device_bytes is not None
    has_drafts = any(r.draft_bytes for r in memory.ranks)
    has_index = any(r.index_block_bytes for r in memory.ranks)
    columns = [
        "memory of rank",
        f"parameters {unit}",
        *(["of them MTP"] if has_drafts else []),
        "one request",
        "KV cache",
    ]
    columns += ["of it indexer"] if has_index else []
    has_tables = any(r.host_tables_bytes for r in memory.ranks)
    columns += ["batch ~", "CUDA ~", *(("device", "left ~") if has_devices else ("sum ~",)), "host staging"]
    columns += ["host tables"] if has_tables else []

    def shown(num_bytes: int | None) -> str:
        return "unknown" if num_bytes is None else f"{num_bytes / size:.2f}"

    rows = []
    for ranks in alike(memory):
        r = ranks[0]
        cells = [shown(r.parameters_bytes), *([shown(r.draft_bytes)] if has_drafts else []), shown(r.request_bytes)]
        cells += [shown(r.cache_bytes), *([shown(r.index_bytes(r.cache_bytes or 0))] if has_index else [])]
        cells += [shown(r.activations_bytes + r.logits_bytes), shown(r.runtime_bytes + r.graphs_bytes)]
        total = r.fixed_bytes + (r.cache_bytes or 0)
        cells += [shown(r.device_bytes), shown(r.left_bytes)] if has_devices else [shown(total)]
        cells += [shown(r.host_staging_bytes), *([shown(r.host_tables_bytes)] if has_tables else [])]
        rows.append([numbers([other.rank for other in ranks]), *cells])
    return columns, rows


def alike(memory: Memory) -> list[list[RankMemory]]:
    """Return the ranks in groups whose figures are the same as far as reports show them."""
    _, size = unit_of(max(r.fixed_bytes for r in memory.ranks))
    groups: dict[tuple[object, ...], list[RankMemory]] = defaultdict(list)
    for r in memory.ranks:
        sizes = (
            r.parameters_bytes,
            r.draft_bytes,
            r.request_bytes,
            r.cache_bytes,
            r.fixed_bytes,
            r.left_bytes,
            r.host_tables_bytes,
        )
        groups[tuple(None if n is None else round(n / size, 2) for n in (*sizes, r.device_bytes))].append(r)
    return list(groups.values())


def summary(memory: Memory) -> Iterator[str]:
    """Yield what was counted, how many tokens fit, and which figures are estimates."""
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
