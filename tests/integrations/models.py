"""Tiny models that vLLM takes on a CPU: presets, and what makes it accept their configs."""

from typing import Any

MLA = {  # vLLM takes no cut inside a block of 128
    "topk_method": "noaux_tc",
    "hidden_size": 384,
    "intermediate_size": 512,
    "moe_intermediate_size": 256,
    "q_lora_rank": 256,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32,
    "v_head_dim": 32,
}
LONG = {"max_position_embeddings": 16384}
ACCEPTED: dict[str, dict[str, Any]] = {
    "llama": LONG,
    "qwen3": {},
    "smollm2": {},
    "qwen3-moe": {},
    "deepseek-v3": MLA,
    "glm-5.1-fp8": {**MLA, "qk_head_dim": 64, "head_dim": 32},
}
"""Presets that are compared on every layout."""
AS_THEY_ARE = (
    *("qwen2", "qwen2-moe", "qwen3-next", "mixtral", "mixtral-fp8-static", "glm-4.5-air", "gpt-oss-bf16", "phi-4"),
    *("mistral", "granite-moe", "granite-moe-shared", "olmo-2", "olmo-3"),
)
OTHERS: dict[str, dict[str, Any]] = {
    "glm-5.2-fp8": ACCEPTED["glm-5.1-fp8"],
    "deepseek-v3.2": MLA,
    "kimi-k2": MLA,
    "minimax-m2": {
        "head_dim": 32,
        "hidden_size": 256,
        "num_key_value_heads": 8,
        "rotary_dim": 8,
        "scoring_func": "sigmoid",
        "use_routing_bias": True,
    },
    "llama-fp8-static": LONG,
    "llama-w4a16-asym": LONG,
    "llama-awq": LONG,
    "llama-gptq": LONG,
    **{preset: {} for preset in AS_THEY_ARE},
}
"""More that vLLM builds on a CPU: fused and stacked as stored, padded, packed, with recurrent layers, with defaults."""
