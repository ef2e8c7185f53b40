"""Tiny models for `vllm_tokens_gpu`: sizes that vLLM's kernels on an H100 or H200 take, and how they are run.

`MODELS` are those that every run has; `RECENT` are the families that only vLLM 0.33 is described for. Heads have 64 or 128
elements, latent attention the sizes that FlashMLA has, and matrices whole blocks of 128. vLLM 0.33 builds them all, with
the kernels that it chooses for an H100 without packages beside it. To run, Gemma-4, DeepSeek-V4 and GLM-5.3-Flash need
nvidia-cutlass-dsl or tilelang, and MiniMax-M3 flashinfer-python, which vLLM requires too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from loadmaster.audit.accepted import WRAPPED
from loadmaster.audit.case import Case
from loadmaster.synth.presets import merged

PP2, TP2 = {"pipeline_parallel_size": 2}, {"tensor_parallel_size": 2}
EP2 = {**TP2, "enable_expert_parallel": True}
EPLB = {**EP2, "enable_eplb": True, "eplb_config": {"num_redundant_experts": 2}}
MTP = {"speculative_config": {"method": "mtp", "num_speculative_tokens": 1}}
TRITON = {"gdn_prefill_backend": "triton", "kda_prefill_backend": "triton", "kda_decode_backend": "triton"}
"""Kernels of recurrent layers that need nothing beside vLLM; its first choice on Hopper is flashinfer-python's."""
FLASH_MLA = {"attention_backend": "FLASHMLA_SPARSE"}
"""What needs nothing beside vLLM: its first choice on Hopper is compiled by nvidia-cutlass-dsl."""
LATENT = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128}
SPARSE = {
    **LATENT,
    "qk_nope_head_dim": 192,
    "v_head_dim": 256,
    "qk_head_dim": 256,
    "head_dim": 64,
    "hidden_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "index_head_dim": 128,
    "index_n_heads": 32,
    "index_topk": 2048,
}
_INDEXED = {"num_attention_heads": 64, "index_head_dim": 128, "index_n_heads": 64, "hidden_size": 512}
_RECURRENT = {"head_dim": 128, "linear_key_head_dim": 128, "linear_value_head_dim": 128, "hidden_size": 256}
_EXPERTS = {"moe_intermediate_size": 128, "shared_expert_intermediate_size": 128}
_GEMMA_4 = {"head_dim": 128, "global_head_dim": 256, "hidden_size": 256, "max_position_embeddings": 1024}


def _inside(preset: str, **changes: Any) -> dict[str, Any]:
    """Return a wrapped preset's changes, with more of them to its language model."""
    values = WRAPPED[preset]
    return {**values, "text_config": merged(values["text_config"], changes)}


def _delta(preset: str) -> dict[str, Any]:
    """Return the sizes of the delta rule of a Kimi-like preset."""
    values = Case(preset, preset).config
    return {**values.get("text_config", values)["linear_attn_config"], "head_dim": 128}


