"""Activations: the most memory that a batch takes while it is computed, from the shapes of the layers.

It is an estimate. Counted are the tensors that are alive at once in the widest part of the widest layer, in the order in which
`loadmaster.layers` computes them, a decoded copy of the largest quantised weight, and the logits of one row a request. Not
counted are what kernels keep for themselves, and the allocator's fragments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loadmaster.architectures.config import Config
from loadmaster.architectures.schema import Schema, Tensor
from loadmaster.dtypes import num_bytes
from loadmaster.parallel import ParallelLayout

GATHERED = 1 << 24
"""Elements of latent attention and of an indexer that are computed at once (`layers.mla`, `layers.indexer`)."""


@dataclass(frozen=True, slots=True)
class Batch:
    """``num_tokens`` are computed at once, for ``num_seqs`` requests, in elements of ``dtype``."""

    num_tokens: int
    num_seqs: int
    dtype: str


@dataclass(frozen=True, slots=True)
class Choices:
    """What each token chooses: how many experts, and how many earlier tokens an indexer selects; 0 without one."""

    num_experts: int
    num_selected: int


def layer_bytes(tensors: Sequence[Tensor], layout: ParallelLayout, batch: Batch, choices: Choices) -> int:
    """Return the most bytes of a layer's activations on a rank."""
    of = {t.name: t for t in tensors}
    size = num_bytes(batch.dtype, 1)
    hidden = _hidden(of)
    stream = 2 * hidden  # the residual, and what was normed
    widest = max(_attention(of, layout), _feed_forward(of, layout, hidden, choices.num_experts))
    extra = GATHERED * (4 + 2 * size) if _latent(of) is not None else 0
    selection = 8 * choices.num_selected  # int64, kept for layers that share it
    return batch.num_tokens * ((stream + widest) * size + selection) + extra + _decoded(of, layout) * size


def logits_bytes(schema: Schema, layout: ParallelLayout, batch: Batch) -> int:
    """Return the bytes of a batch's logits on the last stage: as computed, in float32, and a copy of these for sampling."""
    vocabulary = next((t.shape[0] for t in schema.top if t.name in ("head", "embed")), 0)
    of_ranks = vocabulary // layout.tensor_parallel_size * num_bytes(batch.dtype, 1) + vocabulary * (4 + 4)
    return min(batch.num_seqs, batch.num_tokens) * of_ranks


def choices_of(config: Config) -> Choices:
    """Return what each token of a model chooses; one expert where it has none."""
    return Choices(config.size("num_experts_per_tok", config.size("moe_top_k", 1)), config.size("index_topk", 0))


GATES = ("z", "g", "g_b", "f", "f_b")
"""Other outputs of linear attention that are as wide as its values: gates, and the decay of KDA."""


def _hidden(of: Mapping[str, Tensor]) -> int:
    """Return the hidden size: the length of a norm, or the out dim of what returns to the residual."""
    for name, dim in (("input_norm", 0), ("post_norm", 0), ("attn.o", 0), ("moe.router", 1)):
        if name in of:
            return of[name].shape[dim]
    return max((dim for t in of.values() for dim in t.shape), default=0)


def _latent(of: Mapping[str, Tensor]) -> Tensor | None:
    """Return what makes the latent of MLA; None where there is none."""
    return of.get("attn.kv_a", of.get("attn.kv_direct"))


def _local(t: Tensor | None, layout: ParallelLayout, dim: int = 0) -> int:
    """Return a rank's elements of a dim, rounded up."""
    if t is None:
        return 0
    if t.placement is None or t.placement.dim != dim:
        return t.shape[dim]
    if t.experts and layout.enable_expert_parallel:
        return t.shape[dim]
    count = layout.stage_size if t.experts else layout.tensor_parallel_size
    if t.placement.repeat:
        count = min(count, max(1, t.shape[dim] // t.placement.unit))
    return -(-t.shape[dim] // count)


def _attention(of: Mapping[str, Tensor], layout: ParallelLayout) -> int:
    """Return the elements of a token in attention."""
    made, queries = _latent(of), of.get("attn.q_b", of.get("attn.q_direct"))
    if made is not None and queries is not None:
        latent, rank = made.shape[0], of["attn.kv_b"].shape[1]
        rows = _local(queries, layout)
        heads = rows // (queries.placement.unit if queries.placement else 1)
        of_query = of["attn.q_a"].shape[0] if "attn.q_a" in of else 0
        compressed = 2 * of_query + latent  # the query's as projected, and normed
        joining = rows + heads * (latent - rank) + heads * rank + heads * latent  # what each query is made of, and it
        attending = heads * latent + heads * rank
        expanding = heads * rank + 2 * _local(of["attn.o"], layout, 1)
        return compressed + max(joining, attending, expanding)
    if "linear.out" in of:
        return 3 * sum(_local(of.get(f"linear.{part}"), layout) for part in ("qkvz", "q", "k", "v", *GATES))
    if "mamba.out" in of:
        return 3 * sum(_local(of[f"mamba.{part}"], layout) for part in "zxbc")
    if "attn.qkv" in of:
        return 3 * _local(of["attn.qkv"], layout)
    q = _local(of.get("attn.q"), layout)
    return 3 * q + 2 * _local(of.get("attn.k"), layout) + 2 * _local(of.get("attn.v"), layout)


def _feed_forward(of: Mapping[str, Tensor], layout: ParallelLayout, hidden: int, choices: int) -> int:
    """Return the elements of a token in the feed-forward part: gate and up, their product, the output."""
    dense = max(3 * _local(of.get(f"{name}.up"), layout) for name in ("mlp", "shared"))
    gate = of.get("moe.gate") or of.get("moe.gate_up") or of.get("moe.up")  # some experts have no gate
    if gate is None:
        return dense + hidden
    inner = _local(gate, layout) // (2 if gate.name == "moe.gate_up" else 1)
    if layout.stage_size > 1:
        choices = 1 if layout.enable_expert_parallel else choices
    return max(dense, choices * (3 * inner + hidden)) + hidden


def _decoded(of: Mapping[str, Tensor], layout: ParallelLayout) -> int:
    """Return the elements of the largest weight that is decoded for a product."""
    quantised = [t for t in of.values() if t.quantised and len(t.shape) == 2]
    return max((_local(t, layout) * _local(t, layout, 1) for t in quantised), default=0)
