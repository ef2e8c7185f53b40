"""What vLLM needs in the tiny configs of the families of 2026: published values that plans do not read, and sizes it accepts.

Its kernels take whole quantisation blocks, and heads of some sizes only.
"""

from __future__ import annotations

from typing import Any, Final

from loadmaster.synth import PRESETS
from loadmaster.synth.presets import merged

_DEEPSEEK_V4: Final[dict[str, Any]] = {
    "quantization_config": {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "scale_fmt": "ue8m0",
        "weight_block_size": [128, 128],
    },
    "hidden_act": "silu",
    "topk_method": "noaux_tc",
    "max_position_embeddings": 16384,
    "compress_ratios": [0, 128, 4, 128, 4, 0, 0],
    "index_topk": 16,
    "hidden_size": 256,
    "moe_intermediate_size": 256,
    "head_dim": 128,
    "qk_rope_head_dim": 64,
    "q_lora_rank": 128,
    "o_lora_rank": 128,
    "index_head_dim": 128,
}

_KIMI: Final[dict[str, Any]] = {
    "mla_use_nope": True,
    "moe_router_activation_func": "sigmoid",
    "moe_renormalize": True,
    "use_grouped_topk": True,
    "num_expert_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 512,  # smaller shares of a rank are filled up
}

_HY4: Final[dict[str, Any]] = {
    "layer_types": ["deepseek_sparse_attention"] * 6,
    "indexer_types": ["full", "full", "shared", "full", "shared", "full"],  # a stage can begin in the middle
    "num_attention_heads": 64,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "index_head_dim": 128,
}

_MINIMAX_M3: Final[dict[str, Any]] = {
    "max_position_embeddings": 16384,
    "rms_norm_eps": 1e-6,
    "rope_theta": 5000000,
    "rotary_dim": 64,
    "partial_rotary_factor": 0.5,
    "hidden_act": "swigluoai",
    "scoring_func": "sigmoid",
    "swiglu_alpha": 1.702,
    "swiglu_limit": 7.0,
    "hidden_size": 128,
    "intermediate_size": 128,
    "dense_intermediate_size": 256,
    "shared_intermediate_size": 128,
    "head_dim": 128,
    "sparse_attention_config": {"sparse_index_dim": 128, "sparse_topk_blocks": 16, "sparse_block_size": 128},
}

RECENT: Final[dict[str, dict[str, Any]]] = {
    "deepseek-v4-flash": _DEEPSEEK_V4,
    "deepseek-v4-pro-0813": _DEEPSEEK_V4,
    "hy4-preview": _HY4,
    "minimax-m3-mxfp8": {
        # vLLM fuses the indexer's keys with what is quantised
        "quantization_config": {"quant_method": "mxfp8", "ignored_layers": ["lm_head"]},
        "text_config": merged(PRESETS["minimax-m3-mxfp8"].config_of(tiny=True)["text_config"], _MINIMAX_M3),
        "vision_config": {
            "hidden_size": 64,
            "num_attention_heads": 4,
            "num_hidden_layers": 1,
            "intermediate_size": 64,
            "patch_size": 14,
            "image_size": 28,
            "img_token_compression_config": {"spatial_merge_size": 2, "temporal_patch_size": 2},
            "rope_theta": 10000.0,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-5,
            "num_channels": 3,
            "attention_dropout": 0.0,
        },
    },
    "kimi-linear": {**_KIMI, "hidden_act": "silu"},
    "kimi-k3": {
        "media_placeholder_token_id": 3,
        "text_config": merged(
            PRESETS["kimi-k3"].config_of(tiny=True)["text_config"],
            {
                **_KIMI,
                "hidden_act": "situ",
                "activation_situ_beta": 4.0,
                "activation_situ_linear_beta": 25.0,
                "hidden_size": 128,
                "routed_expert_hidden_size": 256,
            },
        ),
    },
}
"""Preset → changes to its tiny config."""