MODELS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "qwen3": ("qwen3", {"head_dim": 128}),
    "qwen3-moe-fp8": ("qwen3-moe-fp8", {"head_dim": 128, "hidden_size": 256, "moe_intermediate_size": 256}),
    "deepseek-v3": ("deepseek-v3", {**LATENT, "max_position_embeddings": 4096}),
    "glm-5.1-fp8": ("glm-5.1-fp8", {**SPARSE, "max_position_embeddings": 4096}),
    "gpt-oss": ("gpt-oss", {"head_dim": 64, "hidden_size": 512, "intermediate_size": 480}),  # 15 blocks
    "gpt-oss-bf16": ("gpt-oss-bf16", {"head_dim": 64, "hidden_size": 512, "intermediate_size": 512}),
    "qwen3-next": ("qwen3-next", {**_RECURRENT, **_EXPERTS}),
    "qwen3.8": ("qwen3.8", _RECURRENT),
    "qwen3.5-moe": ("qwen3.5-moe", {**_RECURRENT, **_EXPERTS}),
    "nemotron-3-super": (
        "nemotron-3-super",
        {
            "head_dim": 128,
            "hidden_size": 256,
            "intermediate_size": 256,
            "mamba_head_dim": 64,
            "ssm_state_size": 128,
            "moe_intermediate_size": 128,
            "moe_latent_size": 128,
            "moe_shared_expert_intermediate_size": 128,
        },
    ),
    "step-3.5": (
        "step-3.7-flash",
        {
            "head_dim": 128,
            "attention_other_setting": {
                "attention_type": "sliding_attention",
                "head_dim": 128,
                "num_attention_groups": 2,
                "num_attention_heads": 16,
            },
            "hidden_size": 256,
            "intermediate_size": 256,
            "moe_intermediate_size": 128,
            "share_expert_dim": 128,
        },
    ),
    "gemma-3": ("gemma-3", {"head_dim": 128, "hidden_size": 256}),
    "gemma-4": ("gemma-4-26b-a4b", {**_GEMMA_4, "moe_intermediate_size": 128}),
    "gemma-4-e2b": ("gemma-4-e2b", {**_GEMMA_4, "hidden_size_per_layer_input": 64}),
    "llama-4": ("llama-4", {"head_dim": 128, "hidden_size": 256, "num_experts_per_tok": 1}),
    "mistral-4": (
        "mistral-4",
        {
            "hidden_size": 256,
            "intermediate_size": 256,
            "moe_intermediate_size": 128,
            "q_lora_rank": 128,
            "kv_lora_rank": 512,
            "qk_rope_head_dim": 64,
            "qk_nope_head_dim": 128,
            "v_head_dim": 128,
        },
    ),
    "olmo-2": ("olmo-2", {"hidden_size": 512}),  # heads of 64
    "olmo-3": ("olmo-3", {"hidden_size": 512}),
    "kimi-linear": (
        "kimi-linear",
        {**LATENT, "hidden_size": 256, "intermediate_size": 256, "linear_attn_config": _delta("kimi-linear")},
    ),
    "kimi-k3": (
        "kimi-k3",
        _inside("kimi-k3", **LATENT, hidden_size=256, linear_attn_config=_delta("kimi-k3")),
    ),
    "qwen3.8-flash-next": (
        "qwen3.8-flash-next",
        _inside(
            "qwen3.8-flash-next",
            **{**_RECURRENT, **_EXPERTS},
            rope_parameters={"mrope_section": [6, 5, 5]},  # half of a quarter of a head
            indexer_head_dim=128,
        ),
    ),
    "ling-3": (
        "ling-3.0-flash",
        {**LATENT, "head_dim": 128, "hidden_size": 256, "intermediate_size": 256, "moe_intermediate_size": 128}
        | {"moe_shared_expert_intermediate_size": 128},
    ),
    "deepseek-v4": (
        "deepseek-v4-flash",
        {
            **_INDEXED,
            "head_dim": 512,
            "index_topk": 512,
            "q_lora_rank": 256,
            "o_groups": 8,
            "moe_intermediate_size": 256,
        },
    ),
    "glm-5.3-flash": (
        "glm-5.3-flash",
        _inside(
            "glm-5.3-flash",
            **_INDEXED,
            num_key_value_heads=64,
            qk_nope_head_dim=192,
            v_head_dim=256,
            index_topk=2048,
            linear_attn_config=_delta("glm-5.3-flash"),
        ),
    ),
    "hy4": ("hy4-preview", {**LATENT, **_INDEXED, "moe_intermediate_size": 128, "index_topk": 2048}),
    "minimax-m3": (
        "minimax-m3-mxfp8",
        _inside("minimax-m3-mxfp8", hidden_size=256, intermediate_size=256, shared_intermediate_size=256),
    ),
    "muse-spark": ("muse-spark-nvfp4", {**_inside("muse-spark-nvfp4", head_dim=128), "quantization_config": None}),
    "muse-spark-nvfp4": ("muse-spark-nvfp4", _inside("muse-spark-nvfp4", head_dim=128)),
}
"""Name → preset, and changes to its tiny config."""

