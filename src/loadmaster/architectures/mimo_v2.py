"""MiMo-V2 (Flash, V2.5, V2.6): sliding and global attention of other sizes, sinks, MTP layers that are dense.

Heads of values are smaller than those of keys, and sliding layers may have other heads than global ones. V2-Flash stores q, k and
v apart. Later releases store one tensor, made for as many ranks as global layers have heads of keys: a chunk of each,
``[Q0|K0|V0|Q1|…]``, whose FP8 blocks begin anew in each chunk (V2.5-Pro: 8 chunks of 3392 rows, 26.5 blocks, have 8 × 27
rows of scales). V2.6's experts are MXFP4. The MTP layers are three, which no config says, and share embedding and head.

Sources: header listings of V2.5-Pro and V2.6; ``mimo_v2.py``, ``mimo_v2_mtp.py`` and ``mimo_v2_omni.py`` in
``vllm/model_executor/models``; ``mimo_v2_flash`` of transformers, which has no MTP layers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.model import require
from loadmaster.architectures.schema import LANGUAGE_ONLY, Family, Param, Schema, Tensor, by_rows, embedding
from loadmaster.architectures.spelling import Spelling, packed, respelled
from loadmaster.errors import ConfigError

GLOBAL, SLIDING = "full_attention", "sliding_attention"
DENSE, SPARSE = "dense", "sparse"
NUM_DRAFTS: Final = 3


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    require(c, "n_shared_experts", None)
    hidden, inner = c.size("hidden_size"), c.size("intermediate_size")
    experts = blocks.experts(hidden, c.size("moe_intermediate_size"), c.size("n_routed_experts"), router_bias=True)
    mlps = {DENSE: blocks.gated_mlp(hidden, inner), SPARSE: experts}
    attentions = {kind: (*blocks.norms(hidden), *_attention(c, kind)) for kind in (GLOBAL, SLIDING)}
    draft = (
        Tensor("mtp.eh_proj", (hidden, 2 * hidden)),
        *(Tensor(f"mtp.{norm}", (hidden,)) for norm in ("enorm", "hnorm", "norm")),
    )
    return Schema(
        top=embedding(c),
        kinds={
            **{f"{mlp}/{kind}": (*attentions[kind], *mlps[mlp]) for mlp in mlps for kind in attentions},
            "mtp": (*attentions[SLIDING], *mlps[DENSE], *draft),
        },
        layers=_layers(c),
        drafts=("mtp",) * c.size("num_nextn_predict_layers", NUM_DRAFTS, least=0),
    )


def _layers(c: Config) -> tuple[str, ...]:
    """Return the kind of each layer, from transformers' lists of types, or from MiMo's lists of 0 and 1."""
    count = c.size("num_hidden_layers")
    mlps, attentions = (
        c.types(key, types, count, [types[mark] for mark in c.marks(of_marks, count)])
        for key, of_marks, types in (
            ("mlp_layer_types", "moe_layer_freq", (DENSE, SPARSE)),
            ("layer_types", "hybrid_layer_pattern", (GLOBAL, SLIDING)),
        )
    )
    return tuple(f"{mlp}/{attention}" for mlp, attention in zip(mlps, attentions, strict=True))


def _attention(c: Config, kind: str) -> tuple[Tensor, ...]:
    hidden, heads, kv_heads, head = blocks.heads_of(c)
    groups, v_head, sink = kv_heads, c.size("v_head_dim", head), "add_full_attention_sink_bias"
    if kind == SLIDING:
        heads, kv_heads = c.size("swa_num_attention_heads", heads), c.size("swa_num_key_value_heads", 2 * kv_heads)
        head, v_head = c.size("swa_head_dim", head), c.size("swa_v_head_dim", v_head)
        sink = "add_swa_attention_sink_bias"
    fused = c.values.get("attention_projection_layout") == "fused_qkv"
    bias = c.flag("attention_bias")
    if fused and (heads % groups or kv_heads % groups):
        raise ConfigError(
            f"config.json: {heads} and {kv_heads} heads cannot be stored in {groups} chunks (num_key_value_heads)"
        )
    attention = blocks.attention(hidden, heads, kv_heads, head, v_head=v_head, bias=bias, groups=groups if fused else 1)
    # The releases leave o out of FP8.
    tensors = tuple(replace(t, rarely=True) if t.name == "attn.o" else t for t in attention)
    return (*tensors, Tensor("attn.sink", (heads,), by_rows())) if c.flag(sink, kind == SLIDING) else tensors


_QKV = ("attn.q", "attn.k", "attn.v")
_APART: Spelling = {
    **blocks.DECODER_SPELLING,
    **blocks.experts_spelling(),
    "attn.sink": blocks.LAYER + "self_attn.attention_sink_bias",
}
_FUSED: Spelling = {
    **_APART,
    **packed(blocks.LAYER + "self_attn.qkv_proj.weight", *_QKV, by_group=True, apart=True),
    **packed(blocks.LAYER + "self_attn.qkv_proj.bias", *(f"{part}_bias" for part in _QKV), by_group=True),
}


def _drafts(body: Spelling) -> Spelling:
    layer = "model.mtp.layers.{layer}."
    of_layer = {name: stored for name, stored in body.items() if name not in blocks.TOP_SPELLING}
    return {
        **respelled(of_layer, (blocks.LAYER, layer)),
        "post_norm": layer + "pre_mlp_layernorm.weight",
        "mtp.eh_proj": layer + "eh_proj.weight",
        "mtp.enorm": layer + "enorm.weight",
        "mtp.hnorm": layer + "hnorm.weight",
        "mtp.norm": layer + "final_layernorm.weight",
    }


FAMILY = Family(
    name="mimo_v2",
    architectures=("MiMoV2ForCausalLM", "MiMoV2FlashForCausalLM"),
    schema=schema,
    spelling=_FUSED,
    variants=(_APART,),
    drafts=(_drafts(_FUSED), _drafts(_APART)),
    native=(
        *blocks.DECODER_NATIVE,
        *blocks.EXPERTS_NATIVE,
        Param("{block}.self_attn.sinks", ("attn.sink",)),
        *blocks.DRAFT_NATIVE,
    ),
    waived=(
        blocks.INV_FREQ,
        (
            r"(model\.)?(visual|audio_encoder|audio_tokenizer|speech_embeddings)\..*",
            LANGUAGE_ONLY,
        ),
    ),
)
