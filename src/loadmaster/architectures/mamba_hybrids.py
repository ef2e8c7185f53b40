"""Mamba-2 by itself, or with attention: Codestral-Mamba, Bamba, Falcon-H1 and Granite-4.

In Bamba and Granite-4 a layer has one or the other, in Falcon-H1 both, side by side. Granite-4 may have experts, in Granite-MoE's
names, beside a shared MLP.

Sources: ``mamba2``, ``bamba``, ``falcon_h1`` and ``granitemoehybrid`` of transformers 5.24.
"""

from __future__ import annotations

from typing import Final

from loadmaster.architectures import blocks, granite_moe, mamba2
from loadmaster.architectures.config import Config
from loadmaster.architectures.mamba2 import Mamba2
from loadmaster.architectures.model import require
from loadmaster.architectures.schema import Family, Param, Schema, Tensor, embedding
from loadmaster.architectures.spelling import Spelling
from loadmaster.errors import ConfigError

MAMBA, ATTENTION = ("linear_attention", "mamba"), ("full_attention", "attention")
"""Names of the types of layers, newer and older."""


def pure(c: Config) -> Schema:
    """Return the logical tensors of a model of Mamba-2 layers alone."""
    require(c, "use_bias", False)
    hidden, head = c.size("hidden_size"), c.size("head_dim", 64)
    heads = c.size("num_heads", c.size("expand", 2) * hidden // head)
    sizes = Mamba2(heads, head, c.size("n_groups", 8), c.size("state_size", 128), c.size("conv_kernel", 4))
    mixer = mamba2.tensors(hidden, sizes, conv_bias=c.flag("use_conv_bias", True))
    layer = (Tensor("input_norm", (hidden,)), *mixer)
    return Schema(embedding(c), {"mamba": layer}, ("mamba",) * c.size("num_hidden_layers"))


def hybrid(c: Config) -> Schema:
    """Return the logical tensors of a model whose layers have Mamba-2, or attention, or both."""
    for key in ("mamba_proj_bias", "projectors_bias"):
        require(c, key, False)
    hidden, heads, kv_heads, head = blocks.heads_of(c)
    bias = c.flag("attention_bias")
    attention = blocks.attention(hidden, heads, kv_heads, head, bias=bias, out_bias=bias)
    normed = c.flag("mamba_rms_norm") if c.values["architectures"][0] == FALCON else True
    mixer = mamba2.tensors(hidden, _sizes(c, hidden), conv_bias=c.flag("mamba_conv_bias", True), normed=normed)
    mlp = _experts(c) if c.values["architectures"][0] == GRANITE else _mlp(c)
    mixers = {"mamba": mixer, "attention": attention, "both": (*mixer, *attention)}
    layers = _types(c)
    return Schema(
        top=embedding(c),
        kinds={kind: (*blocks.norms(hidden), *mixers[kind], *mlp) for kind in dict.fromkeys(layers)},
        layers=layers,
    )


def _sizes(c: Config, hidden: int) -> Mamba2:
    heads, inner = c.size("mamba_n_heads", 128), c.size("mamba_d_ssm", c.size("mamba_expand", 2) * hidden)
    head = inner // heads if c.values.get("mamba_d_head", "auto") == "auto" else c.size("mamba_d_head")
    return Mamba2(heads, head, c.size("mamba_n_groups", 1), c.size("mamba_d_state", 256), c.size("mamba_d_conv", 4))


def _types(c: Config) -> tuple[str, ...]:
    """Return what each layer has: by list, or by the numbers of those with attention."""
    num_layers, with_attention = c.size("num_hidden_layers"), c.sizes("attn_layer_indices")
    if c.values["architectures"][0] == FALCON:
        return ("both",) * num_layers
    if any(layer >= num_layers for layer in with_attention):
        raise ConfigError(f"config.json: attn_layer_indices must be numbers below {num_layers}")
    default = [ATTENTION[0] if layer in with_attention else MAMBA[0] for layer in range(num_layers)]
    types = c.types("layer_types", (*MAMBA, *ATTENTION), num_layers, default)
    return tuple("attention" if kind in ATTENTION else "mamba" for kind in types)


def _mlp(c: Config) -> tuple[Tensor, ...]:
    return blocks.gated_mlp(c.size("hidden_size"), c.size("intermediate_size"), bias=c.flag("mlp_bias"))


def _experts(c: Config) -> tuple[Tensor, ...]:
    hidden, count = c.size("hidden_size"), c.size("num_local_experts", 8, least=0)
    shared = blocks.gated_mlp(hidden, c.size("shared_intermediate_size", 1024), logical="shared")
    return (*(blocks.experts(hidden, c.size("intermediate_size"), count) if count else ()), *shared)


FALCON, GRANITE = "FalconH1ForCausalLM", "GraniteMoeHybridForCausalLM"
_LAYER: Final = "backbone.layers.{layer}."
_MAMBA: Final = blocks.LAYER + "mamba."
_FEED_FORWARD: Spelling = {
    **blocks.DECODER_SPELLING,
    "norm": "model.final_layernorm.weight",
    "post_norm": blocks.LAYER + "pre_ff_layernorm.weight",
    **blocks.gated_mlp_spelling("feed_forward"),
    **mamba2.spelling(_MAMBA),
}

PURE = Family(
    name="mamba2",
    architectures=("Mamba2ForCausalLM",),
    schema=pure,
    spelling={
        **{"embed": "backbone.embeddings.weight", "norm": "backbone.norm_f.weight", "head": "lm_head.weight"},
        "input_norm": _LAYER + "norm.weight",
        **mamba2.spelling(_LAYER + "mixer."),
    },
    native=(*blocks.TOP_NATIVE, Param("{block}.norm.weight", ("input_norm",)), *mamba2.native("{block}.mixer.")),
)
HYBRID = Family(
    name="mamba_hybrid",
    architectures=("BambaForCausalLM", FALCON),
    schema=hybrid,
    spelling=_FEED_FORWARD,
    native=(*blocks.DECODER_NATIVE, *mamba2.native("{block}.mamba.")),
    waived=(blocks.INV_FREQ,),
)
GRANITE_HYBRID = Family(
    name="granite_hybrid",
    architectures=(GRANITE,),
    schema=hybrid,
    spelling={**granite_moe.FAMILY.spelling, **mamba2.spelling(_MAMBA)},
    variants=tuple({**s, **mamba2.spelling(_MAMBA)} for s in granite_moe.FAMILY.variants),
    native=(*granite_moe.FAMILY.native, *mamba2.native("{block}.mamba.")),
    waived=(blocks.INV_FREQ,),
)
