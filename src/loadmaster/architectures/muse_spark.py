"""Muse-Spark: attention with a gate, and experts of another width than the hidden states; the towers are left unread.

A projection that every rank holds makes the experts' inputs, and another one their outputs; the sum over ranks is between them.
Residuals pass through gates without a ``.weight``. Hidden states stay F32 from layer to layer, and cross cuts so. The rows of q
and k are stored with the even elements of each head before the odd ones. In NVFP4 gate and up of an expert have a factor each for
the whole weight, ``[experts, 2]``, as vLLM takes them (``MuseSparkConsolidatedRoutedExperts`` in ``common/moe.py``).

Sources: ``muse_spark`` of transformers 5.24; ``muse_spark/nvidia/model.py`` and ``common/omni.py`` in ``vllm/models``.
"""

from __future__ import annotations

from typing import Final

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.deepseek import mlp_types
from loadmaster.architectures.model import require
from loadmaster.architectures.schema import (
    LANGUAGE_ONLY,
    Carried,
    Family,
    Param,
    Schema,
    Tensor,
    by_rows,
    embedding,
    linear,
)
from loadmaster.architectures.spelling import Spelling, packed, respelled

_DEFAULTS: Final = {
    **{"hidden_size": 8192, "intermediate_size": 16384, "moe_intermediate_size": 4096, "moe_hidden_size": 4096},
    **{"num_hidden_layers": 62, "num_attention_heads": 128, "num_key_value_heads": 16, "head_dim": 64},
    **{"num_local_experts": 256, "vocab_size": 202048},
}
"""Of ``MuseSparkTextConfig``."""


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    c = Config({**_DEFAULTS, **c.values})
    require(c, "attention_bias", False)
    hidden, heads, kv_heads, head = blocks.heads_of(c)
    layer = (
        *(Tensor(name, (hidden,)) for name in ("input_norm", "pre_mlp_norm", "post_mlp_norm")),
        *(Tensor(name, (hidden,), usual=("F32",)) for name in ("attn_residual_gate", "mlp_residual_gate")),
        *blocks.attention(hidden, heads, kv_heads, head),
        linear("attn.gate", heads * head, hidden, by_rows(head)),
    )
    layers = mlp_types(c)
    return Schema(
        top=embedding(c),
        kinds={
            "dense": (*layer, *blocks.gated_mlp(hidden, c.size("intermediate_size"))),
            "sparse": (*layer, *_experts(c, hidden)),
        },
        layers=layers,
        carries=((), *((Carried("hidden_states", (hidden,), "F32"),),) * (len(layers) - 1)),
    )


def _experts(c: Config, hidden: int) -> tuple[Tensor, ...]:
    width, num_experts = c.size("moe_hidden_size"), c.size("num_local_experts")
    router, *experts = blocks.experts(width, c.size("moe_intermediate_size"), num_experts)
    assert router.name == "moe.router", "it sees the hidden states, and not the experts' inputs"
    return (
        Tensor("moe.router", (num_experts, hidden), usual=("F32",)),
        Tensor("moe.router_bias", (num_experts,), keep="F32"),
        linear("moe.in", width, hidden),
        Tensor("moe.in_norm", (width,)),
        *experts,
        Tensor("moe.out_norm", (width,)),
        linear("moe.out", hidden, width),
    )


_MLP: Final = blocks.LAYER + "mlp."
_NAMES: Final = {
    "pre_mlp_norm": blocks.LAYER + "pre_feedforward_layernorm.weight",
    "post_mlp_norm": blocks.LAYER + "post_feedforward_layernorm.weight",
    "attn_residual_gate": blocks.LAYER + "post_attention_residual_gate.gate",
    "mlp_residual_gate": blocks.LAYER + "post_feedforward_residual_gate.gate",
    "attn.gate": blocks.LAYER + "self_attn.gate_proj.weight",
    "moe.in": _MLP + "pre_expert_proj.weight",
    "moe.in_norm": _MLP + "pre_expert_norm.weight",
    "moe.out_norm": _MLP + "experts.post_expert_norm.weight",
    "moe.out": _MLP + "post_expert_proj.weight",
}
_SPELLING: Final[Spelling] = {
    **blocks.TOP_SPELLING,
    "input_norm": blocks.LAYER + "input_layernorm.weight",
    **blocks.ATTENTION_SPELLING,
    **blocks.gated_mlp_spelling(),
    **blocks.stacked_experts_spelling(),
    **packed(_MLP + "experts.gate_up_proj", "moe.gate", "moe.up", stacked=True, numbers_each=True),
    **_NAMES,
}

FAMILY = Family(
    name="muse_spark",
    architectures=("MuseSparkForConditionalGeneration",),
    schema=schema,
    spelling=respelled(_SPELLING, ("model.", "model.language_model.")),
    variants=(_SPELLING,),
    native=(
        *blocks.TOP_NATIVE,
        Param("{block}.input_layernorm.weight", ("input_norm",)),
        *blocks.ATTENTION_NATIVE,
        *blocks.gated_mlp_native(),
        *blocks.EXPERTS_NATIVE,
        *(Param(stored.replace(blocks.LAYER, "{block}."), (name,)) for name, stored in _NAMES.items()),
    ),
    waived=(
        (
            r"(model\.)?(vision_tower|audio_tower|vision_adapter|vision_projection)\..*",
            LANGUAGE_ONLY,
        ),
    ),
    section="text_config",
    unchecked={
        "MuseSparkForConditionalGeneration": "names and shapes are those of transformers' class; number formats were not seen "
        "in a release"
    },
)
