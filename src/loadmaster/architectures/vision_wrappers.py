"""Models with vision around a known language model: where their language model is, and what else is stored.

Sources: headers and configs of published checkpoints; the classes of transformers 5.24, built on the meta device; the
``WeightsMapper`` of each class in ``vllm/model_executor/models``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from loadmaster.architectures import blocks, mistral_names
from loadmaster.architectures.schema import OF_VLLM
from loadmaster.architectures.spelling import Spelling, packed
from loadmaster.architectures.wrapper import ABOVE, BESIDE, NO_DRAFTS, WITHIN, Wrapper, outside

_VISION = outside("vision_tower", "multi_modal_projector", "image_newline")
_VISUAL = outside("visual")
_INTERN = outside("vision_model", "mlp1")
_MUSE_GLIMMER = outside("vision_tower", "vision_adapter", "vision_projection")
_ORIGINAL_LLAVA = outside("vision_tower", "mm_projector", "image_newline", "vision_resampler")

_BAGELS_PAINTER: Final = (
    (
        r"(.*_moe_gen|latent_pos_embed|llm2vae|vae2llm|time_embedder|encoder|decoder)\..*",
        "it generates images, which is not supported",
    ),
)

_OF_AUTHORS: Final = "transformers and vLLM have no class of it; its names are those of its authors' code"

_EXPERTS = blocks.LAYER + "mlp.experts."
_TRANSPOSED = {
    **packed(_EXPERTS + "gate_up_proj", "moe.gate", "moe.up", stacked=True, transposed=True),
    **packed(_EXPERTS + "down_proj", "moe.down", stacked=True, transposed=True),
}
"""Experts in one tensor, (in, out)."""

_UNDER_ADAPTERS: Final[Spelling] = {
    **packed(blocks.LAYER + "self_attn.qkv_proj.base_layer.weight", "attn.q", "attn.k", "attn.v"),
    "attn.o": blocks.LAYER + "self_attn.o_proj.base_layer.weight",
    **packed(blocks.LAYER + "mlp.gate_up_proj.base_layer.weight", "mlp.gate", "mlp.up"),
    "mlp.down": blocks.LAYER + "mlp.down_proj.base_layer.weight",
}
"""Phi-4-multimodal's matrices, each of which has adapters beside it."""

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
    Wrapper(("Glm4vMoeForConditionalGeneration",), "Glm4MoeForCausalLM", (WITHIN,), _VISUAL, fixed=NO_DRAFTS),
    Wrapper(
        ("Step3p7ForConditionalGeneration",),
        "Step3p5ForCausalLM",
        (BESIDE, WITHIN),
        outside("vision_model", "vit_large_projector", "multi_modal_projector"),
    ),
    Wrapper(
        ("Step3VLForConditionalGeneration",),
        "Step3TextForCausalLM",
        (BESIDE, WITHIN),
        outside("vision_model", "vit_downsampler", "vit_downsampler2", "vit_large_projector"),
        unchecked=OF_VLLM,
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
        outside("vision_tower", "merger"),
    ),
    Wrapper(("MuseGlimmerForConditionalGeneration",), "MuseGlimmerForCausalLM", (WITHIN,), _MUSE_GLIMMER),
    Wrapper(
        ("PaddleOCRVLForConditionalGeneration",),
        "Ernie4_5ForCausalLM",
        (BESIDE, WITHIN),
        outside("visual", "mlp_AR"),
        defaults={"tie_word_embeddings": False},
    ),
    Wrapper(
        ("OpenPanguVLForConditionalGeneration",),
        "PanguEmbeddedForCausalLM",
        (WITHIN, BESIDE),
        _VISUAL,
        unchecked=OF_VLLM,
    ),
    Wrapper(
        ("BailingMoeV3VLForConditionalGeneration",),
        "BailingMoeV3ForCausalLM",
        (BESIDE,),
        outside("visual", "linear_proj"),
        unchecked=OF_VLLM,
    ),
    Wrapper(("LlavaOnevision2ForConditionalGeneration",), None, (WITHIN, BESIDE), _VISUAL, unchecked=OF_VLLM),
    Wrapper(
        ("OpenCUAForConditionalGeneration",),
        "Qwen2ForCausalLM",
        (ABOVE, WITHIN),
        outside("visual", "vision_tower"),
        unchecked=OF_VLLM,
    ),
    Wrapper(
        ("IsaacForConditionalGeneration",),
        "Qwen3ForCausalLM",
        (BESIDE, (("model.", "model.text_model."),)),
        outside("vision_embedding"),
        unchecked=OF_VLLM,
    ),
    Wrapper(("GLM4VForCausalLM",), "ChatGLMModel", (BESIDE,), outside(r"transformer\.vision"), unchecked=OF_VLLM),
    Wrapper(
        ("Phi4ForCausalLMV",),
        "Phi3ForCausalLM",
        (BESIDE,),
        outside("vision_tower", "mm_projector"),
        unchecked=OF_VLLM,
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
        fixed=NO_DRAFTS,
        unchecked=OF_VLLM,
    ),
    Wrapper(
        ("DeepseekVLV2ForCausalLM",),
        None,
        ((("", "language."),),),
        outside("vision", "projector", "image_newline", "view_seperator", "tile_indicators"),
        section="language_config",
        unchecked=OF_VLLM,
    ),
    Wrapper(
        ("DeepseekOCRForCausalLM", "DeepseekOCR2ForCausalLM", "UnlimitedOCRForCausalLM"),
        "DeepseekV2ForCausalLM",
        (BESIDE,),
        outside("sam_model", "vision_model", "qwen2_model", "projector", "image_newline", "view_seperator"),
        section="language_config",
        unchecked=OF_VLLM,
    ),
    Wrapper(
        ("KimiK25ForConditionalGeneration", "Kimi_K25ForConditionalGeneration"),
        "DeepseekV3ForCausalLM",
        (ABOVE, WITHIN, (("model.layers.", "language_model.layers."), *ABOVE)),
        outside("vision_tower", "mm_projector"),
        fixed=NO_DRAFTS,
    ),
    Wrapper(
        ("KimiK3ForConditionalGeneration",),
        "KimiLinearForCausalLM",
        (ABOVE, (("model.layers.", "language_model.layers."), *ABOVE)),
        outside("vision_tower", "mm_projector"),
        fixed=NO_DRAFTS,
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
        unchecked=OF_VLLM,
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
        unchecked=OF_VLLM,
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
        outside("vpm", "resampler", "apm", "audio_projection_layer", "tts"),
        unchecked=OF_VLLM,
    ),
    Wrapper(
        ("Idefics3ForConditionalGeneration", "SmolVLMForConditionalGeneration"),
        "LlamaForCausalLM",
        ((("model.", "model.text_model."),),),
        outside("vision_model", "connector"),
        fixed={"model_type": "llama"},
    ),
    Wrapper(
        ("Ovis", "Ovis2_5", "Ovis2_6ForCausalLM", "Ovis2_6_MoeForCausalLM"),
        None,
        ((("", "llm."),),),
        outside("visual_tokenizer", "vte"),
        section="llm_config",
        unchecked=OF_VLLM,
    ),
    Wrapper(
        ("KananaVForConditionalGeneration",), None, (ABOVE,), outside("vision_model", "abstractor"), unchecked=OF_VLLM
    ),
    Wrapper(("Eagle2_5_VLForConditionalGeneration",), None, (ABOVE,), _INTERN, unchecked=OF_VLLM),
    Wrapper(
        ("BeeForConditionalGeneration", "RForConditionalGeneration"), None, (WITHIN, ABOVE), _VISION, unchecked=OF_VLLM
    ),
    Wrapper(
        ("HCXVisionV2ForCausalLM", "HCXVisionForCausalLM"),
        None,
        (ABOVE, (("", "model.language_model."),)),
        outside("vision_model", "mm_projector", "discrete_vision_model"),
        unchecked=OF_VLLM,
    ),
    Wrapper(("DotsOCRForCausalLM",), "Qwen2ForCausalLM", (BESIDE,), outside("vision_tower"), unchecked=OF_VLLM),
    Wrapper(
        ("KeyeForConditionalGeneration", "KeyeVL1_5ForConditionalGeneration"),
        "Qwen3ForCausalLM",
        (BESIDE,),
        outside("visual", "mlp_AR"),
        unchecked=OF_VLLM,
    ),
    Wrapper(
        ("LightOnOcrForConditionalGeneration", "LightOnOCRForConditionalGeneration"),
        "Qwen3ForCausalLM",
        (WITHIN, ABOVE),
        outside("vision_encoder", "vision_projection"),
    ),
    Wrapper(
        ("MiniMaxM3SparseForConditionalGeneration",),
        "MiniMaxM3SparseForCausalLM",
        (ABOVE, WITHIN),
        outside("vision_tower", "multi_modal_projector", "patch_merge_mlp"),
    ),
    Wrapper(
        ("Ovis2ForConditionalGeneration",),
        None,
        (WITHIN, ABOVE),
        outside("vision_tower", "visual_embeddings_table"),
    ),
    Wrapper(
        ("Alpamayo2Super",),
        "Qwen3ForCausalLM",
        ((("model.", "vlm.model.language_model."), ("", "vlm.")),),
        outside(r"vlm\.model\.visual", "expert"),
        section="vlm_config.text_config",
        unchecked=OF_VLLM,
    ),
    Wrapper(("AriaForConditionalGeneration",), "AriaTextForCausalLM", (ABOVE, WITHIN), _VISION),
    Wrapper(
        ("BagelForConditionalGeneration",),
        "Qwen2ForCausalLM",
        (ABOVE,),
        (*outside("vit_model", "connector", "vit_pos_embed"), *_BAGELS_PAINTER),
        section="llm_config",
        unchecked=OF_VLLM,
    ),
    Wrapper(
        ("Blip2ForConditionalGeneration",),
        None,
        (ABOVE,),
        outside("vision_model", "qformer", "language_projection", "query_tokens"),
    ),
    Wrapper(("CohereCompassForConditionalGeneration",), "CohereForCausalLM", (WITHIN,), _VISUAL),
    Wrapper(
        ("DeepseekV4ForConditionalGeneration",),
        "DeepseekV4ForCausalLM",
        (BESIDE,),
        outside("vision", "aligner", "image_start", "image_end", "image_newline", "image_pad"),
        unchecked=OF_VLLM,
    ),
    Wrapper(
        ("Gemma4UnifiedForConditionalGeneration",),
        "Gemma4ForCausalLM",
        (WITHIN,),
        outside("embed_audio", "embed_vision", "vision_embedder"),
    ),
    Wrapper(("GlmOcrForConditionalGeneration",), "Glm4ForCausalLM", (WITHIN,), _VISUAL),
    Wrapper(
        ("Granite4VisionForConditionalGeneration",),
        "GraniteForCausalLM",
        (WITHIN,),
        outside("vision_tower", "layerwise_projectors", "spatial_projectors", "image_newline"),
    ),
    Wrapper(
        ("InternS1ProForConditionalGeneration",),
        "InternS1ProForCausalLM",
        (WITHIN,),
        outside("visual", "time_series"),
        unchecked=OF_VLLM,
    ),
    Wrapper(
        ("InternS2PreviewForConditionalGeneration",),
        "Qwen3_5MoeForCausalLM",
        (WITHIN, BESIDE),
        outside("visual", "time_series"),
        unchecked=OF_VLLM,
    ),
    Wrapper(
        ("OpenVLAForActionPrediction",), None, (ABOVE,), outside("vision_backbone", "projector"), unchecked=OF_VLLM
    ),
    Wrapper(("Phi3VForCausalLM",), "Phi3ForCausalLM", (BESIDE,), outside("vision_embed_tokens"), unchecked=OF_VLLM),
    Wrapper(
        ("Phi4MMForCausalLM",),
        "Phi3ForCausalLM",
        (BESIDE,),
        (
            *outside("embed_tokens_extend"),
            (r".*\.lora_[AB]\.(speech|vision)\.weight", "adapters for images and speech are not applied"),
        ),
        stored=_UNDER_ADAPTERS,
        unchecked=OF_VLLM,
    ),
    Wrapper(("QianfanOCRForConditionalGeneration",), None, (ABOVE, WITHIN), (*_INTERN, *_VISION)),
    Wrapper(
        ("StepVLForConditionalGeneration",),
        None,
        (BESIDE,),
        outside("vision_model", "vit_large_projector"),
        unchecked=OF_VLLM,
    ),
    Wrapper(
        ("Step5ForConditionalGeneration",),
        "Step5ForCausalLM",
        (BESIDE, WITHIN),
        outside("vision_model", "vit_large_projector"),
        unchecked=OF_VLLM,
    ),
)
"""In the order of the page of models."""
