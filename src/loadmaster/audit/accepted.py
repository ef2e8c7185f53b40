"""What vLLM needs in the tiny configs of the families of 2026: published values that plans do not read, and sizes it accepts.

Its kernels take whole quantisation blocks, and heads of some sizes only.
"""

from __future__ import annotations

from typing import Any, Final

from loadmaster.synth import PRESETS
from loadmaster.synth.presets import merged

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

_KIMI: Final[dict[str, Any]] = {
    "mla_use_nope": True,
    "moe_router_activation_func": "sigmoid",
    "moe_renormalize": True,
    "use_grouped_topk": True,
    "num_expert_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 512,  # smaller shares of a rank are filled up
}

RECENT: Final[dict[str, dict[str, Any]]] = {
    "deepseek-v4-flash": _DEEPSEEK_V4,
    "deepseek-v4-pro-0813": _DEEPSEEK_V4,
    "kimi-linear": {**_KIMI, "hidden_act": "silu"},
    "kimi-k3": {
        "media_placeholder_token_id": 3,
        "text_config": merged(
            PRESETS["kimi-k3"].config_of(tiny=True)["text_config"],
            {
                **_KIMI,
                "hidden_act": "situ",
                "activation_situ_beta": 4.0,
                "activation_situ_linear_beta": 25.0,
                "hidden_size": 128,
                "routed_expert_hidden_size": 256,
            },
        ),
    },
}
"""Preset → changes to its tiny config."""
