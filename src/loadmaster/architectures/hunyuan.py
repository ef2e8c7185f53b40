"""HunYuan V1, dense and with experts: norms of queries and keys under other names, and a shared MLP beside the experts.

Sources: ``modeling_hunyuan_v1_dense.py`` and ``modeling_hunyuan_v1_moe.py`` of transformers.
"""

from __future__ import annotations

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.model import require
from loadmaster.architectures.schema import Family, Schema, embedding
from loadmaster.errors import UnsupportedError


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    require(c, "use_cla", False)
    hidden, heads, kv_heads, head = blocks.heads_of(c)
    bias, inner = c.flag("attention_bias"), c.size("intermediate_size")
    norm = head if c.flag("use_qk_norm", True) else 0
    layer = (
        *blocks.norms(hidden),
        *blocks.attention(hidden, heads, kv_heads, head, bias=bias, out_bias=bias, q_norm=norm, k_norm=norm),
    )
    if c.values["architectures"][0] == "HunYuanMoEV1ForCausalLM":
        given = c.values.get("moe_intermediate_size")
        if given is not None and set(given if isinstance(given, list) else [given]) != {inner}:
            raise UnsupportedError("config.json: moe_intermediate_size other than intermediate_size is not supported")
        layer += (
            *blocks.experts(hidden, inner, c.size("num_experts")),
            *blocks.gated_mlp(hidden, inner, logical="shared"),
        )
    else:
        layer += blocks.gated_mlp(hidden, inner)
    return Schema(
        top=embedding(c),
        kinds={"layer": layer},
        layers=("layer",) * c.size("num_hidden_layers"),
    )


FAMILY = Family(
    name="hunyuan",
    architectures=("HunYuanDenseV1ForCausalLM", "HunYuanMoEV1ForCausalLM"),
    schema=schema,
    spelling={
        **blocks.DECODER_SPELLING,
        "attn.q_norm": blocks.LAYER + "self_attn.query_layernorm.weight",
        "attn.k_norm": blocks.LAYER + "self_attn.key_layernorm.weight",
        **{n: s for n, s in blocks.experts_spelling().items() if n != "moe.router_bias"},
        "moe.router": blocks.LAYER + "mlp.gate.wg.weight",
        **blocks.gated_mlp_spelling("mlp.shared_mlp", logical="shared"),
    },
    native=(
        *blocks.DECODER_NATIVE,
        *blocks.EXPERTS_NATIVE,
        *blocks.gated_mlp_native("mlp.shared_mlp", logical="shared"),
    ),
    waived=(blocks.INV_FREQ,),
)
