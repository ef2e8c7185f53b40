"""Mixtures of experts that differ from known ones in a few tensors: Phi-3.5-MoE, Ernie-4.5, dots.llm1.

Sources: ``modeling_phimoe.py``, ``modeling_ernie4_5_moe.py`` and ``modeling_dots1.py`` of transformers.
"""

from __future__ import annotations

from loadmaster.architectures import blocks, glm4_moe
from loadmaster.architectures.config import Config
from loadmaster.architectures.schema import Family, Param, Schema, Tensor, by_vocabulary, embedding


def phimoe(c: Config) -> Schema:
    """Return the logical tensors of a Phi-3.5-MoE: layer norms with biases, experts in every layer."""
    hidden, heads, kv_heads, head = blocks.heads_of(c)
    bias = c.flag("attention_bias")
    layer = (
        *blocks.norms(hidden),
        *blocks.norm_biases(hidden, "input_norm", "post_norm"),
        *blocks.attention(hidden, heads, kv_heads, head, bias=bias, out_bias=bias),
        *blocks.experts(hidden, c.size("intermediate_size"), c.size("num_local_experts")),
    )
    return Schema(
        top=(
            *embedding(c),
            *blocks.norm_biases(hidden, "norm"),
            *(_head_bias(c) if c.flag("lm_head_bias") else ()),
        ),
        kinds={"sparse": layer},
        layers=("sparse",) * c.size("num_hidden_layers"),
    )


def _head_bias(c: Config) -> tuple[Tensor, ...]:
    return (Tensor("head_bias", (c.size("vocab_size"),), by_vocabulary()),)


def ernie(c: Config) -> Schema:
    """Return the logical tensors of an Ernie-4.5 with experts, in layers from a first to a last one."""
    hidden, heads, kv_heads, head = blocks.heads_of(c)
    bias, num_layers = c.flag("use_bias"), c.size("num_hidden_layers")
    attention = (
        *blocks.norms(hidden),
        *blocks.attention(hidden, heads, kv_heads, head, bias=bias, out_bias=bias),
    )
    inner, num_experts = c.size("moe_intermediate_size"), c.size("moe_num_experts")
    shared = inner * c.size("moe_num_shared_experts", 2, least=0)
    sparse = (
        *attention,
        *blocks.experts(hidden, inner, num_experts),
        Tensor("moe.statics", (1, num_experts), keep="F32"),
        *(blocks.gated_mlp(hidden, shared, logical="shared", bias=bias) if shared else ()),
    )
    first, last = c.size("moe_layer_start_index", 1, least=0), c.values.get("moe_layer_end_index", -1)
    last = num_layers - 1 if last == -1 else c.size("moe_layer_end_index", least=0)
    step = c.size("moe_layer_interval", 1)
    return Schema(
        top=(*embedding(c, tied=True), *(_head_bias(c) if bias else ())),
        kinds={
            "dense": (*attention, *blocks.gated_mlp(hidden, c.size("intermediate_size"), bias=bias)),
            "sparse": sparse,
        },
        layers=tuple("sparse" if first <= i <= last and (i + 1) % step == 0 else "dense" for i in range(num_layers)),
    )


def dots1(c: Config) -> Schema:
    """Return the logical tensors of a dots.llm1: a GLM-4.5 that always norms the heads of queries and keys."""
    return glm4_moe.schema(Config({**c.values, "use_qk_norm": True, "num_nextn_predict_layers": 0}))


_NATIVE = (
    *blocks.DECODER_NATIVE,
    *blocks.NORM_BIASES_NATIVE,
    Param("lm_head.bias", ("head_bias",), stage="last"),
    *blocks.EXPERTS_NATIVE,
    Param("{block}.mlp.moe_statics.e_score_correction_bias", ("moe.statics",)),
    *blocks.gated_mlp_native("mlp.shared_experts", logical="shared"),
)
_SHARED = blocks.gated_mlp_spelling("mlp.shared_experts", logical="shared")

PHIMOE = Family(
    name="phimoe",
    architectures=("PhiMoEForCausalLM", "PhimoeForCausalLM"),
    schema=phimoe,
    spelling={
        **blocks.DECODER_SPELLING,
        **blocks.NORM_BIASES_SPELLING,
        "head_bias": "lm_head.bias",
        **blocks.experts_spelling("block_sparse_moe", ("w1", "w3", "w2")),
    },
    native=_NATIVE,
    waived=(blocks.INV_FREQ,),
)
ERNIE = Family(
    name="ernie4_5_moe",
    architectures=("Ernie4_5_MoeForCausalLM",),
    schema=ernie,
    spelling={
        **blocks.DECODER_SPELLING,
        **blocks.experts_spelling(),
        **_SHARED,
        "head_bias": "lm_head.bias",
        "moe.statics": blocks.LAYER + "mlp.moe_statics.e_score_correction_bias",
    },
    native=_NATIVE,
    waived=(blocks.INV_FREQ, (r"model\.mtp_.*", "the MTP module of Ernie-4.5 is not supported")),
)
DOTS1 = Family(
    name="dots1",
    architectures=("Dots1ForCausalLM",),
    schema=dots1,
    spelling={**blocks.DECODER_SPELLING, **blocks.experts_spelling(), **_SHARED},
    native=_NATIVE,
    waived=(blocks.INV_FREQ,),
)
