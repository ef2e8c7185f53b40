"""Models in Llama's names whose MLP has no gate: Arcee and Nemotron, whose layer norms have biases.

Sources: ``modeling_arcee.py`` and ``modeling_nemotron.py`` of transformers.
"""

from __future__ import annotations

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.schema import Family, Schema, embedding


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    hidden, heads, kv_heads, head = blocks.heads_of(c)
    has_biases = c.values["architectures"][0] == "NemotronForCausalLM"
    bias = c.flag("attention_bias")
    layer = (
        *blocks.norms(hidden),
        *(blocks.norm_biases(hidden, "input_norm", "post_norm") if has_biases else ()),
        *blocks.attention(hidden, heads, kv_heads, head, bias=bias, out_bias=bias),
        *blocks.plain_mlp(hidden, c.size("intermediate_size"), bias=c.flag("mlp_bias")),
    )
    return Schema(
        top=(*embedding(c), *(blocks.norm_biases(hidden, "norm") if has_biases else ())),
        kinds={"dense": layer},
        layers=("dense",) * c.size("num_hidden_layers"),
    )


FAMILY = Family(
    name="plain_mlp",
    architectures=("ArceeForCausalLM", "NemotronForCausalLM"),
    schema=schema,
    spelling={
        **blocks.TOP_SPELLING,
        **blocks.NORMS_SPELLING,
        **blocks.NORM_BIASES_SPELLING,
        **blocks.ATTENTION_SPELLING,
        **{n: s for n, s in blocks.gated_mlp_spelling().items() if not n.startswith("mlp.gate")},
    },
    native=(
        *blocks.TOP_NATIVE,
        *blocks.NORMS_NATIVE,
        *blocks.NORM_BIASES_NATIVE,
        *blocks.ATTENTION_NATIVE,
        *blocks.PLAIN_MLP_NATIVE,
    ),
    waived=(blocks.INV_FREQ,),
)
