"""Configs of published models with attention heads and routed experts, and the values that make them tiny.

As released on Hugging Face (Qwen, mistralai, MiniMaxAI, zai-org, openai, meta-llama, ibm-granite), without the keys
that are not used here.
"""

from __future__ import annotations

from typing import Any

from loadmaster.synth.presets import Preset, merged
from loadmaster.synth.quantised import FP8, QUANTISED
from loadmaster.synth.sizes import derived, moe, small

QWEN2_MOE = moe(
    "qwen2_moe",
    "Qwen2MoeForCausalLM",
    hidden_size=2048,
    intermediate_size=5632,
    num_hidden_layers=24,
    num_attention_heads=16,
    num_key_value_heads=16,
    moe_intermediate_size=1408,
    shared_expert_intermediate_size=5632,
    num_experts=60,
    num_experts_per_tok=4,
    decoder_sparse_step=1,
    vocab_size=151936,
)

QWEN3_MOE = moe(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    hidden_size=2048,
    intermediate_size=6144,
    num_hidden_layers=48,
    num_attention_heads=32,
    num_key_value_heads=4,
    head_dim=128,
    moe_intermediate_size=768,
    num_experts=128,
    num_experts_per_tok=8,
    decoder_sparse_step=1,
    mlp_only_layers=[],
    vocab_size=151936,
)

MIXTRAL = moe(
    "mixtral",
    "MixtralForCausalLM",
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    num_local_experts=8,
    num_experts_per_tok=2,
    vocab_size=32000,
)

MINIMAX_M2 = moe(
    "minimax_m2",
    "MiniMaxM2ForCausalLM",
    hidden_size=3072,
    intermediate_size=1536,
    num_hidden_layers=62,
    num_attention_heads=48,
    num_key_value_heads=8,
    head_dim=128,
    num_local_experts=256,
    num_experts_per_tok=8,
    use_qk_norm=True,
    vocab_size=200064,
)

GLM_45_AIR = moe(
    "glm4_moe",
    "Glm4MoeForCausalLM",
    attention_bias=True,
    first_k_dense_replace=1,
    hidden_size=4096,
    intermediate_size=10944,
    moe_intermediate_size=1408,
    n_routed_experts=128,
    n_shared_experts=1,
    num_attention_heads=96,
    num_experts_per_tok=8,
    num_hidden_layers=46,
    num_key_value_heads=8,
    head_dim=128,
    num_nextn_predict_layers=1,
    use_qk_norm=False,
    vocab_size=151552,
)

GPT_OSS = moe(
    "gpt_oss",
    "GptOssForCausalLM",
    attention_bias=True,
    hidden_size=2880,
    intermediate_size=2880,
    num_hidden_layers=24,
    num_attention_heads=64,
    num_key_value_heads=8,
    head_dim=64,
    num_local_experts=32,
    num_experts_per_tok=4,
    vocab_size=201088,
)

LLAMA4: dict[str, Any] = {
    "architectures": ["Llama4ForConditionalGeneration"],
    "model_type": "llama4",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "text_config": {
        "attention_bias": False,
        "bos_token_id": 200000,
        "eos_token_id": [200001, 200007, 200008],
        "head_dim": 128,
        "hidden_size": 5120,
        "interleave_moe_layer_step": 1,
        "intermediate_size": 8192,
        "intermediate_size_mlp": 16384,
        "max_position_embeddings": 10485760,
        "model_type": "llama4_text",
        "num_attention_heads": 40,
        "num_experts_per_tok": 1,
        "num_hidden_layers": 48,
        "num_key_value_heads": 8,
        "num_local_experts": 16,
        "vocab_size": 202048,
    },
}

GRANITE_MOE = moe(
    "granitemoe",
    "GraniteMoeForCausalLM",
    attention_bias=False,
    hidden_size=1536,
    intermediate_size=512,
    num_hidden_layers=32,
    num_attention_heads=24,
    num_key_value_heads=8,
    num_local_experts=40,
    num_experts_per_tok=8,
    tie_word_embeddings=True,
    vocab_size=49155,
)

