"""Mixtures of experts that are no presets, as vLLM has them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from loadmaster.audit.accepted import CODE, WRAPPED
from loadmaster.audit.case import ACCEPTED
from loadmaster.synth import PRESETS
from loadmaster.synth.presets import merged
from tests.architectures.test_text_models import MODELS
from tests.integrations.vllm.golden import CUT, SPREAD, SPREAD_ALONE, STAGES, WHOLE
from tests.integrations.vllm.text_case import WITH_EXPERTS, TextCase, text

TWO: Final = {"num_experts_per_tok": 2}
GROUPED: Final = {**TWO, "n_group": 1, "topk_group": 1, "norm_topk_prob": True, "routed_scaling_factor": 1.0}
ROPE: Final = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
BAILING: Final[dict[str, Any]] = {
    **GROUPED,
    **{"use_bias": False, "use_qkv_bias": False, "use_rmsnorm": True, "embedding_dropout": 0.0},
    **{"router_dtype": "fp32", "score_function": "sigmoid", "first_k_dense_replace": 1},
}
SHARED: Final = {"moe_shared_expert_intermediate_size": 64}
CORRECTED: Final = {"use_qk_norm": True, "num_shared_experts": 1, "moe_router_enable_expert_bias": True}
REMOTE: Final = {"max_position_embeddings": 256, "rms_norm_eps": 1e-6, "hidden_act": "silu", "rope_theta": 1e4}
FLASH: Final = {"architectures": ["MiMoV2FlashForCausalLM"], "attention_projection_layout": None}
BLOCKS: Final = {"head_dim": 128, "swa_head_dim": 128, "v_head_dim": 64, "swa_v_head_dim": 64, "num_key_value_heads": 4}

CLASS: Final = """from transformers import PretrainedConfig


class RemoteConfig(PretrainedConfig):
    model_type = "{model_type}"
"""

WITH_SECTIONS: Final = """from transformers import PretrainedConfig


class Section(PretrainedConfig):
    model_type = "interns1_pro_section"


class RemoteConfig(PretrainedConfig):
    model_type = "interns1_pro"
    sub_configs = {"text_config": Section, "vision_config": Section}

    def __init__(self, text_config=None, vision_config=None, **more):
        self.text_config = Section(**(text_config or {}))
        self.vision_config = Section(**(vision_config or {}))
        super().__init__(**more)
"""
FOPE: Final = {
    "rope_type": "default",
    "rope_theta": 1e4,
    "num_inv_freq": 6,
    "fope_sep_head": True,
    "fope_init_factor": 0.1,
}
ROPED: Final = {"rope_parameters": FOPE, "rope_scaling": None, "max_position_embeddings": 512}
TEXT: Final = {
    **{"norm_topk_prob": True, "rms_norm_eps": 1e-6, "hidden_act": "silu", "decoder_sparse_step": 1},
    **{"mlp_only_layers": [], "attention_bias": False, "tie_word_embeddings": False},
}
VISION: Final = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
QWEN_VISION: Final = {
    **{"depth": 1, "num_heads": 4, "intermediate_size": 64, "in_channels": 3, "patch_size": 14, "hidden_act": "gelu"},
    **{"spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 128, "num_position_embeddings": 64},
    "deepstack_visual_indexes": [],
}

SOME: Final = (*STAGES[1:], *CUT[1:], *SPREAD[1:])
DRAFT: Final = (*WHOLE, *SPREAD_ALONE)


def preset(name: str, **changes: Any) -> dict[str, Any]:
    """Return the tiny config of a preset with changes; None removes a value."""
    own = PRESETS[name].config_of(tiny=True) | ACCEPTED.get(name, {}) | changes
    return {key: value for key, value in own.items() if value is not None}


def alone(name: str, architecture: str, model_type: str, **changes: Any) -> dict[str, Any]:
    """Return the tiny config of a preset's language model; None removes a value."""
    whole = merged(PRESETS[name].config_of(tiny=True), WRAPPED[name])
    of_all = {key: whole[key] for key in ("dtype", "quantization_config") if key in whole}
    named = {"architectures": [architecture], "model_type": model_type}
    return {key: value for key, value in (whole["text_config"] | of_all | named | changes).items() if value is not None}


def of(architecture: str, model_type: str, more: dict[str, Any] | None = None, **changes: Any) -> TextCase:
    return TextCase(text(architecture, model_type, **changes), TWO if more is None else more, ranks=WITH_EXPERTS)


def remote(case: TextCase) -> TextCase:
    """Return a case whose config's class is in the release, and not in transformers."""
    code = CLASS.format(model_type=case.config["model_type"])
    more = case.more | {"auto_map": {"AutoConfig": "remote.RemoteConfig"}}
    return replace(case, more=more, files={"remote.py": code}, engine={"trust_remote_code": True})


def drafted(case: TextCase) -> TextCase:
    return replace(case, ranks=DRAFT, drafts=True)


