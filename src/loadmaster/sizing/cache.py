"""The KV cache: what each layer stores of a token, from the schema, and how an engine divides it into blocks.

A layer's rows follow from its tensors: keys and values from ``attn.k`` and ``attn.v`` (heads fewer than ranks are repeated),
the latent and rotary key of MLA from ``attn.kv_a``, the keys of an indexer from ``indexer.wk``. The native engine stores them
in the dtype that it computes in, in pages that all layers share, for all tokens of a request whether a layer has a window or
not (`loadmaster.layers.kv_cache`). What vLLM allocates is in `loadmaster.sizing.vllm_cache`.

The data-parallel ranks of a stage have a cache each, for requests of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loadmaster.architectures.schema import Tensor
from loadmaster.dtypes import num_bytes
from loadmaster.errors import UnsupportedError
from loadmaster.parallel import cut
from loadmaster.plan import Plan

PAGE_TOKENS = 16
"""Tokens of a page of the native engine, unless ``--block-size`` says otherwise (`loadmaster.engine.Capacity`)."""

INDEX_KEY = "index_key"
"""The kind of a row that an indexer stores."""


@dataclass(frozen=True, slots=True)
class Row:
    """What a layer stores of each token on each rank: ``num_heads`` rows of ``width`` elements of ``element_bytes``."""

    kind: str
    num_heads: int
    width: int
    element_bytes: int

    @property
    def num_bytes(self) -> int:
        """Bytes of one token."""
        return self.num_heads * self.width * self.element_bytes


@dataclass(frozen=True, slots=True)
class LayerCache:
    """What one layer stores of a token. ``window``: how many tokens it attends to at most; None: all."""

    rows: tuple[Row, ...]
    window: int | None = None

    @property
    def token_bytes(self) -> int:
        """Bytes of one token."""
        return sum(row.num_bytes for row in self.rows)

    @property
    def index_bytes(self) -> int:
        """Bytes of one token that are keys of an indexer."""
        return sum(row.num_bytes for row in self.rows if row.kind == INDEX_KEY)


@dataclass(frozen=True, slots=True)
class Group:
    """Layers, by stored number, whose blocks a request uses together. With a ``window`` it needs no more than the last
    ``window`` tokens, those that are being computed included, and one block more, since a window may begin inside a block.
    """

    layers: tuple[int, ...]
    window: int | None = None

    def blocks(self, num_tokens: int, block_size: int) -> int:
        """Return the blocks that a request of ``num_tokens`` occupies."""
        if self.window is None:
            return -(-num_tokens // block_size)
        return -(-min(num_tokens, self.window) // block_size) + 1


@dataclass(frozen=True, slots=True)
class Cache:
    """The KV cache of a model. ``layers`` are the decoder layers, then the MTP layers that the plan has.

    A request takes blocks of ``block_size`` tokens for each of ``groups``. On a rank all groups draw from the same blocks,
    so that a block is as large as the largest group's layers there. ``reserved_blocks`` are never given to requests.
    """

    layers: tuple[LayerCache, ...]
    num_layers: int
    block_size: int
    groups: tuple[Group, ...]
    reserved_blocks: int = 0

    def held(self, first: int, end: int, *, is_last: bool) -> range | tuple[int, ...]:
        """Return the stored numbers of a stage's layers: ``first`` to ``end``, and the MTP layers on the last stage."""
        return (*range(first, end), *range(self.num_layers, len(self.layers))) if is_last else range(first, end)

    def block_bytes(self, first: int, end: int, *, is_last: bool) -> int:
        """Return the bytes of one block on each rank of a stage."""
        return (
            max(sum(layer.token_bytes for layer in part) for part in self._parts(first, end, is_last)) * self.block_size
        )

    def index_block_bytes(self, first: int, end: int, *, is_last: bool) -> int:
        """Return how many of the bytes of one block are keys of indexers."""
        largest = max(self._parts(first, end, is_last), key=lambda part: sum(layer.token_bytes for layer in part))
        return sum(layer.index_bytes for layer in largest) * self.block_size

    def _parts(self, first: int, end: int, is_last: bool) -> list[list[LayerCache]]:
        """Return what a stage has of each group."""
        held = set(self.held(first, end, is_last=is_last))
        return [[self.layers[n] for n in held.intersection(group.layers)] for group in self.groups]

    def request_blocks(self, num_tokens: int) -> int:
        """Return the blocks that one request of ``num_tokens`` takes."""
        return sum(group.blocks(num_tokens, self.block_size) for group in self.groups)

    def usable(self, num_blocks: int) -> int:
        """Return how many of ``num_blocks`` requests can have."""
        return max(0, num_blocks - self.reserved_blocks)

    def num_tokens(self, num_blocks: int, max_model_len: int) -> int:
        """Return how many tokens fit into ``num_blocks``, in requests of ``max_model_len``, as vLLM counts them."""
        return self.usable(num_blocks) * max_model_len // self.request_blocks(max_model_len)

    def longest(self, num_blocks: int, most: int) -> int:
        """Return the longest request, of at most ``most`` tokens, that fits into ``num_blocks``; 0: none."""
        usable, low, high = self.usable(num_blocks), 0, most
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.request_blocks(middle) <= usable else (low, middle - 1)
        return low


