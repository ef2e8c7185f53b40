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
MOE: dict[str, Any] = {**DENSE, "moe_intermediate_size": 64}
MAMBA2: dict[str, Any] = {"mamba_n_heads": 8, "mamba_n_groups": 2, "mamba_d_state": 12}
OLD: dict[str, Any] = {"hidden_size": 128, "num_attention_heads": 8, "num_hidden_layers": 4, "vocab_size": 320}
GPT: dict[str, Any] = {"n_embd": 128, "n_head": 8, "n_layer": 4, "vocab_size": 320, "n_positions": 64}

NAS: list[dict[str, Any]] = [
    {"attention": {"no_op": False, "n_heads_in_group": 2}, "ffn": {"no_op": False, "ffn_mult": 1.3}},
    {"attention": {"no_op": True, "n_heads_in_group": None}, "ffn": {"no_op": False, "ffn_mult": 3.0}},
    {"attention": {"no_op": False, "n_heads_in_group": 4}, "ffn": {"no_op": True, "ffn_mult": None}},
    {"attention": {"no_op": False, "n_heads_in_group": 8}, "ffn": {"no_op": False, "intermediate_size": 192}},
]
"""Widths of 256, 256, none and 192; 4, 0, 2 and 1 heads of keys."""

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
    "Exaone4ForCausalLM": {**PLAIN, "num_nextn_predict_layers": 1},
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
    "PanguEmbeddedForCausalLM": {**PLAIN, "bias": True},
    "Rnj1ForCausalLM": DENSE,
    "SolarForCausalLM": PLAIN,
    "Step1ForCausalLM": {**derived(PLAIN, num_key_value_heads=None), "num_attention_groups": 2},
    "TeleFLMForCausalLM": PLAIN,
    "VaultGemmaForCausalLM": DENSE,
    "HyperCLOVAXForCausalLM": {**DENSE, "pad_token_id": 0, "attention_bias": True},
    "MuseGlimmerForCausalLM": DENSE,
    "GraniteSWAForCausalLM": {**PLAIN, "mlp_bias": True},
    "OlmoForCausalLM": {**PLAIN, "pad_token_id": 0, "attention_bias": True},
    "ApertusForCausalLM": {**PLAIN, "pad_token_id": 0, "attention_bias": True},
    "ExaoneForCausalLM": {**derived(PLAIN, num_hidden_layers=None), "num_layers": 4},
    "TeleChat2ForCausalLM": {"hidden_size": 128, "n_head": 8, "n_layer": 4, "ffn_hidden_size": 192, "vocab_size": 320},
    "Jais2ForCausalLM": PLAIN,
    "OPTForCausalLM": {**OLD, "ffn_dim": 256, "max_position_embeddings": 64, "word_embed_proj_dim": 64},
    "PersimmonForCausalLM": {**OLD, "intermediate_size": 256},
    "DeciLMForCausalLM": {**PLAIN, "block_configs": NAS},
    "AfmoeForCausalLM": {**MOE, "num_experts": 4},
    "BeamForCausalLM": {**MOE, "num_experts": 4, "n_group": 1, "topk_group": 1},
    "Cohere2MoeForCausalLM": {
        **DENSE,
        "num_experts": 4,
        "num_shared_experts": 2,
        "first_k_dense_replace": 1,
        "prefix_dense_intermediate_size": 192,
    },
    "ExaoneMoeForCausalLM": {**MOE, "num_experts": 4, "pad_token_id": 0, "num_nextn_predict_layers": 1},
    "FlexOlmoForCausalLM": {**PLAIN, "num_experts": 4, "pad_token_id": 0},
    "FlintForCausalLM": {**MOE, "num_experts": 4, "shared_expert_intermediate_size": 96},
    "HYV3ForCausalLM": {**MOE, "num_experts": 4, "pad_token_id": 0, "num_nextn_predict_layers": 1},
    "Kolibri1ForCausalLM": {**MOE, "num_local_experts": 4, "shared_expert_intermediate_size": 96},
    "LagunaForCausalLM": {
        **MOE,
        "num_experts": 4,
        "shared_expert_intermediate_size": 96,
        "num_attention_heads_per_layer": [8, 16, 8, 16],
    },
    "MellumForCausalLM": {**MOE, "num_local_experts": 4, "mlp_layer_types": ["dense", *["sparse"] * 3]},
    "GraniteMoeSWAForCausalLM": {**PLAIN, "num_local_experts": 4, "shared_intermediate_size": 96},
    "BailingMoeForCausalLM": {**MOE, "num_experts": 4, "num_shared_experts": 2},
    "BailingMoeV2ForCausalLM": {
        **{**MOE, "num_experts": 4, "num_shared_experts": 1, "first_k_dense_replace": 1, "use_qk_norm": True},
        **{"moe_router_enable_expert_bias": True, "num_nextn_predict_layers": 1},
    },
    "BailingMoeV2_5ForCausalLM": {
        **{**MLA, "head_dim": 16, "num_experts": 4, "num_shared_experts": 1, "use_qk_norm": True},
        **{
            "layer_group_size": 3,
            "group_norm_size": 4,
            "moe_router_enable_expert_bias": True,
            "n_shared_experts": None,
            "num_nextn_predict_layers": 1,
        },
    },
    "SarvamMoEForCausalLM": {**MOE, "num_experts": 4},
    "Param2MoEForCausalLM": {**MOE, "num_experts": 4, "use_qkv_bias": True},
    "Glm4MoeLiteForCausalLM": {**MLA, "first_k_dense_replace": 1, "num_nextn_predict_layers": 1},
    "AXK1ForCausalLM": MLA,
    "SarvamMLAForCausalLM": {**MLA, "q_lora_rank": None},
    "PanguUltraMoEForCausalLM": {
        **{**MLA, "sandwich_norm": True, "router_enable_expert_bias": True, "num_nextn_predict_layers": 1}
    },
    "PanguProMoEV2ForCausalLM": MLA,
    "MiniCPM3ForCausalLM": MLA,
    "MiniMaxForCausalLM": {**DENSE, "num_local_experts": 4},
    "MiniMaxText01ForCausalLM": {**DENSE, "num_local_experts": 4, "attn_type_list": [0, 0, 0, 1]},
    "MambaForCausalLM": {**OLD, "state_size": 4, "expand": 2},
    "FalconMambaForCausalLM": {**OLD, "state_size": 4, "intermediate_size": 192, "time_step_rank": 12},
    "JambaForCausalLM": {**PLAIN, "num_experts": 4, "attn_layer_period": 4, "attn_layer_offset": 2, "mamba_d_state": 4},
    "Mamba2ForCausalLM": {**OLD, "num_heads": 16, "head_dim": 16, "n_groups": 2, "state_size": 12},
    "BambaForCausalLM": {**PLAIN, "attn_layer_indices": [1], **MAMBA2},
    "FalconH1ForCausalLM": {**DENSE, **MAMBA2, "mamba_d_ssm": 64, "mamba_rms_norm": True},
    "GraniteMoeHybridForCausalLM": {
        **{**PLAIN, **MAMBA2, "num_local_experts": 4, "shared_intermediate_size": 96},
        "layer_types": ["linear_attention", "full_attention"] * 2,
    },
    "MolmoForCausalLM": {
        **PLAIN,
        "embedding_size": 320,
        "vocab_size": 300,
        "qkv_bias": True,
        "attention_layer_norm": True,
    },
    "Gemma3nForCausalLM": {
        **DENSE,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 1,
        "intermediate_size": [256, 192, 256, 256],
        "activation_sparsity_pattern": [0.0] * 4,
        "hidden_size_per_layer_input": 12,
        "vocab_size_per_layer_input": 300,
        "laurel_rank": 8,
        "altup_num_inputs": 3,
    },
    "OlmoHybridForCausalLM": {
        **{**PLAIN, "pad_token_id": 0, "linear_num_key_heads": 8, "linear_num_value_heads": 8},
        # as wide as keys: transformers saves three convolutions of one width
        **{"linear_key_head_dim": 16, "linear_value_head_dim": 16},
    },
    "Plamo3ForCausalLM": DENSE,
    "Step3TextForCausalLM": {
        **{**MOE, "num_attention_groups": 1, "moe_num_experts": 4, "share_q_dim": 48, "share_expert_dim": 96},
        "moe_layers_enum": "1, 2,3",
    },
    "Zamba2ForCausalLM": {
        **{**OLD, "num_hidden_layers": 8, "intermediate_size": 192, "n_mamba_heads": 8, "mamba_ngroups": 2},
        **{"mamba_d_state": 12, "layers_block_type": ["mamba", "hybrid"] * 4, "num_mem_blocks": 2, "adapter_rank": 8},
        "use_shared_attention_adapter": True,
    },
    "DbrxForCausalLM": {
        **{"d_model": 128, "n_heads": 8, "n_layers": 4, "vocab_size": 320},
        "attn_config": {"kv_n_heads": 4, "rope_theta": 500000},
        "ffn_config": {"ffn_hidden_size": 192, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "HrmTextForCausalLM": DENSE,
    "IQuestLoopCoderForCausalLM": PLAIN,
    "DoryForCausalLM": {
        **{**DENSE, "num_hidden_layers": 8, "layer_types": ["sliding_attention", "mlp", "full_attention", "mlp"] * 2},
        **{"n_input_layers": 2, "n_recurrent_layers": 4, "n_output_layers": 2},
    },
    "AliceAIForCausalLM": {
        **{**MOE, "num_experts": 4, "shared_expert_intermediate_size": 96, "block_attn_res_block_size": 2},
        **{"linear_num_key_heads": 8, "linear_key_head_dim": 16, "linear_conv_kernel_dim": 4},
        "layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"],
    },
    "DomynEdgeForCausalLM": {**DENSE, "per_layer_config": {"1": {"head_dim": 32}, "3": {"head_dim": 24}}},
    "K2HorizonForCausalLM": {
        **{**MOE, "num_experts": 4, "num_shared_experts": 1, "mova_num_experts": 3, "moe_gate_bias": True},
        **{"mlp_only_layers": [0], "query_key_norm": True, "attention_gate_func": "sigmoid", "attention_bias": True},
    },
    "Step5ForCausalLM": {
        **{
            **derived(MOE, num_key_value_heads=None),
            "num_attention_groups": 4,
            "moe_num_experts": 4,
        },
        **{"share_expert_dim": 96, "use_head_wise_attn_gate": True, "num_nextn_predict_layers": 1},
        "layer_types": ["full_attention", *["sliding_attention"] * 3, "full_attention"],
        "sparse_config": {"proxy_dim": 32, "sparse_indexer_num_heads": 8, "num_provider_groups": 4},
    },
    "HfMoondream": {
        "config": {
            "text": {
                **{"dim": 128, "ff_dim": 256, "n_layers": 4, "vocab_size": 320, "n_heads": 8, "n_kv_heads": 8},
                "moe": {"start_layer": 2, "n_experts": 4, "expert_inner_dim": 64},
            }
        }
    },
    "AriaTextForCausalLM": {
        **{**PLAIN, "intermediate_size": 64, "moe_num_experts": 4, "moe_topk": 2},
        **{"moe_num_shared_experts": 3, "attention_bias": True, "mlp_bias": True},
    },
    "OlmoeForCausalLM": {**PLAIN, "num_experts": 4, "pad_token_id": 0, "attention_bias": True},
    "InternS1ProForCausalLM": {**MOE, "num_experts": 4, "rope_scaling": {"num_inv_freq": 6}},
    "MptForCausalLM": {"d_model": 128, "n_heads": 8, "n_layers": 4, "vocab_size": 320},
}
"""A tiny config of each architecture."""


