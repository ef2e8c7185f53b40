"""Models around language models whose config only their repository's code reads, as vLLM has them; towers are left out."""

from __future__ import annotations

from typing import Any, Final

from tests.architectures.test_wrappers import DENSE, NEMOTRON, NO_HEAD
from tests.integrations.vllm.text_around import QWEN2, ROPE, SOME
from tests.integrations.vllm.text_case import TextCase

CODE: Final = """
from transformers import CONFIG_MAPPING, PretrainedConfig, {base}


class TinyConfig({base}):
    model_type = "{model_type}"

    def __init__(self, vision_config=None, {section}=None, **more):
        super().__init__(**more)
        self.vision_config = PretrainedConfig(**(vision_config or {{}}))
        if {section} is not None:
            self.{section} = CONFIG_MAPPING[{section}["model_type"]](**{section})
"""
"""Code of a repository that reads a config with a tower, and with a language model in a section, or at the top by ``base``."""

TOWER: Final[dict[str, Any]] = {
    **{"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1},
    **{"image_size": 28, "patch_size": 14, "num_channels": 3, "hidden_act": "gelu", "layer_norm_eps": 1e-6},
    **{"norm_type": "layer_norm", "qkv_bias": True, "qk_normalization": False, "initializer_factor": 1.0},
    **{"attention_dropout": 0.0, "dropout": 0.0},
}
AS_QWENS: Final[dict[str, Any]] = {
    **{"hidden_size": 64, "intermediate_size": 64, "depth": 1, "num_heads": 2, "out_hidden_size": 128},
    **{"patch_size": 14, "temporal_patch_size": 2, "in_channels": 3, "spatial_merge_size": 2, "window_size": 112},
    **{"fullatt_block_indexes": [0], "hidden_act": "gelu"},
}
INTERN: Final = {"force_image_size": 28, "downsample_ratio": 0.5, "select_layer": -1, "ps_version": "v2"}
MINICPM: Final = {"query_num": 64, "image_size": 448, "patch_size": 14, "drop_vision_last_layer": False}
PHI: Final = {
    "img_processor": {"image_dim_out": 1024, "num_img_tokens": 4, "name": "clip_vision_model"},
    "embd_layer": {"hd_transform_order": "sub_glb", "use_hd_transform": True, "with_learnable_separator": True},
}
RADIO: Final = {
    **TOWER,
    "args": {"model": "vit_huge_patch16_224", "teachers": [], "register_multiple": 8},
    "max_resolution": 224,
}
NEMOTRONS: Final = {
    **{"force_image_size": 224, "patch_size": 16, "vit_hidden_size": 1280, "projector_hidden_size": 64},
    **{"template": "", "image_tag_type": "internvl", "img_context_token_id": 5, "img_context_token": "<image>"},
    **{"norm_mean": [0.5] * 3, "norm_std": [0.5] * 3, "video_pruning_rate": 0.0, "use_thumbnail": True},
    "max_num_tiles": 1,
}


def remote(
    architecture: str,
    model_type: str,
    base: str = "PretrainedConfig",
    *,
    section: str = "text_config",
    more: dict[str, Any] | None = None,
    code: str | None = None,
    has_tokenizer: bool = False,
    **config: Any,
) -> TextCase:
    """Return a case whose config is read by ``code``; vLLM is given the tokenizer where the class asks for it."""
    return TextCase(
        {"architectures": [architecture], "model_type": model_type, "dtype": "bfloat16", **config},
        {"auto_map": {"AutoConfig": "configuration_tiny.TinyConfig"}, **(more or {})},
        {"language_model_only": True, "trust_remote_code": True, "skip_tokenizer_init": not has_tokenizer},
        SOME,
        files={
            "configuration_tiny.py": code or CODE.format(base=base, model_type=model_type, section=section).lstrip()
        },
    )


def intern(architecture: str, whole: str, **language: Any) -> TextCase:
    """Return a case that is built as an InternVL, around a Qwen2 unless ``language`` says otherwise."""
    return remote(
        architecture,
        whole,
        section="llm_config",
        more={"vision_config": TOWER, **INTERN},
        has_tokenizer=True,
        llm_config={**QWEN2, **NO_HEAD, **language},
    )


def minicpm(version: float, base: str, config: dict[str, Any]) -> TextCase:
    """Return a version of MiniCPM-V."""
    more = {"vision_config": TOWER, **MINICPM, "batch_vision_input": True}
    return remote("MiniCPMV", "minicpmv", base, more=more, version=version, **config)


CASES: Final[dict[str, TextCase]] = {
    "internvl-chat": intern("InternVLChatModel", "internvl_chat"),
    "internvl-2.5": intern(
        "InternVLChatModel", "internvl_chat", architectures=["InternLM2ForCausalLM"], model_type="llama"
    ),
    "nvlm-d": intern("NVLM_D", "NVLM_D"),
    "h2ovl": intern("H2OVLChatModel", "h2ovl_chat"),
    "eagle-2.5-vl": remote(
        "Eagle2_5_VLForConditionalGeneration",
        "eagle_2_5_vl",
        more={"vision_config": {**TOWER, "model_type": "siglip_vision_model"}, **INTERN},
        text_config={**QWEN2, **NO_HEAD},
    ),
    "minicpm-v-2.6": minicpm(2.6, "Qwen2Config", NO_HEAD),
    "minicpm-v-4": minicpm(4.0, "LlamaConfig", NO_HEAD),
    "minicpm-v-4.5": minicpm(4.5, "Qwen3Config", DENSE),
    "dots-ocr": remote(
        "DotsOCRForCausalLM",
        "dots_ocr",
        more={"vision_config": {}, "image_token_id": 1, "video_token_id": 2},
        code="from vllm.transformers_utils.configs.dotsocr import DotsOCRConfig as TinyConfig\n",
        **NO_HEAD,
    ),
    "keye": remote(
        "KeyeForConditionalGeneration",
        "Keye",
        "Qwen3Config",
        more={"vision_config": TOWER},
        rope_parameters=ROPE,
        **DENSE,
    ),
    "hyperclova-x-vision": remote(
        "HCXVisionV2ForCausalLM", "vlm", more={"vision_config": AS_QWENS}, text_config={**QWEN2, **NO_HEAD}
    ),
    "phi-3-vision": remote("Phi3VForCausalLM", "phi3_v", "Phi3Config", more=PHI, pad_token_id=0, **NO_HEAD),
    "opencua": remote(
        "OpenCUAForConditionalGeneration",
        "opencua",
        more={"vision_config": AS_QWENS},
        text_config={**QWEN2, **NO_HEAD},
    ),
    "skywork-r1v": intern("SkyworkR1VChatModel", "skywork_chat"),
    "nemotron-nano-vl": remote(
        "NemotronH_Nano_VL_V2",
        "NemotronH_Nano_VL_V2",
        section="llm_config",
        more={"vision_config": RADIO, **INTERN, **NEMOTRONS},
        has_tokenizer=True,
        llm_config={**NEMOTRON, "model_type": "nemotron_h"},
    ),
}
