"""vLLM 0.33's models whose layers are of several kinds: architecture in config.json → how vLLM implements it (`vllm`).

Sources: ``vllm/models/qwen4_exp``, and ``qwen3_next``, ``qwen3_5``, ``nemotron_h``, ``step3p5``, ``gemma3``, ``gemma4``,
``gpt_oss``, ``llama4`` and ``transformers`` in ``vllm/model_executor/models``, and ``mamba_mixer2``, of 0.33.0. Not described
are the model around Step-3.7's language model, whose config vLLM 0.33 does not read with transformers 5.17; Mistral-Large-3,
whose releases it reads by Mistral's own config, and of whose experts it keeps one factor of activations for two matrices; and
Mistral-Large-4 and Inkling-2, which it does not have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from loadmaster.architectures.config import Config
from loadmaster.architectures.schema import Param, by_rows
from loadmaster.architectures.target import Held
from loadmaster.architectures.targets.vllm import EMBEDDING, EXPERTS, HEAD, NORM, WHOLE_NORMS, Described
from loadmaster.architectures.targets.vllm_0_32 import untied


def _qwen3_5(c: Config) -> str | None:
    """vLLM reads biases and scales of layers from keys of other architectures, and gates attention as the config says."""
    foreign = [k for k in ("attention_bias", "qkv_bias", "layer_scale") if c.flag(k)]
    if foreign:
        return f"{foreign[0]} is true"
    return None if c.flag("attn_output_gate", True) else "attn_output_gate is false"


def _qwen3_next(c: Config) -> str | None:
    """vLLM always has an untied head."""
    return _qwen3_5(c) or untied(c)


QWEN_DRAFT: Final = (
    ("eh_proj.", "model.fc."),
    ("enorm.", "model.pre_fc_norm_embedding."),
    ("hnorm.", "model.pre_fc_norm_hidden."),
    ("shared_head.norm.", "model.norm."),
    ("embed_tokens.", "model.embed_tokens."),
    ("", "model.layers.{number}."),
)
"""Names of a draft model with one layer, whose norms and projection are its own."""

_QWEN3_5 = Described(
    ("Qwen3_5ForCausalLM",),
    drafts=("Qwen3_5MTP", "Qwen3_5MoeMTP"),
    draft_block="",
    draft_names=QWEN_DRAFT,
    placements={"mtp.eh_proj": by_rows()},
    on_every_stage=(EMBEDDING,),
    keep=(("linear_attn.A_log", "F32"),),
    obstacle=_qwen3_5,
)

_NEMOTRON_H = Described(
    ("NemotronHForCausalLM",),
    drafts=("NemotronHMTP",),
    draft_block="",
    draft_names=(
        ("shared_head.norm.", "model.layers.{number}.final_layernorm."),
        ("", "model.layers.{number}."),
    ),
    placements={"mtp.eh_proj": by_rows()},
    modules=(
        ("mixer.experts.w1_weight", "mixer.experts.routed_experts.w13_weight"),
        ("mixer.experts.", "mixer.experts.routed_experts."),
        ("mixer.A_log", "mixer.A"),
    ),
    top=(("norm.", "norm_f."),),
    on_every_stage=(EMBEDDING, NORM, HEAD),
    keep=(("mixer.A", "F32"),),
    computed=("mixer.A",),  # -exp(A_log)
    obstacle=untied,
)

_STEP3 = Described(
    ("Step3p5ForCausalLM",),
    drafts=("Step3p5MTP",),
    modules=(
        ("mlp.experts.", "moe.experts.routed_experts."),
        ("mlp.gate.e_score_correction_bias", "moe.router_bias"),
        ("mlp.gate.", "moe.gate."),
        ("mlp.shared_experts.", "moe.share_expert."),
    ),
    keep=(("moe.gate.weight", "F32"),),
    sends=("hidden_states",),
    obstacle=untied,
)

_GEMMA3 = Described(("Gemma3ForCausalLM",), on_every_stage=(EMBEDDING, NORM, HEAD))

_GPT_OSS = Described(
    ("GptOssForCausalLM",),
    modules=(("self_attn.", "attn."), EXPERTS),
    top=(("embed_tokens.", "embedding."),),
    on_every_stage=(EMBEDDING, NORM, HEAD),
    computed=("mlp.experts.routed_experts.w2_bias",),  # zeros on all ranks but the first, whose sum is taken
    formats={"mxfp4": (Held("_blocks", "U8", named="weight", flat=True), Held("_scales", "U8", named="weight_scale"))},
    methods={"mxfp4": "gpt_oss_mxfp4"},
    obstacle=untied,
)

_LLAMA4 = Described(
    ("Llama4ForCausalLM",),
    modules=(
        ("mlp.experts.", "feed_forward.experts.routed_experts."),
        ("mlp.gate.", "feed_forward.router."),
        ("mlp.", "feed_forward."),
    ),
    params=(Param("{block}.self_attn.qkv_proj.weight", ("attn.q", "attn.k", "attn.v"), rotary="halves"),),
)

_GEMMA4 = Described(
    ("Gemma4ForCausalLM",),
    modules=(("experts.", "experts.routed_experts."),),
    on_every_stage=(EMBEDDING, NORM, HEAD),
    placements={"per_layer.projection": by_rows()},
    params=(
        Param("{block}.self_attn.qkv_proj.weight", ("attn.q", "attn.k", "attn.v")),
        Param("{block}.self_attn.qkv_proj.weight", ("attn.q", "attn.k", "attn.k"), unless="attn.v"),
        Param("{block}.self_attn.q_proj.weight", ("attn.q",), unless="attn.k"),
    ),
    sends=("hidden_states", "per_layer_inputs"),
)

_QKV: Final = "{block}.self_attn.qkv_proj.weight"
_QWEN4_EXP = replace(
    _QWEN3_5,
    classes=("Qwen4ExpForCausalLM",),
    drafts=("Qwen4ExpMTP",),
    placements={"mtp.fc_embedding": by_rows(), "mtp.fc_hidden": by_rows()},
    draft_names=(
        *(
            (part, f"model.{part}")
            for part in ("fc_embedding.", "fc_hidden.", "hyper_connection_mixer.", "pre_fc_norm_", "embed_tokens.")
        ),
        ("", "model.layers.{number}."),
    ),
    on_every_stage=(EMBEDDING, HEAD),
    params=(
        Param(_QKV, ("attn.q", "attn.k", "attn.v"), unless="indexer.qk"),
        Param(_QKV, ("attn.q", "attn.k", "attn.v", "indexer.qk")),
        *(
            Param(
                f"{{block}}.{of}_hyper_connection.input_mix_weight_down_block_inject.weight",
                tuple(f"{of}.hc.{part}" for part in ("input_mix_weight_down", "block_inject_weight")),
                sizes=(16,),
            )
            for of in ("attn", "mlp")
        ),
    ),
    formats={},
    sends=("hidden_states",),
    obstacle=untied,
)

_OLMO = Described(
    ("TransformersForCausalLM",),
    placements=WHOLE_NORMS,
    sends=("hidden_states",),
)

DESCRIBED: Final[Mapping[str, Described]] = {
    "Gemma3ForCausalLM": _GEMMA3,
    "Gemma3ForConditionalGeneration": _GEMMA3.inside("Gemma3ForConditionalGeneration"),
    "Gemma4ForCausalLM": _GEMMA4,
    "Gemma4ForConditionalGeneration": _GEMMA4.inside("Gemma4ForConditionalGeneration"),
    "GptOssForCausalLM": _GPT_OSS,
    "Llama4ForCausalLM": _LLAMA4,
    "Llama4ForConditionalGeneration": _LLAMA4.inside("Llama4ForConditionalGeneration"),
    "NemotronHForCausalLM": _NEMOTRON_H,
    "Olmo2ForCausalLM": _OLMO,
    "Olmo3ForCausalLM": _OLMO,
    "Step3p5ForCausalLM": _STEP3,
    "Qwen3NextForCausalLM": replace(
        _QWEN3_5, classes=("Qwen3NextForCausalLM",), drafts=(), on_every_stage=(EMBEDDING, HEAD), obstacle=_qwen3_next
    ),
    "Qwen3_5ForCausalLM": _QWEN3_5,
    "Qwen4ExpForCausalLM": _QWEN4_EXP,
    "Qwen4ExpForConditionalGeneration": _QWEN4_EXP.inside("Qwen4ExpForConditionalGeneration"),
    "Qwen3_5MoeForCausalLM": replace(_QWEN3_5, classes=("Qwen3_5MoeForCausalLM",)),
    **{
        wrapper: _QWEN3_5.inside(wrapper)
        for wrapper in ("Qwen3_5ForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration")
    },
}