MIMO: Final = TextCase(preset("mimo-v2.5-pro", **FLASH, quantization_config=None), ranks=WITH_EXPERTS, spelling=1)
MIMO_FP8: Final = TextCase(preset("mimo-v2.5-pro", **FLASH, **BLOCKS, num_attention_heads=8), ranks=SOME, spelling=1)
LING_25: Final = remote(
    of("BailingMoeV2_5ForCausalLM", "bailing_hybrid", BAILING | REMOTE, first_k_dense_replace=1, **SHARED)
)
PANGU: Final = of("PanguUltraMoEForCausalLM", "deepseek_v3")
EXAONE: Final = of(
    "ExaoneMoeForCausalLM",
    "exaone_moe",
    {
        **GROUPED,
        "mlp_layer_types": ["dense", *["sparse"] * 3],
        "layer_types": ["full_attention"] * 4,
    },
    num_shared_experts=1,
)
HY3: Final = of(
    "HYV3ForCausalLM",
    "hy_v3",
    {
        **TWO,
        **{"first_k_dense_replace": 1, "expert_hidden_dim": 64, "qk_norm": True, "route_norm": True},
        **{"num_shared_experts": 1, "router_scaling_factor": 1.0},
    },
)
LING_2: Final = of("BailingMoeV2ForCausalLM", "qwen2", BAILING | ROPE, num_nextn_predict_layers=0, **SHARED)
GLM_LITE: Final = of("Glm4MoeLiteForCausalLM", "glm4_moe_lite")


def in_fp8(case: TextCase, **sizes: int | None) -> TextCase:
    """Return a case whose weights are FP8 with blocks of 128, with sizes of whole blocks."""
    stored = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128]}
    config = {**case.config, **sizes, "quantization_config": stored}
    more = case.more | {"quantization_config": stored | {"modules_to_not_convert": ["lm_head"]}}
    return replace(case, config=config, more=more, ranks=SOME)


LATENT: Final = {
    **{"hidden_size": 384, "moe_intermediate_size": 256, "kv_lora_rank": 256, "q_lora_rank": 256},
    **{"qk_nope_head_dim": 32, "qk_rope_head_dim": 32, "v_head_dim": 32},
}
WIDE: Final = {"moe_intermediate_size": 256, "moe_shared_expert_intermediate_size": 256}
LING_3: Final = TextCase(
    preset("ling-3.0-flash", num_attention_heads=8, head_dim=32),
    engine={"trust_remote_code": True},
    files=CODE["ling-3.0-flash"],
)

