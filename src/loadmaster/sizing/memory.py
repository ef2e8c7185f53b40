"""Memory, whole: what each rank of a plan needs on its device, and how many tokens fit into what is left.

Exact are the parameters (the plan's) and the KV cache (`loadmaster.sizing.cache`). Activations, CUDA's own memory,
communication and graphs are estimates (`ESTIMATED`), and reports mark them. The two engines divide a device differently:

    native  parameters are loaded; the KV cache gets 85 % of what is free then, and no more than all requests can use; the
            rest is for activations and graphs (`loadmaster.engine.Capacity`)
    vllm    ``gpu_memory_utilization`` × the memory that CUDA shows, less parameters, activations and graphs, is the KV
            cache; context and communication come out of the rest (``determine_available_memory`` in
            ``v1/worker/gpu_worker.py`` of vLLM 0.32.0)

All ranks have the same number of blocks: that of the rank where the fewest fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from loadmaster.architectures.targets import Engine
from loadmaster.arguments import expect_int
from loadmaster.errors import ArgumentError, ConfigError, UnsupportedError
from loadmaster.plan import Plan, Proof, RankFigures
from loadmaster.sizing.activations import Batch, choices_of, layer_bytes, logits_bytes
from loadmaster.sizing.cache import Cache, plan_cache
from loadmaster.sizing.devices import COMMUNICATION_BYTES, CONTEXT_BYTES, DRIVER_BYTES, GIB, GRAPH_BYTES
from loadmaster.sizing.vllm_cache import VllmCacheOptions, vllm_cache

NATIVE_SHARE: Final = 0.85
"""Of the memory that is free after loading, the part that the native engine's KV cache takes (`loadmaster.engine.capacity`)."""

ESTIMATED: Final = ("activations", "logits", "runtime", "graphs")
"""Figures of `RankMemory` that are estimates."""


@dataclass(frozen=True, slots=True)
class MemoryOptions:
    """How much is computed at a time, and on what; names and meanings are vLLM's. None: the engine's default.

    ``device_bytes`` is the memory of a device as nvidia-smi shows it; several are those of the ranks, in order. Without it,
    what is needed is counted, and nothing is said to fit or not.

    Raises:
        ArgumentError: a value is out of range.
    """

    device_bytes: tuple[int, ...] = ()
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    gpu_memory_utilization: float = 0.92
    kv_cache_dtype: str = "auto"

    def __post_init__(self) -> None:
        for name in ("max_model_len", "max_num_seqs", "max_num_batched_tokens"):
            if getattr(self, name) is not None:
                expect_int(name, getattr(self, name), 1)
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ArgumentError(
                f"gpu_memory_utilization is {self.gpu_memory_utilization}, expected more than 0, at most 1"
            )

    def device(self, rank: int) -> int | None:
        """Return the memory of a rank's device, if it is known."""
        if not self.device_bytes:
            return None
        return self.device_bytes[rank if len(self.device_bytes) > 1 else 0]


@dataclass(frozen=True, slots=True)
class Workload:
    """What is computed at a time, all defaults filled in. ``asked_seqs``: the number of requests was given."""

    engine: Engine
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    gpu_memory_utilization: float
    asked_seqs: bool


