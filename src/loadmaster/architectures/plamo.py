"""PLaMo-3: layers under ``model.layers.layers.``, with q, k and v in one tensor, gate and up in another, and four norms.

vLLM adds a constant to each norm as it loads it; here norms stay as stored.

Sources: ``plamo3.py`` in ``vllm/model_executor/models``.
"""

from __future__ import annotations

from typing import Final

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.schema import OF_VLLM, Family, Param, Schema, Tensor, embedding
from loadmaster.architectures.spelling import packed


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    hidden, heads, kv_heads, head = blocks.heads_of(c)
    layer = (
        *(Tensor(name, (hidden,)) for name in _NORMS),
        *blocks.attention(hidden, heads, kv_heads, head, q_norm=head, k_norm=head),
        *blocks.gated_mlp(hidden, c.size("intermediate_size")),
    )
    return Schema(embedding(c), {"dense": layer}, ("dense",) * c.size("num_hidden_layers"))


_NORMS: Final = {
    **{"input_norm": "pre_mixer_norm.weight", "attn_norm": "post_mixer_norm.weight"},
    **{"post_norm": "pre_mlp_norm.weight", "post_mlp_norm": "post_mlp_norm.weight"},
}
_LAYER: Final = "model.layers.layers.{layer}."

FAMILY = Family(
    name="plamo3",
    architectures=("Plamo3ForCausalLM",),
    schema=schema,
    spelling={
        **blocks.TOP_SPELLING,
        **{name: _LAYER + stored for name, stored in _NORMS.items()},
        **packed(_LAYER + "mixer.qkv_proj.weight", "attn.q", "attn.k", "attn.v"),
        "attn.o": _LAYER + "mixer.o_proj.weight",
        **{f"attn.{part}_norm": f"{_LAYER}mixer.{part}_norm.weight" for part in ("q", "k")},
        **packed(_LAYER + "mlp.gate_up_proj.weight", "mlp.gate", "mlp.up"),
        "mlp.down": _LAYER + "mlp.down_proj.weight",
    },
    native=(
        *blocks.TOP_NATIVE,
        *(Param(f"{{block}}.{stored}", (name,)) for name, stored in _NORMS.items()),
        *blocks.ATTENTION_NATIVE,
        *blocks.gated_mlp_native(),
    ),
    waived=(blocks.INV_FREQ,),
    unchecked={"Plamo3ForCausalLM": OF_VLLM},
)
