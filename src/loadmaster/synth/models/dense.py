"""Configs of published dense models, and the values that make them tiny.

As released on Hugging Face (meta-llama, HuggingFaceTB, mistralai, Qwen, google, microsoft, allenai), without the keys
that are not used here.
"""

from __future__ import annotations

from typing import Any

from loadmaster.synth.presets import Preset
from loadmaster.synth.quantised import QUANTISED
from loadmaster.synth.sizes import TINY_DENSE, derived, moe, small

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}

QWEN3 = derived(
    LLAMA,
    architectures=["Qwen3ForCausalLM"],
    model_type="qwen3",
    bos_token_id=151643,
    eos_token_id=151645,
    head_dim=128,
    intermediate_size=12288,
    max_position_embeddings=40960,
    num_hidden_layers=36,
    rms_norm_eps=1e-06,
    rope_scaling=None,
    rope_theta=1000000,
    mlp_bias=None,
    vocab_size=151936,
)

GEMMA3: dict[str, Any] = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "eos_token_id": [1, 106],
    "model_type": "gemma3",
    "torch_dtype": "bfloat16",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "max_position_embeddings": 131072,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "sliding_window": 1024,
    },
}

PHI4 = moe(
    "phi3",
    "Phi3ForCausalLM",
    hidden_size=5120,
    intermediate_size=17920,
    num_hidden_layers=40,
    num_attention_heads=40,
    num_key_value_heads=10,
    vocab_size=100352,
)

OLMO2 = moe(
    "olmo2",
    "Olmo2ForCausalLM",
    attention_bias=False,
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    vocab_size=100352,
)

PRESETS = (
    Preset(
        "llama",
        LLAMA,
        TINY_DENSE,
        4,
        tuple(name for name in QUANTISED if name not in ("fp8", "fp8-ue8m0", "int4", "mxfp4")),
        tiny_shards=2,
    ),
    Preset(
        "smollm2",
        derived(
            LLAMA,
            bos_token_id=1,
            eos_token_id=2,
            hidden_size=576,
            intermediate_size=1536,
            max_position_embeddings=8192,
            num_attention_heads=9,
            num_hidden_layers=30,
            num_key_value_heads=3,
            rope_scaling=None,
            rope_theta=100000,
            tie_word_embeddings=True,
            vocab_size=49152,
        ),
        {**TINY_DENSE, "hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 3},
        1,
        tiny_shards=1,
    ),
    Preset(
        "mistral",
        derived(
            LLAMA,
            architectures=["MistralForCausalLM"],
            model_type="mistral",
            bos_token_id=1,
            eos_token_id=2,
            max_position_embeddings=32768,
            rope_scaling=None,
            rope_theta=1000000.0,
            sliding_window=None,
            attention_bias=None,
            mlp_bias=None,
            vocab_size=32768,
        ),
        TINY_DENSE,
        3,
        tiny_shards=2,
    ),
    Preset(
        "qwen2",
        derived(
            LLAMA,
            architectures=["Qwen2ForCausalLM"],
            model_type="qwen2",
            bos_token_id=151643,
            eos_token_id=151645,
            hidden_size=3584,
            intermediate_size=18944,
            max_position_embeddings=32768,
            num_attention_heads=28,
            num_hidden_layers=28,
            num_key_value_heads=4,
            rms_norm_eps=1e-06,
            rope_scaling=None,
            rope_theta=1000000.0,
            use_sliding_window=False,
            attention_bias=None,
            mlp_bias=None,
            vocab_size=152064,
        ),
        TINY_DENSE,
        4,
        tiny_shards=2,
    ),
    Preset("qwen3", QWEN3, TINY_DENSE, 5, ("fp8", "awq"), tiny_shards=2),
    Preset(
        "gemma-3",
        GEMMA3,
        {"text_config": {**TINY_DENSE}},
        2,
        ("w4a16", "fp8-channel"),
        shard_name="model-{i:05d}-of-{n:05d}.safetensors",
        extra={"vision_tower.vision_model.post_layernorm.weight": ("BF16", (64,))},
    ),
    Preset("phi-4", PHI4, small(PHI4), 6, ("fp8-channel", "gptq", "w8a8")),
    Preset("olmo-2", OLMO2, small(OLMO2), 6, ("w4a16",)),
    Preset(
        "olmo-3",
        derived(OLMO2, architectures=["Olmo3ForCausalLM"], model_type="olmo3", vocab_size=100278),
        small(OLMO2),
        3,
    ),
)
