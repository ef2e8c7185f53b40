"""Dense models that store what a Llama stores, but for biases, norms and a tied head: a line each.

Granite, Gemma 1 and 2, Cohere, StableLM, Seed-OSS, SmolLM3, Ministral, Ernie-4.5, InternLM, MiniCPM, Orion, openPangu
Embedded, Rnj-1, Solar, Step-1, TeleFLM, VaultGemma. Their computation differs from Llama's (scales, soft caps, windows), so
they are planned and loaded, not run.

Sources: the classes of transformers, and for those that it does not have, of vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.schema import OF_VLLM, Family, Param, Schema, Tensor, by_rows, embedding
from loadmaster.errors import UnsupportedError

NORMS: Final = ("input_norm", "post_norm")


@dataclass(frozen=True, slots=True)
class Style:
    """How a model differs from Llama: the keys that give q, k and v, o, and the MLP biases (each default False).

    ``bias_default`` is the default of ``bias`` keys. ``norms`` are those of a layer, ``norm_bias`` says that they have biases.
    ``head_norms``: queries and keys of each head are normed. ``refused`` are keys that must be false.
    """

    bias: tuple[str, ...] = ("attention_bias",)
    out_bias: tuple[str, ...] = ("attention_bias",)
    mlp_bias: tuple[str, ...] = ("mlp_bias",)
    bias_default: bool = False
    norms: tuple[str, ...] = NORMS
    norm_bias: bool = False
    head_norms: bool = False
    tied: bool = False
    head_dim: int | None = None
    refused: tuple[str, ...] = ()


_NONE: Final = Style(bias=(), out_bias=(), mlp_bias=())
_GEMMA: Final = Style(mlp_bias=(), tied=True, head_dim=256)
_COHERE: Final = Style(mlp_bias=(), norms=("input_norm",), tied=True)
_ALL: Final = ("bias",)
_EITHER: Final = ("attention_bias", "bias")
_FOUR: Final = (*NORMS, "pre_mlp_norm", "post_mlp_norm")

STYLES: Final[Mapping[str, Style]] = {
    "GraniteForCausalLM": Style(),
    "GemmaForCausalLM": _GEMMA,
    "Gemma2ForCausalLM": Style(mlp_bias=(), norms=_FOUR, tied=True, head_dim=256),
    "CohereForCausalLM": _COHERE,
    "Cohere2ForCausalLM": _COHERE,
    "StableLmForCausalLM": Style(("use_qkv_bias",), (), (), norm_bias=True, refused=("qk_layernorm",)),
    "SeedOssForCausalLM": Style(out_bias=("attention_out_bias",), bias_default=True),
    "SmolLM3ForCausalLM": Style(tied=True),
    "Ministral3ForCausalLM": _NONE,
    "MinistralForCausalLM": _NONE,
    "Ernie4_5ForCausalLM": Style(("use_bias",), ("use_bias",), ("use_bias",), tied=True, head_dim=128),
    "CwmForCausalLM": _NONE,
    "InternLMForCausalLM": Style(_ALL, _ALL, (), bias_default=True),
    "InternLM3ForCausalLM": Style(("qkv_bias",), _ALL, _ALL),
    "MiniCPMForCausalLM": Style(mlp_bias=(), tied=True, refused=("num_experts",)),
    "OrionForCausalLM": Style((), (), (), norm_bias=True),
    "PanguEmbeddedForCausalLM": Style(_EITHER, _EITHER, refused=("sandwich_norm", "param_sink_number")),
    "Rnj1ForCausalLM": Style(mlp_bias=(), norms=_FOUR, head_norms=True, tied=True),
    "SolarForCausalLM": Style(_EITHER, _EITHER),
    "Step1ForCausalLM": Style(tied=True),
    "TeleFLMForCausalLM": Style(),
    "VaultGemmaForCausalLM": Style(mlp_bias=(), norms=("input_norm", "pre_mlp_norm"), tied=True, head_dim=256),
}
"""Architecture → how it differs."""


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    return of_style(c, STYLES[c.values["architectures"][0]])


def of_style(c: Config, style: Style) -> Schema:
    """Return the logical tensors of a model that differs from Llama as ``style`` says."""
    for key in style.refused:
        if c.values.get(key):
            raise UnsupportedError(f"config.json: {key} {c.values[key]!r} is not supported")
    hidden, heads = c.size("hidden_size"), c.size("num_attention_heads")
    kv_heads = c.size("num_attention_groups", c.size("num_key_value_heads", heads))
    head = c.size("head_dim", style.head_dim or hidden // heads)
    norm = head if style.head_norms else 0

    def has(keys: tuple[str, ...], default: bool = False) -> bool:
        return any(c.flag(key, default) for key in keys)

    layer = (
        *(Tensor(name, (hidden,)) for name in style.norms),
        *(blocks.norm_biases(hidden, *style.norms) if style.norm_bias else ()),
        *blocks.attention(
            hidden,
            heads,
            kv_heads,
            head,
            bias=has(style.bias, style.bias_default),
            out_bias=has(style.out_bias, style.bias_default and style.out_bias == style.bias),
            q_norm=norm,
            k_norm=norm,
        ),
        *(_norms_of_heads(heads, kv_heads, head) if c.flag("use_qk_norm") else ()),
        *blocks.gated_mlp(hidden, c.size("intermediate_size"), bias=has(style.mlp_bias)),
    )
    last = blocks.norm_biases(hidden, "norm") if style.norm_bias else ()
    top = (*embedding(c, tied=style.tied), *last)
    return Schema(top, {"dense": layer}, ("dense",) * c.size("num_hidden_layers"))


def _norms_of_heads(heads: int, kv_heads: int, head: int) -> tuple[Tensor, ...]:
    """Return Cohere's norms of queries and keys: a row for each head."""
    return (
        Tensor("attn.q_norm", (heads, head), by_rows()),
        Tensor("attn.k_norm", (kv_heads, head), by_rows(repeat=True)),
    )


_WITHOUT_A_CLASS: Final = (
    *("InternLMForCausalLM", "InternLM3ForCausalLM", "MiniCPMForCausalLM", "OrionForCausalLM", "SolarForCausalLM"),
    *("PanguEmbeddedForCausalLM", "Rnj1ForCausalLM", "Step1ForCausalLM", "TeleFLMForCausalLM"),
)

FAMILY = Family(
    name="dense",
    architectures=tuple(STYLES),
    schema=schema,
    spelling={
        **blocks.DECODER_SPELLING,
        **blocks.NORM_BIASES_SPELLING,
        "pre_mlp_norm": blocks.LAYER + "pre_feedforward_layernorm.weight",
        "post_mlp_norm": blocks.LAYER + "post_feedforward_layernorm.weight",
    },
    native=(
        *blocks.DECODER_NATIVE,
        *blocks.NORM_BIASES_NATIVE,
        Param("{block}.pre_feedforward_layernorm.weight", ("pre_mlp_norm",)),
        Param("{block}.post_feedforward_layernorm.weight", ("post_mlp_norm",)),
    ),
    waived=(blocks.INV_FREQ,),
    unchecked=dict.fromkeys(_WITHOUT_A_CLASS, OF_VLLM),
)
