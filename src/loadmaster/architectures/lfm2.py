"""LFM2, dense and with experts: short convolutions in most layers, attention in the others.

A convolution's ``in_proj`` makes two gates and the input, one after another; ranks divide all three, and the convolution, by
channels.

Sources: ``modeling_lfm2.py`` and ``modeling_lfm2_moe.py`` of transformers; ``lfm2.py`` in ``vllm/model_executor/models``.
"""

from __future__ import annotations

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.model import require
from loadmaster.architectures.schema import Family, Param, Schema, Tensor, by_columns, by_rows, embedding, linear
from loadmaster.architectures.spelling import packed

CONV, FULL = "conv", "full_attention"


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    require(c, "conv_bias", False)
    hidden, heads, kv_heads, head = blocks.heads_of(c)
    attention = blocks.attention(hidden, heads, kv_heads, head, q_norm=head, k_norm=head)
    mixers = {CONV: _convolution(hidden, c.size("conv_L_cache", 3)), FULL: attention}
    num_layers = c.size("num_hidden_layers")
    if c.values["architectures"][0] == "Lfm2MoeForCausalLM":
        num_dense, inner = min(c.size("num_dense_layers", 2, least=0), num_layers), c.size("intermediate_size")
        sparse = blocks.experts(hidden, c.size("moe_intermediate_size"), c.size("num_experts"))
        if c.flag("use_expert_bias", True):
            sparse += (Tensor("moe.router_bias", (c.size("num_experts"),), keep="F32"),)
    else:
        num_dense, inner, sparse = num_layers, _inner(c), ()
    mlps = {"dense": blocks.gated_mlp(hidden, inner), "sparse": sparse}
    return Schema(
        top=embedding(c, tied=c.flag("tie_embedding", True)),
        kinds={
            f"{mlp}/{mixer}": (*blocks.norms(hidden), *mixers[mixer], *mlps[mlp]) for mlp in mlps for mixer in mixers
        },
        layers=tuple(
            f"{'dense' if i < num_dense else 'sparse'}/{kind}" for i, kind in enumerate(_types(c, num_layers))
        ),
    )


def _types(c: Config, num_layers: int) -> tuple[str, ...]:
    full = set(c.sizes("full_attn_idxs")) if "full_attn_idxs" in c.values else set(range(num_layers))
    default = [FULL if i in full else CONV for i in range(num_layers)]
    return c.types("layer_types", (CONV, FULL), num_layers, default)


def _inner(c: Config) -> int:
    """Return the size of the MLP, which the config states before it is adjusted."""
    inner = c.size("block_ff_dim", c.optional_size("intermediate_size"))
    if not c.flag("block_auto_adjust_ff_dim", True):
        return inner
    inner = int(c.number("block_ffn_dim_multiplier", 1.0, above=0) * int(2 * inner / 3))
    return -(-inner // (multiple := c.size("block_multiple_of", 256))) * multiple


def _convolution(hidden: int, width: int) -> tuple[Tensor, ...]:
    return (
        *(linear(f"linear.{part}", hidden, hidden, by_rows()) for part in ("b", "c", "x")),
        Tensor("linear.conv", (hidden, 1, width), by_rows()),
        linear("linear.out", hidden, hidden, by_columns()),
    )


_CONV = blocks.LAYER + "conv."

FAMILY = Family(
    name="lfm2",
    architectures=("Lfm2ForCausalLM", "Lfm2MoeForCausalLM"),
    schema=schema,
    spelling={
        **blocks.TOP_SPELLING,
        "norm": "model.embedding_norm.weight",
        "input_norm": blocks.LAYER + "operator_norm.weight",
        "post_norm": blocks.LAYER + "ffn_norm.weight",
        **blocks.ATTENTION_SPELLING,
        "attn.o": blocks.LAYER + "self_attn.out_proj.weight",
        "attn.q_norm": blocks.LAYER + "self_attn.q_layernorm.weight",
        "attn.k_norm": blocks.LAYER + "self_attn.k_layernorm.weight",
        **packed(_CONV + "in_proj.weight", "linear.b", "linear.c", "linear.x"),
        "linear.conv": _CONV + "conv.weight",
        "linear.out": _CONV + "out_proj.weight",
        "mlp.gate": blocks.LAYER + "feed_forward.w1.weight",
        "mlp.up": blocks.LAYER + "feed_forward.w3.weight",
        "mlp.down": blocks.LAYER + "feed_forward.w2.weight",
        **blocks.experts_spelling("feed_forward", ("w1", "w3", "w2")),
        "moe.router_bias": blocks.LAYER + "feed_forward.expert_bias",
    },
    native=(
        *blocks.DECODER_NATIVE,
        *blocks.EXPERTS_NATIVE,
        Param("{block}.conv.in_proj.weight", ("linear.b", "linear.c", "linear.x")),
        Param("{block}.conv.conv.weight", ("linear.conv",)),
        Param("{block}.conv.out_proj.weight", ("linear.out",)),
    ),
    waived=(blocks.INV_FREQ,),
)
