"""The KV cache that vLLM 0.32 and 0.33 allocate on CUDA: specs of layers, and the groups of layers that share its blocks.

Covered: full attention, sliding windows beside it (the hybrid KV cache manager), MLA, and the keys of sparse attention's
indexer, stored in the model's dtype or in FP8. Other formats of ``--kv-cache-dtype`` are refused by name.

Sources: the specs in ``v1/kv_cache_interface.py``; ``get_kv_cache_groups`` and ``_get_kv_cache_bytes_per_block`` in
``v1/core/kv_cache_utils.py`` (0.32) or ``v1/core/kv_cache_planning.py`` (0.33, the same code); ``get_kv_cache_spec`` of
``Attention``, ``MLAAttention`` and ``DeepseekV32IndexerCache``; ``verify_and_update_config`` in
``model_executor/models/config.py``. On devices of compute capability 10 the latter chooses FP8 for GLM-5, and since 0.33 for
GLM-5.3-Flash, if ``--kv-cache-dtype`` is not given; here ``auto`` is always the model's dtype.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from loadmaster.architectures.registry import read_model
from loadmaster.dtypes import num_bytes
from loadmaster.errors import UnsupportedError
from loadmaster.plan import Plan
from loadmaster.sizing.cache import Cache, Group, LayerCache, Row, layer_rows

FP8: Final = ("fp8", "fp8_e4m3", "fp8_e5m2", "fp8_ds_mla")
PLAIN: Final = {"auto": None, "bfloat16": "BF16", "float16": "F16"}
KV_CACHE_DTYPES: Final = (*PLAIN, *FP8)
"""The values of ``--kv-cache-dtype`` that are covered. ``auto`` is the model's dtype."""

DS_MLA_BYTES: Final = 656
"""A token of ``fp8_ds_mla``: 512 FP8 values, 4 scales of 4 bytes, 64 rotary elements of 2 bytes (``flashmla_sparse.py``)."""

INDEX_BLOCK: Final = 128
"""Elements of an indexer key that share a scale of 4 bytes: the key itself is always FP8."""

BLOCK_TOKENS: Final = 16
MLA_BLOCK_TOKENS: Final = 64
"""Tokens of a block: 64 with MLA, as FlashMLA and the indexer need on Hopper."""

RESERVED_BLOCKS: Final = 1
"""The null block, which the block pool never gives away."""


@dataclass(frozen=True, slots=True)
class VllmCacheOptions:
    """``--kv-cache-dtype`` and what bounds windows: ``--max-num-batched-tokens`` and whether scheduling is asynchronous."""

    kv_cache_dtype: str = "auto"
    max_num_batched_tokens: int = 8192
    async_scheduling: bool = True


def vllm_cache(plan: Plan, options: VllmCacheOptions | None = None) -> Cache:
    """Return the KV cache of vLLM for a plan.

    Raises:
        UnsupportedError: the format of the cache is not covered, or what a layer stores is not known.
    """
    options = options or VllmCacheOptions()
    schema, layout = plan.schema, plan.layout
    kinds = schema.blocks(layout.num_draft_layers)
    rows = {
        kind: _rows(layer_rows(schema.kinds[kind], layout.tensor_parallel_size, 1), plan.dtype, options.kv_cache_dtype)
        for kind in dict.fromkeys(kinds)
    }
    windows = (*_windows(plan), *(None,) * (len(kinds) - len(schema.layers)))
    layers = tuple(LayerCache(rows[kind], window) for kind, window in zip(kinds, windows, strict=True))
    is_latent = any(row.kind == "latent" for layer in layers for row in layer.rows)
    batches = layout.pipeline_parallel_size + options.async_scheduling
    return Cache(
        layers,
        len(schema.layers),
        MLA_BLOCK_TOKENS if is_latent else BLOCK_TOKENS,
        _groups(layers, batches * options.max_num_batched_tokens),
        RESERVED_BLOCKS,
    )


def _rows(rows: Sequence[Row], model_dtype: str, kv_cache_dtype: str) -> tuple[Row, ...]:
    """Return the rows of a layer as vLLM stores them; those given have elements of one byte."""
    if kv_cache_dtype not in KV_CACHE_DTYPES:
        raise UnsupportedError(
            f"--kv-cache-dtype {kv_cache_dtype}: the size of this KV cache is not known here",
            hint=f"known: {', '.join(KV_CACHE_DTYPES)}",
        )
    is_sparse = any(row.kind == "index_key" for row in rows)
    is_latent = any(row.kind == "latent" for row in rows)
    if kv_cache_dtype == "fp8_ds_mla" and not is_latent:
        raise UnsupportedError(
            "--kv-cache-dtype fp8_ds_mla is a format of latent attention, which the model does not have"
        )
    size = 1 if kv_cache_dtype in FP8 else num_bytes(PLAIN[kv_cache_dtype] or model_dtype, 1)
    stored = []
    for row in rows:
        if row.kind == "index_key":
            stored.append(replace(row, width=row.width + row.width // INDEX_BLOCK * 4))
        elif row.kind == "latent" and kv_cache_dtype in FP8 and (is_sparse or kv_cache_dtype == "fp8_ds_mla"):
            stored.append(replace(row, width=DS_MLA_BYTES))
        else:
            stored.append(replace(row, element_bytes=size))
    return tuple(stored)


def _windows(plan: Plan) -> tuple[int | None, ...]:
    """Return each decoder layer's window, as the family reads it from the config."""
    model, num_layers = read_model(plan.config), len(plan.schema.layers)
    windows: tuple[int | None, ...] | None = getattr(model, "windows", None)  # of families whose layers differ
    window: int | None = getattr(model, "window", None)
    return (window,) * num_layers if windows is None else windows


def _groups(layers: Sequence[LayerCache], in_flight: int) -> tuple[Group, ...]:
    """Divide layers into groups as ``_get_kv_cache_groups_uniform_page_size`` does.

    All layers are one group if they have the same window. Otherwise layers of a kind are dealt out to groups of equal size:
    as many layers as the rarest kind has, or the commonest, if that has less than half as many again.
    """
    by_window: dict[int | None, list[int]] = defaultdict(list)
    for number, layer in enumerate(layers):
        by_window[layer.window].append(number)
    spans = {w: None if w is None else w - 1 + in_flight for w in by_window}
    if len(by_window) == 1:
        return tuple(Group(tuple(numbers), spans[w]) for w, numbers in by_window.items())
    if len({layer.token_bytes for layer in layers}) > 1:
        raise UnsupportedError(
            "the KV cache is not known: layers with different windows store different numbers of bytes of a token"
        )
    least, most = (f(map(len, by_window.values())) for f in (min, max))
    size = most if most < least * 1.5 else least
    groups = []
    for w, numbers in by_window.items():
        count = -(-len(numbers) // size)
        groups += [Group(tuple(numbers[i::count]), spans[w]) for i in range(count)]
    return tuple(groups)
