"""Models around known language models: names as transformers has them, counts as published, plans of tiny checkpoints."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from loadmaster.architectures.registry import FAMILIES, find_family, known
from loadmaster.architectures.wrapper import WrappedFamily
from loadmaster.architectures.wrappers import WRAPPERS
from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import ConfigError, UnsupportedError
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.synth import PRESETS, Preset
from loadmaster.synth.inventory import inventory
from loadmaster.synth.models.latent import KIMI_K2
from loadmaster.synth.quantised import QUANTISED
from loadmaster.synth.sizes import TINY_DENSE, TINY_MLA, TINY_MOE, derived
from loadmaster.testing import check_loading, compare_with_transformers
from loadmaster.testing.damaged import DamagedCheckpoint
from loadmaster.testing.modelling import has_model
from loadmaster.testing.plans import described, write_checkpoint
from tests.architectures.test_text_models import MODELS

DENSE = {k: v for k, v in TINY_DENSE.items() if not k.endswith("token_id")}
NO_HEAD = derived(DENSE, head_dim=None)
MOE = {**DENSE, **{k: TINY_MOE[k] for k in ("moe_intermediate_size", "num_experts", "num_experts_per_tok")}}
GLM = {**DENSE, "attention_bias": True, "first_k_dense_replace": 1, "moe_intermediate_size": 64, "n_routed_experts": 8}
MLA = {
    **{k: v for k, v in TINY_MLA.items() if not k.endswith("token_id")},
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "num_nextn_predict_layers": 0,
}
OPT = {
    **{"hidden_size": 128, "num_attention_heads": 8, "num_hidden_layers": 4, "vocab_size": 320, "ffn_dim": 256},
    **{"max_position_embeddings": 64, "word_embed_proj_dim": 128},
}
COMPASS = {
    **{**DENSE, "layer_types": ["full_attention"] * 4},
    "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}},
}
GEMMA = PRESETS["gemma-4-26b-a4b"].config_of(tiny=True)["text_config"]
GDN = {
    **DENSE,
    **{f"linear_{part}_head_dim": 16 for part in ("key", "value")},
    **{"linear_num_key_heads": 4, "linear_num_value_heads": 8},
}
NEMOTRON = {k: v for k, v in PRESETS["nemotron-3-super"].config_of(tiny=True).items() if k != "architectures"} | {
    "num_nextn_predict_layers": 0
}

TEXTS: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen2VLForConditionalGeneration": ("qwen2_vl_text", NO_HEAD),
    "Qwen2_5_VLForConditionalGeneration": ("qwen2_5_vl_text", NO_HEAD),
    "Qwen3VLForConditionalGeneration": ("qwen3_vl_text", DENSE),
    "Qwen3VLMoeForConditionalGeneration": ("qwen3_vl_moe_text", MOE),
    "Glm4vMoeForConditionalGeneration": ("glm4v_moe_text", GLM),
    "Glm4vForConditionalGeneration": ("glm4v_text", {**DENSE, "pad_token_id": 0}),
    "Glm46VForConditionalGeneration": ("glm4v_text", {**DENSE, "pad_token_id": 0}),
    "PaliGemmaForConditionalGeneration": ("gemma", DENSE),
    "AyaVisionForConditionalGeneration": ("cohere2", NO_HEAD),
    "Cohere2VisionForConditionalGeneration": ("cohere2", NO_HEAD),
    "Kimi_K25ForConditionalGeneration": ("deepseek_v3", MLA),
    "LlavaForConditionalGeneration": ("llama", NO_HEAD),
    "LlavaNextForConditionalGeneration": ("mistral", NO_HEAD),
    "LlavaNextVideoForConditionalGeneration": ("llama", NO_HEAD),
    "LlavaOnevisionForConditionalGeneration": ("qwen2", NO_HEAD),
    "VipLlavaForConditionalGeneration": ("llama", NO_HEAD),
    "Mistral3ForConditionalGeneration": ("mistral", DENSE),
    "Lfm2VlForConditionalGeneration": ("lfm2", {**NO_HEAD, "layer_types": ["conv", "conv", "full_attention", "conv"]}),
    "InternVLForConditionalGeneration": ("qwen2", NO_HEAD),
    "Idefics3ForConditionalGeneration": ("llama", NO_HEAD),
    "SmolVLMForConditionalGeneration": ("llama", NO_HEAD),
    "Qwen2AudioForConditionalGeneration": ("qwen2", NO_HEAD),
    "VoxtralForConditionalGeneration": ("llama", DENSE),
    "LightOnOcrForConditionalGeneration": ("qwen3", DENSE),
    "Ovis2ForConditionalGeneration": ("qwen2", NO_HEAD),
    "Exaone4_5_ForConditionalGeneration": ("exaone4", DENSE),
    "MiniCPMV4_6ForConditionalGeneration": ("qwen3_5_text", GDN),
    "MiniCPMV4_7ForConditionalGeneration": ("qwen3_5_text", GDN),
    "MiniCPMOcrForConditionalGeneration": ("qwen3_5_text", GDN),
    "MuseGlimmerForConditionalGeneration": ("muse_glimmer_text", DENSE),
    "PaddleOCRVLForConditionalGeneration": ("paddleocr_vl_text", DENSE),
    "GraniteSpeechForConditionalGeneration": ("granite", NO_HEAD),
    "GraniteSpeechPlusForConditionalGeneration": ("granite", NO_HEAD),
    "AudioFlamingo3ForConditionalGeneration": ("qwen2", NO_HEAD),
    "GlmAsrForConditionalGeneration": ("llama", NO_HEAD),
    "Qwen3ASRForConditionalGeneration": ("qwen3", DENSE),
    "AriaForConditionalGeneration": ("aria_text", MODELS["AriaTextForCausalLM"]),
    "Blip2ForConditionalGeneration": ("opt", OPT),
    "CohereCompassForConditionalGeneration": ("cohere_compass_text", COMPASS),
    "Gemma4UnifiedForConditionalGeneration": ("gemma4_unified_text", {**GEMMA, "enable_moe_block": False}),
    "GlmOcrForConditionalGeneration": ("glm_ocr_text", {**DENSE, "pad_token_id": 0}),
    "Granite4VisionForConditionalGeneration": ("granite4_vision_text", NO_HEAD),
    "MossTranscribeDiarizeForConditionalGeneration": ("qwen3", DENSE),
    "QianfanOCRForConditionalGeneration": ("qwen3", DENSE),
}
"""Wrappers that transformers has a class of: the model type of the language model, and its tiny config."""

BESIDE: dict[str, dict[str, Any]] = {
    "Granite4VisionForConditionalGeneration": {"deepstack_layer_map": [[0, 0]], "downsample_rate": "4/8"}
}
"""What a config must say beside its sections."""

SMALL = dict.fromkeys(("num_hidden_layers", "depth", "vt_num_hidden_layers", "encoder_layers"), 1)
"""Keys of the depth of a tower: each class reads its own."""

OTHERS = {
    *("Qwen3_5ForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration"),  # compared as presets
    "Glm5NextForConditionalGeneration",  # compared in test_glm5_next.py
    "MiniMaxM3SparseForConditionalGeneration",  # compared in test_minimax_m3.py
    "Qwen4ExpForConditionalGeneration",  # compared in test_qwen4_exp.py
    "Step3p7ForConditionalGeneration",  # compared in test_step3.py
    "KimiK3ForConditionalGeneration",  # counts and bytes are those of the release: test_kimi_linear.py
    "Qwen2_5OmniForConditionalGeneration",  # the section is in another one
    "Qwen2_5OmniModel",
    "NemotronH_Omni_Reasoning_V3",  # compared apart
    "Qwen3OmniMoeForConditionalGeneration",  # transformers' default of its talker does not build
}


def config_of(architecture: str) -> dict[str, Any]:
    model_type, text = TEXTS[architecture]
    return {"architectures": [architecture], "text_config": {**text, "model_type": model_type}}


@pytest.mark.parametrize("architecture", TEXTS)
def test_names_and_shapes_are_those_of_transformers(architecture: str) -> None:
    config = config_of(architecture)
    towers = {"vision_config": SMALL, "audio_config": SMALL, **BESIDE.get(architecture, {})}
    compare_with_transformers(find_family(config), {**config, **towers})


def test_so_are_those_of_nemotron_omni_whose_sound_config_has_no_defaults() -> None:
    config = {"architectures": ["NemotronH_Omni_Reasoning_V3"], "text_config": NEMOTRON}
    tower = {**SMALL, "video_temporal_patch_size": 2}
    compare_with_transformers(find_family(config), {**config, "vision_config": tower})


def test_every_architecture_occurs_once_and_transformers_own_are_compared() -> None:
    names = [name for w in WRAPPERS for name in w.architectures]
    assert len(set(known())) == len(known()) == len(names) + sum(len(f.architectures) for f in FAMILIES)
    compared = {a for a in names if has_model({"architectures": [a]})}
    assert compared - OTHERS == set(TEXTS) - OTHERS
    assert all(w.unchecked for w in WRAPPERS if not set(w.architectures) & (set(TEXTS) | OTHERS))


def test_a_section_inside_another_is_the_language_models() -> None:
    text = {**NO_HEAD, "model_type": "qwen2_5_omni_text"}
    config = {"architectures": ["Qwen2_5OmniForConditionalGeneration"], "thinker_config": {"text_config": text}}
    family = find_family(config)
    assert family.describe(config).size("vocab_size") == 320
    assert family.spelling["embed"] == "thinker.model.embed_tokens.weight"


def test_a_config_without_the_section_describes_the_language_model_itself() -> None:
    config = {"architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl", **NO_HEAD}
    family = find_family(config)
    nested = config_of("Qwen2VLForConditionalGeneration")
    assert family.schema(family.describe(config)) == family.schema(family.describe(nested))


def test_a_paddleocr_has_a_head_unless_its_config_says_that_it_is_the_embedding() -> None:
    for change, is_tied in (({}, False), ({"tie_word_embeddings": True}, True)):
        config = config_of("PaddleOCRVLForConditionalGeneration") | change
        family = find_family(config)
        assert family.schema(family.describe(config)).tied is is_tied


def test_what_a_section_leaves_out_is_the_configuration_classs_default() -> None:
    section = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32064}
    config = {"architectures": ["LlavaForConditionalGeneration"], "text_config": section}
    family = find_family(config)
    schema = family.schema(family.describe(config))
    assert (len(schema.layers), schema.hidden_size, schema.top[0].shape) == (32, 4096, (32064, 4096))


@pytest.mark.parametrize(
    ("version", "language"), [(2.5, "llama"), (2.6, "llama"), (4, "llama"), ("4.5", "llama"), (9, None), (None, None)]
)
def test_the_version_says_what_is_inside_a_minicpm(version: Any, language: str | None) -> None:
    config = {"architectures": ["MiniCPMV"], "model_type": "minicpmv", "version": version, **NO_HEAD}
    if language is None:
        with pytest.raises(ConfigError, match="does not say what the language model is"):
            find_family(config)
    else:
        assert find_family(config).name == f"{language} inside MiniCPMV"


def test_a_language_model_that_is_not_known_is_named() -> None:
    section = {"architectures": ["GPT9ForCausalLM"], "model_type": "gpt9"}
    with pytest.raises(ConfigError, match="the language model of InternVLChatModel is 'GPT9ForCausalLM'") as caught:
        find_family({"architectures": ["InternVLChatModel"], "llm_config": section})
    assert caught.value.code == "architecture-unknown"


KIMI: dict[str, Any] = {
    "architectures": ["KimiK25ForConditionalGeneration"],
    "model_type": "kimi_k25",
    "text_config": {**derived(KIMI_K2, architectures=None), "quantization_config": QUANTISED["int4"](32)},
}


def test_kimi_k25_has_the_published_number_of_tensors_and_bytes() -> None:
    """208,550 tensors and 554.27 GiB. Scales are published in BF16; the vision tower is MoonViT, 1152 wide."""
    entries = inventory(Preset("kimi-k2.5", KIMI, {}, 64), KIMI)
    scales = sum(e.signature.num_bytes for e in entries if e.name.endswith("weight_scale"))
    wide, inner = 1152, 4304
    block = [wide * 3 * wide, 3 * wide, wide * wide, wide, inner * wide, inner, wide * inner, wide, *[wide] * 4]
    tower = [*block * 27, wide, wide, wide * 3 * 14 * 14, wide, 64 * 64 * wide]
    projector = [wide, wide, 4608 * 4608, 4608, 7168 * 4608, 7168]
    vision = [*tower, *projector]
    assert len(entries) + len(vision) == 208_550
    payload = sum(e.signature.num_bytes for e in entries) - scales // 2 + 2 * sum(vision)
    assert int(payload / 2**30 * 100) == 55427


@pytest.fixture(scope="module")
def kimi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Kimi-K2.5 whose experts are INT4, with a tensor of its tower."""
    path = tmp_path_factory.mktemp("kimi") / "model"
    config = {**KIMI, "text_config": {**KIMI["text_config"], **MLA, "num_hidden_layers": 3}}
    write_checkpoint(find_family(config), config, path)
    DamagedCheckpoint(path).copy(
        r"^language_model\.model\.norm\.weight$", "vision_tower.encoder.final_layernorm.weight"
    )
    return path


