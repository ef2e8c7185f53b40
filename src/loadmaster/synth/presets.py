"""The published models that can be written: configs, formats, shards, and header details that are not in the config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from loadmaster.architectures.registry import find_family
from loadmaster.architectures.schema import Family
from loadmaster.synth import hybrids
from loadmaster.synth import models as m
from loadmaster.synth.quantised import FP8, QUANTISED

GROUP, TINY_GROUP = 128, 32
"""Inputs that share a factor in formats with groups: as published, and in tiny models."""


@dataclass(frozen=True)
class Preset:
    """One published model.

    ``tiny`` are the config values that make it small; nested objects are merged. ``formats`` are additional published formats
    (`QUANTISED`): each makes a preset ``name-format``. ``own_draft_head``: the MTP layer stores an embedding and a head.
    ``f32`` are logical tensors stored as F32. ``e8m0``: FP8 scales are stored as powers of two. ``shard_name`` is the pattern
    of its file names. ``extra`` are tensors outside the language model, as (dtype, shape). ``family`` describes it, where the
    config's architecture does not find it; names are in its usual spelling.
    """

    name: str
    config: Mapping[str, Any]
    tiny: Mapping[str, Any]
    num_shards: int
    formats: tuple[str, ...] = ()
    format: str | None = None
    own_draft_head: bool = False
    f32: tuple[str, ...] = ()
    e8m0: bool = False
    shard_name: str = "model-{i:05d}-of-{n:05d}.safetensors"
    tiny_shards: int = 4
    extra: Mapping[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    family: Family | None = None

    def in_formats(self) -> Iterator[Preset]:
        """Yield the preset itself, and one for each of its formats."""
        yield self
        for name in self.formats:
            yield replace(self, name=f"{self.name}-{name}", formats=(), format=name, e8m0=name == "fp8-ue8m0")

    def family_of(self, config: Mapping[str, Any]) -> Family:
        """Return the family that describes ``config``, its config.json."""
        return self.family or find_family(config)

    def config_of(self, *, tiny: bool) -> dict[str, Any]:
        """Return its config.json, full size or tiny."""
        config = merged(self.config, self.tiny if tiny else {})
        if self.format:
            config["quantization_config"] = QUANTISED[self.format](TINY_GROUP if tiny else GROUP)
        if self.name.startswith("glm-5"):
            sizes = (config[k] for k in ("num_hidden_layers", "first_k_dense_replace", "num_nextn_predict_layers"))
            quantization = {**config["quantization_config"], "modules_to_not_convert": glm_ignored(*sizes)}
            config["quantization_config"] = quantization
        return config


def merged(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config with some values changed, also inside nested objects; None removes one.

    >>> merged({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"c": 4}})
    {'a': 1, 'b': {'c': 4, 'd': 3}}
    """
    values = dict(config)
    for key, value in changes.items():
        nested = isinstance(value, Mapping) and isinstance(values.get(key), Mapping)
        values[key] = merged(values[key], value) if nested else value
    return {k: v for k, v in values.items() if v is not None}


KIMI_K2: dict[str, Any] = {
    **m.DEEPSEEK_V3,
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
    "rope_scaling": {**m.DEEPSEEK_V3["rope_scaling"], "factor": 32.0},
    "rope_theta": 50000.0,
    "routed_scaling_factor": 2.827,
    "topk_group": 1,
    "vocab_size": 163840,
}

TINY_KIMI: dict[str, Any] = {**m.TINY_MLA, "first_k_dense_replace": 1}


