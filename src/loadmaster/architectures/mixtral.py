"""Mixtral and MiniMax-M2: routed experts in every layer, stored one by one as w1 (gate), w2 (down) and w3 (up).

MiniMax-M2 adds norms over all query heads and over all key heads, and a correction bias for the router.

Sources: the released configs and headers; ``modeling_mixtral.py`` and ``modeling_minimax_m2.py`` of transformers.
"""

from __future__ import annotations

from dataclasses import dataclass

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.model import AttentionSpec, Model, RouterSpec, require
from loadmaster.architectures.rope import read_rope, rotary_dim
from loadmaster.architectures.schema import Family, Schema, embedding
from loadmaster.errors import ConfigError, UnsupportedError


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtralModel(Model):
    """Experts in every layer. ``window``: how many tokens each layer attends to at most; None: all."""

    attention: AttentionSpec
    window: int | None
    router: RouterSpec


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    hidden, heads, kv_heads, head = blocks.heads_of(c)
    is_minimax = c.values["architectures"][0] == "MiniMaxM2ForCausalLM"
    normed = is_minimax and c.flag("use_qk_norm", True)
    layer = (
        *blocks.norms(hidden),
        *blocks.attention(
            hidden,
            heads,
            kv_heads,
            head,
            q_norm=heads * head if normed else 0,
            k_norm=kv_heads * head if normed else 0,
        ),
        *blocks.experts(hidden, c.size("intermediate_size"), c.size("num_local_experts"), router_bias=is_minimax),
    )
    return Schema(
        top=embedding(c),
        kinds={"sparse": layer},
        layers=("sparse",) * c.size("num_hidden_layers"),
    )


def read_model(c: Config) -> MixtralModel:
    """Return what computing the model needs."""
    require(c, "hidden_act", "silu")
    is_minimax = c.values["architectures"][0] == "MiniMaxM2ForCausalLM"
    return _read_minimax(c) if is_minimax else _read_mixtral(c)


def _read_mixtral(c: Config) -> MixtralModel:
    _, heads, kv_heads, head = blocks.heads_of(c)
    norm_eps = c.number("rms_norm_eps", 1e-5)
    return MixtralModel(
        schema=schema(c),
        norm_eps=norm_eps,
        attention=AttentionSpec(heads, kv_heads, head, norm_eps, read_rope(c, theta=1e6)),
        window=c.optional_size("sliding_window"),
        router=RouterSpec(topk=c.size("num_experts_per_tok"), scoring="softmax", normalise=True),
    )


def _read_minimax(c: Config) -> MixtralModel:
    for key, supported in MINIMAX_SUPPORTED.items():
        require(c, key, supported)
    if not set(c.sizes("attn_type_list")) <= {1}:
        raise UnsupportedError("config.json: attn_type_list has linear attention, which is not supported")
    _, heads, kv_heads, head = blocks.heads_of(c)
    norm_eps, rotated = c.number("rms_norm_eps", 1e-6), c.optional_size("rotary_dim")
    if rotated is not None and (rotated > head or rotated % 2):
        raise ConfigError(f"config.json: rotary_dim is {rotated}, expected an even number of at most head_dim, {head}")
    return MixtralModel(
        schema=schema(c),
        norm_eps=norm_eps,
        attention=AttentionSpec(
            heads,
            kv_heads,
            head,
            norm_eps,
            read_rope(c, theta=5e6),
            rope_dim=rotary_dim(c, head) if rotated is None else rotated,
            qk_norm="heads",
        ),
        window=None,
        router=RouterSpec(topk=c.size("num_experts_per_tok"), scoring="sigmoid", normalise=True),
    )


MINIMAX_SUPPORTED: dict[str, str | bool | int | None] = {
    "use_qk_norm": True,
    "qk_norm_type": "per_layer",
    "scoring_func": "sigmoid",
    "use_routing_bias": True,
    "shared_intermediate_size": 0,
    "sliding_window": None,
}
"""The values that are computed, of keys of MiniMax-M2's configs that other models of MiniMax use differently."""


FAMILY = Family(
    name="mixtral",
    architectures=("MixtralForCausalLM", "MiniMaxM2ForCausalLM"),
    schema=schema,
    spelling={
        **blocks.DECODER_SPELLING,
        **blocks.experts_spelling("block_sparse_moe", ("w1", "w3", "w2")),
        "moe.router_bias": blocks.LAYER + "block_sparse_moe.e_score_correction_bias",
    },
    variants=(
        {
            **blocks.DECODER_SPELLING,
            **blocks.stacked_experts_spelling(),
            "moe.router_bias": blocks.LAYER + "mlp.e_score_correction_bias",
        },
    ),
    native=(*blocks.DECODER_NATIVE, *blocks.EXPERTS_NATIVE),
    waived=(blocks.INV_FREQ,),
    runs=True,
)