def test_a_tower_is_waived_with_its_reason_and_the_language_model_is_proven(kimi: Path) -> None:
    proof = prove(build_plan(open_checkpoint(kimi), ParallelLayout(2, 2)))
    assert proof.findings == ()
    assert [(w.reason, w.num_tensors) for w in proof.plan.waivers if "language" in w.reason] == [
        ("only the language model is loaded", 1)
    ]
    assert isinstance(proof.plan.family, WrappedFamily)


UNCHECKED: dict[str, tuple[dict[str, Any], str, str]] = {
    "BagelForConditionalGeneration": (
        {"llm_config": {**NO_HEAD, "qk_norm": True}},
        "language_model.model.layers.1.self_attn.q_norm.weight",
        "vit_model.vision_model.post_layernorm.weight",
    ),
    "InternS1ProForConditionalGeneration": (
        {"text_config": MODELS["InternS1ProForCausalLM"]},
        "model.language_model.rotary_emb.sin_coef",
        "model.time_series.encoder.norm.weight",
    ),
    "Alpamayo2Super": (
        {"vlm_config": {"text_config": DENSE}},
        "vlm.model.language_model.layers.1.mlp.down_proj.weight",
        "vlm.model.visual.patch_embed.proj.weight",
    ),
    "DeepseekV4ForConditionalGeneration": (
        PRESETS["deepseek-v4-flash"].config_of(tiny=True),
        "layers.1.attn.wq_a.weight",
        "image_newline",
    ),
    "FireRedASR2ForConditionalGeneration": (DENSE, "llm.lm_head.weight", "encoder_projector.linear1.weight"),
    "FunASRForConditionalGeneration": (DENSE, "llm.model.norm.weight", "audio_adaptor.linear1.weight"),
    "FunAudioChatForConditionalGeneration": (
        {"text_config": DENSE},
        "language_model.model.norm.weight",
        "continuous_audio_tower.conv1.weight",
    ),
    "InternS2PreviewForConditionalGeneration": (
        {"text_config": {**GDN, "num_experts": 8, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 96}},
        "model.language_model.layers.3.self_attn.q_proj.weight",
        "model.time_series.encoder.norm.weight",
    ),
    "MossAudioModel": (
        {"language_config": DENSE},
        "language_model.layers.2.self_attn.k_norm.weight",
        "audio_adapter.gate_proj.weight",
    ),
    "OpenVLAForActionPrediction": (
        {"text_config": {**NO_HEAD, "model_type": "llama"}},
        "language_model.model.layers.1.mlp.up_proj.weight",
        "vision_backbone.featurizer.norm.weight",
    ),
    "Phi3VForCausalLM": (
        NO_HEAD,
        "model.layers.1.self_attn.qkv_proj.weight",
        "model.vision_embed_tokens.img_projection.0.weight",
    ),
    "StepVLForConditionalGeneration": (
        {"text_config": {**DENSE, "model_type": "qwen3"}},
        "model.layers.1.self_attn.q_norm.weight",
        "vit_large_projector.weight",
    ),
    "Step5ForConditionalGeneration": (
        {"text_config": MODELS["Step5ForCausalLM"]},
        "model.layers.0.self_attn.sparse_indexer_q.weight",
        "vision_model.ln_pre.weight",
    ),
    "UltravoxModel": (
        {"text_config": {**NO_HEAD, "model_type": "llama"}},
        "language_model.lm_head.weight",
        "multi_modal_projector.ln_pre.weight",
    ),
}
"""Wrappers that only vLLM has a class of: a tiny config, a name of their language model, and one outside."""