RUNS: Final[dict[str, tuple[str, dict[str, Any], str | None]]] = {
    "qwen3": ("qwen3", {}, None),
    "qwen3, reload": ("qwen3", {}, "reload"),
    "qwen3, sleep": ("qwen3", {"enable_sleep_mode": True}, "sleep"),
    "qwen3-moe-fp8": ("qwen3-moe-fp8", {}, None),
    "deepseek-v3": ("deepseek-v3", {}, None),
    "deepseek-v3, mtp": ("deepseek-v3", MTP, None),
    "glm-5.1-fp8": ("glm-5.1-fp8", FLASH_MLA, None),
    "glm-5.1-fp8, mtp": ("glm-5.1-fp8", {**FLASH_MLA, **MTP}, None),
    "qwen3, pp 2": ("qwen3", PP2, None),
    "qwen3, tp 2": ("qwen3", TP2, None),
    "qwen3, pp 2, reload": ("qwen3", PP2, "reload"),
    "qwen3, tp 2, sleep": ("qwen3", {**TP2, "enable_sleep_mode": True}, "sleep"),
    "qwen3-moe-fp8, pp 2": ("qwen3-moe-fp8", PP2, None),
    "qwen3-moe-fp8, tp 2": ("qwen3-moe-fp8", TP2, None),
    "qwen3-moe-fp8, ep 2": ("qwen3-moe-fp8", EP2, None),
    "qwen3-moe-fp8, eplb 2": ("qwen3-moe-fp8", EPLB, None),
    "deepseek-v3, pp 2": ("deepseek-v3", PP2, None),
    "deepseek-v3, mtp, tp 2": ("deepseek-v3", {**TP2, **MTP}, None),
    "deepseek-v3, mtp, ep 2": ("deepseek-v3", {**EP2, **MTP}, None),
    "glm-5.1-fp8, pp 2": ("glm-5.1-fp8", {**FLASH_MLA, **PP2}, None),
    "glm-5.1-fp8, mtp, pp 2": ("glm-5.1-fp8", {**FLASH_MLA, **MTP, **PP2}, None),
    "glm-5.1-fp8, mtp, tp 2": ("glm-5.1-fp8", {**FLASH_MLA, **MTP, **TP2}, None),
    "glm-5.1-fp8, mtp, ep 2": ("glm-5.1-fp8", {**FLASH_MLA, **MTP, **EP2}, None),
}
"""Name → model, arguments of the engine, and what is done while it runs."""

RECENT: Final[dict[str, tuple[str, dict[str, Any], str | None]]] = {
    **{name: (name, {}, None) for name in list(MODELS)[4:]},
    **{name: (name, TRITON, None) for name in ("qwen3-next", "qwen3.8", "qwen3.5-moe", "qwen3.8-flash-next")},
    **{name: (name, TRITON, None) for name in ("kimi-linear", "kimi-k3", "ling-3")},
    "glm-5.3-flash": ("glm-5.3-flash", FLASH_MLA, None),
    "gpt-oss, tp 2": ("gpt-oss", TP2, None),
    "qwen3.8, mtp": ("qwen3.8", {**TRITON, **MTP}, None),
    "nemotron-3-super, mtp": ("nemotron-3-super", MTP, None),
    "step-3.5, mtp": ("step-3.5", MTP, None),
}
"""The same of families that only vLLM 0.33 is described for."""


def make(folder: Path, name: str) -> tuple[Path, dict[str, Any]]:
    """Write a model, unless it is there; return its folder, and the arguments of vLLM that it needs."""
    preset, changes = MODELS[name]
    case = Case(preset, preset, overrides=changes)
    if not (folder / name).exists():
        case.write(folder / name)
    return folder / name, case.engine