COMPARED_APART = ("DoryForCausalLM",)  # in test_repeated_layers.py


@pytest.mark.parametrize("architecture", [name for name in MODELS if name not in COMPARED_APART])
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
    [
        *("FalconForCausalLM", "GPT2LMHeadModel", "InternLM2ForCausalLM", "MiMoForCausalLM", "Lfm2MoeForCausalLM"),
        *("TeleChat2ForCausalLM", "DeciLMForCausalLM"),
        *("OPTForCausalLM", "PersimmonForCausalLM", "ExaoneForCausalLM", "GraniteSWAForCausalLM"),
        *("LagunaForCausalLM", "BeamForCausalLM", "HYV3ForCausalLM", "FlintForCausalLM", "MiniMaxForCausalLM"),
        *("BailingMoeV2ForCausalLM", "PanguUltraMoEForCausalLM", "JambaForCausalLM", "FalconH1ForCausalLM"),
        *("MambaForCausalLM", "Mamba2ForCausalLM", "GraniteMoeHybridForCausalLM", "MolmoForCausalLM"),
        *("OlmoHybridForCausalLM", "Plamo3ForCausalLM", "Step3TextForCausalLM", "BailingMoeV2_5ForCausalLM"),
        *("Exaone4ForCausalLM", "ExaoneMoeForCausalLM"),
        *("AriaTextForCausalLM", "InternS1ProForCausalLM"),
        *("AliceAIForCausalLM", "DomynEdgeForCausalLM", "K2HorizonForCausalLM", "Step5ForCausalLM", "HfMoondream"),
    ],
)
def test_what_is_stored_unlike_a_llama_is_loaded_byte_for_byte(architecture: str, tmp_path: Path) -> None:
    config = {"architectures": [architecture], "dtype": "bfloat16", **MODELS[architecture]}
    family = find_family(config)
    layout = ParallelLayout(2, 2, num_draft_layers=family.schema(family.describe(config)).num_drafts)
    assert check_loading(family, config, tmp_path, layouts=[layout]) > 0


def test_groups_of_heads_are_divided_over_more_ranks_than_groups(tmp_path: Path) -> None:
    """Two heads of keys on four ranks, which InternLM2 and Falcon-40B store with the queries that share them."""
    falcon = {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True}
    for architecture, changes in (("InternLM2ForCausalLM", {}), ("FalconForCausalLM", falcon)):
        config = {"architectures": [architecture], "dtype": "bfloat16", **MODELS[architecture], **changes}
        layouts = [ParallelLayout(1, 4), ParallelLayout(1, 2)]
        assert check_loading(find_family(config), config, tmp_path / architecture, layouts=layouts) > 0
