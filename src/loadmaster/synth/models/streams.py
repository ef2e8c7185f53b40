"""Configs of published models with several residual streams, and the values that make them tiny: DeepSeek-V4, Hy4.

As released on Hugging Face (deepseek-ai, tencent), without the keys that are not used here.
"""

from __future__ import annotations

from typing import Any

from loadmaster.synth.presets import Preset, merged

DEEPSEEK_V4_FLASH: dict[str, Any] = {
    "architectures": ["DeepseekV4ForCausalLM"],
    "model_type": "deepseek_v4",
    "torch_dtype": "bfloat16",
    "expert_dtype": "fp4",
    "tie_word_embeddings": False,
    "quantization_config": {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "scale_fmt": "ue8m0",
        "weight_block_size": [128, 128],
    },
    "topk_method": "noaux_tc",
    "vocab_size": 129280,
    "hidden_size": 4096,
    "head_dim": 512,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 43,
    "num_attention_heads": 64,
    "q_lora_rank": 1024,
    "o_lora_rank": 1024,
    "o_groups": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 6,
    "num_hash_layers": 3,
    "index_n_heads": 64,
    "index_head_dim": 128,
    "hc_mult": 4,
    "num_nextn_predict_layers": 1,
    "compress_ratios": [0, 0, *([4, 128] * 21)[:41], 0, 0, 0],
}
DEEPSEEK_V4_PRO: dict[str, Any] = {
    **DEEPSEEK_V4_FLASH,
    "hidden_size": 7168,
    "moe_intermediate_size": 3072,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "q_lora_rank": 1536,
    "o_groups": 16,
    "n_routed_experts": 384,
    "compress_ratios": [128, 128, *([4, 128] * 30)[:59], 0, 0, 0],
}
_TINY_V4: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 96,
    "moe_intermediate_size": 128,
    "num_attention_heads": 8,
    "head_dim": 32,
    "q_lora_rank": 48,
    "o_lora_rank": 16,
    "o_groups": 4,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "index_n_heads": 4,
    "index_head_dim": 16,
}
TINY_DEEPSEEK_V4: dict[str, Any] = {
    **_TINY_V4,
    "num_hidden_layers": 6,
    "num_hash_layers": 2,
    "compress_ratios": [0, 128, 4, 128, 4, 0, 0],
}

DEEPSEEK_V41_FLASH: dict[str, Any] = {
    "architectures": ["DeepseekV41ForCausalLM"],
    "model_type": "deepseek_v41",
    "dtype": "bfloat16",
    "quantization_config": {
        "quant_method": "fp8",
        "weight_block_size": [32, 32],
        "scale_fmt": "ue8m0",
        "expert_dtype": "fp4",
    },
    "text_config": {
        "model_type": "deepseek_v41_text",
        "tie_word_embeddings": False,
        "compress_ratios": [0, 0, *[2] * 18, *[1] * 20, 0, 0, 0],
        "vocab_size": 129280,
        "hidden_size": 5120,
        "moe_intermediate_size": 2304,
        "num_hidden_layers": 40,
        "num_attention_heads": 64,
        "num_key_value_heads": 1,
        "head_dim": 512,
        "q_lora_rank": 1280,
        "o_lora_rank": 1024,
        "o_groups": 8,
        "n_routed_experts": 384,
        "n_shared_experts": 1,
        "num_experts_per_tok": 6,
        "index_n_heads": 32,
        "index_head_dim": 128,
        "hc_mult": 4,
        "engram_layer_ids": [1, 14],
        "engram_num_embeddings": [384006168, 384016682],
        "engram_max_ngram_size": 4,
        "engram_n_heads": 8,
        "engram_head_dim": 256,
        "engram_vocab_size": 16000000,
        "dspark_markov_rank": 256,
        "dspark_n_routed_experts": 128,
        "dspark_target_layer_ids": [37, 38, 39],
        "kv_source_layer_ids": [2, 8, 14, 20],
        "index_source_layer_ids": [2, 8, 14, 20, 24, 28, 32, 36],
        "num_nextn_predict_layers": 3,
    },
}
TINY_DEEPSEEK_V41: dict[str, Any] = {
    **_TINY_V4,
    "num_hidden_layers": 8,
    "compress_ratios": [0, 0, 2, 2, 2, 1, 1, 1, 0, 0, 0],
    "kv_source_layer_ids": [2, 4, 5],
    "index_source_layer_ids": [2, 4, 5, 7],
    "engram_layer_ids": [1, 4],
    "engram_num_embeddings": [88, 152],  # primes of 17 and more: 17 + 19 + 23 + 29, 31 + 37 + 41 + 43
    "engram_max_ngram_size": 3,
    "engram_n_heads": 2,
    "engram_head_dim": 64,
    "engram_vocab_size": 16,
    "dspark_markov_rank": 16,
    "dspark_n_routed_experts": 4,
    "dspark_target_layer_ids": [5, 6, 7],
}

HY4: dict[str, Any] = {
    "architectures": ["HYV4ForCausalLM"],
    "model_type": "hy_v4",
    "dtype": "bfloat16",
    "vocab_size": 120832,
    "hidden_size": 6144,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 78,
    "num_attention_heads": 64,
    "mlp_layer_types": ["dense", *["sparse"] * 77],
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "num_nextn_predict_layers": 1,
    "enable_ihc": True,
    "hc_mult": 4,
}
TINY_HY4: dict[str, Any] = {
    # Layers 0, 1 and 5 have an indexer; 2, 3 and 4 reuse the selection of layer 1.
    "mlp_layer_types": ["dense", *["sparse"] * 5],
    "vocab_size": 320,
    "hidden_size": 96,
    "intermediate_size": 160,
    "moe_intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "q_lora_rank": 48,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 24,
    "v_head_dim": 16,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "index_topk": 16,
    "index_head_dim": 16,
    "index_n_heads": 4,
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}

PRESETS = (
    Preset("deepseek-v4-flash", DEEPSEEK_V4_FLASH, TINY_DEEPSEEK_V4, 46, e8m0=True),
    Preset(
        "deepseek-v4-pro-0813",
        merged(DEEPSEEK_V4_PRO, {"dspark_target_layer_ids": [58, 59, 60], "dspark_markov_rank": 512}),
        {**TINY_DEEPSEEK_V4, "dspark_target_layer_ids": [3, 4, 5], "dspark_markov_rank": 16},
        66,
        e8m0=True,
    ),
    Preset(
        "deepseek-v4.1-flash",
        DEEPSEEK_V41_FLASH,
        {"text_config": TINY_DEEPSEEK_V41},
        48,
        extra={"vision.norm.weight": ("BF16", (64,))},
    ),
    Preset("hy4-preview", HY4, TINY_HY4, 96),
)