def layer_rows(tensors: Sequence[Tensor], tensor_size: int, element_bytes: int) -> tuple[Row, ...]:
    """Return what a layer with these logical tensors stores of each token on a rank, over ``tensor_size`` ranks.

    >>> from loadmaster.architectures.blocks import attention
    >>> layer_rows(attention(4096, 32, 8, 128), 16, 2)[0]  # 8 heads over 16 ranks: each is held twice
    Row(kind='key', num_heads=1, width=128, element_bytes=2)

    Raises:
        UnsupportedError: it stores something else, or nothing is known of it.
        LayoutError: the heads cannot be divided over the ranks.
    """
    of = {t.name: t for t in tensors}
    latent = of.get("attn.kv_a", of.get("attn.kv_direct"))
    if latent is not None:
        rows = [Row("latent", 1, latent.shape[0], element_bytes)]
        if "indexer.wk" in of:
            rows.append(Row(INDEX_KEY, 1, of["indexer.wk"].shape[0], element_bytes))
        return tuple(rows)
    if any(name.startswith(("linear.", "mamba.")) for name in of):
        raise UnsupportedError(
            "the KV cache is not known: linear attention and Mamba keep a state for each request, not for each token"
        )
    if "attn.k" not in of or "attn.v" not in of:
        raise UnsupportedError(
            "the KV cache is not known: the family's layers have no attn.k and attn.v, and no attn.kv_a"
        )
    return tuple(
        Row(kind, *_heads(of[name], tensor_size), element_bytes)
        for kind, name in (("key", "attn.k"), ("value", "attn.v"))
    )


def _heads(tensor: Tensor, tensor_size: int) -> tuple[int, int]:
    """Return the heads of a rank, and the elements of a head."""
    p = tensor.placement
    if p is None or p.unit == 1:
        raise UnsupportedError(f"the KV cache is not known: {tensor.name} is not divided by heads")
    part = cut(tensor.shape[0], p.unit, tensor_size, 0, repeat=p.repeat)
    return (part.stop - part.start) // p.unit, p.unit


def plan_cache(plan: Plan, *, block_size: int = PAGE_TOKENS) -> Cache:
    """Return the KV cache that the native engine allocates for a plan. Its families that do not run yet are sized alike.

    Raises:
        UnsupportedError: what a layer stores is not known; the message says why.
    """
    schema, layout = plan.schema, plan.layout
    kinds = schema.blocks(layout.num_draft_layers)
    rows = {
        kind: layer_rows(schema.kinds[kind], layout.tensor_parallel_size, num_bytes(plan.dtype, 1))
        for kind in dict.fromkeys(kinds)
    }
    layers = tuple(LayerCache(rows[kind] * schema.num_passes(layer)) for layer, kind in enumerate(kinds))
    return Cache(layers, len(schema.layers), block_size, (Group(tuple(range(len(layers)))),))
