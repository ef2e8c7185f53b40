"""Dense models with parts that a Llama does not have, or under other names: a few lines each.

HyperCLOVA X norms the outputs of attention and MLP too. Muse-Glimmer also has a gate in attention. Granite with windows has
sinks. OLMo-1 has no norms at all. EXAONE-3 and TeleChat2 have older names; TeleChat2 stores keys and values by head, and has
biases where the outputs of parts are summed.

Sources: ``hyperclovax``, ``muse_glimmer``, ``granite_swa`` and ``olmo`` of transformers 5.24; ``exaone.py`` and
``telechat2.py`` in ``vllm/model_executor/models``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.fused_qkv import modules
from loadmaster.architectures.schema import OF_VLLM, Family, Param, Schema, Tensor, by_rows, embedding, linear
from loadmaster.architectures.spelling import packed, respelled


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    name = c.values["architectures"][0]
    hidden, heads, kv_heads, head = blocks.heads_of(c)
    bias = c.flag("attention_bias")
    more: tuple[Tensor, ...] = ()
    if name == "HyperCLOVAXForCausalLM" and c.flag("use_post_norm", True):
        more = tuple(Tensor(f"post_norm{i}", (hidden,)) for i in (1, 2))
    elif name == "MuseGlimmerForCausalLM":
        norms = (f"{when}_mlp_norm" for when in ("pre", "post"))
        more = (linear("attn.gate", heads * head, hidden, by_rows(head)), *(Tensor(norm, (hidden,)) for norm in norms))
    elif name == "GraniteSWAForCausalLM":
        more = (Tensor("attn.sinks", (heads,), by_rows(), usual=("F32",)),)
    layer = (
        *(() if name == OLMO else blocks.norms(hidden)),
        *blocks.attention(hidden, heads, kv_heads, head, bias=bias, out_bias=bias),
        *more,
        *blocks.gated_mlp(hidden, c.size("intermediate_size"), bias=c.flag("mlp_bias")),
    )
    top = embedding(c, tied=name == "GraniteSWAForCausalLM")
    return Schema(
        top=tuple(t for t in top if t.name != "norm" or name != OLMO),
        kinds={"dense": layer},
        layers=("dense",) * c.size("num_hidden_layers", c.optional_size("num_layers")),
    )


def telechat2(c: Config) -> Schema:
    """Return the logical tensors of a TeleChat2."""
    hidden, heads = c.size("hidden_size"), c.size("n_head", c.optional_size("num_attention_heads"))
    inner = c.size("ffn_hidden_size", c.optional_size("intermediate_size"))
    attention = blocks.attention(hidden, heads, heads, hidden // heads, out_bias=True, groups=heads)
    layer = (
        *blocks.norms(hidden),
        *(replace(t, groups=1) if t.name == "attn.q" else t for t in attention),
        *blocks.gated_mlp(hidden, inner),
        Tensor("mlp.down_bias", (hidden,)),
    )
    num_layers = c.size("n_layer", c.optional_size("num_hidden_layers"))
    return Schema(top=embedding(c), kinds={"dense": layer}, layers=("dense",) * num_layers)


OLMO: Final = "OlmoForCausalLM"
_OWN: Final = {
    **{f"post_norm{i}": f"post_norm{i}.weight" for i in (1, 2)},
    "attn.sinks": "self_attn.sinks",
    "attn.gate": "self_attn.gate_proj.weight",
    **{f"{when}_mlp_norm": f"{when}_feedforward_layernorm.weight" for when in ("pre", "post")},
}
_NATIVE: Final = (
    *blocks.DECODER_NATIVE,
    *(Param(f"{{block}}.{stored}", (name,)) for name, stored in _OWN.items()),
)
_H: Final = "transformer.h."
_TOP: Final = {"norm": "transformer.ln_f.weight", "head": "lm_head.weight"}

FAMILY = Family(
    name="other_dense",
    architectures=("HyperCLOVAXForCausalLM", "GraniteSWAForCausalLM", "MuseGlimmerForCausalLM", OLMO),
    schema=schema,
    spelling={**blocks.DECODER_SPELLING, **{name: blocks.LAYER + stored for name, stored in _OWN.items()}},
    native=_NATIVE,
    waived=(blocks.INV_FREQ,),
    unchecked={"MuseGlimmerForCausalLM": "its names are those of transformers' class of the model with vision"},
)
EXAONE = Family(
    name="exaone3",
    architectures=("ExaoneForCausalLM",),
    schema=schema,
    spelling={
        **_TOP,
        "embed": "transformer.wte.weight",
        **{f"{name}_norm": f"{_H}{{layer}}.{stored}.weight" for name, stored in (("input", "ln_1"), ("post", "ln_2"))},
        **modules(_H, mlp__gate="mlp.c_fc_0", mlp__up="mlp.c_fc_1"),
        **modules(_H, mlp__down="mlp.c_proj", attn__o="attn.attention.out_proj"),
        **modules(_H, **{f"attn__{part}": f"attn.attention.{part}_proj" for part in ("q", "k", "v")}),
    },
    native=_NATIVE,
    waived=(blocks.INV_FREQ,),
    unchecked={"ExaoneForCausalLM": OF_VLLM},
)
TELECHAT2 = Family(
    name="telechat2",
    architectures=("TeleChat2ForCausalLM",),
    schema=telechat2,
    spelling={
        **_TOP,
        "embed": "transformer.word_embeddings.weight",
        **respelled(blocks.NORMS_SPELLING, ("model.layers.", _H)),
        **modules(_H, **{f"mlp__{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")}),
        **modules(_H, attn__q="self_attention.query", attn__o="self_attention.dense"),
        **packed(_H + "{layer}.self_attention.key_value.weight", "attn.k", "attn.v", by_group=True),
    },
    native=_NATIVE,
    waived=(blocks.INV_FREQ,),
    unchecked={"TeleChat2ForCausalLM": OF_VLLM},
)
