"""Configs of published models with Mamba-2 layers, and the values that make them tiny.

With the values that were released on Hugging Face (nvidia), without the keys that are not used here. The number of shards is not
known.
"""

from __future__ import annotations

from typing import Any

from loadmaster.synth.presets import Preset

NEMOTRON_3_SUPER: dict[str, Any] = {
    "architectures": ["NemotronHForCausalLM"],
    "model_type": "nemotron_h",
    "attention_bias": False,
    "conv_kernel": 4,
    "head_dim": 128,
    "hidden_size": 4096,
    "hybrid_override_pattern": "MEMEMEM*EMEMEMEM*EMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEM*EMEMEMEME",
    "mamba_head_dim": 64,
    "mamba_num_heads": 128,
    "mlp_bias": False,
    "mlp_hidden_act": "relu2",
    "moe_intermediate_size": 2688,
    "moe_latent_size": 1024,
    "moe_shared_expert_intermediate_size": 5376,
    "mtp_hybrid_override_pattern": "*E",
    "n_groups": 8,
    "n_routed_experts": 512,
    "n_shared_experts": 1,
    "num_attention_heads": 32,
    "num_experts_per_tok": 22,
    "num_hidden_layers": 88,
    "num_key_value_heads": 2,
    "num_nextn_predict_layers": 1,
    "routed_scaling_factor": 5.0,
    "ssm_state_size": 128,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_bias": False,
    "use_conv_bias": True,
    "vocab_size": 131072,
}
TINY_NEMOTRON: dict[str, Any] = {
    # two ranks of eight share a group, and a head of keys is on four of them
    "head_dim": 24,
    "hidden_size": 96,
    "hybrid_override_pattern": "ME*-ME",
    "intermediate_size": 160,
    "mamba_head_dim": 20,
    "mamba_num_heads": 8,
    "moe_intermediate_size": 40,
    "moe_latent_size": 64,
    "moe_shared_expert_intermediate_size": 56,
    "n_groups": 4,
    "n_routed_experts": 8,
    "num_attention_heads": 8,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 6,
    "ssm_state_size": 12,
    "vocab_size": 320,
}

PRESETS = (Preset("nemotron-3-super", NEMOTRON_3_SUPER, TINY_NEMOTRON, 50),)