MUSE_SPARK: dict[str, Any] = {
    "architectures": ["MuseSparkForConditionalGeneration"],
    "model_type": "muse_spark",
    "dtype": "bfloat16",
    "quantization_config": {
        "quant_method": "modelopt",
        "quant_algo": "NVFP4",
        "ignore": [
            "*self_attn*",
            "*pre_expert_proj",
            "*post_expert_proj",
            "*mlp.gate_proj",
            "*mlp.up_proj",
            "*mlp.down_proj",
        ],
    },
    "text_config": {
        "hidden_size": 8192,
        "intermediate_size": 16384,
        "moe_intermediate_size": 4096,
        "moe_hidden_size": 4096,
        "num_hidden_layers": 62,
        "num_attention_heads": 128,
        "num_key_value_heads": 16,
        "head_dim": 64,
        "num_local_experts": 256,
        "vocab_size": 202048,
    },
    "audio_config": {"out_hidden_size": 8192},
}
"""Sizes are those of transformers' configuration class: no released config was read."""
TINY_MUSE_SPARK: dict[str, Any] = {
    "hidden_size": 96,
    "intermediate_size": 160,
    "moe_intermediate_size": 64,
    "moe_hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 320,
    "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}

MINIMAX_M3: dict[str, Any] = {
    "architectures": ["MiniMaxM3SparseForConditionalGeneration"],
    "model_type": "minimax_m3_vl",
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
    "text_config": {
        "architectures": ["MiniMaxM3SparseForCausalLM"],
        "hidden_size": 6144,
        "intermediate_size": 3072,
        "dense_intermediate_size": 12288,
        "shared_intermediate_size": 3072,
        "num_hidden_layers": 60,
        "num_attention_heads": 64,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "vocab_size": 200064,
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
        "n_shared_experts": 1,
        "use_qk_norm": True,
        "qk_norm_type": "per_head",
        "use_routing_bias": True,
        "moe_layer_freq": [0] * 3 + [1] * 57,
        "sparse_attention_config": {
            "sparse_index_dim": 128,
            "sparse_num_index_heads": 4,
            "sparse_attention_freq": [0] * 3 + [1] * 57,
            "sparse_disable_index_value": [0] * 3 + [1] * 57,
        },
    },
}
TINY_MINIMAX_M3: dict[str, Any] = {
    "text_config": {
        "hidden_size": 96,
        "intermediate_size": 64,
        "dense_intermediate_size": 160,
        "shared_intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 320,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "moe_layer_freq": [0, 1, 1],
        "sparse_attention_config": {
            "sparse_index_dim": 16,
            "sparse_num_index_heads": 2,
            "sparse_attention_freq": [0, 0, 1],
            "sparse_disable_index_value": [0, 0, 1],
        },
    }
}
MXFP8 = {"quant_method": "mxfp8", "ignored_layers": ["lm_head", "self_attn.index_k_proj"]}

PRESETS = (
    Preset("qwen2-moe", QWEN2_MOE, small(QWEN2_MOE, mlp_only_layers=[1]), 8, ("gptq",)),
    Preset("qwen3-moe", QWEN3_MOE, small(QWEN3_MOE), 16, ("fp8", "awq", "gptq", "w4a16", "nvfp4")),
    Preset("mixtral", MIXTRAL, small(MIXTRAL), 19, ("awq", "gptq", "fp8-static", "w8a8")),
    Preset(
        "minimax-m2",
        {**MINIMAX_M2, "quantization_config": FP8},
        small(MINIMAX_M2),
        130,
        ("awq", "nvfp4"),
    ),
    Preset(
        "glm-4.5-air",
        GLM_45_AIR,
        small(GLM_45_AIR, use_qk_norm=True),
        47,
        ("fp8-channel", "awq", "w4a16"),
        own_draft_head=True,
    ),
    Preset(
        "gpt-oss",
        {**GPT_OSS, "quantization_config": QUANTISED["mxfp4"](32)},
        small(GPT_OSS, intermediate_size=160),  # five blocks, which 2, 4 and 8 ranks do not divide: as published
        3,
    ),
    Preset("gpt-oss-bf16", GPT_OSS, small(GPT_OSS), 9),
    Preset(
        "llama-4",
        LLAMA4,
        {"text_config": small(LLAMA4["text_config"], interleave_moe_layer_step=2, intermediate_size_mlp=192)},
        50,
        extra={
            "vision_model.class_embedding": ("BF16", (64,)),
            "multi_modal_projector.linear_1.weight": ("BF16", (128, 64)),
        },
    ),
    Preset("granite-moe", GRANITE_MOE, small(GRANITE_MOE), 2),
    Preset(
        "granite-moe-shared",
        derived(
            GRANITE_MOE,
            architectures=["GraniteMoeSharedForCausalLM"],
            model_type="granitemoeshared",
            shared_intermediate_size=1024,
        ),
        small(GRANITE_MOE, shared_intermediate_size=96),
        2,
    ),
    Preset(
        "muse-spark-nvfp4",
        MUSE_SPARK,
        {"text_config": TINY_MUSE_SPARK, "audio_config": {"out_hidden_size": 96}},
        96,
        extra={"model.vision_tower.class_embedding": ("BF16", (64,))},
    ),
    Preset(
        "minimax-m3-mxfp8",
        {**MINIMAX_M3, "quantization_config": MXFP8},
        merged(TINY_MINIMAX_M3, {"text_config": {"num_mtp_modules": 2}}),
        60,
    ),
)
