"""Configs of published models whose layers are of several kinds, and the values that make them tiny.

As released on Hugging Face (Qwen, XiaomiMiMo, google), without the keys that are not used here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from loadmaster.architectures import gemma4
from loadmaster.synth.presets import Preset, merged
from loadmaster.synth.sizes import moe, small

QWEN3_NEXT = moe(
    "qwen3_next",
    "Qwen3NextForCausalLM",
    hidden_size=2048,
    intermediate_size=5120,
    num_hidden_layers=48,
    num_attention_heads=16,
    num_key_value_heads=2,
    head_dim=256,
    full_attention_interval=4,
    linear_conv_kernel_dim=4,
    linear_key_head_dim=128,
    linear_num_key_heads=16,
    linear_num_value_heads=32,
    linear_value_head_dim=128,
    moe_intermediate_size=512,
    shared_expert_intermediate_size=512,
    num_experts=512,
    num_experts_per_tok=10,
    decoder_sparse_step=1,
    mlp_only_layers=[],
    vocab_size=151936,
)

_QWEN35_LINEAR: dict[str, Any] = {
    "full_attention_interval": 4,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_value_head_dim": 128,
    "max_position_embeddings": 262144,
    "mtp_num_hidden_layers": 1,
    "rms_norm_eps": 1e-06,
}

QWEN38: dict[str, Any] = {
    "architectures": ["Qwen3_5ForConditionalGeneration"],
    "model_type": "qwen3_5",
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
    "text_config": {
        **_QWEN35_LINEAR,
        "model_type": "qwen3_5_text",
        "head_dim": 256,
        "hidden_size": 5120,
        "intermediate_size": 17408,
        "linear_num_value_heads": 48,
        "num_attention_heads": 24,
        "num_hidden_layers": 64,
        "num_key_value_heads": 4,
        "vocab_size": 248320,
    },
}

QWEN35_MOE: dict[str, Any] = {
    "architectures": ["Qwen3_5MoeForConditionalGeneration"],
    "model_type": "qwen3_5_moe",
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
    "text_config": {
        **_QWEN35_LINEAR,
        "model_type": "qwen3_5_moe_text",
        "head_dim": 256,
        "hidden_size": 2048,
        "linear_num_value_heads": 32,
        "moe_intermediate_size": 512,
        "num_attention_heads": 16,
        "num_experts": 256,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 40,
        "num_key_value_heads": 2,
        "shared_expert_intermediate_size": 512,
        "vocab_size": 248320,
    },
}

TINY_LINEAR: dict[str, Any] = {
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
}
"""The linear attention of a tiny Qwen3-Next or Qwen3.5."""

MIMO_V2_PRO: dict[str, Any] = {
    "architectures": ["MiMoV2ForCausalLM"],
    "model_type": "mimo_v2",
    "add_full_attention_sink_bias": False,
    "add_swa_attention_sink_bias": True,
    "attention_bias": False,
    "attention_projection_layout": "fused_qkv",
    "attention_value_scale": 0.612,
    "head_dim": 192,
    "hidden_act": "silu",
    "hidden_size": 6144,
    "hybrid_layer_pattern": [int(layer not in (0, 7, 15, 23, 31, 39, 47, 55, 62, 69)) for layer in range(70)],
    "intermediate_size": 16384,
    "layernorm_epsilon": 1e-05,
    "max_position_embeddings": 1048576,
    "moe_intermediate_size": 2048,
    "moe_layer_freq": [0, *[1] * 69],
    "n_routed_experts": 384,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 70,
    "num_key_value_heads": 8,
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "ignored_layers": [
            *(f"model.layers.{layer}.self_attn.o_proj" for layer in range(70)),
            "model.decoder.self_attn.o_proj",
        ],
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
    "scoring_func": "sigmoid",
    "sliding_window": 128,
    "swa_head_dim": 192,
    "swa_num_attention_heads": 128,
    "swa_num_key_value_heads": 8,
    "swa_v_head_dim": 128,
    "tie_word_embeddings": False,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "v_head_dim": 128,
    "vocab_size": 152576,
}

MXFP4_EXPERTS = {"store_dtype": "mxfp4", "mxfp4_block_size": 32}
"""What V2.6's quantization_config has besides."""

TINY_MIMO_V2: dict[str, Any] = {
    # A chunk of global layers has 4 × 96 + 96 + 64 = 544 rows, 4.25 blocks, and of sliding ones 704, 5.5 blocks.
    "head_dim": 96,
    "hidden_size": 96,
    "hybrid_layer_pattern": [0, 1, 1, 0],
    "intermediate_size": 192,
    "max_position_embeddings": 512,
    "moe_intermediate_size": 128,
    "moe_layer_freq": [0, 1, 1, 1],
    "n_routed_experts": 8,
    "num_attention_heads": 8,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "num_nextn_predict_layers": 3,
    "swa_head_dim": 96,
    "swa_num_attention_heads": 8,
    "swa_num_key_value_heads": 4,
    "swa_v_head_dim": 64,
    "v_head_dim": 64,
    "vocab_size": 320,
}

