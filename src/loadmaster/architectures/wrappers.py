"""Every model around a known language model: where its language model is, and what else is stored.

Sources: headers and configs of published checkpoints; the classes of transformers 5.24, built on the meta device; the
``WeightsMapper`` of each class in ``vllm/model_executor/models``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Final

from loadmaster.architectures import blocks, mistral_names
from loadmaster.architectures.schema import LANGUAGE_ONLY
from loadmaster.architectures.spelling import packed
from loadmaster.architectures.wrapper import Prefixes, Wrapper

ABOVE: Final[Prefixes] = (("", "language_model."),)
"""``language_model.model.layers…`` and ``language_model.lm_head``: the whole language model is a module of the wrapper."""

WITHIN: Final[Prefixes] = (("model.language_model.", "model.language_model."), ("model.", "model.language_model."))
"""``model.language_model.layers…`` and ``lm_head`` at the top: the layout of transformers since 4.52."""

BESIDE: Final[Prefixes] = ()
"""The language model's own names; the other parts stand beside it."""


def _outside(*names: str) -> tuple[tuple[str, str], ...]:
    """Return the waiver of modules, or single tensors, with and without ``model.`` before them."""
    return ((rf"(model\.)?({'|'.join(names)})(\..*)?", LANGUAGE_ONLY),)


_VISION = _outside("vision_tower", "multi_modal_projector", "image_newline")
_VISUAL = _outside("visual")
_INTERN = _outside("vision_model", "mlp1")
_MUSE_GLIMMER = _outside("vision_tower", "vision_adapter", "vision_projection")
_NEMOTRON = _outside("vision_model", "mlp1", "sound_encoder", "sound_projection")
_ORIGINAL_LLAVA = _outside("vision_tower", "mm_projector", "image_newline", "vision_resampler")

_OF_VLLM: Final = "transformers has no class of it; its names are those of vLLM's loader"
_OF_AUTHORS: Final = "transformers and vLLM have no class of it; its names are those of its authors' code"

_EXPERTS = blocks.LAYER + "mlp.experts."
_TRANSPOSED = {
    **packed(_EXPERTS + "gate_up_proj", "moe.gate", "moe.up", stacked=True, transposed=True),
    **packed(_EXPERTS + "down_proj", "moe.down", stacked=True, transposed=True),
}
"""Experts in one tensor, (in, out)."""

_NO_DRAFTS: Final = {"num_nextn_predict_layers": 0}


_IN_MINICPM: Final = {
    "2.5": "LlamaForCausalLM",
    "2.6": "Qwen2ForCausalLM",
    "4": "LlamaForCausalLM",
    "4.5": "Qwen3ForCausalLM",
}


def _minicpm(config: Mapping[str, Any]) -> str | None:
    """Return the language model of a MiniCPM-V or -o by its version."""
    version = str(config.get("version", "2.6" if config.get("model_type") == "minicpmo" else None))
    return _IN_MINICPM.get(version.removesuffix(".0"))