def glm_ignored(num_layers: int, num_dense: int, num_drafts: int) -> list[str]:
    """Return GLM's published list of modules that are not quantised, for any size.

    The published list names ``indexers_proj``, which does not exist (the module is ``indexer.weights_proj``).
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
    for family in (
        Preset("glm-5.1-fp8", {**m.GLM_51, "quantization_config": FP8}, m.TINY_GLM, 142),
        Preset(
            "glm-5.2-fp8",
            {
                **m.GLM_51,
                "max_position_embeddings": 1048576,
                "rope_parameters": {"rope_theta": 8000000, "rope_type": "default"},
                "index_topk_freq": 4,
                "index_skip_topk_offset": 3,
                "quantization_config": FP8,
            },
            {**m.TINY_GLM, "num_hidden_layers": 8},
            141,
        ),
        Preset(
            "deepseek-v3",
            {**m.DEEPSEEK_V3, "quantization_config": FP8},
            m.TINY_DEEPSEEK,
            163,
            ("fp8-ue8m0", "modelopt-fp4", "awq"),
            own_draft_head=True,
            shard_name="model-{i:05d}-of-{n:06d}.safetensors",
        ),
        Preset(
            "deepseek-v3.2",
            {
                **m.DEEPSEEK_V3,
                "architectures": ["DeepseekV32ForCausalLM"],
                "model_type": "deepseek_v32",
                "index_head_dim": 128,
                "index_n_heads": 64,
                "index_topk": 2048,
                "quantization_config": {**FP8, "scale_fmt": "ue8m0"},
            },
            {**m.TINY_DEEPSEEK, "index_head_dim": 32, "index_n_heads": 8, "index_topk": 16},
            163,
            own_draft_head=True,
            f32=("indexer.k_norm", "indexer.k_norm_bias"),
            shard_name="model-{i:05d}-of-{n:06d}.safetensors",
        ),
        Preset(
            "kimi-k2",
            {**KIMI_K2, "quantization_config": FP8},
            TINY_KIMI,
            61,
            shard_name="model-{i}-of-{n}.safetensors",
        ),
        Preset(
            "llama",
            m.LLAMA,
            m.TINY_DENSE,
            4,
            tuple(name for name in QUANTISED if name not in ("fp8", "fp8-ue8m0", "int4", "mxfp4")),
            tiny_shards=2,
        ),
        Preset(
            "smollm2",
            m.derived(
                m.LLAMA,
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
            {**m.TINY_DENSE, "hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 3},
            1,
            tiny_shards=1,
        ),
        Preset(
            "mistral",
            m.derived(
                m.LLAMA,
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
            m.TINY_DENSE,
            3,
            tiny_shards=2,
        ),
        Preset(
            "qwen2",
            m.derived(
                m.LLAMA,
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
            m.TINY_DENSE,
            4,
            tiny_shards=2,
        ),
        Preset("qwen3", m.QWEN3, m.TINY_DENSE, 5, ("fp8", "awq"), tiny_shards=2),
        Preset(
            "kimi-k2-int4",
            {**KIMI_K2, "quantization_config": QUANTISED["int4"](32)},
            TINY_KIMI,
            62,
            shard_name="model-{i:05d}-of-{n:06d}.safetensors",
        ),
        Preset("qwen2-moe", m.QWEN2_MOE, m.small(m.QWEN2_MOE, mlp_only_layers=[1]), 8, ("gptq",)),
        Preset("qwen3-moe", m.QWEN3_MOE, m.small(m.QWEN3_MOE), 16, ("fp8", "awq", "gptq", "w4a16", "nvfp4")),
        Preset(
            "qwen3-next",
            m.QWEN3_NEXT,
            m.small(m.QWEN3_NEXT, **m.TINY_LINEAR),
            41,
            ("fp8",),
            extra={"mtp.fc.weight": ("BF16", (128, 256)), "mtp.norm.weight": ("BF16", (128,))},
        ),
        Preset(
            "qwen3.8",
            m.QWEN38,
            {"text_config": m.small(m.QWEN38["text_config"], **m.TINY_LINEAR)},
            18,
            extra={"model.visual.pos_embed.weight": ("BF16", (2304, 64))},
        ),
        Preset(
            "qwen3.5-moe",
            m.QWEN35_MOE,
            {"text_config": m.small(m.QWEN35_MOE["text_config"], **m.TINY_LINEAR)},
            14,
            f32=("linear.a_log", "linear.norm"),
            extra={"model.visual.pos_embed.weight": ("BF16", (2304, 64))},
        ),
        Preset("mixtral", m.MIXTRAL, m.small(m.MIXTRAL), 19, ("awq", "gptq", "fp8-static", "w8a8")),
        Preset(
            "minimax-m2",
            {**m.MINIMAX_M2, "quantization_config": FP8},
            m.small(m.MINIMAX_M2),
            130,
            ("awq", "nvfp4"),
        ),
        Preset(
            "glm-4.5-air",
            m.GLM_45_AIR,
            m.small(m.GLM_45_AIR, use_qk_norm=True),
            47,
            ("fp8-channel", "awq", "w4a16"),
            own_draft_head=True,
        ),
        Preset(
            "gpt-oss",
            {**m.GPT_OSS, "quantization_config": QUANTISED["mxfp4"](32)},
            m.small(
                m.GPT_OSS, intermediate_size=160
            ),  # five blocks, which 2, 4 and 8 ranks do not divide: as published
            3,
        ),
        Preset("gpt-oss-bf16", m.GPT_OSS, m.small(m.GPT_OSS), 9),
        Preset(
            "llama-4",
            m.LLAMA4,
            {"text_config": m.small(m.LLAMA4["text_config"], interleave_moe_layer_step=2, intermediate_size_mlp=192)},
            50,
            extra={
                "vision_model.class_embedding": ("BF16", (64,)),
                "multi_modal_projector.linear_1.weight": ("BF16", (128, 64)),
            },
        ),
        Preset(
            "gemma-3",
            m.GEMMA3,
            {"text_config": {**m.TINY_DENSE}},
            2,
            ("w4a16", "fp8-channel"),
            shard_name="model-{i:05d}-of-{n:05d}.safetensors",
            extra={"vision_tower.vision_model.post_layernorm.weight": ("BF16", (64,))},
        ),
        Preset("phi-4", m.PHI4, m.small(m.PHI4), 6, ("fp8-channel", "gptq", "w8a8")),
        Preset("granite-moe", m.GRANITE_MOE, m.small(m.GRANITE_MOE), 2),
        Preset(
            "granite-moe-shared",
            m.derived(
                m.GRANITE_MOE,
                architectures=["GraniteMoeSharedForCausalLM"],
                model_type="granitemoeshared",
                shared_intermediate_size=1024,
            ),
            m.small(m.GRANITE_MOE, shared_intermediate_size=96),
            2,
        ),
        Preset("olmo-2", m.OLMO2, m.small(m.OLMO2), 6, ("w4a16",)),
        Preset(
            "olmo-3",
            m.derived(m.OLMO2, architectures=["Olmo3ForCausalLM"], model_type="olmo3", vocab_size=100278),
            m.small(m.OLMO2),
            3,
        ),
        Preset("mimo-v2.5-pro", hybrids.MIMO_V2_PRO, hybrids.TINY_MIMO_V2, 34, f32=("moe.router",)),
        Preset(
            "mimo-v2.6-pro",
            merged(hybrids.MIMO_V2_PRO, {"quantization_config": hybrids.MXFP4_EXPERTS}),
            hybrids.TINY_MIMO_V2,
            130,
        ),
    )
    for p in family.in_formats()
}
"""Every model that can be written, by the name that ``loadmaster synth`` accepts."""
