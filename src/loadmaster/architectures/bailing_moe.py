"""Ling 1 and 2 (Bailing MoE), Sarvam-30B and Param-2: q, k and v in one tensor, routed and shared experts.

The first layers may be dense. Ling 2 and the others norm queries and keys, and correct the scores of the router. Ling 1 may
norm its head (``norm_head``), which vLLM does as it loads; here the head stays as stored. MTP layers of Ling 2 are stored after
the decoder layers, and share embedding and head; vLLM 0.33 does not have them, and their names are those of its authors' code.

Sources: ``bailing_moe.py``, ``sarvam.py`` and ``param2moe.py`` in ``vllm/model_executor/models``; ``conversion_mapping.py`` of
transformers 5.24.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.deepseek import mlp_types
from loadmaster.architectures.schema import OF_VLLM, Family, Schema, Tensor, embedding
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
    kinds = {m: (*layer, *ts) for m, ts in feed_forward(c, shared=int(is_newer), corrected=is_newer).items()}
    return with_drafts(c, Schema(embedding(c), kinds, mlp_types(c, dense=int(is_newer))), "sparse")


def with_drafts(c: Config, made: Schema, kind: str) -> Schema:
    """Return a schema with its MTP layers: layers of a ``kind`` with what a draft has besides."""
    more = tuple(t for t in blocks.draft(c) if t.optional is None)
    drafts = ("mtp",) * c.size("num_nextn_predict_layers", 0, least=0)
    return replace(made, kinds={**made.kinds, "mtp": (*made.kinds[kind], *more)}, drafts=drafts) if drafts else made


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
    **{name: s for name, s in blocks.DRAFT_SPELLING.items() if name in ("mtp.eh_proj", "mtp.enorm", "mtp.hnorm")},
    "mtp.norm": blocks.LAYER + "final_layernorm.weight",
}
NATIVE: Final = (
    *blocks.DECODER_NATIVE,
    *blocks.EXPERTS_NATIVE,
    *blocks.gated_mlp_native("mlp.shared_experts", logical="shared"),
    *blocks.DRAFT_NATIVE,
)

FAMILY = Family(
    name="bailing_moe",
    architectures=("BailingMoeForCausalLM", "BailingMoeV2ForCausalLM", *_NEWER),
    schema=schema,
    spelling=SPELLING,
    native=NATIVE,
    waived=(blocks.INV_FREQ,),
    unchecked=dict.fromkeys(("BailingMoeForCausalLM", "BailingMoeV2ForCausalLM", *_NEWER), OF_VLLM),
)
