"""The published models that can be made: their configs, shards, and what of their headers the config does not say.

Configs as released on Hugging Face (zai-org/GLM-5.1-FP8, zai-org/GLM-5.2-FP8, deepseek-ai/DeepSeek-V3,
deepseek-ai/DeepSeek-V3.2, moonshotai/Kimi-K2-Instruct, meta-llama, HuggingFaceTB, mistralai, Qwen), keys that no one
here reads left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FP8 = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
}


@dataclass(frozen=True)
class Preset:
    """One published model.

    ``tiny`` are the config values that make it small. ``own_draft_head``: the MTP layer stores an embedding and a head.
    ``f32`` are logical tensors stored as F32. ``shard_name`` is the pattern of its files' names.
    """

    name: str
    config: Mapping[str, Any]
    tiny: Mapping[str, Any]
    num_shards: int
    own_draft_head: bool = False
    f32: tuple[str, ...] = ()
    shard_name: str = "model-{i:05d}-of-{n:05d}.safetensors"
    tiny_shards: int = 4
    extra: Mapping[str, Any] = field(default_factory=dict)


_GLM_51: dict[str, Any] = {
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

_TINY_MLA: dict[str, Any] = {
    # none of these is a multiple of the 128-wide blocks, so every cut and fusion meets ragged ones
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

_TINY_GLM: dict[str, Any] = {
    **_TINY_MLA,
    "head_dim": 16,
    "qk_head_dim": 40,
    "index_head_dim": 32,
    "index_n_heads": 8,
    "index_topk": 16,
}

_DEEPSEEK_V3: dict[str, Any] = {
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
    "quantization_config": FP8,
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

_TINY_DEEPSEEK: dict[str, Any] = {**_TINY_MLA, "n_group": 4, "topk_group": 2}

_LLAMA: dict[str, Any] = {
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

_TINY_DENSE: dict[str, Any] = {
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


def _dense(base: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    values = {**base, **changes}
    return {k: v for k, v in values.items() if v is not None}


_QWEN3 = _dense(
    _LLAMA,
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


def glm_ignored(num_layers: int, num_dense: int, num_drafts: int) -> list[str]:
    """Return GLM's published list of modules that are not quantised, for any size.

    As released it names ``indexers_proj``, a module that does not exist (``indexer.weights_proj`` is meant).
    """
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


PRESETS: dict[str, Preset] = {
    p.name: p
    for p in (
        Preset("glm-5.1-fp8", {**_GLM_51, "quantization_config": FP8}, _TINY_GLM, 142),
        Preset(
            "glm-5.2-fp8",
            {
                **_GLM_51,
                "max_position_embeddings": 1048576,
                "rope_parameters": {"rope_theta": 8000000, "rope_type": "default"},
                "index_topk_freq": 4,
                "index_skip_topk_offset": 3,
                "quantization_config": FP8,
            },
            {**_TINY_GLM, "num_hidden_layers": 8},
            141,
        ),
        Preset(
            "deepseek-v3",
            _DEEPSEEK_V3,
            _TINY_DEEPSEEK,
            163,
            own_draft_head=True,
            shard_name="model-{i:05d}-of-{n:06d}.safetensors",
        ),
        Preset(
            "deepseek-v3.2",
            {
                **_DEEPSEEK_V3,
                "architectures": ["DeepseekV32ForCausalLM"],
                "model_type": "deepseek_v32",
                "index_head_dim": 128,
                "index_n_heads": 64,
                "index_topk": 2048,
                "quantization_config": {**FP8, "scale_fmt": "ue8m0"},
            },
            {**_TINY_DEEPSEEK, "index_head_dim": 32, "index_n_heads": 8, "index_topk": 16},
            163,
            own_draft_head=True,
            f32=("indexer.k_norm", "indexer.k_norm_bias"),
            shard_name="model-{i:05d}-of-{n:06d}.safetensors",
        ),
        Preset(
            "kimi-k2",
            {
                **_DEEPSEEK_V3,
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
                "rope_scaling": {**_DEEPSEEK_V3["rope_scaling"], "factor": 32.0},
                "rope_theta": 50000.0,
                "routed_scaling_factor": 2.827,
                "topk_group": 1,
                "vocab_size": 163840,
            },
            {**_TINY_MLA, "first_k_dense_replace": 1},
            61,
            shard_name="model-{i}-of-{n}.safetensors",
        ),
        Preset("llama", _LLAMA, _TINY_DENSE, 4, tiny_shards=2),
        Preset(
            "smollm2",
            _dense(
                _LLAMA,
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
            {**_TINY_DENSE, "hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 3},
            1,
            tiny_shards=1,
        ),
        Preset(
            "mistral",
            _dense(
                _LLAMA,
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
            _TINY_DENSE,
            3,
            tiny_shards=2,
        ),
        Preset(
            "qwen2",
            _dense(
                _LLAMA,
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
            _TINY_DENSE,
            4,
            tiny_shards=2,
        ),
        Preset("qwen3", _QWEN3, _TINY_DENSE, 5, tiny_shards=2),
    )
}
"""Every model that can be made, by the name that ``loadmaster synth`` takes."""
