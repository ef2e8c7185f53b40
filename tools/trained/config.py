"""The sizes of the model, and its config.json: that of GLM-5.1-FP8 with other numbers."""

from __future__ import annotations

from typing import Any

END, USER, ASSISTANT, SYSTEM = "<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>"
SPECIAL = (END, USER, ASSISTANT, SYSTEM)
"""The special tokens, in the order of their ids, from 0."""

BLOCK = 128
"""Rows and columns of a quantisation block."""


def config() -> dict[str, Any]:
    """Return config.json."""
    sizes: dict[str, Any] = {
        "architectures": ["GlmMoeDsaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "dtype": "bfloat16",
        "eos_token_id": [SPECIAL.index(END), SPECIAL.index(USER)],
        "first_k_dense_replace": 1,
        "hidden_act": "silu",
        "head_dim": 64,
        "hidden_size": 256,
        "index_head_dim": 128,
        "index_n_heads": 4,
        "index_topk": 64,
        "indexer_rope_interleave": True,
        "initializer_range": 0.02,
        "intermediate_size": 512,
        "kv_lora_rank": 128,
        "max_position_embeddings": 16384,
        "moe_intermediate_size": 128,
        "moe_layer_freq": 1,
        "model_type": "glm_moe_dsa",
        "n_group": 1,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_attention_heads": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 5,
        "num_key_value_heads": 4,
        "num_nextn_predict_layers": 1,
        "pad_token_id": SPECIAL.index(END),
        "q_lora_rank": 128,
        "qk_head_dim": 128,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-05,
        "rope_interleave": True,
        "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"},
        "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid",
        "tie_word_embeddings": False,
        "topk_group": 1,
        "topk_method": "noaux_tc",
        "use_cache": True,
        "v_head_dim": 64,
        "vocab_size": 2560,
    }
    sizes["quantization_config"] = {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [BLOCK, BLOCK],
        "modules_to_not_convert": _unquantised(sizes),
    }
    return sizes


def _unquantised(c: dict[str, Any]) -> list[str]:
    """Return the modules that stay BF16, as GLM-5.1-FP8 lists them (``indexers_proj``: it means ``indexer.weights_proj``)."""
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
    num_layers = c["num_hidden_layers"]
    for layer in range(num_layers + c["num_nextn_predict_layers"]):
        router = ("mlp.gate", "mlp.gate.e_score_correction_bias") if layer >= c["first_k_dense_replace"] else ()
        draft = ("eh_proj", "enorm", "hnorm", "shared_head.norm") if layer >= num_layers else ()
        names += [f"model.layers.{layer}.{module}" for module in (*every, *router, *draft)]
    return names
