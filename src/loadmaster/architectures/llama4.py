"""Llama-4: some layers dense, the others with routed experts and a shared one; the vision tower is waived.

As published, all experts of a layer are stored in one tensor, (in, out), gate before up; quantised copies store them one by one.

Sources: the released configs and headers; ``modeling_llama4.py`` of transformers.
"""

from __future__ import annotations

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.schema import Family, Schema, embedding
from loadmaster.architectures.spelling import Spelling, packed, respelled
from loadmaster.errors import ConfigError


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    hidden, heads, kv_heads, head = blocks.heads_of(c)
    num_layers, step = c.size("num_hidden_layers"), c.size("interleave_moe_layer_step", 1)
    sparse = set(c.sizes("moe_layers")) or set(range(step - 1, num_layers, step))
    if max(sparse, default=0) >= num_layers:
        raise ConfigError(f"config.json: moe_layers names layer {max(sparse)}, and there are {num_layers}")
    bias = c.flag("attention_bias")
    attention = (
        *blocks.norms(hidden),
        *blocks.attention(
            hidden,
            heads,
            kv_heads,
            head,
            bias=bias,
            out_bias=bias,
        ),
    )
    inner = c.size("intermediate_size")
    return Schema(
        top=embedding(c),
        kinds={
            "dense": (*attention, *blocks.gated_mlp(hidden, c.size("intermediate_size_mlp"))),
            "sparse": (
                *attention,
                *blocks.experts(hidden, inner, c.size("num_local_experts")),
                *blocks.gated_mlp(hidden, inner, logical="shared"),
            ),
        },
        layers=tuple("sparse" if i in sparse else "dense" for i in range(num_layers)),
    )


_ROUTER = {"moe.router": blocks.LAYER + "feed_forward.router.weight"}
_COMMON: Spelling = {
    **blocks.DECODER_SPELLING,
    **blocks.gated_mlp_spelling("feed_forward"),
    **blocks.gated_mlp_spelling("feed_forward.shared_expert", logical="shared"),
}
_STACKED: Spelling = {
    **_COMMON,
    **_ROUTER,
    **packed(blocks.LAYER + "feed_forward.experts.gate_up_proj", "moe.gate", "moe.up", stacked=True, transposed=True),
    **packed(blocks.LAYER + "feed_forward.experts.down_proj", "moe.down", stacked=True, transposed=True),
}
_ONE_BY_ONE: Spelling = {**_COMMON, **blocks.experts_spelling("feed_forward"), **_ROUTER}
_WITH_VISION = (("model.", "language_model.model."), ("lm_head.", "language_model.lm_head."))

FAMILY = Family(
    name="llama4",
    architectures=("Llama4ForConditionalGeneration", "Llama4ForCausalLM"),
    schema=schema,
    spelling=respelled(_STACKED, *_WITH_VISION),
    variants=(respelled(_ONE_BY_ONE, *_WITH_VISION), _STACKED, _ONE_BY_ONE),
    native=(
        *blocks.DECODER_NATIVE,
        *blocks.EXPERTS_NATIVE,
        *blocks.gated_mlp_native("mlp.shared_expert", logical="shared"),
    ),
    waived=(blocks.INV_FREQ, blocks.VISION),
    section="text_config",
)
