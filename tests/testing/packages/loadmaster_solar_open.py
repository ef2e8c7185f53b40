"""Solar-Open: routed and shared experts in every layer, and a bias for the router. Made by docs/guides/add-a-family.md.

Sources: the config of Solar-Open-100B; ``modeling_solar_open.py`` and ``configuration_solar_open.py`` of transformers.
"""

from __future__ import annotations

from loadmaster.architectures import Config, Family, Schema, blocks, embedding


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    hidden, heads, inner = c.size("hidden_size"), c.size("num_attention_heads"), c.size("moe_intermediate_size")
    kv_heads, head, bias = c.size("num_key_value_heads", heads), c.size("head_dim", 128), c.flag("attention_bias")
    layer = (
        *blocks.norms(hidden),
        *blocks.attention(hidden, heads, kv_heads, head, bias=bias),
        *blocks.experts(hidden, inner, c.size("n_routed_experts", 128), router_bias=True),
        *blocks.gated_mlp(hidden, inner * c.size("n_shared_experts", 1), logical="shared"),
    )
    return Schema(top=embedding(c), kinds={"sparse": layer}, layers=("sparse",) * c.size("num_hidden_layers"))


FAMILY = Family(
    name="solar_open",
    architectures=("SolarOpenForCausalLM",),
    schema=schema,
    spelling={
        **blocks.DECODER_SPELLING,
        **blocks.experts_spelling(),
        **blocks.gated_mlp_spelling("mlp.shared_experts", logical="shared"),
    },
    native=(
        *blocks.DECODER_NATIVE,
        *blocks.EXPERTS_NATIVE,
        *blocks.gated_mlp_native("mlp.shared_experts", logical="shared"),
    ),
    waived=(blocks.INV_FREQ,),
)
