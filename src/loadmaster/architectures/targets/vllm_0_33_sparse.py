"""vLLM 0.33's mixtures with block-sparse or sliding attention: architecture in config.json → how vLLM implements it (`vllm`).

Sources: ``vllm/models/{minimax_m3,muse_spark}`` of 0.33.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from loadmaster.architectures.config import Config
from loadmaster.architectures.schema import Param
from loadmaster.architectures.target import Held
from loadmaster.architectures.targets.vllm import Described
from loadmaster.architectures.targets.vllm_0_32 import untied


def _minimax_m3(c: Config) -> str | None:
    """vLLM sizes shared experts as routed ones, and has a correction bias only if the config says so."""
    if c.size("shared_intermediate_size", 3072) != c.size("intermediate_size", 3072):
        return "shared_intermediate_size is not intermediate_size"
    return untied(c) if c.flag("use_routing_bias") else "use_routing_bias is not true"


_QKV: Final = "{block}.self_attn.qkv_proj.weight"

_MINIMAX_M3 = Described(
    ("MiniMaxM3SparseForCausalLM",),
    modules=(
        ("mlp.experts.", "block_sparse_moe.experts.routed_experts."),
        ("mlp.gate.e_score_correction_bias", "block_sparse_moe.e_score_correction_bias"),
        ("mlp.gate.", "block_sparse_moe.gate."),
        ("mlp.shared_experts.", "block_sparse_moe.shared_experts."),
    ),
    keep=(("block_sparse_moe.gate.weight", "F32"),),
    params=(
        Param(_QKV, ("attn.q", "attn.k", "attn.v"), unless="indexer.q_proj"),
        Param(_QKV, ("attn.q", "attn.k", "attn.v", "indexer.q_proj", "indexer.k_proj")),
    ),
    formats={"mxfp8": (Held("weight", "F8_E4M3"), Held("weight_scale_inv", "U8", named="weight_scale"))},
    obstacle=_minimax_m3,
)

DESCRIBED: Final[Mapping[str, Described]] = {
    "MiniMaxM3SparseForCausalLM": _MINIMAX_M3,
    "MiniMaxM3SparseForConditionalGeneration": _MINIMAX_M3.inside("MiniMaxM3SparseForConditionalGeneration"),
    "MuseSparkForConditionalGeneration": Described(
        ("MuseSparkForConditionalGeneration",),
        modules=(
            ("input_layernorm.", "self_attn.pre_qkv_proj_norm."),
            ("post_attention_residual_gate.", "add_attn."),
            ("post_feedforward_residual_gate.", "add_ffn."),
            ("pre_feedforward_layernorm.", "pre_ffn_norm."),
            ("post_feedforward_layernorm.", "post_ffn_norm."),
            ("mlp.experts.post_expert_norm.", "feed_forward.post_expert_norm."),
            ("mlp.experts.", "feed_forward.experts.routed_experts."),
            ("mlp.gate.e_score_correction_bias", "feed_forward.expert_bias"),
            ("mlp.gate.", "feed_forward.router."),
            ("mlp.pre_expert_proj.", "feed_forward.pooler."),
            ("mlp.post_expert_proj.", "feed_forward.unpooler."),
            ("mlp.", "feed_forward."),
        ),
        keep=(("feed_forward.router.weight", "F32"),),
        params=(Param(_QKV, ("attn.q", "attn.k", "attn.v", "attn.gate"), rotary="pairs"),),
        computed=("feed_forward.router.weight",),  # times the multiplier of outputs
        formats={
            "nvfp4_modelopt": (
                Held("weight", "U8"),
                Held("weight_scale", "F8_E4M3"),
                Held("weight_scale_2", "F32", bare=True),
                Held("input_scale", "F32", bare=True),
            )
        },
        methods={"modelopt": "modelopt_fp4"},
        sends=("hidden_states",),
        obstacle=untied,
    ),
}
