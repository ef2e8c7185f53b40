"""Text models without a preset: names and shapes as transformers has them, and tables that agree with one another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loadmaster.architectures.registry import find_family
from loadmaster.parallel import ParallelLayout
from loadmaster.synth.sizes import TINY_DENSE, TINY_MLA, derived
from loadmaster.testing import check_loading, check_tables, compare_with_transformers
from loadmaster.testing.modelling import has_model

MLA: dict[str, Any] = {
    **{k: v for k, v in TINY_MLA.items() if not k.endswith("token_id")},
    "n_shared_experts": 2,
    "n_group": 1,
    "topk_group": 1,
}

DENSE: dict[str, Any] = {k: v for k, v in TINY_DENSE.items() if not k.endswith("token_id")}
PLAIN = derived(DENSE, head_dim=None)
OLD: dict[str, Any] = {"hidden_size": 128, "num_attention_heads": 8, "num_hidden_layers": 4, "vocab_size": 320}
GPT: dict[str, Any] = {"n_embd": 128, "n_head": 8, "n_layer": 4, "vocab_size": 320, "n_positions": 64}

MODELS: dict[str, dict[str, Any]] = {
    "DeepseekV2ForCausalLM": {**MLA, "q_lora_rank": None},
    "DeepseekV3ForCausalLM": {**MLA, "q_lora_rank": None},
    "DeepseekForCausalLM": MLA,
    "GraniteForCausalLM": {**DENSE, "attention_bias": True, "mlp_bias": True},
    "GemmaForCausalLM": DENSE,
    "Gemma2ForCausalLM": DENSE,
    "CohereForCausalLM": {**PLAIN, "use_qk_norm": True},
    "Cohere2ForCausalLM": {**PLAIN, "attention_bias": True},
    "StableLmForCausalLM": {**PLAIN, "use_qkv_bias": True},
    "SeedOssForCausalLM": DENSE,
    "SmolLM3ForCausalLM": {**PLAIN, "pad_token_id": 0, "attention_bias": True},
    "Ministral3ForCausalLM": DENSE,
    "MinistralForCausalLM": DENSE,
    "CwmForCausalLM": DENSE,
    "Ernie4_5ForCausalLM": {**DENSE, "use_bias": True},
    "Exaone4ForCausalLM": PLAIN,
    "InternLMForCausalLM": PLAIN,
    "InternLM3ForCausalLM": {**DENSE, "qkv_bias": True, "bias": True},
    "MiniCPMForCausalLM": PLAIN,
    "OrionForCausalLM": PLAIN,
    "ArceeForCausalLM": {**PLAIN, "mlp_bias": True},
    "NemotronForCausalLM": {**PLAIN, "attention_bias": True},
    "GlmForCausalLM": {**DENSE, "pad_token_id": 0, "attention_bias": True},
    "Glm4ForCausalLM": {**DENSE, "pad_token_id": 0, "attention_bias": True},
    "FalconForCausalLM": OLD,
    "BloomForCausalLM": OLD,
    "GPTNeoXForCausalLM": {**OLD, "intermediate_size": 256},
    "GPT2LMHeadModel": GPT,
    "GPTBigCodeForCausalLM": GPT,
    "PhiForCausalLM": PLAIN,
    "GPTJForCausalLM": {**GPT, "rotary_dim": 8},
    "QWenLMHeadModel": PLAIN,
    "ChatGLMModel": {**OLD, "num_layers": 4, "ffn_hidden_size": 192, "padded_vocab_size": 320, "add_qkv_bias": True},
    "BaichuanForCausalLM": PLAIN,
    "InternLM2ForCausalLM": {**PLAIN, "bias": True},
    "MiMoForCausalLM": {**PLAIN, "num_nextn_predict_layers": 2},
    "PhimoeForCausalLM": {**PLAIN, "num_local_experts": 4, "attention_bias": True, "lm_head_bias": True},
    "Ernie4_5_MoeForCausalLM": {**PLAIN, "moe_num_experts": 4, "moe_intermediate_size": 64, "use_bias": True},
    "Dots1ForCausalLM": {
        **PLAIN,
        "n_routed_experts": 4,
        "moe_intermediate_size": 64,
        "first_k_dense_replace": 1,
        "n_shared_experts": 1,
    },
    "HunYuanDenseV1ForCausalLM": {**DENSE, "attention_bias": True},
    "HunYuanMoEV1ForCausalLM": {**DENSE, "num_experts": 4, "moe_topk": 2},
    "Lfm2ForCausalLM": {**PLAIN, "layer_types": ["conv", "conv", "full_attention", "conv"]},
    "Lfm2MoeForCausalLM": {
        **PLAIN,
        "layer_types": ["conv", "full_attention", "conv", "full_attention"],
        "num_dense_layers": 2,
        "num_experts": 4,
        "moe_intermediate_size": 64,
    },
    "MptForCausalLM": {"d_model": 128, "n_heads": 8, "n_layers": 4, "vocab_size": 320},
}
"""A tiny config of each architecture."""


@pytest.mark.parametrize("architecture", MODELS)
def test_names_and_shapes_are_those_of_transformers(architecture: str) -> None:
    config = {"architectures": [architecture], **MODELS[architecture]}
    family = find_family(config)
    if has_model(config):
        compare_with_transformers(family, config)
    else:
        assert architecture in family.unchecked
        check_tables(family, config)


@pytest.mark.parametrize(
    "changes",
    [
        {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True},
        {"new_decoder_architecture": True, "num_kv_heads": 4, "num_ln_in_parallel_attn": 1},
        {"multi_query": False, "parallel_attn": False, "tie_word_embeddings": False},
    ],
)
def test_each_generation_of_falcon_is_that_of_transformers(changes: dict[str, Any]) -> None:
    config = {"architectures": ["FalconForCausalLM"], **OLD, **changes}
    compare_with_transformers(find_family(config), config)


@pytest.mark.parametrize(
    "architecture",
    ["FalconForCausalLM", "GPT2LMHeadModel", "InternLM2ForCausalLM", "MiMoForCausalLM", "Lfm2MoeForCausalLM"],
)
def test_what_is_stored_unlike_a_llama_is_loaded_byte_for_byte(architecture: str, tmp_path: Path) -> None:
    config = {"architectures": [architecture], "dtype": "bfloat16", **MODELS[architecture]}
    layout = ParallelLayout(2, 2, num_draft_layers=MODELS[architecture].get("num_nextn_predict_layers", 0))
    assert check_loading(find_family(config), config, tmp_path, layouts=[layout]) > 0


def test_groups_of_heads_are_divided_over_more_ranks_than_groups(tmp_path: Path) -> None:
    """Two heads of keys on four ranks, which InternLM2 and Falcon-40B store with the queries that share them."""
    falcon = {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True}
    for architecture, changes in (("InternLM2ForCausalLM", {}), ("FalconForCausalLM", falcon)):
        config = {"architectures": [architecture], "dtype": "bfloat16", **MODELS[architecture], **changes}
        layouts = [ParallelLayout(1, 4), ParallelLayout(1, 2)]
        assert check_loading(find_family(config), config, tmp_path / architecture, layouts=layouts) > 0
