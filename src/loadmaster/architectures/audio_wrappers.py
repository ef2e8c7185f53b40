"""Models with audio, or all media, around a known language model: where their language model is, and what else is stored.

Sources: headers and configs of published checkpoints; the classes of transformers 5.24, built on the meta device; the
``WeightsMapper`` of each class in ``vllm/model_executor/models``.
"""

from __future__ import annotations

from typing import Final

from loadmaster.architectures.schema import OF_VLLM
from loadmaster.architectures.wrapper import ABOVE, BESIDE, WITHIN, Wrapper, outside

_NEMOTRON = outside("vision_model", "mlp1", "sound_encoder", "sound_projection")

WRAPPERS: Final[tuple[Wrapper, ...]] = (
    Wrapper(
        ("Qwen2_5OmniForConditionalGeneration", "Qwen2_5OmniModel"),
        "Qwen2ForCausalLM",
        ((("", "thinker."),),),
        (*outside(r"thinker\.(visual|audio_tower)", "talker", "token2wav"),),
        section="thinker_config.text_config",
    ),
    Wrapper(
        ("Qwen3OmniMoeForConditionalGeneration",),
        "Qwen3MoeForCausalLM",
        ((("", "thinker."),),),
        (*outside(r"thinker\.(visual|audio_tower)", "talker", "code2wav"),),
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
        unchecked=OF_VLLM,
    ),
    Wrapper(
        ("GraniteSpeechForConditionalGeneration", "GraniteSpeechPlusForConditionalGeneration"),
        None,
        (ABOVE,),
        outside("encoder", "projector"),
    ),
    Wrapper(
        ("Qwen3ASRForConditionalGeneration", "Qwen3ASRRealtimeGeneration"),
        "Qwen3ForCausalLM",
        ((("", "thinker."),), WITHIN),
        outside(r"thinker\.audio_tower", "audio_tower", "multi_modal_projector", "talker", "code2wav"),
        section="thinker_config.text_config",
    ),
    Wrapper(
        ("MoonshotKimiaForCausalLM",),
        "Qwen2ForCausalLM",
        (BESIDE,),
        outside("encoder", "vq_adaptor", "audio_tower", "mimo_layers", "mimo_norm", "mimo_output"),
        unchecked=OF_VLLM,
    ),
    Wrapper(
        ("MiDashengLMModel",),
        "Qwen2ForCausalLM",
        ((("", "decoder."),),),
        outside("audio_encoder", "audio_projector"),
        unchecked=OF_VLLM,
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
        outside("audio_tower", "multi_modal_projector"),
    ),
    Wrapper(("MiMoV2OmniForCausalLM",), "MiMoV2ForCausalLM", (BESIDE, WITHIN), (), unchecked=OF_VLLM),
    Wrapper(
        ("FireRedASR2ForConditionalGeneration",),
        "Qwen2ForCausalLM",
        ((("", "llm."),),),
        outside("encoder", "encoder_projector"),
        unchecked=OF_VLLM,
    ),
    Wrapper(
        ("FunASRForConditionalGeneration",),
        "Qwen3ForCausalLM",
        ((("", "llm."),),),
        outside("audio_encoder", "audio_adaptor"),
        unchecked=OF_VLLM,
    ),
    Wrapper(
        ("FunAudioChatForConditionalGeneration",),
        "Qwen3ForCausalLM",
        (ABOVE,),
        outside("audio_tower", "continuous_audio_tower", "audio_invert_tower"),
        unchecked=OF_VLLM,
    ),
    Wrapper(
        ("MossTranscribeDiarizeForConditionalGeneration",),
        "Qwen3ForCausalLM",
        (WITHIN, (("", "model.language_model."),), ABOVE),
        outside("audio_tower", "multi_modal_projector", "whisper_encoder", "vq_adaptor"),
    ),
    Wrapper(
        ("MossAudioModel",),
        "Qwen3ForCausalLM",
        ((("model.", "language_model."),),),
        outside("audio_encoder", "audio_adapter", "deepstack_audio_merger_list"),
        section="language_config",
        unchecked=OF_VLLM,
    ),
    Wrapper(("UltravoxModel",), None, (ABOVE,), outside("audio_tower", "multi_modal_projector"), unchecked=OF_VLLM),
)
"""In the order of the page of models."""
