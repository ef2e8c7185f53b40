"""What vLLM needs in the tiny configs of the families of 2026: published values that plans do not read, and sizes it accepts.

Its kernels take whole quantisation blocks, and heads of some sizes only.
"""

from __future__ import annotations

from typing import Any, Final

_DEEPSEEK_V4: Final[dict[str, Any]] = {
    "quantization_config": {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "scale_fmt": "ue8m0",
        "weight_block_size": [128, 128],
    },
    "hidden_act": "silu",
    "topk_method": "noaux_tc",
    "max_position_embeddings": 16384,
    "compress_ratios": [0, 128, 4, 128, 4, 0, 0],
    "index_topk": 16,
    "hidden_size": 256,
    "moe_intermediate_size": 256,
    "head_dim": 128,
    "qk_rope_head_dim": 64,
    "q_lora_rank": 128,
    "o_lora_rank": 128,
    "index_head_dim": 128,
}

RECENT: Final[dict[str, dict[str, Any]]] = {
    "deepseek-v4-flash": _DEEPSEEK_V4,
    "deepseek-v4-pro-0813": _DEEPSEEK_V4,
}
"""Preset → changes to its tiny config."""
