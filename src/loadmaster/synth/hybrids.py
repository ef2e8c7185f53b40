"""Configs of published models whose layers are of several kinds, and the values that make them tiny.

As released on Hugging Face (XiaomiMiMo), without the keys that are not used here.
"""

from __future__ import annotations

from typing import Any

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