@pytest.mark.parametrize("architecture", UNCHECKED)
def test_of_a_wrapper_of_vllm_the_language_model_is_planned_and_the_rest_waived(
    architecture: str, tmp_path: Path
) -> None:
    config, inside, outside = UNCHECKED[architecture]
    config = {"dtype": "bfloat16", **config, "architectures": [architecture]}
    write_checkpoint(find_family(config), config, tmp_path / "tiny")
    names = set(open_checkpoint(tmp_path / "tiny").table.names)
    assert inside in names
    DamagedCheckpoint(tmp_path / "tiny").copy(f"^{re.escape(inside)}$", outside)
    proof = prove(build_plan(open_checkpoint(tmp_path / "tiny"), ParallelLayout(1, 2)))
    assert proof.proven and [f.code for f in proof.findings] == ["family-unchecked"]
    waived = [(w.reason, w.num_tensors) for w in proof.waivers if w.reason != "mtp not enabled"]
    assert waived == [("only the language model is loaded", 1)]


def test_matrices_of_phi4_multimodal_are_stored_under_adapters_which_are_left_unread(tmp_path: Path) -> None:
    config = {"architectures": ["Phi4MMForCausalLM"], "dtype": "bfloat16", **NO_HEAD}
    family = find_family(config)
    assert check_loading(family, config, tmp_path / "loaded", layouts=[ParallelLayout(2, 2)]) > 40
    write_checkpoint(family, config, tmp_path / "tiny")
    stored, matrix = DamagedCheckpoint(tmp_path / "tiny"), "model.layers.1.self_attn.qkv_proj."
    stored.copy(f"^{re.escape(matrix)}base_layer.weight$", f"{matrix}lora_A.vision.weight")
    proof = prove(build_plan(open_checkpoint(tmp_path / "tiny")))
    assert proof.proven
    assert [(w.reason, w.num_tensors) for w in proof.waivers] == [("adapters for images and speech are not applied", 1)]
    stored.rename(f"^{re.escape(matrix)}base_layer.weight$", f"{matrix}weight")
    found = build_plan(open_checkpoint(tmp_path / "tiny")).findings
    assert [(f.code, f.tensor) for f in found if f.severity == "error"] == [
        ("tensor-missing", f"{matrix}base_layer.weight")
    ]


