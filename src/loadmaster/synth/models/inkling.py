"""Configs of Inkling and Inkling-2, and the values that make them tiny.

No released config was read: sizes are those of the configuration classes of transformers, and the number of shards is not known.
"""

from __future__ import annotations

from typing import Any

from loadmaster.synth.presets import Preset, merged

INKLING: dict[str, Any] = {
    "architectures": ["InklingForConditionalGeneration"],
    "model_type": "inkling_mm_model",
    "dtype": "bfloat16",
    "text_config": {
        "d_rel": 16,
        "dense_mlp_idx": 2,
        "head_dim": 128,
        "hidden_size": 6144,
        "intermediate_size": 24576,
        "local_layer_ids": [layer for layer in range(66) if (layer + 1) % 6],
        "moe_intermediate_size": 3072,
        "n_routed_experts": 256,
        "n_shared_experts": 2,
        "num_attention_heads": 64,
        "num_experts_per_tok": 6,
        "num_hidden_layers": 66,
        "num_key_value_heads": 8,
        "rel_extent": 1024,
        # without these vLLM leaves out what the class in transformers always has
        **dict.fromkeys(
            ("shared_expert_sink", "use_embed_norm", "use_gate_bias", "use_global_scale", "use_sconv"), True
        ),
        "sliding_window_size": 512,
        "swa_head_dim": 128,
        "swa_num_attention_heads": 64,
        "swa_num_key_value_heads": 16,
        "unpadded_vocab_size": 200058,
        "vocab_size": 201024,
    },
}
INKLING_2: dict[str, Any] = {
    "architectures": ["Inkling2ForConditionalGeneration"],
    "model_type": "inkling2",
    "dtype": "bfloat16",
    "text_config": {
        "d_rel": 16,
        "head_dim": 128,
        "hidden_size": 4608,
        "moe_intermediate_size": 2304,
        "n_layers_per_attn_res_block": 6,
        "n_routed_experts": 384,
        "num_attention_heads": 48,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 48,
        "num_key_value_heads": 8,
        "rel_extent": 1024,
        "sliding_window_size": 1024,
        "swa_head_dim": 128,
        "swa_num_attention_heads": 48,
        "swa_num_key_value_heads": 8,
        "unpadded_vocab_size": 200058,
        "vocab_size": 201024,
    },
}
INKLING_2_LOOP = merged(
    INKLING_2,
    {
        "architectures": ["Inkling2LoopForConditionalGeneration"],
        "model_type": "inkling2_loop",
        "text_config": {
            "hidden_size": 2304,
            "loop_gate_rank": 64,
            "loop_layer_index_end": 18,
            "loop_layer_index_start": 6,
            "loop_num_passes": 3,
            "moe_intermediate_size": 1152,
            "n_routed_experts": 128,
            "num_attention_heads": 24,
            "num_hidden_layers": 24,
            "swa_num_attention_heads": 24,
        },
    },
)
_TINY: dict[str, Any] = {
    "d_rel": 4,
    "head_dim": 16,
    "hidden_size": 96,
    "moe_intermediate_size": 48,
    "n_routed_experts": 8,
    "num_attention_heads": 8,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 7,  # layer 5 has no window
    "num_key_value_heads": 4,
    "rel_extent": 64,
    "sliding_window_size": 32,
    "swa_head_dim": 16,
    "swa_num_attention_heads": 8,
    "swa_num_key_value_heads": 8,
    "unpadded_vocab_size": 300,
    "vocab_size": 320,
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
TINY_INKLING: dict[str, Any] = {
    **_TINY,
    "intermediate_size": 160,
    "local_layer_ids": [0, 1, 2, 3, 4, 6],
    **{"chain_hidden_post_norm": True, "mtp_local_layer_ids": [1], "num_mtp_layers": 2},
}
TINY_LOOP: dict[str, Any] = {
    # layers 2 to 5 run three times in turn
    **_TINY,
    "layer_types": ["hybrid_sliding", "hybrid"] * 4,
    "loop_gate_rank": 8,
    "loop_layer_index_end": 6,
    "loop_layer_index_start": 2,
    "n_layers_per_attn_res_block": 2,
    "num_hidden_layers": 8,
}
_OF_VISION = {"text_hidden_size": 96}

PRESETS = (
    Preset("inkling", INKLING, {"text_config": TINY_INKLING}, 128),
    Preset("inkling-2", INKLING_2, {"text_config": _TINY, "vision_config": _OF_VISION}, 64),
    Preset("inkling-2-loop", INKLING_2_LOOP, {"text_config": TINY_LOOP, "vision_config": _OF_VISION}, 16),
)
