"""Whether a plan fits its devices: one finding at most, and what would fit.

What stops an engine from starting is an error: parameters, what CUDA and a batch need, and the KV cache of one request. What
makes requests wait is a warning, if the number of requests was given.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from loadmaster.catalogue import ranked
from loadmaster.findings import Finding, gib
from loadmaster.plan.proof import Proof
from loadmaster.sizing.cache import Cache
from loadmaster.sizing.devices import DRIVER_BYTES
from loadmaster.sizing.memory import Memory, RankMemory, room


def with_memory(proof: Proof, memory: Memory) -> Proof:
    """Return the proof with what is to say about memory. Parameters that do not fit by themselves are reported already."""
    if any(f.code == "memory-capacity" for f in proof.findings):
        return proof
    return replace(proof, findings=ranked([*proof.findings, *findings(memory)]))


def findings(memory: Memory) -> Iterator[Finding]:
    """Yield why the ranks' devices are too small, if they are."""
    late = [r for r in memory.ranks if _is_refused_at_start(r, memory)]
    over = [r for r in memory.ranks if (lacking := _lacking(r, memory)) is not None and lacking > 0]
    if over:
        yield _too_little(max(over, key=lambda r: _lacking(r, memory) or 0), over, memory)
    elif late:
        yield _refused_at_start(late, memory)
    elif not memory.holds_a_request:
        yield _too_few_blocks(memory)
    elif memory.cache is not None and memory.num_blocks is not None:
        yield from _waiting(memory, memory.cache, memory.num_blocks)
        yield from _crowded(memory)


def _refused_at_start(late: list[RankMemory], memory: Memory) -> Finding:
    r = late[0]
    assert r.device_bytes is not None
    most = (r.device_bytes - r.runtime_bytes) / (r.device_bytes - DRIVER_BYTES)
    return Finding(
        "memory-capacity",
        "error",
        f"rank {r.rank}: --gpu-memory-utilization {memory.workload.gpu_memory_utilization:g} asks for more than is free when "
        f"vLLM starts: CUDA and communication take about {gib(r.runtime_bytes)} of {gib(r.device_bytes)}",
        ranks=tuple(other.rank for other in late),
        hint=f"--gpu-memory-utilization {int(most * 100) / 100:g}",
    )


def _too_few_blocks(memory: Memory) -> Finding:
    """Return that each rank has room for its part of a request, and the engine still makes too few blocks of the KV cache."""
    rooms = {r.rank: room(r, memory.workload) or 0 for r in memory.ranks}
    least = min(rooms, key=lambda rank: rooms[rank])
    largest = max(memory.ranks, key=lambda r: r.block_bytes or 0)
    return Finding(
        "memory-capacity",
        "error",
        f"rank {least} has {gib(rooms[least])} for its KV cache, the least of all, and rank {largest.rank} needs "
        f"{gib(largest.request_bytes or 0)} for one request of {memory.workload.max_model_len:,} tokens, the most; the native "
        "engine divides the least memory by the largest need",
        ranks=(least,),
        hint=_remedy(memory),
    )


def _waiting(memory: Memory, cache: Cache, num_blocks: int) -> Iterator[Finding]:
    """Yield that fewer requests fit at a time than were asked for."""
    workload, usable = memory.workload, cache.usable(num_blocks)
    at_once = usable // cache.request_blocks(workload.max_model_len)
    if not workload.asked_seqs or at_once >= workload.max_num_seqs:
        return
    each = usable // workload.max_num_seqs + cache.reserved_blocks
    length = cache.longest(each, workload.max_model_len)
    shorter = f", or --max-model-len {length}" if length else ""
    yield Finding(
        "memory-requests",
        "warning",
        f"{at_once} of {workload.max_num_seqs} requests of {workload.max_model_len:,} tokens fit into the KV cache at a time; "
        "more of this length wait, or are computed again",
        hint=f"--max-num-seqs {at_once}{shorter}, or use more ranks",
    )


def _crowded(memory: Memory) -> Iterator[Finding]:
    """Yield that the KV cache leaves too little for batches and graphs."""
    crowded = {r.rank: r.left_bytes for r in memory.ranks if r.left_bytes is not None and r.left_bytes < 0}
    if not crowded:
        return
    least = min((r for r in memory.ranks if r.rank in crowded), key=lambda r: crowded[r.rank])
    yield Finding(
        "memory-activations",
        "warning",
        f"rank {least.rank}: the KV cache leaves {gib(crowded[least.rank] + _moving(least))} for batches and graphs, which may "
        f"take {gib(_moving(least))} (an estimate)",
        ranks=tuple(crowded),
        hint="pass a smaller --max-num-batched-tokens, or a smaller KV cache",
    )


def _moving(r: RankMemory) -> int:
    return r.activations_bytes + r.logits_bytes + r.graphs_bytes


def _is_refused_at_start(r: RankMemory, memory: Memory) -> bool:
    """Whether vLLM finds less free memory than its share of the device."""
    if memory.workload.engine != "vllm" or r.device_bytes is None:
        return False
    return (r.device_bytes - DRIVER_BYTES) * memory.workload.gpu_memory_utilization > r.device_bytes - r.runtime_bytes


def _lacking(r: RankMemory, memory: Memory) -> int | None:
    """Return the bytes that a rank lacks for one request; None: it is not known."""
    if r.device_bytes is None:
        return None
    reserved = (r.block_bytes or 0) * (memory.cache.reserved_blocks if memory.cache else 0)
    needed, has = (r.request_bytes or 0) + reserved, room(r, memory.workload)
    assert has is not None
    return max(needed - has, r.fixed_bytes + needed - r.device_bytes)


def _too_little(worst: RankMemory, over: list[RankMemory], memory: Memory) -> Finding:
    workload = memory.workload
    parts = [("parameters", worst.parameters_bytes)]
    if worst.request_bytes is not None:
        parts.append((f"the KV cache of one request of {workload.max_model_len:,} tokens", worst.request_bytes))
    parts += [("a batch and graphs", _moving(worst)), ("CUDA", worst.runtime_bytes)]
    assert worst.device_bytes is not None
    share = ""
    if workload.engine == "native":
        share = "; the KV cache gets 85 % of what parameters and CUDA leave"
    elif workload.gpu_memory_utilization < 1:
        share = f"; vLLM uses {workload.gpu_memory_utilization:.0%} of it"
    return Finding(
        "memory-capacity",
        "error",
        f"rank {worst.rank} needs {', '.join(f'{gib(n)} for {what}' for what, n in parts)}; its device has "
        f"{gib(worst.device_bytes)}{share}",
        ranks=tuple(r.rank for r in over),
        hint=_remedy(memory),
    )


def _remedy(memory: Memory) -> str:
    """Return what would fit, in the order of what it costs."""
    remedies = []
    if memory.longest:
        remedies.append(f"--max-model-len {memory.longest}, which fits")
    elif memory.workload.max_num_batched_tokens > 2048:
        remedies.append("--max-num-batched-tokens 2048")
    return ", or ".join([*remedies, "use more ranks; `loadmaster fit` lists the layouts that fit"])