def test_another_engine_is_not_given_the_language_models_names(kimi: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"KimiK25ForConditionalGeneration is not described for vllm-0\.32"):
        build_plan(open_checkpoint(kimi), target="vllm-0.32")


@pytest.mark.parametrize(
    ("old", "new", "code", "tensor"),
    [
        (
            r"^language_model\.model\.layers\.1\.self_attn\.q_b_proj\.weight$",
            "model.layers.1.self_attn.q_b_proj.weight",
            "tensor-missing",
            "language_model.model.layers.1.self_attn.q_b_proj.weight",
        ),
        (
            r"^vision_tower\.encoder\.final_layernorm\.weight$",
            "hearing_tower.norm.weight",
            "tensor-unexpected",
            "hearing_tower.norm.weight",
        ),
    ],
)
def test_a_name_outside_every_table_is_found(
    old: str, new: str, code: str, tensor: str, kimi: Path, tmp_path: Path
) -> None:
    path = copied(kimi, tmp_path)
    DamagedCheckpoint(path).rename(old, new)
    found = [f for f in build_plan(open_checkpoint(path)).findings if f.severity == "error"]
    assert [(f.code, f.tensor) for f in found] == [(code, tensor)]


def test_stacks_of_experts_are_loaded_from_either_orientation(tmp_path: Path) -> None:
    config = config_of("Qwen3VLMoeForConditionalGeneration")
    config["text_config"] |= {"num_hidden_layers": 2}
    family = find_family(config)
    layouts = [ParallelLayout(2, 2), ParallelLayout(1, 2, enable_expert_parallel=True)]
    assert check_loading(family, config, tmp_path, layouts=layouts) > 0


def test_one_stack_in_the_other_orientation_is_a_finding(tmp_path: Path) -> None:
    config = config_of("Qwen3VLMoeForConditionalGeneration")
    family = find_family(config)
    write_checkpoint(family, config, tmp_path / "model")
    name = "model.language_model.layers.2.mlp.experts.down_proj"
    DamagedCheckpoint(tmp_path / "model").change(name, lambda stack: stack.transpose(1, 2))
    plan = build_plan(described(open_checkpoint(tmp_path / "model"), family))
    assert [(f.code, f.tensor) for f in plan.findings] == [("shape-mismatch", name)]


def copied(path: Path, folder: Path) -> Path:
    from shutil import copytree

    return copytree(path, folder / "copy")
