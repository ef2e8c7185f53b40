"""OLMo-2 and OLMo-3: norms after attention and after the MLP, and norms over all query heads and over all key heads.

Sources: the released configs; ``modeling_olmo2.py`` and ``modeling_olmo3.py`` of transformers.
"""

from __future__ import annotations

from dataclasses import dataclass

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.model import FULL, SLIDING, AttentionSpec, Model, require, windows_by_type
from loadmaster.architectures.rope import Rope, read_rope, read_ropes
from loadmaster.architectures.schema import Family, Param, Schema, Tensor, embedding


@dataclass(frozen=True, slots=True, kw_only=True)
class OlmoModel(Model):
    """A dense model. ``windows`` gives for each layer how many tokens it attends to at most; None: all.

    ``sliding_attention`` is that of the layers with a window: their rotary embeddings are not scaled.
    """

    attention: AttentionSpec
    sliding_attention: AttentionSpec
    windows: tuple[int | None, ...]


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    hidden, heads, kv_heads, head = blocks.heads_of(c)
    bias = c.flag("attention_bias")
    layer = (
        Tensor("post_norm", (hidden,)),
        Tensor("post_mlp_norm", (hidden,)),
        *blocks.attention(
            hidden, heads, kv_heads, head, bias=bias, out_bias=bias, q_norm=heads * head, k_norm=kv_heads * head
        ),
        *blocks.gated_mlp(hidden, c.size("intermediate_size")),
    )
    return Schema(
        top=embedding(c),
        kinds={"dense": layer},
        layers=("dense",) * c.size("num_hidden_layers"),
    )


def read_model(c: Config) -> OlmoModel:
    """Return what computing the model needs."""
    require(c, "hidden_act", "silu")
    num_layers, norm_eps = c.size("num_hidden_layers"), c.number("rms_norm_eps", 1e-5)
    windows: tuple[int | None, ...] = (None,) * num_layers
    if c.values["architectures"][0] == "Olmo3ForCausalLM":
        types = [FULL if (layer + 1) % 4 == 0 else SLIDING for layer in range(num_layers)]
        windows = windows_by_type(c, c.size("sliding_window", 4096), types)
        theta = c.number("rope_theta", 500000.0, above=0)
        rope, sliding = read_ropes(c, theta=theta, sliding_theta=theta)
    else:
        rope = sliding = read_rope(c)
    return OlmoModel(
        schema=schema(c),
        norm_eps=norm_eps,
        norm="rms_wide",
        attention=_attention(c, norm_eps, rope),
        sliding_attention=_attention(c, norm_eps, sliding),
        windows=windows,
    )


def _attention(c: Config, norm_eps: float, rope: Rope) -> AttentionSpec:
    _, heads, kv_heads, head = blocks.heads_of(c)
    return AttentionSpec(heads, kv_heads, head, norm_eps, rope, qk_norm="heads", norm="rms_wide")


FAMILY = Family(
    name="olmo",
    architectures=("Olmo2ForCausalLM", "Olmo3ForCausalLM"),
    schema=schema,
    spelling={**blocks.DECODER_SPELLING, "post_mlp_norm": blocks.LAYER + "post_feedforward_layernorm.weight"},
    native=(
        *blocks.DECODER_NATIVE,
        Param("{block}.post_feedforward_layernorm.weight", ("post_mlp_norm",)),
    ),
    waived=(blocks.INV_FREQ,),
    runs=True,
)
