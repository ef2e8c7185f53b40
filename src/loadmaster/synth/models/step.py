"""The config of Step-3.7-Flash, and the values that make it tiny.

With the values that were released on Hugging Face (stepfun-ai), without the keys that are not used here. The number of shards is
not known.
"""

from __future__ import annotations

from typing import Any

from loadmaster.synth.presets import Preset

TYPES = ["full_attention", *["sliding_attention"] * 3]

STEP_37_FLASH: dict[str, Any] = {
    "architectures": ["Step3p7ForConditionalGeneration"],
    "model_type": "step3p7",
    "text_config": {
        "model_type": "step3p5",
        "attention_other_setting": {
            "attention_type": "sliding_attention",
            "head_dim": 128,
            "num_attention_groups": 8,
            "num_attention_heads": 96,
        },
        "head_dim": 128,
        "hidden_size": 4096,
        "intermediate_size": 11264,
        "layer_types": TYPES * 12,  # of 48 layers: three are MTP layers
        "moe_intermediate_size": 1280,
        "moe_layers_enum": ",".join(map(str, range(3, 45))),
        "moe_num_experts": 288,
        "moe_router_scaling_factor": 3.0,
        "moe_top_k": 8,
        "need_fp32_gate": True,
        "norm_expert_weight": True,
        "num_attention_groups": 8,
        "num_attention_heads": 64,
        "num_hidden_layers": 45,
        "num_nextn_predict_layers": 3,
        "share_expert_dim": 1280,
        "use_head_wise_attn_gate": True,
        "use_moe_router_bias": True,
        "vocab_size": 128896,
    },
    "torch_dtype": "bfloat16",
}
TINY_STEP: dict[str, Any] = {
    "attention_other_setting": {"head_dim": 16, "num_attention_groups": 2, "num_attention_heads": 16},
    "head_dim": 16,
    "hidden_size": 96,
    "intermediate_size": 160,
    "layer_types": [*TYPES, *TYPES[1:3]],
    "moe_intermediate_size": 40,
    "moe_layers_enum": "2,3",
    "moe_num_experts": 8,
    "moe_top_k": 2,
    "num_attention_groups": 2,
    "num_attention_heads": 8,
    "num_hidden_layers": 4,
    "num_nextn_predict_layers": 2,
    "share_expert_dim": 56,
    "vocab_size": 320,
}

PRESETS = (
    Preset(
        "step-3.7-flash",
        STEP_37_FLASH,
        {"text_config": TINY_STEP},
        41,
        extra={
            "vision_model.conv1.weight": ("BF16", (64, 3, 14, 14)),
            "vit_large_projector.weight": ("BF16", (96, 64)),
        },
    ),
)
