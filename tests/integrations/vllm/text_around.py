"""Models around language models that are described by themselves, as vLLM has them; towers are left out."""

from __future__ import annotations

from typing import Any, Final

from loadmaster.audit.ranks import Rank
from tests.architectures.test_wrappers import DENSE, GDN, MLA, MOE, NO_HEAD, TEXTS
from tests.integrations.vllm.golden import CUT, SPREAD, STAGES, WHOLE
from tests.integrations.vllm.text_case import TextCase

SOME: Final = STAGES + CUT[1:]
WITH_EXPERTS: Final = SOME + SPREAD[1:]
ROPE: Final = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
IN_TURNS: Final = {**ROPE, "mrope_interleaved": True}
HALF: Final = {**ROPE, "mrope_section": [1, 1, 2], "partial_rotary_factor": 0.5}
LLAMA: Final = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
MISTRAL: Final = {"architectures": ["MistralForCausalLM"]}
QWEN2: Final = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
QWEN3: Final = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
DEEPSEEK: Final = {
    **{"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", **MLA},
    **{"topk_method": "noaux_tc", "scoring_func": "sigmoid"},
}
ALPAMAYO: Final = {**DENSE, "model_type": "qwen3_vl_text", "rope_parameters": IN_TURNS}
TINY_EXPERTS: Final = {
    **{"model_type": "qwen3_5_moe_text", "num_experts": 8, "num_experts_per_tok": 2},
    **{"moe_intermediate_size": 64, "shared_expert_intermediate_size": 96},
}


def around(
    architecture: str,
    whole: str,
    ranks: tuple[Rank, ...] = SOME,
    *,
    more: dict[str, Any] | None = None,
    beside: tuple[str, ...] = (),
    **text: Any,
) -> TextCase:
    """Return a case of the model type ``whole`` around a language model with the config ``text``."""
    inside, tiny = TEXTS.get(architecture, ("", {}))
    config: dict[str, Any] = {"architectures": [architecture], "model_type": whole, "dtype": "bfloat16"}
    config["text_config"] = {"model_type": inside, **tiny, **text}
    return TextCase(config, more or {}, {"language_model_only": True}, ranks, beside=beside)


def thinker(
    architecture: str,
    whole: str,
    ranks: tuple[Rank, ...] = SOME,
    *,
    vision: dict[str, Any] | None = None,
    **text: Any,
) -> TextCase:
    """Return a case whose language model is described in the section of a thinker."""
    section = {"text_config": {"model_type": f"{whole}_text", "tie_word_embeddings": False, **text}}
    more = {"vision_config": vision} if vision else {}
    return TextCase(
        {"architectures": [architecture], "model_type": whole, "dtype": "bfloat16", "thinker_config": section},
        {"thinker_config": {**section, **more}},
        {"language_model_only": True},
        ranks,
    )


