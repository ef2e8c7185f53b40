"""Ling 1 and 2 (Bailing MoE), Sarvam-30B and Param-2: q, k and v in one tensor, routed and shared experts.

The first layers may be dense. Ling 2 and the others norm queries and keys, and correct the scores of the router. MTP layers of
Ling 2 are not described. Ling 1 may norm its head (``norm_head``), which vLLM does as it loads; here the head stays as stored.

Sources: ``bailing_moe.py``, ``sarvam.py`` and ``param2moe.py`` in ``vllm/model_executor/models``; ``conversion_mapping.py`` of
transformers 5.24.
"""

from __future__ import annotations

from typing import Final

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.deepseek import mlp_types
from loadmaster.architectures.schema import Family, Schema, Tensor, embedding
from loadmaster.architectures.spelling import Spelling, packed

_NEWER: Final = ("SarvamMoEForCausalLM", "Param2MoEForCausalLM")


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    hidden, heads, kv_heads, head = blocks.heads_of(c)
    is_newer, bias = c.values["architectures"][0] in _NEWER, c.flag("use_bias")
    norm = head if c.flag("use_qk_norm", is_newer) else 0
    layer = (
        *blocks.norms(hidden),
        *blocks.attention(
            hidden,
            heads,
            kv_heads,
            head,
            bias=bias or c.flag("use_qkv_bias"),
            out_bias=bias,
            q_norm=norm,
            k_norm=norm,
        ),
    )
    mlps = feed_forward(c, shared=int(is_newer), corrected=is_newer)
    return Schema(
        top=embedding(c),
        kinds={mlp: (*layer, *tensors) for mlp, tensors in mlps.items()},
        layers=mlp_types(c, dense=int(is_newer)),
        unread=without_drafts(c),
    )


def feed_forward(c: Config, *, shared: int, corrected: bool) -> dict[str, tuple[Tensor, ...]]:
    """Return the MLPs of dense and of sparse layers; ``shared`` and ``corrected`` are what holds where the config is silent."""
    hidden, inner, bias = c.size("hidden_size"), c.size("moe_intermediate_size"), c.flag("use_bias")
    count = c.size("num_experts", c.optional_size("n_routed_experts"))
    shared = c.size("num_shared_experts", c.size("n_shared_experts", shared, least=0), least=0)
    width = c.size("moe_shared_expert_intermediate_size", inner) * shared
    corrected = c.flag("moe_router_enable_expert_bias", corrected)
    return {
        "dense": blocks.gated_mlp(hidden, c.size("intermediate_size"), bias=bias),
        "sparse": (
            *blocks.experts(hidden, inner, count, router_bias=corrected),
            *(blocks.gated_mlp(hidden, width, logical="shared", bias=bias) if shared else ()),
        ),
    }


def without_drafts(c: Config) -> tuple[tuple[str, str], ...]:
    """Return the waiver of MTP layers, which are stored after the decoder layers."""
    num_layers, num_drafts = c.size("num_hidden_layers"), c.size("num_nextn_predict_layers", 0, least=0)
    drafts = "|".join(str(num_layers + i) for i in range(num_drafts))
    return ((rf"model\.layers\.({drafts})\..*", "the MTP layers of this family are not supported"),) if drafts else ()


_ATTENTION: Final = blocks.LAYER + "attention."
_PARTS: Final = ("attn.q", "attn.k", "attn.v")

SPELLING: Final[Spelling] = {
    **blocks.TOP_SPELLING,
    "embed": "model.word_embeddings.weight",
    **blocks.NORMS_SPELLING,
    **packed(_ATTENTION + "query_key_value.weight", *_PARTS),
    **packed(_ATTENTION + "query_key_value.bias", *(f"{part}_bias" for part in _PARTS)),
    "attn.q_norm": _ATTENTION + "query_layernorm.weight",
    "attn.k_norm": _ATTENTION + "key_layernorm.weight",
    "attn.o": _ATTENTION + "dense.weight",
    "attn.o_bias": _ATTENTION + "dense.bias",
    **blocks.gated_mlp_spelling(),
    **blocks.experts_spelling(),
    "moe.router_bias": blocks.LAYER + "mlp.gate.expert_bias",
    **blocks.gated_mlp_spelling("mlp.shared_experts", logical="shared"),
}
NATIVE: Final = (
    *blocks.DECODER_NATIVE,
    *blocks.EXPERTS_NATIVE,
    *blocks.gated_mlp_native("mlp.shared_experts", logical="shared"),
)
UNCHECKED: Final = "transformers has no class of it; its names are those of vLLM's loader"

FAMILY = Family(
    name="bailing_moe",
    architectures=("BailingMoeForCausalLM", "BailingMoeV2ForCausalLM", *_NEWER),
    schema=schema,
    spelling=SPELLING,
    native=NATIVE,
    waived=(blocks.INV_FREQ,),
    unchecked=dict.fromkeys(("BailingMoeForCausalLM", "BailingMoeV2ForCausalLM", *_NEWER), UNCHECKED),
)
