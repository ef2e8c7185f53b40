"""Domyn-Edge: a Llama with norms before and after each module, normed keys, and heads whose size differs from layer to layer.

Queries are normed too, without a weight.

Sources: ``domyn_edge.py`` in ``vllm/model_executor/models``; ``integrations/heterogeneity`` of transformers 5.24, for the config
of each layer.
"""

from __future__ import annotations

from typing import Final

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.schema import OF_VLLM, Family, Param, Schema, Tensor, embedding
from loadmaster.architectures.spelling import respelled

DOMYN: Final = "DomynEdgeForCausalLM"
NORMS: Final = tuple(f"{when}_{module}_norm" for module in ("attention", "feedforward") for when in ("pre", "post"))


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes; ``per_layer_config`` has the size of a head where a layer differs."""
    hidden, heads, kv_heads, usual = blocks.heads_of(c)
    given, num_layers = c.section("per_layer_config"), c.size("num_hidden_layers")
    sizes = [given.section(str(layer)).size("head_dim", usual) for layer in range(num_layers)]
    common = (
        *(Tensor(name, (hidden,)) for name in NORMS),
        *blocks.gated_mlp(hidden, c.size("intermediate_size")),
    )
    return Schema(
        top=embedding(c),
        kinds={
            f"heads of {head}": (*common, *blocks.attention(hidden, heads, kv_heads, head, k_norm=head))
            for head in dict.fromkeys(sizes)
        },
        layers=tuple(f"heads of {head}" for head in sizes),
    )


FAMILY = Family(
    name="domyn_edge",
    architectures=(DOMYN,),
    schema=schema,
    spelling={
        **blocks.TOP_SPELLING,
        **{name: f"{blocks.LAYER}{name}.weight" for name in NORMS},
        **respelled(blocks.ATTENTION_SPELLING, (blocks.LAYER + "self_attn.", blocks.LAYER + "attention.")),
        **blocks.gated_mlp_spelling("feedforward"),
    },
    native=(
        *blocks.TOP_NATIVE,
        *(Param(f"{{block}}.{name}.weight", (name,)) for name in NORMS),
        *blocks.ATTENTION_NATIVE,
        *blocks.gated_mlp_native(),
    ),
    waived=(blocks.INV_FREQ,),
    unchecked={DOMYN: OF_VLLM},
)
