"""Sizes of tiny models, and what the configs of several models have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TINY_DENSE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "head_dim": 16,
    "num_attention_heads": 8,
    "num_hidden_layers": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "vocab_size": 320,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
}

TINY_MOE: dict[str, Any] = {
    **TINY_DENSE,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 96,
    "num_experts": 8,
    "num_local_experts": 8,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
}
"""Tiny sizes for every family with experts; `small` picks the keys that a config has."""

TINY_MLA: dict[str, Any] = {
    # none is a multiple of the 128-wide quantisation blocks, so every cut and fusion has incomplete blocks
    "hidden_size": 320,
    "intermediate_size": 448,
    "kv_lora_rank": 80,
    "moe_intermediate_size": 96,
    "n_routed_experts": 8,
    "num_attention_heads": 8,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 6,
    "num_key_value_heads": 8,
    "q_lora_rank": 176,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "first_k_dense_replace": 2,
    "max_position_embeddings": 512,
    "vocab_size": 320,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
}


def derived(base: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """Return a config with some values changed; None removes one."""
    values = {**base, **changes}
    return {k: v for k, v in values.items() if v is not None}


def moe(model: str, architecture: str, **values: Any) -> dict[str, Any]:
    """Return the config of a mixture-of-experts model, with the keys that all of these have in common."""
    return {
        "architectures": [architecture],
        "model_type": model,
        "hidden_act": "silu",
        "max_position_embeddings": 131072,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        **values,
    }


def small(config: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """Return the values that make a config tiny: those of `TINY_MOE` for its keys, token ids, and ``changes``."""
    always = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {k: v for k, v in TINY_MOE.items() if k in config or k in always} | changes