CASES: Final[dict[str, TextCase]] = {
    "mimo-v2-flash": MIMO,
    "mimo-v2-flash, fp8": MIMO_FP8,
    "mimo-v2-flash, mtp": drafted(MIMO_FP8),
    "longcat-flash": TextCase(preset("longcat-flash"), ranks=WITH_EXPERTS),
    "ernie-4.5-moe": of(
        "Ernie4_5_MoeForCausalLM",
        "ernie4_5_moe",
        {"moe_k": 2, "rope_theta": 1e4},
        use_bias=False,
        tie_word_embeddings=False,
    ),
    "dots.llm1": of("Dots1ForCausalLM", "dots1", GROUPED),
    "glm-4.7-flash": GLM_LITE,
    "glm-4.7-flash, mtp": drafted(GLM_LITE),
    "glm-4.7-flash, fp8": in_fp8(GLM_LITE, intermediate_size=512, **LATENT),
    "ling": of(
        "BailingMoeForCausalLM",
        "qwen2",
        BAILING | ROPE | {"score_function": None, "router_dtype": None, "first_k_dense_replace": 0},
        **SHARED,
    ),
    "ling-2": LING_2,
    "ling-2, fp8": in_fp8(LING_2, hidden_size=256, intermediate_size=512, head_dim=32, num_key_value_heads=8, **WIDE),
    "ling-2.5": LING_25,
    "ling-2.5, mtp": drafted(LING_25),
    "ling-3, fp8": replace(
        in_fp8(LING_3, **{**LATENT, **WIDE, "hidden_size": 256, "intermediate_size": 512, "q_lora_rank": None}),
        ranks=WHOLE + STAGES,
    ),
    "sarvam-30b": of("SarvamMoEForCausalLM", "qwen2", BAILING | ROPE | CORRECTED, **SHARED),
    "sarvam-105b": of(
        "SarvamMLAForCausalLM",
        "deepseek_v3",
        {**TWO, "q_lora_rank": None, "num_experts": 8},
        num_shared_experts=2,
        n_shared_experts=None,
        moe_shared_expert_intermediate_size=96,
    ),
    "param-2": remote(
        of(
            "Param2MoEForCausalLM",
            "param2moe",
            BAILING | REMOTE | CORRECTED | {"use_qkv_bias": True, "rope_scaling": None},
            **SHARED,
        ),
    ),
    "olmoe": of("OlmoeForCausalLM", "olmoe", attention_bias=False),
    "flex-olmo": of("FlexOlmoForCausalLM", "flex_olmo"),
    "phi-3.5-moe": of("PhimoeForCausalLM", "phimoe", lm_head_bias=False),
    "phi-3.5-moe, its own name": replace(
        of("PhimoeForCausalLM", "phimoe", architectures=["PhiMoEForCausalLM"]), ranks=SOME
    ),
    "afmoe": of("AfmoeForCausalLM", "afmoe", {**GROUPED, "score_func": "sigmoid", "route_norm": True}),
    "hy3": HY3,
    "hy3, mtp": drafted(HY3),
    "laguna": replace(of("LagunaForCausalLM", "laguna"), lost=("e_score_correction_bias",)),
    "cohere-2-moe": of("Cohere2MoeForCausalLM", "cohere2_moe"),
    "exaone-moe": EXAONE,
    "exaone-moe, mtp": drafted(EXAONE),
    "hunyuan": of("HunYuanMoEV1ForCausalLM", "hunyuan_v1_moe"),
    "pangu-ultra": PANGU,
    "pangu-ultra, mtp": drafted(
        remote(
            of(
                "PanguUltraMoEForCausalLM",
                "pangu_ultra_moe",
                GROUPED | REMOTE | {"rope_interleaved": True, "tie_word_embeddings": False},
                router_enable_expert_bias=False,
            ),
        )
    ),
    "pangu-pro-v2": replace(of("PanguProMoEV2ForCausalLM", "deepseek_v3"), ranks=SOME),
    "a.x-k1": of("AXK1ForCausalLM", "deepseek_v3", {**TWO, "topk_method": "noaux_tc"}, first_k_dense_replace=0),
    "mellum-2": of("MellumForCausalLM", "mellum"),
    "beam": of("BeamForCausalLM", "beam", {**TWO, "mlp_layer_types": [*["dense"] * 3, "sparse"]}),
    "step-3": of("Step3TextForCausalLM", "step3_text", {"moe_top_k": 2, "tie_word_embeddings": False}),
    "aria": TextCase(
        text(
            "AriaForConditionalGeneration",
            "aria",
            text_config=MODELS["AriaTextForCausalLM"]
            | {"model_type": "aria_text", "attention_bias": False, "mlp_bias": False, **ROPE},
        ),
        engine={"language_model_only": True},
        ranks=SOME,
    ),
    "minimax-m3, alone": remote(
        TextCase(
            alone("minimax-m3-mxfp8", "MiniMaxM3SparseForCausalLM", "minimax_m3_text"),
            {"swiglu_beta": 1.0, "tie_word_embeddings": False},
            ranks=SOME,
        )
    ),
    "glm-5.3-flash, alone": TextCase(
        alone("glm-5.3-flash", "Glm5NextForCausalLM", "glm5_next_text", quantization_config=None),
        ranks=(*WHOLE, *CUT[1:], *SPREAD_ALONE),
    ),
    "step-3-vl": TextCase(
        text(
            "Step3VLForConditionalGeneration",
            "step3_vl",
            text_config={
                **{"model_type": "step3_text", "architectures": ["Step3TextForCausalLM"], "moe_top_k": 2},
                **{"tie_word_embeddings": False, **MODELS["Step3TextForCausalLM"]},
            },
        ),
        {"vision_config": VISION | {"output_hidden_size": 96}},
        engine={"language_model_only": True},
        ranks=SOME,
    ),
    "ling-3-vl": TextCase(
        text(
            "BailingMoeV3VLForConditionalGeneration",
            "bailing_moe_v3_vl",
            text_config=preset("ling-3.0-flash", architectures=None, auto_map=None),
        ),
        {"mrope_section": [2, 1, 1], "vision_config": VISION | QWEN_VISION | {"out_hidden_size": 96}},
        engine={"language_model_only": True},
        ranks=SOME,
    ),
    "intern-s1-pro": TextCase(
        text(
            "InternS1ProForConditionalGeneration",
            "interns1_pro",
            text_config=MODELS["InternS1ProForCausalLM"] | TEXT | TWO | ROPED,
        ),
        {"auto_map": {"AutoConfig": "remote.RemoteConfig"}, "vision_config": VISION | QWEN_VISION},
        engine={"language_model_only": True, "trust_remote_code": True},
        ranks=(*WHOLE, *CUT[1:], *SPREAD_ALONE),
        files={"remote.py": WITH_SECTIONS},
    ),
    "k2-horizon": of(
        "K2HorizonForCausalLM",
        "qwen2",
        {
            **TWO,
            **ROPE,
            **{"rope_head_dim": None, "layernorm_num_groups": 1, "router_score_func": "sigmoid"},
            **{"router_scaling_factor": 1.0, "mova_num_experts_per_tok": 1, "norm_topk_prob": True},
            "decoder_sparse_step": 1,
        },
    ),
}
