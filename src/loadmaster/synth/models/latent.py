"""Configs of published models with latent attention (MLA), and the values that make them tiny.

As released on Hugging Face (zai-org, deepseek-ai, moonshotai, mistralai, meituan-longcat), without the keys that are not used
here. Of Mistral-Large-4 no released config was read: its sizes are those of transformers' configuration class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from loadmaster.architectures import mistral_large
from loadmaster.synth.presets import Preset
from loadmaster.synth.quantised import FP8, QUANTISED
from loadmaster.synth.sizes import TINY_MLA

GLM_51: dict[str, Any] = {
    "architectures": ["GlmMoeDsaForCausalLM"],
    "attention_bias": False,
    "dtype": "bfloat16",
    "eos_token_id": [154820, 154827, 154829],
    "first_k_dense_replace": 3,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 6144,
    "index_head_dim": 128,
    "index_n_heads": 32,
    "index_topk": 2048,
    "indexer_rope_interleave": True,
    "intermediate_size": 12288,
    "kv_lora_rank": 512,
    "max_position_embeddings": 202752,
    "model_type": "glm_moe_dsa",
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 1,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 64,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 78,
    "num_key_value_heads": 64,
    "num_nextn_predict_layers": 1,
    "pad_token_id": 154820,
    "q_lora_rank": 2048,
    "qk_head_dim": 256,
    "qk_nope_head_dim": 192,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-05,
    "rope_interleave": True,
    "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"},
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "v_head_dim": 256,
    "vocab_size": 154880,
}

TINY_GLM: dict[str, Any] = {
    **TINY_MLA,
    "head_dim": 16,
    "qk_head_dim": 40,
    "index_head_dim": 32,
    "index_n_heads": 8,
    "index_topk": 16,
}

DEEPSEEK_V3: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "v_head_dim": 128,
    "vocab_size": 129280,
}

TINY_DEEPSEEK: dict[str, Any] = {**TINY_MLA, "n_group": 4, "topk_group": 2}

KIMI_K2: dict[str, Any] = {
    **DEEPSEEK_V3,
    "bos_token_id": 163584,
    "eos_token_id": 163585,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 131072,
    "model_type": "kimi_k2",
    "n_group": 1,
    "n_routed_experts": 384,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "num_nextn_predict_layers": 0,
    "rope_scaling": {**DEEPSEEK_V3["rope_scaling"], "factor": 32.0},
    "rope_theta": 50000.0,
    "routed_scaling_factor": 2.827,
    "topk_group": 1,
    "vocab_size": 163840,
}

TINY_KIMI: dict[str, Any] = {**TINY_MLA, "first_k_dense_replace": 1}


def glm_unquantised(config: Mapping[str, Any]) -> list[str]:
    """Return GLM's published list of modules that are not quantised, for any size.

    The published list names ``indexers_proj``, which does not exist (the module is ``indexer.weights_proj``).
    """
    num_layers, num_dense = config["num_hidden_layers"], config["first_k_dense_replace"]
    num_drafts = config["num_nextn_predict_layers"]
    names = ["lm_head", "model.embed_tokens", "model.norm"]
    every = (
        "input_layernorm",
        "post_attention_layernorm",
        "self_attn.indexer.k_norm",
        "self_attn.indexer.k_norm.bias",
        "self_attn.indexers_proj",
        "self_attn.kv_a_layernorm",
        "self_attn.q_a_layernorm",
    )
    for layer in range(num_layers + num_drafts):
        more = ("mlp.gate", "mlp.gate.e_score_correction_bias") if layer >= num_dense else ()
        draft = ("eh_proj", "enorm", "hnorm", "shared_head.norm") if layer >= num_layers else ()
        names += [f"model.layers.{layer}.{module}" for module in (*every, *more, *draft)]
    return names


MISTRAL_4: dict[str, Any] = {
    "architectures": ["Mistral4ForCausalLM"],
    "model_type": "mistral4",
    "torch_dtype": "bfloat16",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "q_lora_rank": 1024,
    "kv_lora_rank": 256,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 128,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "first_k_dense_replace": 0,
    "vocab_size": 131072,
}
MISTRAL_LARGE_3: dict[str, Any] = {
    **MISTRAL_4,
    "architectures": ["MistralLarge3ForCausalLM"],
    "hidden_size": 7168,
    "intermediate_size": 16384,
    "moe_intermediate_size": 4096,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "first_k_dense_replace": 3,
}
MISTRAL_LARGE_4: dict[str, Any] = {
    "architectures": ["MistralLarge4ForConditionalGeneration"],
    "model_type": "mistral_large4",
    "torch_dtype": "bfloat16",
    "text_config": {"model_type": "mistral_large4_text", "n_shared_experts": 1},
    "vision_config": {"model_type": "pixtral"},
}
TINY_MISTRAL: dict[str, Any] = {
    "hidden_size": 96,
    "intermediate_size": 160,
    "moe_intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 24,
    "v_head_dim": 16,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "vocab_size": 320,
}
TINY_VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
TINY_MISTRAL_LARGE_4: dict[str, Any] = {
    # Layer 2 reads the KV cache of layer 1, and layer 4 that of layer 3, which has no rotary embedding.
    **TINY_MISTRAL,
    "index_topk": 16,
    "index_head_dim": 16,
    "index_n_heads": 4,
    "kv_source_layers": [0, 1, 1, 3, 3, 5],
    "indexer_types": ["full", "full", "shared", "full", "full", "shared"],
}

LONGCAT_FLASH: dict[str, Any] = {
    "architectures": ["LongcatFlashForCausalLM"],
    "model_type": "longcat_flash",
    "torch_dtype": "bfloat16",
    "vocab_size": 131072,
    "hidden_size": 6144,
    "ffn_hidden_size": 12288,
    "expert_ffn_hidden_size": 2048,
    "moe_intermediate_size": 2048,
    "num_layers": 28,
    "num_attention_heads": 64,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 512,
    "zero_expert_num": 256,
    "zero_expert_type": "identity",
    "moe_topk": 12,
    "routed_scaling_factor": 6.0,
    "mla_scale_q_lora": True,
    "mla_scale_kv_lora": True,
}
TINY_LONGCAT: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 96,
    "ffn_hidden_size": 160,
    "expert_ffn_hidden_size": 48,
    "moe_intermediate_size": 48,
    "num_layers": 4,
    "num_attention_heads": 8,
    "q_lora_rank": 48,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 8,
    "head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 8,
    "zero_expert_num": 2,
    "moe_topk": 2,
    # else vLLM multiplies norms as it loads them
    "mla_scale_q_lora": False,
    "mla_scale_kv_lora": False,
    "num_nextn_predict_layers": 1,
}

PRESETS = (
    Preset("glm-5.1-fp8", {**GLM_51, "quantization_config": FP8}, TINY_GLM, 142, unquantised=glm_unquantised),
    Preset(
        "glm-5.2-fp8",
        {
            **GLM_51,
            "max_position_embeddings": 1048576,
            "rope_parameters": {"rope_theta": 8000000, "rope_type": "default"},
            "index_topk_freq": 4,
            "index_skip_topk_offset": 3,
            "quantization_config": FP8,
        },
        {**TINY_GLM, "num_hidden_layers": 8},
        141,
        unquantised=glm_unquantised,
    ),
    Preset(
        "deepseek-v3",
        {**DEEPSEEK_V3, "quantization_config": FP8},
        TINY_DEEPSEEK,
        163,
        ("fp8-ue8m0", "modelopt-fp4", "awq"),
        own_draft_head=True,
        shard_name="model-{i:05d}-of-{n:06d}.safetensors",
    ),
    Preset(
        "deepseek-v3.2",
        {
            **DEEPSEEK_V3,
            "architectures": ["DeepseekV32ForCausalLM"],
            "model_type": "deepseek_v32",
            "index_head_dim": 128,
            "index_n_heads": 64,
            "index_topk": 2048,
            "quantization_config": {**FP8, "scale_fmt": "ue8m0"},
        },
        {**TINY_DEEPSEEK, "index_head_dim": 32, "index_n_heads": 8, "index_topk": 16},
        163,
        own_draft_head=True,
        f32=("indexer.k_norm", "indexer.k_norm_bias"),
        shard_name="model-{i:05d}-of-{n:06d}.safetensors",
    ),
    Preset(
        "kimi-k2",
        {**KIMI_K2, "quantization_config": FP8},
        TINY_KIMI,
        61,
        shard_name="model-{i}-of-{n}.safetensors",
    ),
    Preset(
        "kimi-k2-int4",
        {**KIMI_K2, "quantization_config": QUANTISED["int4"](32)},
        TINY_KIMI,
        62,
        shard_name="model-{i:05d}-of-{n:06d}.safetensors",
    ),
    Preset("mistral-4", MISTRAL_4, {**TINY_MISTRAL, "q_lora_rank": 48}, 48),
    Preset(
        "mistral-large-3",
        {**MISTRAL_LARGE_3, "quantization_config": {"quant_method": "fp8", "ignore": ["output", "gate"]}},
        {**TINY_MISTRAL, "q_lora_rank": 48},
        140,
        family=replace(mistral_large.MLA, spelling=mistral_large.NAMES),
    ),
    Preset(
        "mistral-large-4", MISTRAL_LARGE_4, {"text_config": TINY_MISTRAL_LARGE_4, "vision_config": TINY_VISION}, 424
    ),
    Preset("longcat-flash", LONGCAT_FLASH, TINY_LONGCAT, 75),
)