CASES: Final[dict[str, TextCase]] = {
    "qwen2-vl": around("Qwen2VLForConditionalGeneration", "qwen2_vl", rope_parameters=ROPE),
    "qwen2.5-vl": around("Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl", rope_parameters=ROPE),
    "qwen3-vl": around(
        "Qwen3VLForConditionalGeneration",
        "qwen3_vl",
        more={"vision_config": {"deepstack_visual_indexes": [0]}},
        rope_parameters=IN_TURNS,
    ),
    "qwen3-vl-moe": around(
        "Qwen3VLMoeForConditionalGeneration",
        "qwen3_vl_moe",
        WITH_EXPERTS,
        more={"vision_config": {"deepstack_visual_indexes": [0]}},
        rope_parameters=IN_TURNS,
        norm_topk_prob=True,
    ),
    "glm-4.1v": around("Glm4vForConditionalGeneration", "glm4v", rope_parameters=HALF, attention_bias=True),
    "glm-4.5v": around(
        "Glm4vMoeForConditionalGeneration",
        "glm4v_moe",
        WITH_EXPERTS,
        rope_parameters=HALF,
        n_shared_experts=1,
        num_experts_per_tok=2,
        use_qk_norm=False,
    ),
    "glm-ocr": around("GlmOcrForConditionalGeneration", "glm_ocr", rope_parameters=HALF),
    "llava": around("LlavaForConditionalGeneration", "llava", **LLAMA),
    "llava-next": around("LlavaNextForConditionalGeneration", "llava_next", beside=("image_newline",), **MISTRAL),
    "llava-next-video": around("LlavaNextVideoForConditionalGeneration", "llava_next_video", **LLAMA),
    "llava-onevision": around(
        "LlavaOnevisionForConditionalGeneration", "llava_onevision", beside=("image_newline",), **QWEN2
    ),
    "mistral-3": around("Mistral3ForConditionalGeneration", "mistral3", **MISTRAL),
    "internvl": around("InternVLForConditionalGeneration", "internvl", **QWEN2),
    "exaone-4.5": around(
        "Exaone4_5_ForConditionalGeneration",
        "exaone4_5",
        more={"vocab_size": 320},
        layer_types=["full_attention"] * 4,
    ),
    "kimi-vl": around("KimiVLForConditionalGeneration", "kimi_vl", WITH_EXPERTS, **DEEPSEEK),
    "kimi-k2.5": around("KimiK25ForConditionalGeneration", "kimi_k25", WITH_EXPERTS, **DEEPSEEK),
    "minicpm-v-4.6": around(
        "MiniCPMV4_6ForConditionalGeneration",
        "minicpmv4_6",
        rope_parameters={**ROPE, "mrope_section": [1, 1, 0], "partial_rotary_factor": 0.25},
    ),
    "qwen2.5-omni": thinker("Qwen2_5OmniForConditionalGeneration", "qwen2_5_omni", **NO_HEAD, rope_parameters=ROPE),
    "qwen3-omni": thinker(
        "Qwen3OmniMoeForConditionalGeneration",
        "qwen3_omni_moe",
        WITH_EXPERTS,
        vision={"image_size": 224, "apply_vit_abs_pos_embed": True},
        **MOE,
        rope_parameters=ROPE,
        norm_topk_prob=True,
    ),
    "qwen3-asr": thinker("Qwen3ASRForConditionalGeneration", "qwen3_asr", **{**DENSE, **QWEN3}, rope_parameters=ROPE),
    "qwen2-audio": around("Qwen2AudioForConditionalGeneration", "qwen2_audio", **QWEN2),
    "audio-flamingo-3": around("AudioFlamingo3ForConditionalGeneration", "audioflamingo3", **QWEN2),
    "glm-asr": around("GlmAsrForConditionalGeneration", "glmasr", **LLAMA),
    "granite-speech": around(
        "GraniteSpeechForConditionalGeneration", "granite_speech", architectures=["GraniteForCausalLM"]
    ),
    "paligemma": around("PaliGemmaForConditionalGeneration", "paligemma"),
    "paddleocr-vl": around("PaddleOCRVLForConditionalGeneration", "paddleocr_vl", rope_parameters=ROPE),
    "cohere-2-vision": around(
        "Cohere2VisionForConditionalGeneration",
        "cohere2_vision",
        layer_types=["sliding_attention", "full_attention"] * 2,
    ),
    "lightonocr": around(
        "LightOnOCRForConditionalGeneration",
        "lighton_ocr",
        more={"vision_feature_layer": -1, "projector_hidden_act": "gelu", "multimodal_projector_bias": False},
        **{**DENSE, **QWEN3},
    ),
    "qianfan-ocr": around(
        "QianfanOCRForConditionalGeneration",
        "qianfan_ocr",
        more={"force_image_size": 28, "downsample_ratio": 0.5, "select_layer": -1, "ps_version": "v2"},
    ),
    "idefics-3": around("Idefics3ForConditionalGeneration", "idefics3", WHOLE + CUT),
    "smolvlm": around("SmolVLMForConditionalGeneration", "smolvlm", WHOLE + CUT),
    "intern-s2": around(
        "InternS2PreviewForConditionalGeneration", "qwen3_5_moe", WITH_EXPERTS, **{**GDN, **TINY_EXPERTS}
    ),
    "alpamayo-2": TextCase(
        {
            **{"architectures": ["Alpamayo2Super"], "model_type": "alpamayo2_super", "dtype": "bfloat16"},
            "vlm_config": {"text_config": ALPAMAYO},
        },
        {"vlm_config": {"text_config": ALPAMAYO, "vision_config": {"deepstack_visual_indexes": [0]}}},
        {"language_model_only": True},
        SOME,
    ),
    "granite-speech-plus": around(
        "GraniteSpeechPlusForConditionalGeneration", "granite_speech_plus", architectures=["GraniteForCausalLM"]
    ),
    "moss-transcribe": around(
        "MossTranscribeDiarizeForConditionalGeneration",
        "moss_transcribe_diarize",
        **{**DENSE, **QWEN3},
        tie_word_embeddings=True,
    ),
    "qwen3-asr-realtime": thinker(
        "Qwen3ASRRealtimeGeneration", "qwen3_asr", **{**DENSE, **QWEN3}, rope_parameters=ROPE
    ),
    "ultravox": around(
        "UltravoxModel",
        "ultravox",
        more={"audio_config": {"model_type": "whisper"}, "vocab_size": 320},
        **{**NO_HEAD, **LLAMA},
    ),
}
