"""``--layer-partition auto``: what each layer costs, from a plan, and the partition that divides the costs best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from loadmaster.architectures.cuts import obstacle
from loadmaster.architectures.targets import Engine
from loadmaster.errors import UnsupportedError
from loadmaster.parallel import ParallelLayout, partition
from loadmaster.plan import Plan
from loadmaster.sizing.activations import choices_of
from loadmaster.sizing.cuts import crossing
from loadmaster.sizing.devices import DRIVER_BYTES, GRAPH_BYTES
from loadmaster.sizing.memory import (
    MemoryOptions,
    Workload,
    cache_of,
    runtime_bytes,
    stage_activations,
    stage_logits,
    workload_of,
)
from loadmaster.sizing.partition import Costs, balanced, head_compute, layer_compute
from loadmaster.sizing.weights import Weights, WeightSizes

UNKNOWN_LENGTH = 4096
"""Tokens of a request whose longest length nothing names."""


def auto_partition(plan: Plan, engine: Engine, options: MemoryOptions | None = None) -> tuple[int, ...]:
    """Return the layers of each stage for the plan's layout; its own partition does not matter.

    Raises:
        LayoutError: the layers cannot be divided over as many stages.
    """
    options = options or MemoryOptions()
    stages = plan.layout.pipeline_parallel_size
    return balanced(costs_of(plan, WeightSizes(plan).at(plan.layout), engine, options), stages)


def costs_of(plan: Plan, weights: Weights, engine: Engine, options: MemoryOptions) -> Costs:
    """Return what each layer and each end of the pipeline costs on the plan's layout.

    The KV cache counted is that of ``max_num_seqs`` requests of the full length, if their number was given; otherwise of one.
    Where neither the config nor the options have a length, it is `UNKNOWN_LENGTH`.
    """
    schema = plan.schema
    if options.max_model_len is None and "max_position_embeddings" not in plan.family.describe(plan.config).values:
        options = replace(options, max_model_len=UNKNOWN_LENGTH)
    workload = workload_of(plan, engine, options)
    num_layers, num_drafts = len(schema.layers), plan.layout.num_draft_layers
    cache = _cache_bytes(plan, workload, options.kv_cache_dtype)
    choices = choices_of(plan.family.describe(plan.config)).num_experts
    compute = {kind: layer_compute(schema.kinds[kind], choices) for kind in {*schema.layers}}
    head = head_compute(schema)
    of_drafts = sum(
        layer_compute([t for t in schema.kinds[kind] if t.name not in ("mtp.embed", "mtp.head")], choices)
        for kind in schema.drafted(num_drafts)
    )
    return Costs(
        memory=tuple(float(w + c) for w, c in zip(weights.layers, cache, strict=False)),
        compute=tuple(float(compute[kind] * schema.num_passes(n)) for n, kind in enumerate(schema.layers)),
        memory_beside=(float(weights.first), float(weights.last + sum(cache[num_layers:]))),
        compute_beside=(0.0, float((1 + num_drafts) * head + of_drafts)),
        carried=tuple(float(sum(size for _, size in crossing(plan, n))) for n in range(num_layers)),
        cuttable=tuple(obstacle(schema, plan.target, n) is None for n in range(num_layers)),
        room=_rooms(plan, workload, options, weights),
    )


def _cache_bytes(plan: Plan, workload: Workload, kv_cache_dtype: str) -> Sequence[int]:
    """Return the bytes of each layer's KV cache, MTP layers last; zeros where it is not known."""
    requests = workload.max_num_seqs if workload.asked_seqs else 1
    try:
        cache = cache_of(plan, workload, kv_cache_dtype)
    except UnsupportedError:
        return [0] * len(plan.schema.blocks(plan.layout.num_draft_layers))
    tokens = [
        workload.max_model_len if c.window is None else min(c.window, workload.max_model_len) for c in cache.layers
    ]
    return [c.token_bytes * n * requests for c, n in zip(cache.layers, tokens, strict=True)]


def _rooms(plan: Plan, workload: Workload, options: MemoryOptions, weights: Weights) -> tuple[float, ...]:
    """Return what parameters and KV cache may take on each stage; empty without devices."""
    if not options.device_bytes:
        return ()
    num_layers, stages = len(plan.schema.layers), plan.layout.pipeline_parallel_size
    batch = stage_activations(plan, workload, 0, num_layers, is_last=True) + GRAPH_BYTES[workload.engine]
    rooms = []
    for stage in range(stages):
        device = min(options.device(rank) or 0 for rank in plan.layout.stage_ranks(stage))
        moving = batch + (stage_logits(plan, workload) if stage == stages - 1 else 0)
        beside = weights.middle if 0 < stage < stages - 1 else 0
        shown = (device - DRIVER_BYTES) * workload.gpu_memory_utilization
        usable = shown if workload.engine == "vllm" else device - runtime_bytes(plan, workload.engine)
        rooms.append(float(max(1, usable - moving - beside)))
    return tuple(rooms)


def staged(plan: Plan, layout: ParallelLayout, counts: Sequence[int] | None = None) -> Plan:
    """Return a plan with another layout's stages, for sizes alone: what it composes is still that of its old layout."""
    made = layout if counts is None else replace(layout, layer_partition=tuple(counts))
    stages = partition(len(plan.schema.layers), made.pipeline_parallel_size, made.layer_partition)
    return replace(plan, layout=made, stages=stages)
