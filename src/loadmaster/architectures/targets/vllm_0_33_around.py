"""vLLM 0.33's models around a language model: architecture in config.json → class and prefix (`vllm`).

Sources: the classes' modules in ``vllm/model_executor/models``, of 0.33.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from loadmaster.architectures.targets.vllm import Around

_AUDIO: Final = (
    "AudioFlamingo3ForConditionalGeneration",
    "GlmAsrForConditionalGeneration",
    "GraniteSpeechForConditionalGeneration",
    "GraniteSpeechPlusForConditionalGeneration",
    "MossTranscribeDiarizeForConditionalGeneration",
    "Qwen2AudioForConditionalGeneration",
    "Qwen3ASRForConditionalGeneration",
    "Qwen3ASRRealtimeGeneration",
    "UltravoxModel",
)
_VISION: Final = (
    "BailingMoeV3VLForConditionalGeneration",
    "Cohere2VisionForConditionalGeneration",
    "DeepseekOCR2ForCausalLM",
    "DeepseekOCRForCausalLM",
    "DotsOCRForCausalLM",
    "Eagle2_5_VLForConditionalGeneration",
    "Exaone4_5_ForConditionalGeneration",
    "Glm4vForConditionalGeneration",
    "Glm4vMoeForConditionalGeneration",
    "GlmOcrForConditionalGeneration",
    "H2OVLChatModel",
    "HCXVisionV2ForCausalLM",
    "InternS2PreviewForConditionalGeneration",
    "InternVLChatModel",
    "KeyeForConditionalGeneration",
    "KimiK25ForConditionalGeneration",
    "KimiVLForConditionalGeneration",
    "LightOnOCRForConditionalGeneration",
    "LlavaForConditionalGeneration",
    "LlavaNextForConditionalGeneration",
    "LlavaNextVideoForConditionalGeneration",
    "LlavaOnevisionForConditionalGeneration",
    "MiniCPMV4_6ForConditionalGeneration",
    "Mistral3ForConditionalGeneration",
    "OpenCUAForConditionalGeneration",
    "PaddleOCRVLForConditionalGeneration",
    "PaliGemmaForConditionalGeneration",
    "Phi3VForCausalLM",
    "PixtralForConditionalGeneration",
    "QianfanOCRForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen2VLForConditionalGeneration",
    "Qwen3VLForConditionalGeneration",
    "Qwen3VLMoeForConditionalGeneration",
    "SkyworkR1VChatModel",
    "Step3VLForConditionalGeneration",
)
_INTERN: Final = Around("InternS1ForConditionalGeneration")
_NEMOTRON: Final = (
    "NemotronH_Nano_Omni_Reasoning_V3",
    "NemotronH_Nano_VL_V2",
    "NemotronH_Omni_Reasoning_V3",
    "NemotronH_Super_Omni_Reasoning_V3",
)
_QWEN_OMNI: Final = Around("Qwen2_5OmniThinkerForConditionalGeneration")

AROUND: Final[Mapping[str, Around]] = {
    **{name: Around(name) for name in (*_VISION, *_AUDIO)},
    **dict.fromkeys(_NEMOTRON, Around("NemotronH_Nano_VL_V2")),
    "InternVLForConditionalGeneration": _INTERN,
    "InternS1ForConditionalGeneration": _INTERN,
    "Qwen2_5OmniForConditionalGeneration": _QWEN_OMNI,
    "Qwen2_5OmniModel": _QWEN_OMNI,
    "Qwen3OmniMoeForConditionalGeneration": Around("Qwen3OmniMoeThinkerForConditionalGeneration"),
    "NVLM_D": Around("NVLM_D_Model"),
    "Alpamayo2Super": Around("Alpamayo2SuperForConditionalGeneration"),
    "MiniCPMV": Around("MiniCPMV", "llm."),
    "SmolVLMForConditionalGeneration": Around("SmolVLMForConditionalGeneration", "model.text_model.", is_bare=True),
    "Idefics3ForConditionalGeneration": Around("Idefics3ForConditionalGeneration", "model.text_model.", is_bare=True),
}
