"""Models in Llama's names whose MLP has no gate: Arcee; Nemotron and Jais-2, whose layer norms have biases;
Apertus, whose activation is learned.

Sources: ``modeling_arcee.py``, ``modeling_nemotron.py``, ``modeling_jais2.py`` and
``modeling_apertus.py`` of transformers.
"""

from __future__ import annotations

from typing import Final

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.schema import Family, Param, Schema, Tensor, embedding
from loadmaster.architectures.spelling import Spelling


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    hidden, heads, kv_heads, head = blocks.heads_of(c)
    name = c.values["architectures"][0]
    has_biases, usual = name != "ArceeForCausalLM", name == "Jais2ForCausalLM"
    bias = c.flag("attention_bias", usual)
    layer = (
        *blocks.norms(hidden),
        *(blocks.norm_biases(hidden, "input_norm", "post_norm") if has_biases else ()),
        *blocks.attention(hidden, heads, kv_heads, head, bias=bias, out_bias=bias),
        *blocks.plain_mlp(hidden, c.size("intermediate_size"), bias=c.flag("mlp_bias", usual)),
    )
    return Schema(
        top=(*embedding(c), *(blocks.norm_biases(hidden, "norm") if has_biases else ())),
        kinds={"dense": layer},
        layers=("dense",) * c.size("num_hidden_layers"),
    )


def apertus(c: Config) -> Schema:
    """Return the logical tensors of an Apertus."""
    hidden, heads, kv_heads, head = blocks.heads_of(c)
    bias = c.flag("attention_bias")
    layer = (
        *blocks.norms(hidden),
        *blocks.attention(hidden, heads, kv_heads, head, bias=bias, out_bias=bias, q_norm=head, k_norm=head),
        *blocks.plain_mlp(hidden, c.size("intermediate_size"), bias=c.flag("mlp_bias")),
        *(Tensor(f"mlp.{name}", (1,)) for name in _LEARNED),
    )
    return Schema(top=embedding(c), kinds={"dense": layer}, layers=("dense",) * c.size("num_hidden_layers"))


_LEARNED: Final = ("alpha_p", "alpha_n")
_SPELLING: Spelling = {
    **blocks.TOP_SPELLING,
    **blocks.NORMS_SPELLING,
    **blocks.ATTENTION_SPELLING,
    **{n: s for n, s in blocks.gated_mlp_spelling().items() if not n.startswith("mlp.gate")},
}
_NATIVE: Final = (*blocks.TOP_NATIVE, *blocks.NORMS_NATIVE, *blocks.ATTENTION_NATIVE, *blocks.PLAIN_MLP_NATIVE)

FAMILY = Family(
    name="plain_mlp",
    architectures=("ArceeForCausalLM", "NemotronForCausalLM", "Jais2ForCausalLM"),
    schema=schema,
    spelling={**_SPELLING, **blocks.NORM_BIASES_SPELLING},
    native=(*_NATIVE, *blocks.NORM_BIASES_NATIVE),
    waived=(blocks.INV_FREQ,),
)
APERTUS = Family(
    name="apertus",
    architectures=("ApertusForCausalLM",),
    schema=apertus,
    spelling={
        **_SPELLING,
        "input_norm": blocks.LAYER + "attention_layernorm.weight",
        "post_norm": blocks.LAYER + "feedforward_layernorm.weight",
        **{f"mlp.{name}": f"{blocks.LAYER}mlp.act_fn.{name}" for name in _LEARNED},
    },
    native=(*_NATIVE, *(Param(f"{{block}}.mlp.act_fn.{name}", (f"mlp.{name}",)) for name in _LEARNED)),
    waived=(blocks.INV_FREQ, (r"model\.layers\.\d+\.mlp\.act_fn\.(beta|eps)", "constants of the activation")),
)
