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

_V41: Final[dict[str, Any]] = {
    **{k: v for k, v in _DEEPSEEK_V4.items() if k not in ("quantization_config", "compress_ratios")},
    "head_dim": 512,
    "rms_norm_eps": 1e-20,
    "hc_eps": 1e-6,
    "hc_sinkhorn_iters": 20,
    "swiglu_limit": 10.0,
    "sliding_window": 128,
    "rope_theta": 10000,
    "compress_rope_theta": 160000,
    "rope_scaling": {"rope_type": "yarn", "factor": 16, "original_max_position_embeddings": 1024},
    "scoring_func": "sqrtsoftplus",
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.5,
    "engram_compressed_vocab_size": 233,  # of the tokenizer of tiny models
    "engram_pad_token_id": 2,
    "candidate_source_layer_id": 5,
    "candidate_topk_blocks": 16,
    "candidate_block_size": 8,
    "dspark_noise_token_id": 3,
    "dspark_num_experts_per_tok": 2,
}

_GLM_53: Final[dict[str, Any]] = {
    "mhc": True,
    "mla_use_nope": True,
    "indexer_rope_interleave": True,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
    "num_experts_per_tok": 2,
    "swiglu_limit": 10.0,
    "max_position_embeddings": 16384,
    "hidden_size": 256,
    "intermediate_size": 256,
    "moe_intermediate_size": 256,
    "q_lora_rank": 128,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "index_head_dim": 128,
    "linear_attn_config": {"head_dim": 32, "num_heads": 8, "short_conv_kernel_size": 4, "gate_lower_bound": -5.0},
}

_MUSE_SPARK: Final[dict[str, Any]] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "num_shared_experts": 0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "layer_types": [*["sliding_attention"] * 3, "full_attention"],
    "layer_rope_theta": [500000.0, 500000.0, 500000.0, 0],
    "sliding_window": 128,
    "final_logit_softcapping": 20.0,
    "qk_scale_factor": 5.473,
    "output_multiplier": 0.17678,
    "post_norm_eps": 1e-8,
    "rms_norm_eps": 1e-5,
    "residual_gate_temperature": 0.3,
    "routed_scaling_factor": 1.0,
    "max_position_embeddings": 16384,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
    "hidden_size": 256,
    "intermediate_size": 256,
    "moe_intermediate_size": 128,
    "moe_hidden_size": 128,
    "head_dim": 64,
}

_QWEN4_EXP: Final[dict[str, Any]] = {
    "head_dim": 64,
    "rope_parameters": {"mrope_section": [3, 3, 2]},  # half of a quarter of a head
    "indexer_head_dim": 64,
    "hc_lowrank": 28,  # 32 rows with the 4 streams: vLLM fills up others to a multiple of 16, and does not write the rest
}

_LING_3: Final[dict[str, Any]] = {
    "auto_map": {"AutoConfig": "configuration_bailing_moe_v3.BailingMoeV3Config"},
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 600000,
    "max_position_embeddings": 4096,
    "use_bias": False,
    "use_qkv_bias": False,
    "score_function": "sigmoid",
    "moe_router_enable_expert_bias": True,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "moe_shared_expert_intermediate_size": 64,
}

RECENT: Final[dict[str, dict[str, Any]]] = {
    "ling-3.0-flash": _LING_3,
    "deepseek-v4-flash": _DEEPSEEK_V4,
    "deepseek-v4-pro-0813": _DEEPSEEK_V4,
    "hy4-preview": _HY4,
    "kimi-linear": {**_KIMI, "hidden_act": "silu"},
}
"""Preset → changes to its tiny config."""

WRAPPED: Final[dict[str, dict[str, Any]]] = {
    "deepseek-v4.1-flash": {
        "quantization_config": {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "weight_block_size": [32, 32],
            "scale_fmt": "ue8m0",
            "expert_dtype": "fp4",
        },
        "image_token_id": 3,
        "vision_config": {"model_type": "deepseek_v41_vision", "num_hidden_layers": 1},
        "text_config": merged(PRESETS["deepseek-v4.1-flash"].config_of(tiny=True)["text_config"], _V41),
    },
    "glm-5.3-flash": {
        "text_config": merged(PRESETS["glm-5.3-flash"].config_of(tiny=True)["text_config"], _GLM_53),
        "vision_config": {"model_type": "glm5_next_vision", "hidden_size": 64, "depth": 1, "num_heads": 4},
    },
    "qwen3.8-flash-next": {
        "text_config": merged(PRESETS["qwen3.8-flash-next"].config_of(tiny=True)["text_config"], _QWEN4_EXP),
    },
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
    "muse-spark-nvfp4": {
        "quantization_config": {  # vLLM renames what stays plain, but not patterns
            "quant_method": "modelopt",
            "quant_algo": "NVFP4",
            "ignore": [
                *("lm_head", "*self_attn*", "*pre_expert_proj", "*post_expert_proj", "*pooler", "*unpooler"),
                *(f"*{mlp}.{of}_proj" for mlp in ("mlp", "feed_forward") for of in ("gate", "up", "gate_up", "down")),
            ],
        },
        "text_config": merged(PRESETS["muse-spark-nvfp4"].config_of(tiny=True)["text_config"], _MUSE_SPARK),
        "vision_config": {
            "model_type": "muse_spark_vision",
            "patch_size": 14,
            "pos_emb_height": 4,
            "pos_emb_width": 4,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "hidden_act": "gelu",
            "rope_parameters": {"rope_theta": 10000.0, "rope_type": "axial"},
            "patch_temporal": 2,
            "merge_size": 2,
            "max_position_embeddings": 1024,
            "layer_norm_eps": 1e-5,
            "layer_types": ["window_attention", "full_attention"],
        },
        "audio_config": {
            "model_type": "muse_spark_audio",
            "patch_sizes": [16, 6, 5, 4],
            "hidden_sizes": [16, 16, 16, 16],
            "depths": [1, 1, 1, 1],
            "num_hidden_layers": 4,
            "mlp_ratio": 4.0,
            "conv_kernel_size": 7,
            "hidden_act": "gelu",
            "rms_norm_eps": 1e-6,
            "out_hidden_size": 256,
        },
        "projector_hidden_size": 64,
        "out_hidden_size": 256,
        "projector_hidden_act": "gelu",
        "image_token_id": 3,
        "video_token_id": 4,
        "audio_token_id": 5,
    },
}
"""The same of models around a language model, which is loaded alone: towers are as small as vLLM allows."""

CODE: Final[dict[str, dict[str, str]]] = {
    "ling-3.0-flash": {
        "configuration_bailing_moe_v3.py": """from transformers import PretrainedConfig


class BailingMoeV3Config(PretrainedConfig):
    model_type = "bailing_hybrid"
"""
    }
}
"""Preset → the code of its config, which its releases bring and transformers does not have."""

BESIDE: Final[dict[str, dict[str, Any]]] = {
    "kimi-k3": {
        "preprocessor_config.json": {
            "media_proc_cfg": {
                "merge_kernel_size": 2,
                "temporal_merge_kernel_size": 4,
                "image_mean": [0.5, 0.5, 0.5],
                "image_std": [0.5, 0.5, 0.5],
            }
        }
    }
}
"""Preset → JSON files that vLLM reads beside the config, even where the towers are left out."""