GEMMA4: dict[str, Any] = {
    "architectures": ["Gemma4ForConditionalGeneration"],
    "model_type": "gemma4",
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": True,
    "text_config": {
        "model_type": "gemma4_text",
        "head_dim": 256,
        "global_head_dim": 512,
        "max_position_embeddings": 131072,
        "vocab_size": 262144,
    },
}
GEMMA4_26B = merged(
    GEMMA4,
    {
        "text_config": {
            "hidden_size": 2816,
            "intermediate_size": 2112,
            "moe_intermediate_size": 704,
            "num_hidden_layers": 30,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "num_global_key_value_heads": 2,
            "attention_k_eq_v": True,
            "hidden_size_per_layer_input": 0,
            "enable_moe_block": True,
            "num_experts": 128,
            "top_k_experts": 8,
            "sliding_window": 1024,
        }
    },
)
_E2B_TYPES = [*["sliding_attention"] * 4, "full_attention"]
GEMMA4_E2B = merged(
    GEMMA4,
    {
        "text_config": {
            "hidden_size": 1536,
            "intermediate_size": 6144,
            "num_hidden_layers": 35,
            "num_attention_heads": 8,
            "num_key_value_heads": 1,
            "layer_types": _E2B_TYPES * 7,
            "hidden_size_per_layer_input": 256,
            "vocab_size_per_layer_input": 262144,
            "num_kv_shared_layers": 20,
            "use_double_wide_mlp": True,
            "sliding_window": 512,
        }
    },
)
TINY_GEMMA4: dict[str, Any] = {
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "global_head_dim": 32,
    "vocab_size": 320,
    "max_position_embeddings": 256,
    "sliding_window": 32,
}
TINY_GEMMA4_26B: dict[str, Any] = {**TINY_GEMMA4, "num_experts": 8, "moe_intermediate_size": 48, "top_k_experts": 2}
TINY_GEMMA4_E2B: dict[str, Any] = {
    # Layers 5 to 9 read the KV cache of layer 3 (full) or 4 (sliding): no stage can begin at layers 4 to 9.
    **TINY_GEMMA4,
    "num_hidden_layers": 10,
    "layer_types": ["sliding_attention", "full_attention"] * 5,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 320,
    "num_kv_shared_layers": 5,
}
_IN_GEMMA4 = replace(gemma4.FAMILY, spelling=gemma4.FAMILY.variants[0])

PRESETS = (
    Preset(
        "qwen3-next",
        QWEN3_NEXT,
        small(QWEN3_NEXT, **TINY_LINEAR),
        41,
        ("fp8",),
        extra={"mtp.fc.weight": ("BF16", (128, 256)), "mtp.norm.weight": ("BF16", (128,))},
    ),
    Preset(
        "qwen3.8",
        QWEN38,
        {"text_config": small(QWEN38["text_config"], **TINY_LINEAR)},
        18,
        extra={"model.visual.pos_embed.weight": ("BF16", (2304, 64))},
    ),
    Preset(
        "qwen3.5-moe",
        QWEN35_MOE,
        {"text_config": small(QWEN35_MOE["text_config"], **TINY_LINEAR)},
        14,
        f32=("linear.a_log", "linear.norm"),
        extra={"model.visual.pos_embed.weight": ("BF16", (2304, 64))},
    ),
    Preset("mimo-v2.5-pro", MIMO_V2_PRO, TINY_MIMO_V2, 34, f32=("moe.router",)),
    Preset(
        "mimo-v2.6-pro",
        merged(MIMO_V2_PRO, {"quantization_config": MXFP4_EXPERTS}),
        TINY_MIMO_V2,
        130,
    ),
    Preset(
        "gemma-4-26b-a4b",
        GEMMA4_26B,
        {"text_config": TINY_GEMMA4_26B},
        2,
        family=_IN_GEMMA4,
        extra={"model.vision_tower.patch_embedder.input_proj.weight": ("BF16", (64, 768))},
    ),
    Preset(
        "gemma-4-e2b",
        GEMMA4_E2B,
        {"text_config": TINY_GEMMA4_E2B},
        1,
        family=_IN_GEMMA4,
        extra={"model.embed_audio.embedding_projection.weight": ("BF16", (96, 64))},
    ),
)
