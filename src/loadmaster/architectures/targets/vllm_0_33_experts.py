"""vLLM 0.33's further mixtures of experts: architecture in config.json → how vLLM implements it (`vllm`).

Sources: the files of the classes in ``vllm/model_executor/models`` and ``vllm/models``, of 0.33.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from loadmaster.architectures.config import Config
from loadmaster.architectures.schema import Param, by_rows
from loadmaster.architectures.targets.vllm import (
    BIAS,
    CORRECTION,
    EMBEDDING,
    EXPERTS,
    F32_ROUTER,
    HEAD,
    NORM,
    TIED,
    WHOLE_NORMS,
    Described,
    without,
)
from loadmaster.architectures.targets.vllm_0_33_mixed import QWEN_DRAFT


def _k2_horizon(c: Config) -> str | None:
    """vLLM has another order of rows where rotary embeddings turn a part of each head."""
    head = c.size("head_dim", c.size("hidden_size") // c.size("num_attention_heads"))
    partial = c.size("rope_head_dim", head) != head
    return "rope_head_dim is not head_dim" if partial else None


def _cohere2_moe(c: Config) -> str | None:
    """vLLM leaves a head unread."""
    return without(BIAS)(c) if c.flag(TIED, True) else "the head is not tied to the embedding"


def _mimo_v2(c: Config) -> str | None:
    """vLLM pads, permutes or quantises anew a packed q, k and v, as the number of ranks wants it."""
    layout = c.values.get("attention_projection_layout")
    if layout == "fused_qkv":
        return f"attention_projection_layout is {layout!r}"
    return without(TIED, "add_full_attention_sink_bias")(c)


_EVERYTHING: Final = (EMBEDDING, NORM, HEAD)
_QKV: Final = "{block}.self_attn.qkv_proj"

DESCRIBED: Final[Mapping[str, Described]] = {
    "MiMoV2FlashForCausalLM": Described(
        ("MiMoV2FlashForCausalLM",),
        drafts=("MiMoV2MTP",),
        draft_block="",
        draft_names=(
            ("embed_tokens.", "model.embed_tokens."),
            ("shared_head.norm.", "model.mtp.layers.{number}.final_layernorm."),
            ("post_attention_layernorm.", "model.mtp.layers.{number}.pre_mlp_layernorm."),
            ("", "model.mtp.layers.{number}."),
        ),
        modules=(EXPERTS, ("self_attn.sinks", "self_attn.attention_sink_bias")),
        keep=F32_ROUTER,
        obstacle=_mimo_v2,
    ),
    "Ernie4_5_MoeForCausalLM": Described(
        ("Ernie4_5_MoeForCausalLM",),
        keep=F32_ROUTER,
        params=(Param("{block}." + CORRECTION, ("moe.statics",), ones=(0, 0)),),
        obstacle=without("use_bias"),
    ),
    "OlmoeForCausalLM": Described(
        ("OlmoeForCausalLM",),
        on_every_stage=_EVERYTHING,
        placements=WHOLE_NORMS,
        obstacle=without(TIED, BIAS),
    ),
    "PhiMoEForCausalLM": Described(
        ("PhiMoEForCausalLM",),
        modules=(
            ("mlp.experts.", "block_sparse_moe.experts.routed_experts."),
            ("mlp.gate.", "block_sparse_moe.gate."),
        ),
        on_every_stage=(*_EVERYTHING, "norm.bias", "lm_head.bias"),
        obstacle=without(TIED),
    ),
    "AfmoeForCausalLM": Described(
        ("AfmoeForCausalLM",),
        modules=(EXPERTS, (CORRECTION, "mlp.expert_bias")),
        keep=F32_ROUTER,
        obstacle=without(TIED, BIAS),
    ),
    "HYV3ForCausalLM": Described(
        ("HYV3ForCausalLM",),
        drafts=("HYV3MTP",),
        modules=(
            EXPERTS,
            (CORRECTION, "mlp.expert_bias"),
            ("mlp.shared_experts.", "mlp.shared_mlp."),
            ("shared_head.norm.", "final_layernorm."),
        ),
        on_every_stage=_EVERYTHING,
        keep=F32_ROUTER,
        obstacle=without(BIAS),
    ),
    "Cohere2MoeForCausalLM": Described(
        ("Cohere2MoeForCausalLM",),
        on_every_stage=(EMBEDDING, NORM),
        params=(Param("lm_head.weight", ("head",), stage="last"),),  # it has none if the head is tied
        obstacle=_cohere2_moe,
    ),
    "ExaoneMoeForCausalLM": Described(
        ("ExaoneMoeForCausalLM",),
        drafts=("ExaoneMoeMTP",),
        draft_block="",
        draft_names=QWEN_DRAFT,
        placements={"mtp.eh_proj": by_rows()},
        modules=(EXPERTS, (CORRECTION, "mlp.e_score_correction_bias")),
    ),
    "BeamForCausalLM": Described(
        ("BeamForCausalLM",),
        modules=(
            EXPERTS,
            *((f"{when}_mlp_layernorm.", f"{when}_feedforward_layernorm.") for when in ("pre", "post")),
        ),
        keep=F32_ROUTER,
        sends=("hidden_states",),
        obstacle=without(TIED, BIAS),
        params=(Param("{block}.self_attn.qkv_gate_proj.weight", ("attn.q", "attn.k", "attn.v", "attn.gate")),),
    ),
    "Step3TextForCausalLM": Described(
        ("Step3TextForCausalLM",),
        modules=(
            ("mlp.experts.", "moe.experts.routed_experts."),
            ("mlp.gate.", "moe.gate."),
            ("mlp.shared_experts.", "share_expert."),
        ),
        obstacle=without(TIED),
    ),
    "K2HorizonForCausalLM": Described(
        ("K2HorizonForCausalLM",),
        modules=(EXPERTS, (CORRECTION, "mlp.gate.bias")),
        on_every_stage=_EVERYTHING,
        params=(
            Param(_QKV + ".weight", ("attn.q", "attn.k", "attn.v")),
            Param(_QKV + ".bias", ("attn.q_bias", "attn.k_bias", "attn.v_bias")),
            Param("{block}.self_attn.qk_proj.weight", ("attn.q", "attn.k"), unless="attn.v"),
            Param("{block}.self_attn.qk_proj.bias", ("attn.q_bias", "attn.k_bias"), unless="attn.v_bias"),
        ),
        obstacle=_k2_horizon,
    ),
    "AriaForConditionalGeneration": Described(
        ("AriaForConditionalGeneration",),
        modules=(EXPERTS, ("mlp.gate.weight", "mlp.router_weight")),
        params=(Param("lm_head.weight", ("head",), stage="last"),),  # outside the language model
        within="language_model.",
        model="",
        obstacle=without(TIED),
    ),
    "InternS1ProForConditionalGeneration": Described(
        ("InternS1ProForConditionalGeneration",),
        top=(("rotary_emb.", "layers.0.self_attn.rotary_emb."),),  # on other stages the name of their first layer
        within="language_model.",
        sends=(),
    ),
    "LagunaForCausalLM": Described(
        ("LagunaForCausalLM",),
        modules=(
            (CORRECTION, "mlp.experts.routed_experts.e_score_correction_bias"),
            EXPERTS,
            ("self_attn.gate_proj.", "self_attn.g_proj."),
            ("mlp.shared_experts.", "mlp.shared_expert."),
        ),
        params=tuple(
            Param(f"{{block}}.mlp.{inner}{part}_proj.weight", (f"{of}.{part}",))
            for of, inner in (("mlp", ""), ("shared", "shared_expert."))
            for part in ("gate", "up")
        ),
    ),
}
