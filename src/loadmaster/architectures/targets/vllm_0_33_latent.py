"""vLLM 0.33's models with latent or compressed attention: architecture in config.json → how vLLM implements it (`vllm`).

Sources: ``vllm/models/{deepseek_v4,kimi_k3,glm5next,hy_v4}`` and ``bailing_moe_v3`` in ``vllm/model_executor/models``, of 0.33.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import inf
from typing import Final

from loadmaster.architectures.config import Config
from loadmaster.architectures.schema import Param
from loadmaster.architectures.target import Held
from loadmaster.architectures.targets.vllm import CORRECTION, EXPERTS, F32_ROUTER, Described
from loadmaster.architectures.targets.vllm_0_32 import untied


def _deepseek_v4(c: Config) -> str | None:
    """vLLM has a correction bias for one method only, and biases for images only in models with vision."""
    if c.values.get("topk_method") != "noaux_tc":
        return f"topk_method is {c.values.get('topk_method')!r}, not 'noaux_tc'"
    return "it has vision" if c.size("vision_n_layers", 0, least=0) else None


_POWERS = Held("scale", "F8_E8M0", named="weight_scale_inv")

_DEEPSEEK_V4 = Described(
    ("DeepseekV4ForCausalLM",),
    drafts=("DeepSeekV4MTP",),
    on_every_stage=("hc_head_fn", "hc_head_base", "hc_head_scale"),
    modules=(
        ("ffn.experts.", "ffn.experts.routed_experts."),
        ("ffn.gate.bias", "ffn.gate.e_score_correction_bias"),
        ("norm.", "shared_head.norm."),  # of an MTP layer
    ),
    keep=(("ffn.gate.tid2eid", "I32"),),
    params=(
        Param("{block}.attn.fused_wqa_wkv.weight", ("attn.wq_a", "attn.wkv")),
        *(
            Param(f"{{block}}.attn.{of}.fused_wkv_wgate.weight", (f"attn.{of}.wkv", f"attn.{of}.wgate"))
            for of in ("compressor", "indexer.compressor")
        ),
        Param(
            "{block}.attn.attn_sink", ("attn.attn_sink",), sizes=(64, 128), filler=-inf
        ),  # FlashMLA's numbers of heads
    ),
    formats={
        "fp8_block": (Held("weight", "F8_E4M3"), _POWERS),
        "fp4": (Held("weight", "I8", held="U8"), Held("scale", "F8_E8M0", named="weight_scale", held="U8")),
    },
    methods={"fp8": "deepseek_v4_fp8"},
    sends=("hidden_states",),
    obstacle=_deepseek_v4,
    drafted=lambda c: not c.sizes("dspark_target_layer_ids"),
)


def _kimi_linear(c: Config) -> str | None:
    """Where the gate of linear attention is one matrix, vLLM has Kimi-K3's layers."""
    if c.section("linear_attn_config").flag("use_full_rank_gate"):
        return "use_full_rank_gate is true"
    return "mla_use_output_gate is true" if c.flag("mla_use_output_gate") else untied(c)


def _kimi_k3(c: Config) -> str | None:
    """vLLM fuses what Kimi-K3 has."""
    if not c.section("linear_attn_config").flag("use_full_rank_gate"):
        return "use_full_rank_gate is not true"
    if not c.flag("mla_use_output_gate") or c.optional_size("q_lora_rank") is None:
        return "latent attention has no gate, or no compressed queries"
    return untied(c)


_KIMI_LINEAR = Described(
    ("KimiLinearForCausalLM",),
    modules=(
        ("mlp.experts.", "block_sparse_moe.experts.routed_experts."),
        ("mlp.gate.", "block_sparse_moe.gate."),
        ("mlp.shared_experts.", "block_sparse_moe.shared_experts."),
        ("mlp.routed_expert_", "block_sparse_moe.routed_expert_"),
    ),
    keep=(("self_attn.conv1d.weight", "F32"),),
    params=(
        Param(
            "{block}.self_attn.in_proj_qkvgfab.weight", ("linear.q", "linear.k", "linear.v", "linear.b", "linear.f_a")
        ),
        Param("{block}.self_attn.A_log", ("linear.a_log",), ones=(0, 0)),
    ),
    obstacle=_kimi_linear,
)
_KIMI_K3 = replace(
    _KIMI_LINEAR,
    classes=("KimiK3ForConditionalGeneration",),
    within="language_model.",
    params=(
        Param(
            "{block}.self_attn.in_proj_qkvgfab.weight",
            ("linear.q", "linear.k", "linear.v", "linear.g", "linear.f_a", "linear.b"),
            sizes=(16,),
        ),
        Param("{block}.self_attn.fused_qkv_a_g_proj.weight", ("attn.q_a", "attn.kv_a", "attn.gate")),
    ),
    formats={"mxfp4_packed": (Held("weight_packed", "U8", named="weight"), Held("weight_scale", "U8"))},
    methods={"compressed-tensors": "mxfp4"},
    obstacle=_kimi_k3,
)