@dataclass(frozen=True, slots=True)
class RankMemory:
    """One rank's memory in bytes. ``cache_bytes`` is None where it is not known; ``block_bytes`` are those of one block of it,
    and ``index_block_bytes`` the part of a block that is keys of indexers.

    ``runtime_bytes``: the driver, the CUDA context with its libraries, and communication. ``request_bytes``: the KV cache of
    one request of the full length. ``left_bytes``: what nothing uses, negative if there is too little; None without a device.
    ``host_tables_bytes`` are tables in the memory of the host, in addition to what staging takes there.
    """

    rank: int
    parameters_bytes: int
    draft_bytes: int
    block_bytes: int | None
    index_block_bytes: int
    request_bytes: int | None
    cache_bytes: int | None
    activations_bytes: int
    logits_bytes: int
    runtime_bytes: int
    graphs_bytes: int
    device_bytes: int | None
    left_bytes: int | None
    host_staging_bytes: int
    host_tables_bytes: int = 0

    @property
    def fixed_bytes(self) -> int:
        """Everything but the KV cache."""
        parts = (
            self.parameters_bytes,
            self.activations_bytes,
            self.logits_bytes,
            self.runtime_bytes,
            self.graphs_bytes,
        )
        return sum(parts)

    def index_bytes(self, cache_bytes: int) -> int:
        """Return how many of ``cache_bytes`` of the KV cache are keys of indexers."""
        return cache_bytes * self.index_block_bytes // self.block_bytes if self.block_bytes else 0


@dataclass(frozen=True)
class Memory:
    """All ranks' memory. ``num_blocks`` of the KV cache fit on every rank (None: not known, or no device was given).

    ``unknown`` says why the KV cache is not known.
    """

    workload: Workload
    ranks: tuple[RankMemory, ...]
    cache: Cache | None
    unknown: str | None
    num_blocks: int | None

    @property
    def num_tokens(self) -> int | None:
        """Tokens that fit at a time, in requests of the full length; None: not known."""
        if self.cache is None or self.num_blocks is None:
            return None
        return self.cache.num_tokens(self.num_blocks, self.workload.max_model_len)

    @property
    def longest(self) -> int | None:
        """The longest request that fits; None: not known."""
        if self.cache is None or self.num_blocks is None:
            return None
        return self.cache.longest(self.num_blocks, self.workload.max_model_len)

    @property
    def holds_a_request(self) -> bool:
        """Whether the KV cache has room for one request of the full length, as far as it is known."""
        return self.longest in (None, self.workload.max_model_len)


def workload_of(plan: Plan, engine: Engine, options: MemoryOptions) -> Workload:
    """Fill in the defaults of an engine; those of vLLM depend on the device's memory (``arg_utils.py`` of vLLM 0.32.0).

    Raises:
        ConfigError: the length is not known, or longer than the config allows.
    """
    device = min(options.device_bytes, default=0)
    if engine == "native":
        seqs, tokens = 256, 8192
    else:
        seqs = 1024 if device >= 70 * GIB else 256
        tokens = 16384 if device >= 160 * GIB else 8192 if device >= 70 * GIB else 2048
    longest = plan.family.describe(plan.config).values.get("max_position_embeddings")
    length = options.max_model_len or longest
    if not isinstance(length, int):
        raise ConfigError("config.json has no max_position_embeddings", hint="pass --max-model-len")
    if isinstance(longest, int) and length > longest:
        raise ConfigError(
            f"--max-model-len is {length}, expected at most {longest}, the model's max_position_embeddings"
        )
    return Workload(
        engine,
        length,
        options.max_num_seqs or seqs,
        options.max_num_batched_tokens or tokens,
        options.gpu_memory_utilization,
        options.max_num_seqs is not None,
    )


def cache_of(plan: Plan, workload: Workload, kv_cache_dtype: str = "auto") -> Cache:
    """Return the KV cache of an engine.

    Raises:
        UnsupportedError: it is not known; says why.
    """
    if workload.engine == "vllm":
        return vllm_cache(plan, VllmCacheOptions(kv_cache_dtype, workload.max_num_batched_tokens))
    if kv_cache_dtype != "auto":
        raise UnsupportedError(
            f"--kv-cache-dtype {kv_cache_dtype}: the native engine's KV cache is in the model's dtype",
            hint="leave it out, or plan with --engine vllm",
        )
    return plan_cache(plan)


