"""vLLM 0.33's target, as a difference to 0.32's."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import pytest
import torch

from loadmaster.architectures.target import Target
from loadmaster.architectures.targets import VLLM, newest_target, target_of_vllm, vllm_0_32, vllm_0_33
from loadmaster.architectures.targets.vllm import Version
from loadmaster.audit.accepted import RECENT, WRAPPED
from loadmaster.audit.case import ACCEPTED
from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import LayoutError, UnsupportedError
from loadmaster.loader import load_rank
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import Plan, build_plan, prove
from loadmaster.synth import PRESETS, write_full_size, write_tiny
from tests.integrations.vllm.golden import SINCE


def config_of(preset: str) -> dict[str, Any]:
    return PRESETS[preset].config_of(tiny=True) | ACCEPTED.get(preset, {})


def target(version: Version, preset: str) -> Target:
    config = config_of(preset)
    family = PRESETS[preset].family_of(config)
    return version.target(family, family.describe(config))


@pytest.mark.parametrize("preset", sorted(SINCE["vllm-0.32"]))
def test_what_0_32_describes_has_the_same_parameters_in_0_33(preset: str) -> None:
    assert replace(target(vllm_0_32.VERSION, preset), name="vllm-0.33") == target(vllm_0_33.VERSION, preset)


def test_the_newest_version_is_the_default_and_an_installed_one_has_its_own() -> None:
    assert newest_target("vllm") == "vllm-0.33"
    assert {version: target_of_vllm(version) for version in ("0.32.1", "0.33.0+cpu", "0.34.0", "0.3.2")} == {
        "0.32.1": "vllm-0.32",
        "0.33.0+cpu": "vllm-0.33",
        "0.34.0": None,
        "0.3.2": None,
    }
    assert all(version.name == name for name, version in VLLM.items())


def plan(preset: str, path: Path, *sizes: int, overrides: dict[str, Any] | None = None, **layout: Any) -> Plan:
    write_tiny(PRESETS[preset], path, overrides={**(RECENT | WRAPPED)[preset], **(overrides or {})})
    return build_plan(open_checkpoint(path), ParallelLayout(*sizes, **layout), target="vllm-0.33")


def test_deepseek_v4_pro_as_published_is_planned_for_sixteen_ranks(tmp_path: Path) -> None:
    write_full_size(PRESETS["deepseek-v4-pro-0813"], tmp_path)
    made = build_plan(open_checkpoint(tmp_path), ParallelLayout(2, 8, enable_expert_parallel=True), target="vllm-0.33")
    assert prove(made).findings == ()
    first, last = ({s.name: (s.dtype, s.shape) for s in made.rank(rank).specs} for rank in (0, 15))
    block = "model.layers.2."
    assert first[f"{block}attn.fused_wqa_wkv.weight"] == ("F8_E4M3", (1536 + 512, 7168))
    assert first[f"{block}attn.fused_wqa_wkv.weight_scale_inv"] == ("F8_E8M0", (16, 56))
    assert first[f"{block}ffn.experts.routed_experts.w13_weight"] == ("U8", (48, 2 * 3072, 7168 // 2))
    assert first[f"{block}ffn.experts.routed_experts.w13_weight_scale"] == ("U8", (48, 2 * 3072, 7168 // 32))
    assert first["model.layers.0.ffn.gate.tid2eid"] == ("I32", (129280, 6))
    assert first["model.hc_head_fn"] == last["model.hc_head_fn"] == ("F32", (4, 4 * 7168))
    assert not any(name.startswith("mtp.") or ".layers.61." in name for name in last)


def test_the_mtp_layer_of_deepseek_v4_has_the_names_of_vllms_draft(tmp_path: Path) -> None:
    made = plan("deepseek-v4-flash", tmp_path, 2, num_draft_layers=1)
    assert prove(made).findings == ()
    layer = "model.layers.6."
    first, last = ({s.name for s in made.rank(r).specs if s.name.startswith(layer)} for r in (0, 1))
    assert not first
    beside = {n.removeprefix(layer) for n in last if "mtp_block" not in n}
    projections = {f"{n}.weight{scale}" for n in ("e_proj", "h_proj") for scale in ("", "_scale_inv")}
    norms = {f"{n}.weight" for n in ("enorm", "hnorm", "shared_head.norm")}
    assert beside == projections | norms | {"hc_head_fn", "hc_head_base", "hc_head_scale"}
    assert f"{layer}mtp_block.ffn.experts.routed_experts.w13_weight_scale" in last


def test_sinks_of_attention_are_filled_up_to_a_number_of_heads_that_kernels_have(tmp_path: Path) -> None:
    made = plan("deepseek-v4-flash", tmp_path, 1, 2)
    sink = load_rank(prove(made).require_proven(), 1).tensors["model.layers.0.attn.attn_sink"]
    whole = load_rank(prove(build_plan(open_checkpoint(tmp_path))).require_proven(), 0).tensors[
        "layers.0.attn.attn_sink"
    ]
    assert sink.shape == (64,)
    assert torch.equal(sink[:4], whole[4:])
    assert (sink[4:] == -inf).all()


@pytest.mark.parametrize(
    ("preset", "overrides", "options", "said"),
    [
        ("deepseek-v4-flash", {"topk_method": "greedy"}, {}, "topk_method is 'greedy', not 'noaux_tc'"),
        ("deepseek-v4-flash", {"vision_n_layers": 2}, {}, "it has vision"),
        ("deepseek-v4-pro-0813", {}, {"num_draft_layers": 1}, "MTP layers are not described for vllm-0.33"),
        ("glm-5.3-flash", {"tie_word_embeddings": True}, {}, "the head is tied to the embedding"),
        ("hy4-preview", {"layer_types": None}, {}, "layer_types does not say that all layers are sparse"),
        ("kimi-linear", {"mla_use_output_gate": True}, {}, "mla_use_output_gate is true"),
        ("kimi-linear", {"tie_word_embeddings": True}, {}, "the head is tied to the embedding"),
        ("deepseek-v4-flash", {}, {"tensor_parallel_size": 4}, "a part that ends inside a block of scales"),
    ],
)
def test_what_is_not_described_is_refused_by_name(
    preset: str, overrides: dict[str, Any], options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedError, match=said):
        plan(preset, tmp_path, overrides=overrides, **options)


def test_scales_that_vllm_would_hold_in_another_format_are_not_described(tmp_path: Path) -> None:
    """With F32 scales, as in the releases of base models, vLLM has F32 parameters; those of powers of two are described."""
    overrides = {**ACCEPTED["deepseek-v4-flash"], "expert_dtype": "fp8"}
    write_tiny(replace(PRESETS["deepseek-v4-flash"], e8m0=False), tmp_path, overrides=overrides)
    with pytest.raises(UnsupportedError, match="fp8_block with scale, which is not described"):
        build_plan(open_checkpoint(tmp_path), target="vllm-0.33")


@pytest.mark.slow
def test_kimi_k3_as_published_is_planned_under_the_names_of_its_wrapper(tmp_path: Path) -> None:
    write_full_size(PRESETS["kimi-k3"], tmp_path)
    made = build_plan(open_checkpoint(tmp_path), ParallelLayout(2, 8, enable_expert_parallel=True), target="vllm-0.33")
    assert prove(made).findings == ()
    specs = {s.name: (s.dtype, s.shape) for s in made.rank(0).specs}
    linear, latent = (f"language_model.model.layers.{layer}." for layer in (1, 3))
    rows = 4 * 12 * 128 + 128 + 12  # q, k, v and g of 12 heads, f_a for all, b: filled up to a multiple of 16
    assert specs[f"{linear}self_attn.in_proj_qkvgfab.weight"] == ("BF16", (rows + 4, 7168))
    assert specs[f"{linear}self_attn.conv1d.weight"] == ("F32", (3 * 12 * 128, 1, 4))
    assert specs[f"{latent}self_attn.fused_qkv_a_g_proj.weight"] == ("BF16", (1536 + 512 + 64 + 12 * 128, 7168))
    assert specs[f"{linear}block_sparse_moe.experts.routed_experts.w13_weight"] == ("U8", (112, 2 * 3072, 3584 // 2))
    assert specs["language_model.model.embed_tokens.weight"] == ("BF16", (163840 // 8, 7168))


@pytest.mark.parametrize(
    ("preset", "stored", "held"), [("kimi-linear", (1, 1, 8, 1), (4,)), ("glm-5.3-flash", (8,), (1, 1, 4, 1))]
)
def test_dims_of_one_element_are_those_of_vllm(
    preset: str, stored: tuple[int, ...], held: tuple[int, ...], tmp_path: Path
) -> None:
    made = plan(preset, tmp_path, 1, 2)
    prefix = "language_model." if preset == "glm-5.3-flash" else ""
    decay = load_rank(prove(made).require_proven(), 1).tensors[f"{prefix}model.layers.0.self_attn.A_log"]
    whole = load_rank(prove(build_plan(open_checkpoint(tmp_path))).require_proven(), 0).tensors[
        "layers.0.self_attn.A_log"
    ]
    assert (whole.shape, decay.shape) == (stored, held)
    assert torch.equal(decay.flatten(), whole.flatten()[4:])


def test_a_rank_with_one_head_keeps_the_dim_of_heads(tmp_path: Path) -> None:
    made = plan("kimi-linear", tmp_path, 1, 8)
    assert {s.name: s.shape for s in made.rank(3).specs}["model.layers.0.self_attn.A_log"] == (1,)


def test_glm_53_has_no_stages_and_its_latent_attention_is_decoded(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match=r"layer 3 needs hidden_states, and vllm-0\.33 passes nothing"):
        plan("glm-5.3-flash", tmp_path, 2)
    made = build_plan(open_checkpoint(tmp_path), target="vllm-0.33")
    assert prove(made).proven
    specs = {s.name: s.dtype for s in made.rank(0).specs}
    layer = "language_model.model.layers.3."
    assert {
        specs[f"{layer}self_attn.{of}.weight"] for of in ("fused_qkv_a_proj", "q_b_proj", "kv_b_proj", "o_proj")
    } == {"BF16"}
    assert specs[f"{layer}mlp.shared_experts.down_proj.weight"] == "F8_E4M3"


def test_queries_and_keys_of_an_indexer_are_fused_where_a_layer_has_one(tmp_path: Path) -> None:
    made = plan("minimax-m3-mxfp8", tmp_path)
    assert prove(made).proven
    specs = {s.name: s for s in made.rank(0).specs}
    full, sparse = (specs[f"language_model.model.layers.{n}.self_attn.qkv_proj.weight"] for n in (1, 2))
    assert full.shape == ((8 + 2 + 2) * 128, 128)
    assert sparse.shape == ((8 + 2 + 2 + 2 + 1) * 128, 128)  # and the queries and keys of its indexer
    assert specs[f"{sparse.name}_scale"].dtype == "U8"
    assert not any("index_q_proj" in name for name in specs)


def test_keys_of_an_indexer_that_are_not_quantised_are_not_described(tmp_path: Path) -> None:
    """vLLM 0.33 would write them into a parameter with scales, without any."""
    with pytest.raises(UnsupportedError, match=r"qkv_proj\.weight: parts of which only some are quantised"):
        plan(
            "minimax-m3-mxfp8",
            tmp_path,
            overrides={"quantization_config": PRESETS["minimax-m3-mxfp8"].config["quantization_config"]},
        )


def test_a_stage_of_hy4_begins_where_a_layer_selects_tokens_itself(tmp_path: Path) -> None:
    """vLLM sends on the streams, and not a selection."""
    made = plan("hy4-preview", tmp_path, 2)
    assert prove(made).proven
    assert {"model.hc_head.hc_head_fn.weight", "model.norm.weight"} <= {s.name for s in made.rank(1).specs}
    with pytest.raises(LayoutError, match="no stage can begin at layer 4"):
        plan("hy4-preview", tmp_path / "other", 2, layer_partition=(4, 2))


def test_muse_spark_in_nvfp4_has_one_number_for_each_matrix_of_an_expert(tmp_path: Path) -> None:
    made = plan("muse-spark-nvfp4", tmp_path, 2)
    specs = {s.name: s.shape for s in made.rank(1).specs}
    assert specs["model.layers.3.self_attn.qkv_proj.weight"] == ((8 + 4 + 4 + 8) * 64, 256)  # the gate too
    assert specs["model.layers.3.feed_forward.expert_bias"] == (8,)
    stem = "model.layers.3.feed_forward.experts.routed_experts."
    numbers = {
        name.removeprefix(stem): shape for name, shape in specs.items() if name.startswith(stem) and len(shape) < 3
    }
    of_w13, of_w2 = dict.fromkeys(("w13_weight_scale_2", "w13_input_scale"), (8, 2)), (8,)
    assert numbers == {**of_w13, **dict.fromkeys(("w2_weight_scale_2", "w2_input_scale"), of_w2)}
