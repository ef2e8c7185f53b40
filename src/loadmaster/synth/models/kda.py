"""Configs of published models with Kimi Delta Attention (KDA), and the values that make them tiny.

As released on Hugging Face (moonshotai, zai-org), without the keys that are not used here. Of Ling-3 no released config was
read: its sizes are those of transformers' configuration class, and the number of shards is not known.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loadmaster.synth.presets import Preset
from loadmaster.synth.quantised import FP8

_LINEAR, _LATENT = "linear_attention", "deepseek_sparse_attention"

TINY_KDA: dict[str, Any] = {
    "hidden_size": 96,
    "intermediate_size": 160,
    "moe_intermediate_size": 128,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "vocab_size": 320,
    "pad_token_id": 0,
}

GLM_53_FLASH: dict[str, Any] = {
    "architectures": ["Glm5NextForConditionalGeneration"],
    "model_type": "glm5_next",
    "tie_word_embeddings": False,
    "quantization_config": FP8,
    "text_config": {
        "model_type": "glm5_next_text",
        "num_hidden_layers": 45,
        "layer_types": [*[_LINEAR, _LINEAR, _LINEAR, _LATENT] * 11, _LINEAR],
        "first_k_dense_replace": 3,
        "n_shared_experts": 1,
        "qk_rope_head_dim": 0,
        "index_topk": 2048,
        "index_kpool": 4,
        "hc_mult": 4,
        "num_nextn_predict_layers": 1,
        "vocab_size": 154880,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "moe_intermediate_size": 2048,
        "num_attention_heads": 64,
        "num_key_value_heads": 64,
        "n_routed_experts": 288,
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 256,
        "v_head_dim": 256,
        "index_head_dim": 128,
        "index_n_heads": 32,
        "linear_attn_config": {"head_dim": 128, "num_heads": 64, "short_conv_kernel_size": 4},
    },
}
TINY_GLM_53_FLASH: dict[str, Any] = {
    **TINY_KDA,
    "num_hidden_layers": 5,
    "layer_types": [_LINEAR, _LINEAR, _LINEAR, _LATENT, _LINEAR],
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "n_routed_experts": 8,
    "q_lora_rank": 48,
    "index_head_dim": 16,
    "index_n_heads": 4,
    "index_topk": 64,
    "linear_attn_config": {"head_dim": 16, "num_heads": 8},
}


def glm_53_unquantised(config: Mapping[str, Any]) -> list[str]:
    """Return the modules that are BF16 in GLM-5.3-Flash, which lists them in another way."""
    prefix, kinds = "model.language_model.layers.", [*config["text_config"]["layer_types"], _LATENT]
    parts = {_LINEAR: ("self_attn",), _LATENT: ("self_attn.kv_b_proj", "self_attn.indexer")}
    return ["lm_head", *(f"{prefix}{i}.{part}" for i, kind in enumerate(kinds) for part in parts[kind])]


def kimi_layers(num_layers: int, latent: list[int]) -> dict[str, Any]:
    """Return the lists of layers by their attention, which count from 1; ``latent`` counts from 0."""
    linear = [layer + 1 for layer in range(num_layers) if layer not in latent]
    return {"full_attn_layers": [layer + 1 for layer in latent], "kda_layers": linear}


KIMI_LINEAR: dict[str, Any] = {
    "architectures": ["KimiLinearForCausalLM"],
    "model_type": "kimi_linear",
    "dtype": "bfloat16",
    "tie_word_embeddings": False,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "num_nextn_predict_layers": 0,
    "num_hidden_layers": 27,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "moe_intermediate_size": 1024,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "num_experts": 256,
    "num_experts_per_token": 8,
    "num_shared_experts": 1,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "vocab_size": 163840,
    "linear_attn_config": {
        "short_conv_kernel_size": 4,
        "head_dim": 128,
        "num_heads": 32,
        **kimi_layers(27, [*range(3, 24, 4), 26]),
    },
}
_TINY_KIMI: dict[str, Any] = {
    **TINY_KDA,
    "num_hidden_layers": 5,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "num_experts": 8,
    "num_experts_per_token": 2,
    "qk_rope_head_dim": 8,
}
TINY_KIMI_LINEAR: dict[str, Any] = {
    **_TINY_KIMI,
    "linear_attn_config": {"head_dim": 16, "num_heads": 8, **kimi_layers(5, [3])},
}

MXFP4: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "mxfp4-pack-quantized",
    "quantization_status": "compressed",
    "config_groups": {
        "group_0": {
            "format": "mxfp4-pack-quantized",
            "weights": {"group_size": 32, "num_bits": 4, "scale_dtype": "torch.uint8"},
        }
    },
}
KIMI_K3: dict[str, Any] = {
    "architectures": ["KimiK3ForConditionalGeneration"],
    "model_type": "kimi_k3",
    "tie_word_embeddings": False,
    "text_config": {
        **KIMI_LINEAR,
        "attn_res_block_size": 12,
        "latent_moe_use_norm": True,
        "mla_use_output_gate": True,
        "quantization_config": MXFP4,
        "num_hidden_layers": 93,
        "hidden_size": 7168,
        "intermediate_size": 33792,
        "moe_intermediate_size": 3072,
        "num_attention_heads": 96,
        "num_key_value_heads": 96,
        "num_experts": 896,
        "num_experts_per_token": 16,
        "num_shared_experts": 2,
        "q_lora_rank": 1536,
        "routed_expert_hidden_size": 3584,
        "linear_attn_config": {
            "short_conv_kernel_size": 4,
            "head_dim": 128,
            "num_heads": 96,
            "use_full_rank_gate": True,
            **kimi_layers(93, [*range(3, 92, 4), 92]),
        },
    },
}
TINY_KIMI_K3: dict[str, Any] = {
    **_TINY_KIMI,
    "attn_res_block_size": 2,
    "moe_intermediate_size": 256,
    "q_lora_rank": 48,
    "routed_expert_hidden_size": 64,
    # 128 numbers of the decay are stored for 16 heads
    "linear_attn_config": {"head_dim": 16, "num_heads": 16, **kimi_layers(5, [3, 4])},
}

LING_3_FLASH: dict[str, Any] = {
    "architectures": ["BailingMoeV3ForCausalLM"],
    "model_type": "bailing_hybrid",
    "dtype": "bfloat16",
    "tie_word_embeddings": False,
    "first_k_dense_replace": 2,
    "gated_attention_proj_granularity_type": "head_wise",
    "head_dim": 128,
    "hidden_size": 2560,
    "intermediate_size": 6144,
    "kv_lora_rank": 512,
    "layer_group_size": 6,
    "moe_intermediate_size": 768,
    "n_group": 8,
    "no_kda_lora": True,
    "num_attention_heads": 32,
    "num_experts": 512,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 42,
    "num_key_value_heads": 32,
    "num_nextn_predict_layers": 1,
    "num_shared_experts": 1,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "short_conv_kernel_size": 4,
    "topk_group": 4,
    "v_head_dim": 128,
    "vocab_size": 157184,
}
TINY_LING: dict[str, Any] = {
    **TINY_KDA,
    "first_k_dense_replace": 1,
    "head_dim": 16,
    "layer_group_size": 2,
    "moe_intermediate_size": 64,
    "n_group": 2,
    "num_attention_heads": 8,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 4,
    "num_key_value_heads": 8,
    "qk_rope_head_dim": 8,
    "topk_group": 1,
}

PRESETS = (
    Preset(
        "glm-5.3-flash",
        GLM_53_FLASH,
        {"text_config": TINY_GLM_53_FLASH},
        62,
        unquantised=glm_53_unquantised,
        extra={"model.visual.pos_embed.weight": ("BF16", (576, 64))},
    ),
    Preset("kimi-linear", KIMI_LINEAR, TINY_KIMI_LINEAR, 20),
    Preset(
        "kimi-k3",
        KIMI_K3,
        {"text_config": TINY_KIMI_K3},
        96,
        f32=("linear.conv_q", "linear.conv_k", "linear.conv_v", "linear.norm"),
        extra={"vision_tower.patch_embed.pos_emb.weight": ("BF16", (64, 64))},
    ),
    Preset("ling-3.0-flash", LING_3_FLASH, TINY_LING, 40),
)