def measure(
    plan: Plan,
    resident_bytes: Mapping[int, int],
    engine: Engine,
    options: MemoryOptions,
    *,
    draft_bytes: Mapping[int, int] | None = None,
    staging_bytes: Mapping[int, int] | None = None,
    host_bytes: Mapping[int, int] | None = None,
) -> Memory:
    """Return the memory of the ranks that ``resident_bytes`` gives the parameters of: all, or the fullest of each stage.

    ``draft_bytes`` are the MTP layers' part of them, ``staging_bytes`` the host memory while loading,
    ``host_bytes`` the tables in the memory of the host; ranks that are missing have none. Of a plan only the inputs, the stages
    and the dtype are used.

    Raises:
        ConfigError: the length is not known, or longer than the config allows; or there is not one device for each rank.
        UnsupportedError: the options ask for a KV cache that is not covered.
    """
    if len(options.device_bytes) > 1 and len(options.device_bytes) != plan.num_ranks:
        raise ConfigError(
            f"--device-memory names {len(options.device_bytes)} devices, and there are {plan.num_ranks} ranks"
        )
    workload = workload_of(plan, engine, options)
    cache, unknown = None, None
    try:
        cache = cache_of(plan, workload, options.kv_cache_dtype)
    except UnsupportedError as error:
        if options.kv_cache_dtype != "auto":
            raise
        unknown = error.message
    drafts, staging, tables = draft_bytes or {}, staging_bytes or {}, host_bytes or {}
    stage_of = {rank: plan.layout.coordinate(rank).pp_rank for rank in resident_bytes}
    stages = {stage: _stage(plan, workload, cache, stage) for stage in set(stage_of.values())}
    runtime = runtime_bytes(plan, engine)
    ranks = []
    for rank, resident in resident_bytes.items():
        stage = stages[stage_of[rank]]
        ranks.append(
            RankMemory(
                rank=rank,
                parameters_bytes=resident,
                draft_bytes=drafts.get(rank, 0),
                block_bytes=stage.block_bytes,
                index_block_bytes=stage.index_block_bytes,
                request_bytes=stage.request_bytes,
                cache_bytes=None,
                activations_bytes=stage.activations_bytes,
                logits_bytes=_beside(stage, engine),
                runtime_bytes=runtime,
                graphs_bytes=GRAPH_BYTES[engine],
                device_bytes=options.device(rank),
                left_bytes=None,
                host_staging_bytes=staging.get(rank, 0),
                host_tables_bytes=tables.get(rank, 0),
            )
        )
    num_blocks = None if cache is None else _num_blocks(ranks, workload, cache)
    return Memory(workload, tuple(_filled(r, workload, cache, num_blocks) for r in ranks), cache, unknown, num_blocks)


def measure_proof(proof: Proof, engine: Engine, options: MemoryOptions) -> Memory:
    """Return the memory of all ranks of a proven plan, or one that is not.

    Raises:
        ConfigError, UnsupportedError: as `measure` raises them.
    """
    resident = {r.rank: r.resident_bytes for r in proof.ranks}
    staging = {r.rank: r.staging_bytes for r in proof.ranks}
    drafts = {r.rank: _draft_bytes(proof.plan, r) for r in proof.ranks if r.draft_layers}
    tables = {r.rank: r.host_bytes for r in proof.ranks}
    return measure(proof.plan, resident, engine, options, draft_bytes=drafts, staging_bytes=staging, host_bytes=tables)


def _draft_bytes(plan: Plan, rank: RankFigures) -> int:
    drafts = (number for number, bound in enumerate(plan.classes) if bound.draft)
    slot = plan.layout.coordinate(rank.rank).stage_slot
    return sum(c.device_bytes for number in drafts for c in plan.composed[number, slot])


@dataclass(frozen=True, slots=True)
class _StageMemory:
    """What all ranks of a stage need alike; see `RankMemory`."""

    block_bytes: int | None
    index_block_bytes: int
    request_bytes: int | None
    activations_bytes: int
    logits_bytes: int