def _hy_v4(c: Config) -> str | None:
    """vLLM has indexers in layers that the config calls sparse."""
    types = c.strings("layer_types")
    if len(types) < c.size("num_hidden_layers") or not {*types} <= _SPARSE:
        return "layer_types does not say that all layers are sparse"
    return untied(c)


def _glm5_next(c: Config) -> str | None:
    """vLLM fills up keys that are not rotated, and its latent attention has compressed queries."""
    if c.size("qk_rope_head_dim", 0, least=0) or c.optional_size("q_lora_rank") is None:
        return "latent attention has rotated keys, or no compressed queries"
    return untied(c)


_GLM5_NEXT = Described(
    ("Glm5NextForCausalLM",),
    drafts=("Glm5NextMTP",),
    draft_names=(("embed_tokens.", "model.embed_tokens."), ("", "model.layers.{layer}.")),
    keep=(
        *((f"hc_{of}_fn", "F32") for of in ("attn", "ffn")),
        ("self_attn.indexer.index_kpool_compress_ape", "F32"),
        ("self_attn.indexer.k_norm.weight", "F32"),
        ("self_attn.indexer.k_norm.bias", "F32"),
    ),
    params=(
        Param(
            "{block}.self_attn.in_proj_qkvbfg_a.weight",
            ("linear.q", "linear.k", "linear.v", "linear.b", "linear.f_a", "linear.g_a"),
        ),
        *(
            Param(f"{{block}}.self_attn.{of}_conv1d.weight", (f"linear.conv_{of}",), keep="F32")
            for of in ("q", "k", "v")
        ),
        Param("{block}.self_attn.A_log", ("linear.a_log",), ones=(2, 1)),
        # latent attention is BF16, whatever is stored
        Param("{block}.self_attn.fused_qkv_a_proj.weight", ("attn.q_a", "attn.kv_a"), "decoded"),
        Param("{block}.self_attn.q_b_proj.weight", ("attn.q_b",), "decoded"),
        Param("{block}.self_attn.o_proj.weight", ("attn.o",), "decoded"),
    ),
    sends=(),  # vLLM does not divide it into stages
    obstacle=_glm5_next,
)


def _ling_3(c: Config) -> str | None:
    """vLLM fuses compressed queries with latents, and always has a correction bias."""
    return "queries are compressed" if c.values.get("q_lora_rank") is not None else untied(c)


_LING_3 = Described(
    ("BailingMoeV3ForCausalLM",),
    drafts=("BailingMoeV3MTPModel",),
    draft_block="",
    modules=(EXPERTS, (CORRECTION, "mlp.gate.expert_bias"), ("shared_head.norm.", "final_layernorm.")),
    top=(("embed_tokens.", "word_embeddings."),),
    keep=F32_ROUTER,
    params=(
        Param("{block}.self_attn.qkvb_proj.weight", ("linear.q", "linear.k", "linear.v", "linear.b")),
        *(
            Param(f"{{block}}.self_attn.{of}_conv1d.weight", (f"linear.conv_{of}",), keep="F32")
            for of in ("q", "k", "v")
        ),
        Param("{block}.self_attn.A_log", ("linear.a_log",), ones=(2, 1)),
        Param("{block}.self_attn.dense.weight", ("attn.o",)),
    ),
    obstacle=_ling_3,
)

_SPARSE = {"deepseek_sparse_attention", "sparse_attention", "sparse", "indexed_attention"}

_HY_V4 = Described(
    ("HYV4ForCausalLM",),
    drafts=("HYV4MTP",),
    modules=(
        EXPERTS,
        ("shared_head.norm.", "final_layernorm."),
        ("mlp.gate.e_score_correction_bias", "mlp.expert_bias"),
        ("self_attn.gate_proj.", "self_attn.linear_gate."),
        ("self_attn.sinks", "self_attn.learnable_sink_param"),
        *((f"hc_{of}.fn", f"hc_{of}_layer.hc_pre.hc_fn.weight") for of in ("attn", "mlp")),
        *((f"hc_{of}.", f"hc_{of}_layer.hc_pre.hc_") for of in ("attn", "mlp")),
    ),
    top=(("hc_head.fn", "hc_head.hc_head_fn.weight"), ("hc_head.", "hc_head.hc_head_")),
    keep=(
        ("mlp.gate.weight", "F32"),
        ("self_attn.learnable_sink_param", "F32"),
        ("self_attn.indexer.k_norm.weight", "F32"),
        ("self_attn.indexer.k_norm.bias", "F32"),
    ),
    sends=("hidden_states",),
    obstacle=_hy_v4,
)

DESCRIBED: Final[Mapping[str, Described]] = {
    "DeepseekV4ForCausalLM": _DEEPSEEK_V4,
    "KimiLinearForCausalLM": _KIMI_LINEAR,
    "KimiK3ForConditionalGeneration": _KIMI_K3,
    "HYV4ForCausalLM": _HY_V4,
    "BailingMoeV3ForCausalLM": _LING_3,
    "Glm5NextForConditionalGeneration": _GLM5_NEXT.inside("Glm5NextForConditionalGeneration"),
    "Glm5NextForCausalLM": _GLM5_NEXT,
}
