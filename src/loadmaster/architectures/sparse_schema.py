"""The schema of mixtures of experts that differ in their norms, in what their attention has, and in which layers have experts.

`sparse.py` has the models: a `Style` each. Heads of queries may differ from layer to layer (``num_attention_heads_per_layer``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.deepseek import mlp_types
from loadmaster.architectures.qwen_moe import num_experts, sparse_layers
from loadmaster.architectures.schema import Schema, Tensor, by_rows, embedding, linear
from loadmaster.errors import ConfigError

TWO: Final = ("input_norm", "post_norm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """How a model differs from the others: its norms, and what its attention and its router have.

    ``qk_norm``: queries and keys are normed, each head by itself or all together. ``gate``: attention has a gate for each
    ``head`` or ``element`` of its output, or as the config says. ``dense`` are the first layers that have no experts, and
    ``shared`` the shared experts, where the config does not say how many. ``mlp_only`` are layers without experts, where the
    config has no ``mlp_only_layers``; None: it has no such key. ``drafts``: where MTP layers are stored, which have
    experts ``after`` the decoder layers and an MLP ``apart``; None: they are not described. ``names`` are those under which
    tensors are stored in a layer.
    """

    norms: tuple[str, ...] = TWO
    qk_norm: Literal["head", "all"] | None = "head"
    gate: Literal["head", "element", "config"] | None = None
    gate_bias: bool = False
    sinks: bool = False
    router_bias: bool = True
    dense: int = 0
    shared: int = 0
    tied: bool = False
    mlp_only: tuple[int, ...] | None = None
    drafts: Literal["after", "apart"] | None = None
    names: Mapping[str, str] = field(default_factory=dict)


def schema(c: Config, style: Style) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    hidden, heads, _, _ = blocks.heads_of(c)
    inner = c.size("moe_intermediate_size", c.optional_size("intermediate_size"))
    shared = c.size(
        "shared_expert_intermediate_size", inner * c.size("num_shared_experts", style.shared, least=0), least=0
    )
    sparse = blocks.experts(hidden, inner, num_experts(c), router_bias=style.router_bias)
    if shared:
        sparse += blocks.gated_mlp(hidden, shared, logical="shared")
    width = c.optional_size("prefix_dense_intermediate_size") or c.optional_size("intermediate_size") or inner
    mlps = {"dense": blocks.gated_mlp(hidden, width, bias=c.flag("mlp_bias")), "sparse": sparse}
    types = _types(c, style)
    of_layers = c.sizes("num_attention_heads_per_layer") or (heads,) * len(types)
    if len(of_layers) != len(types) or not all(of_layers):
        raise ConfigError(
            f"config.json: num_attention_heads_per_layer must give the heads of each of {len(types)} layers"
        )
    layers = tuple(f"{mlp}, {count} heads" for mlp, count in zip(types, of_layers, strict=True))
    kinds = {
        f"{mlp}, {n} heads": (*_attention(c, style, n), *mlps[mlp]) for mlp in mlps for n in dict.fromkeys(of_layers)
    }
    made = Schema(top=embedding(c, tied=style.tied), kinds=kinds, layers=layers)
    if style.drafts == "apart":
        return blocks.with_draft_apart(c, made, f"dense, {heads} heads")
    drafts = ("mtp",) * c.size("num_nextn_predict_layers", 0, least=0) if style.drafts else ()
    if drafts:
        kinds["mtp"] = (*_attention(c, style, heads), *sparse, *(t for t in blocks.draft(c) if t.optional is None))
    return replace(made, drafts=drafts)


def _types(c: Config, style: Style) -> tuple[str, ...]:
    """Return for each layer whether it is ``dense`` or ``sparse``."""
    if style.mlp_only is not None:
        return sparse_layers(Config({"mlp_only_layers": [*style.mlp_only], **c.values}))
    return mlp_types(c, dense=c.size("num_dense_layers", style.dense, least=0))


def _attention(c: Config, style: Style, heads: int) -> tuple[Tensor, ...]:
    hidden, _, kv_heads, head = blocks.heads_of(c)
    bias, qk_norm = c.flag("attention_bias"), style.qk_norm if c.flag("qk_norm", True) else None
    normed = {None: (0, 0), "head": (head, head), "all": (heads * head, kv_heads * head)}[qk_norm]
    size = {None: 0, "head": 1, "element": head}[_gating(c) if style.gate == "config" else style.gate]
    return (
        *(Tensor(name, (hidden,)) for name in style.norms),
        *blocks.attention(hidden, heads, kv_heads, head, bias=bias, out_bias=bias, q_norm=normed[0], k_norm=normed[1]),
        *((linear("attn.gate", heads * size, hidden, by_rows(size)),) if size else ()),
        *((Tensor("attn.gate_bias", (heads,), by_rows(), usual=("F32",)),) if style.gate_bias else ()),
        *((Tensor("attn.sinks", (heads,), by_rows(), usual=("F32",)),) if style.sinks else ()),
    )


def _gating(c: Config) -> Literal["head", "element"] | None:
    """Return what has a gate where the config says it: true, false, or in older configs the name."""
    given = c.values.get("gating", True)
    if given in (True, "per-head"):
        return "head"
    if given in (False, "per-element"):
        return "element" if given else None
    raise ConfigError(f"config.json: gating is {given!r}, expected true, false, per-head or per-element")