WRAPPERS: Final[tuple[Wrapper, ...]] = (
    Wrapper(
        ("Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"),
        "Qwen2ForCausalLM",
        (BESIDE, WITHIN),
        _VISUAL,
    ),
    Wrapper(("Qwen3VLForConditionalGeneration",), "Qwen3ForCausalLM", (WITHIN,), _VISUAL),
    Wrapper(("Qwen3VLMoeForConditionalGeneration",), "Qwen3MoeForCausalLM", (WITHIN,), _VISUAL, stored=_TRANSPOSED),
    Wrapper(("Qwen3_5ForConditionalGeneration",), "Qwen3_5ForCausalLM", (WITHIN, BESIDE), _VISUAL),
    Wrapper(("Qwen3_5MoeForConditionalGeneration",), "Qwen3_5MoeForCausalLM", (WITHIN, BESIDE), _VISUAL),
    Wrapper(("Qwen4ExpForConditionalGeneration",), "Qwen4ExpForCausalLM", (WITHIN, BESIDE), _VISUAL),
    Wrapper(("Glm4vMoeForConditionalGeneration",), "Glm4MoeForCausalLM", (WITHIN,), _VISUAL, fixed=_NO_DRAFTS),
    Wrapper(
        ("Step3p7ForConditionalGeneration",),
        "Step3p5ForCausalLM",
        (BESIDE, WITHIN),
        _outside("vision_model", "vit_large_projector", "multi_modal_projector"),
    ),
    Wrapper(
        ("Step3VLForConditionalGeneration",),
        "Step3TextForCausalLM",
        (BESIDE, WITHIN),
        _outside("vision_model", "vit_downsampler", "vit_downsampler2", "vit_large_projector"),
        unchecked=_OF_VLLM,
    ),
    Wrapper(("Glm5NextForConditionalGeneration",), "Glm5NextForCausalLM", (WITHIN, BESIDE), _VISUAL),
    Wrapper(("Exaone4_5_ForConditionalGeneration",), "Exaone4ForCausalLM", (WITHIN,), _VISUAL),
    Wrapper(
        (
            "MiniCPMV4_6ForConditionalGeneration",
            "MiniCPMV4_7ForConditionalGeneration",
            "MiniCPMOcrForConditionalGeneration",
        ),
        "Qwen3_5ForCausalLM",
        (WITHIN,),
        _outside("vision_tower", "merger"),
    ),
    Wrapper(("MuseGlimmerForConditionalGeneration",), "MuseGlimmerForCausalLM", (WITHIN,), _MUSE_GLIMMER),
    Wrapper(
        ("PaddleOCRVLForConditionalGeneration",),
        "Ernie4_5ForCausalLM",
        (BESIDE, WITHIN),
        _outside("visual", "mlp_AR"),
        fixed={"tie_word_embeddings": False},
    ),
    Wrapper(
        ("OpenPanguVLForConditionalGeneration",),
        "PanguEmbeddedForCausalLM",
        (WITHIN, BESIDE),
        _VISUAL,
        unchecked=_OF_VLLM,
    ),
    Wrapper(
        ("BailingMoeV3VLForConditionalGeneration",),
        "BailingMoeV3ForCausalLM",
        (BESIDE,),
        _outside("visual", "linear_proj"),
        unchecked=_OF_VLLM,
    ),
    Wrapper(("LlavaOnevision2ForConditionalGeneration",), None, (WITHIN, BESIDE), _VISUAL, unchecked=_OF_VLLM),
    Wrapper(
        ("OpenCUAForConditionalGeneration",),
        "Qwen2ForCausalLM",
        (ABOVE, WITHIN),
        _outside("visual", "vision_tower"),
        unchecked=_OF_VLLM,
    ),
    Wrapper(
        ("IsaacForConditionalGeneration",),
        "Qwen3ForCausalLM",
        (BESIDE, (("model.", "model.text_model."),)),
        _outside("vision_embedding"),
        unchecked=_OF_VLLM,
    ),
    Wrapper(("GLM4VForCausalLM",), "ChatGLMModel", (BESIDE,), _outside(r"transformer\.vision"), unchecked=_OF_VLLM),
    Wrapper(
        ("Phi4ForCausalLMV",),
        "Phi3ForCausalLM",
        (BESIDE,),
        _outside("vision_tower", "mm_projector"),
        unchecked=_OF_VLLM,
    ),
    Wrapper(
        ("Glm4vForConditionalGeneration", "Glm46VForConditionalGeneration"),
        "Glm4ForCausalLM",
        (WITHIN,),
        _VISUAL,
        fixed={"attention_bias": True},
    ),
    Wrapper(
        (
            "PaliGemmaForConditionalGeneration",
            "AyaVisionForConditionalGeneration",
            "Cohere2VisionForConditionalGeneration",
        ),
        None,
        (ABOVE, WITHIN),
        _VISION,
    ),
    Wrapper(
        ("KimiVLForConditionalGeneration",),
        "DeepseekV3ForCausalLM",
        (ABOVE,),
        _VISION,
        fixed=_NO_DRAFTS,
        unchecked=_OF_VLLM,
    ),
    Wrapper(
        ("DeepseekVLV2ForCausalLM",),
        None,
        ((("", "language."),),),
        _outside("vision", "projector", "image_newline", "view_seperator", "tile_indicators"),
        section="language_config",
        unchecked=_OF_VLLM,
    ),
    Wrapper(
        ("DeepseekOCRForCausalLM", "DeepseekOCR2ForCausalLM", "UnlimitedOCRForCausalLM"),
        "DeepseekV2ForCausalLM",
        (BESIDE,),
        _outside("sam_model", "vision_model", "qwen2_model", "projector", "image_newline", "view_seperator"),
        section="language_config",
        unchecked=_OF_VLLM,
    ),
    Wrapper(
        ("KimiK25ForConditionalGeneration", "Kimi_K25ForConditionalGeneration"),
        "DeepseekV3ForCausalLM",
        (ABOVE, WITHIN, (("model.layers.", "language_model.layers."), *ABOVE)),
        _outside("vision_tower", "mm_projector"),
        fixed=_NO_DRAFTS,
    ),
    Wrapper(
        ("KimiK3ForConditionalGeneration",),
        "KimiLinearForCausalLM",
        (ABOVE, (("model.layers.", "language_model.layers."), *ABOVE)),
        _outside("vision_tower", "mm_projector"),
        fixed=_NO_DRAFTS,
    ),
    Wrapper(
        (
            "LlavaForConditionalGeneration",
            "LlavaNextForConditionalGeneration",
            "LlavaNextVideoForConditionalGeneration",
            "LlavaOnevisionForConditionalGeneration",
            "VipLlavaForConditionalGeneration",
        ),
        None,
        (ABOVE, WITHIN),
        _VISION,
    ),
    *(
        Wrapper((architecture,), language, (BESIDE,), _ORIGINAL_LLAVA, unchecked=_OF_AUTHORS)
        for architecture, language in (
            ("LlavaLlamaForCausalLM", "LlamaForCausalLM"),
            ("LlavaMistralForCausalLM", "MistralForCausalLM"),
            ("LlavaQwenForCausalLM", "Qwen2ForCausalLM"),
        )
    ),
    Wrapper(
        ("PixtralForConditionalGeneration",),
        "MistralForCausalLM",
        (BESIDE,),
        (mistral_names.VISION,),
        unchecked=_OF_VLLM,
    ),
    Wrapper(
        ("Mistral3ForConditionalGeneration", "Lfm2VlForConditionalGeneration"),
        None,
        (ABOVE, WITHIN),
        _VISION,
    ),
    Wrapper(
        ("InternVLChatModel", "NVLM_D", "H2OVLChatModel", "SkyworkR1VChatModel", "Llama_Nemotron_Nano_VL"),
        None,
        (ABOVE,),
        _INTERN,
        section="llm_config",
        unchecked=_OF_VLLM,
    ),
    Wrapper(
        ("InternVLForConditionalGeneration", "InternS1ForConditionalGeneration"),
        None,
        (ABOVE, WITHIN),
        _VISION,
    ),
    Wrapper(
        ("MiniCPMV", "MiniCPMO"),
        _minicpm,
        ((("", "llm."),),),
        _outside("vpm", "resampler", "apm", "audio_projection_layer", "tts"),
        unchecked=_OF_VLLM,
    ),
    Wrapper(
        ("Idefics3ForConditionalGeneration", "SmolVLMForConditionalGeneration"),
        "LlamaForCausalLM",
        ((("model.", "model.text_model."),),),
        _outside("vision_model", "connector"),
        fixed={"model_type": "llama"},
    ),
    Wrapper(
        ("Qwen2_5OmniForConditionalGeneration", "Qwen2_5OmniModel"),
        "Qwen2ForCausalLM",
        ((("", "thinker."),),),
        (*_outside(r"thinker\.(visual|audio_tower)", "talker", "token2wav"),),
        section="thinker_config.text_config",
    ),
    Wrapper(
        ("Qwen3OmniMoeForConditionalGeneration",),
        "Qwen3MoeForCausalLM",
        ((("", "thinker."),),),
        (*_outside(r"thinker\.(visual|audio_tower)", "talker", "code2wav"),),
        section="thinker_config.text_config",
        unchecked="its names were read in transformers' code, and not compared with its class, whose defaults do not build",
    ),
    Wrapper(("NemotronH_Omni_Reasoning_V3",), "NemotronHForCausalLM", (ABOVE,), _NEMOTRON),
    Wrapper(
        ("NemotronH_Nano_VL_V2", "NemotronH_Nano_Omni_Reasoning_V3", "NemotronH_Super_Omni_Reasoning_V3"),
        "NemotronHForCausalLM",
        (ABOVE,),
        _NEMOTRON,
        section="llm_config",
        unchecked=_OF_VLLM,
    ),
    Wrapper(
        ("Ovis", "Ovis2_5", "Ovis2_6ForCausalLM", "Ovis2_6_MoeForCausalLM"),
        None,
        ((("", "llm."),),),
        _outside("visual_tokenizer", "vte"),
        section="llm_config",
        unchecked=_OF_VLLM,
    ),
    Wrapper(
        ("KananaVForConditionalGeneration",), None, (ABOVE,), _outside("vision_model", "abstractor"), unchecked=_OF_VLLM
    ),
    Wrapper(("Eagle2_5_VLForConditionalGeneration",), None, (ABOVE,), _INTERN, unchecked=_OF_VLLM),
    Wrapper(
        ("BeeForConditionalGeneration", "RForConditionalGeneration"), None, (WITHIN, ABOVE), _VISION, unchecked=_OF_VLLM
    ),
    Wrapper(
        ("HCXVisionV2ForCausalLM", "HCXVisionForCausalLM"),
        None,
        (ABOVE, (("", "model.language_model."),)),
        _outside("vision_model", "mm_projector", "discrete_vision_model"),
        unchecked=_OF_VLLM,
    ),
    Wrapper(
        ("GraniteSpeechForConditionalGeneration", "GraniteSpeechPlusForConditionalGeneration"),
        None,
        (ABOVE,),
        _outside("encoder", "projector"),
    ),
    Wrapper(
        ("Qwen3ASRForConditionalGeneration", "Qwen3ASRRealtimeGeneration"),
        "Qwen3ForCausalLM",
        ((("", "thinker."),), WITHIN),
        _outside(r"thinker\.audio_tower", "audio_tower", "multi_modal_projector", "talker", "code2wav"),
        section="thinker_config.text_config",
    ),
    Wrapper(
        ("MoonshotKimiaForCausalLM",),
        "Qwen2ForCausalLM",
        (BESIDE,),
        _outside("encoder", "vq_adaptor", "audio_tower", "mimo_layers", "mimo_norm", "mimo_output"),
        unchecked=_OF_VLLM,
    ),
    Wrapper(
        ("MiDashengLMModel",),
        "Qwen2ForCausalLM",
        ((("", "decoder."),),),
        _outside("audio_encoder", "audio_projector"),
        unchecked=_OF_VLLM,
    ),
    Wrapper(
        (
            "Qwen2AudioForConditionalGeneration",
            "VoxtralForConditionalGeneration",
            "AudioFlamingo3ForConditionalGeneration",
            "GlmAsrForConditionalGeneration",
        ),
        None,
        (ABOVE, WITHIN),
        _outside("audio_tower", "multi_modal_projector"),
    ),
    Wrapper(("DotsOCRForCausalLM",), "Qwen2ForCausalLM", (BESIDE,), _outside("vision_tower"), unchecked=_OF_VLLM),
    Wrapper(
        ("KeyeForConditionalGeneration", "KeyeVL1_5ForConditionalGeneration"),
        "Qwen3ForCausalLM",
        (BESIDE,),
        _outside("visual", "mlp_AR"),
        unchecked=_OF_VLLM,
    ),
    Wrapper(
        ("LightOnOcrForConditionalGeneration", "LightOnOCRForConditionalGeneration"),
        "Qwen3ForCausalLM",
        (WITHIN, ABOVE),
        _outside("vision_encoder", "vision_projection"),
    ),
    Wrapper(
        ("MiniMaxM3SparseForConditionalGeneration",),
        "MiniMaxM3SparseForCausalLM",
        (ABOVE, WITHIN),
        _outside("vision_tower", "multi_modal_projector", "patch_merge_mlp"),
    ),
    Wrapper(("MiMoV2OmniForCausalLM",), "MiMoV2ForCausalLM", (BESIDE, WITHIN), (), unchecked=_OF_VLLM),
    Wrapper(
        ("Ovis2ForConditionalGeneration",),
        None,
        (WITHIN, ABOVE),
        _outside("vision_tower", "visual_embeddings_table"),
    ),
)
"""In the order of the page of models. Each architecture occurs once."""


@cache
def wrapper_of(architecture: str) -> Wrapper | None:
    """Return the wrapper of an architecture; None where it is none."""
    return next((w for w in WRAPPERS if architecture in w.architectures), None)