def _stage(plan: Plan, workload: Workload, cache: Cache | None, stage: int) -> _StageMemory:
    first, end = plan.stages[stage]
    is_last = stage == len(plan.stages) - 1
    block = None if cache is None else cache.block_bytes(first, end, is_last=is_last)
    return _StageMemory(
        block,
        0 if cache is None else cache.index_block_bytes(first, end, is_last=is_last),
        None if cache is None or block is None else block * cache.request_blocks(workload.max_model_len),
        stage_activations(plan, workload, first, end, is_last=is_last),
        stage_logits(plan, workload) if is_last else 0,
    )


def _beside(stage: _StageMemory, engine: Engine) -> int:
    """Return what logits take beside activations. vLLM profiles them after the layers: what these had is free by then."""
    return max(0, stage.logits_bytes - stage.activations_bytes) if engine == "vllm" else stage.logits_bytes


def stage_activations(plan: Plan, workload: Workload, first: int, end: int, *, is_last: bool) -> int:
    """Return the most bytes that a batch takes on each rank of a stage, without the logits."""
    schema = plan.schema
    kinds = {*schema.layers[first:end], *(schema.drafted(plan.layout.num_draft_layers) if is_last else ())}
    batch, choices = _batch(plan, workload), choices_of(plan.family.describe(plan.config))
    return max(layer_bytes(schema.kinds[kind], plan.layout, batch, choices) for kind in kinds)


def stage_logits(plan: Plan, workload: Workload) -> int:
    """Return the bytes of the logits on each rank of the last stage."""
    return logits_bytes(plan.schema, plan.layout, _batch(plan, workload))


def _batch(plan: Plan, workload: Workload) -> Batch:
    return Batch(workload.max_num_batched_tokens, workload.max_num_seqs, plan.dtype)


def runtime_bytes(plan: Plan, engine: Engine) -> int:
    """Return the memory of a device that belongs to the driver, the CUDA context and communication."""
    layout = plan.layout
    talks = layout.stage_size > 1 or (engine == "vllm" and layout.num_ranks > 1)
    return DRIVER_BYTES + CONTEXT_BYTES + (COMMUNICATION_BYTES if talks else 0)


def room(rank: RankMemory, workload: Workload) -> int | None:
    """Return the bytes that the engine gives to the KV cache of a rank; None without a device."""
    if rank.device_bytes is None:
        return None
    if workload.engine == "native":
        return int((rank.device_bytes - rank.runtime_bytes - rank.parameters_bytes) * NATIVE_SHARE)
    shown = rank.device_bytes - DRIVER_BYTES
    return int(shown * workload.gpu_memory_utilization) - (rank.fixed_bytes - rank.runtime_bytes)


def _num_blocks(ranks: Sequence[RankMemory], workload: Workload, cache: Cache) -> int | None:
    """Return the blocks that fit on every rank; the native engine takes no more than all requests can use."""
    rooms = [room(r, workload) for r in ranks]
    known = [n for n in rooms if n is not None]
    if len(known) < len(rooms):
        return None
    blocks = [max(0, n) // (r.block_bytes or 1) for n, r in zip(known, ranks, strict=True)]
    if workload.engine == "vllm":
        return min(blocks)
    largest = max(r.block_bytes or 1 for r in ranks)  # the native engine divides the least memory by the largest block
    return min(max(0, min(known)) // largest, cache.request_blocks(workload.max_model_len) * workload.max_num_seqs)


def _filled(r: RankMemory, workload: Workload, cache: Cache | None, num_blocks: int | None) -> RankMemory:
    """Return a rank with its cache: what the engine allocates, or without a device what all requests can use."""
    if cache is None or r.block_bytes is None:
        cache_bytes = None
    elif num_blocks is None:
        cache_bytes = r.block_bytes * (
            cache.request_blocks(workload.max_model_len) * workload.max_num_seqs + cache.reserved_blocks
        )
    else:
        cache_bytes = r.block_bytes * num_blocks
    left = None if r.device_bytes is None else r.device_bytes - r.fixed_bytes - (cache_bytes or 0)
    return replace(r, cache_bytes=cache_bytes, left_bytes=left)
