"""Inkling and Inkling-2: names of transformers, alternating rows, MTP, snapshots that cross cuts, the loop, and defects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loadmaster.architectures import inkling, inkling2
from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import ConfigError, LayoutError, UnsupportedError
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.sizing.cuts import list_boundaries
from loadmaster.synth import PRESETS
from loadmaster.testing import check_loading, check_tables, compare_with_transformers, write_checkpoint
from loadmaster.testing.damaged import DamagedCheckpoint
from tests.architectures.damage import damaged_copy

ONE_WITH_MTP = PRESETS["inkling"].config_of(tiny=True)
MTP = ("num_mtp_layers", "mtp_local_layer_ids", "chain_hidden_post_norm")
ONE = ONE_WITH_MTP | {"text_config": {k: v for k, v in ONE_WITH_MTP["text_config"].items() if k not in MTP}}
TWO, LOOP = (
    {
        **PRESETS[f"inkling-2{loop.lower()}"].config_of(tiny=True)["text_config"],
        "architectures": [f"Inkling2{loop.strip('-')}ForCausalLM"],
        "dtype": "bfloat16",
    }
    for loop in ("", "-Loop")
)


@pytest.mark.parametrize(
    "text", [ONE["text_config"], {"num_hidden_layers": 6, "dense_mlp_idx": 2}], ids=["tiny", "default"]
)
def test_names_and_shapes_of_inkling_are_those_of_transformers(text: dict[str, Any]) -> None:
    compare_with_transformers(inkling.FAMILY, ONE | {"text_config": text})


@pytest.mark.parametrize("config", [TWO, LOOP], ids=["plain", "loop"])
def test_names_and_shapes_of_inkling_2_are_those_of_transformers(config: dict[str, Any]) -> None:
    compare_with_transformers(inkling2.FAMILY, config)


@pytest.mark.parametrize("loop", ["", "Loop"])
def test_so_are_those_of_the_published_sizes(loop: str) -> None:
    text = {} if loop else {"num_hidden_layers": 7}
    compare_with_transformers(
        inkling2.FAMILY, {"architectures": [f"Inkling2{loop}ForConditionalGeneration"], "text_config": text}
    )


def test_a_published_config_gives_the_width_of_dense_mlps_under_a_key_of_its_own() -> None:
    text = ONE["text_config"] | {"intermediate_size": 48, "dense_intermediate_size": 160, "moe_intermediate_size": None}
    published = inkling.FAMILY.schema(inkling.FAMILY.describe(ONE | {"text_config": text}))
    assert published == inkling.FAMILY.schema(inkling.FAMILY.describe(ONE))


def test_released_configs_describe_mtp_layers_in_a_section_of_their_own() -> None:
    section = {"num_nextn_predict_layers": 2, "local_layer_ids": [1], "chain_hidden_post_norm": True}
    released = inkling.FAMILY.schema(inkling.FAMILY.describe(ONE | {"mtp_config": section}))
    assert released == inkling.FAMILY.schema(inkling.FAMILY.describe(ONE_WITH_MTP))


@pytest.mark.parametrize("method", [{"quant_method": "mxfp8"}, {"quant_method": "fp8", "weight_block_size": [1, 32]}])
def test_experts_of_inkling_2_may_be_mxfp8(method: dict[str, Any], tmp_path: Path) -> None:
    write_checkpoint(inkling2.FAMILY, TWO | {"quantization_config": {"quant_method": "mxfp8"}}, tmp_path / "two")
    stored = DamagedCheckpoint(tmp_path / "two")
    stored.rename("_weight_scale_inv", "_weight_scale").config(quantization_config=method)
    proof = prove(build_plan(open_checkpoint(stored.path), ParallelLayout(1, 2)))
    shapes = {s.name: (s.dtype, s.shape) for s in proof.plan.rank(1).specs}
    assert proof.proven
    assert shapes["layers.0.mlp.experts.w13_weight"] == ("F8_E4M3", (8, 48, 96))
    assert shapes["layers.0.mlp.experts.w13_weight_scale"] == ("U8", (8, 48, 3))
    assert shapes["layers.0.mlp.experts.w2_weight_scale"] == ("U8", (8, 96, 2))  # inputs 24 to 48, in two blocks


def test_every_rank_gets_its_bytes(tmp_path: Path) -> None:
    layouts = [ParallelLayout(2, 4, num_draft_layers=2), ParallelLayout(1, 2, enable_expert_parallel=True)]
    check_tables(inkling.FAMILY, ONE_WITH_MTP)
    assert check_loading(inkling.FAMILY, ONE_WITH_MTP, tmp_path / "one", layouts=layouts) > 500
    assert check_loading(inkling2.FAMILY, LOOP, tmp_path / "loop", layouts=[ParallelLayout(3, 2)]) > 200
    assert (
        check_loading(inkling2.FAMILY, TWO, tmp_path / "two", layouts=[ParallelLayout(1, 8)]) > 500
    )  # kv heads repeat


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("inkling") / "one"
    write_checkpoint(inkling.FAMILY, ONE_WITH_MTP, folder)
    return folder


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("inkling") / "loop"
    write_checkpoint(inkling2.FAMILY, LOOP, folder)
    return folder


def test_pairs_of_gate_and_up_are_never_divided(one: Path) -> None:
    plan = build_plan(open_checkpoint(one), ParallelLayout(1, 4))
    shapes = {s.name: s.shape for s in plan.rank(1).specs}
    assert shapes["layers.2.mlp.experts.w13_weight"] == (8, 24, 96)  # 12 pairs of 48
    assert shapes["layers.2.mlp.shared_experts.shared_w13_weight"] == (2, 24, 96)
    assert shapes["layers.2.mlp.gate.weight"] == (10, 96)  # 8 routed and 2 shared experts
    assert shapes["layers.2.mlp.gate.bias"] == (8,)


def test_the_norm_that_mtp_layers_share_is_read_with_the_first(one: Path) -> None:
    proof = prove(build_plan(open_checkpoint(one), ParallelLayout(2, num_draft_layers=2)))
    names = [s.name for s in proof.plan.rank(1).specs if "chain_norm" in s.name]
    assert proof.proven and names == ["mtp.0.chain_norm.weight"]
    waived = prove(build_plan(open_checkpoint(one), ParallelLayout(2))).waivers
    assert [w.reason for w in waived] == ["mtp not enabled"]


def test_snapshots_cross_cuts_and_no_cut_is_inside_the_loop(loop: Path) -> None:
    listed = list_boundaries(build_plan(open_checkpoint(loop)))
    assert [c.layer for c in listed if c.refused is None] == [1, 2, 6, 7]
    assert [dict(listed[layer].crosses)["block_states"] // (96 * 2) for layer in (1, 2, 6, 7)] == [1, 1, 3, 4]
    with pytest.raises(LayoutError, match="no stage can begin at layer 4: layers 2 to 5 run 3 times in turn"):
        build_plan(open_checkpoint(loop), ParallelLayout(2, layer_partition=(4, 4)))
    assert build_plan(open_checkpoint(loop), ParallelLayout(2)).stages in (((0, 2), (2, 8)), ((0, 6), (6, 8)))


def test_the_query_of_a_layer_is_stored_under_the_number_before(loop: Path) -> None:
    plan = build_plan(open_checkpoint(loop), ParallelLayout(2, layer_partition=(2, 6)))
    names = plan.checkpoint.table.names
    read = {names[i] for b in plan.rank(1).groups for i in b.tensors.reshape(-1).tolist()}
    assert {n for n in read if "attn_queries" in n} == {f"model.llm.attn_res.attn_queries.{n}" for n in range(1, 7)}


@pytest.mark.parametrize(
    ("model", "pattern", "change", "code"),
    [
        ("one", r"llm\.layers\.2\.mlp\.gate\.weight", lambda t: t[:8], "shape-mismatch"),  # without the shared experts
        ("one", r"llm\.layers\.2\.mlp\.gate\.bias", lambda t: t.repeat(2)[:10], "shape-mismatch"),
        (
            "one",
            r"llm\.layers\.3\.mlp\.experts\.w13_weight",
            lambda t: t[:, :48],
            "shape-mismatch",
        ),  # a half is missing
        ("one", r"llm\.layers\.5\.attn\.rel_logits_proj", lambda t: t[:, :32], "shape-mismatch"),  # that of a window
        ("one", r"llm\.unembed\.weight", lambda t: t[:300], "shape-mismatch"),  # not padded
        ("loop", r"attn_res\.attn_queries\.3", None, "tensor-missing"),
        (
            "loop",
            r"attn_res\.attn_queries\.0",
            lambda t: t[0],
            "shape-mismatch",
        ),  # layer 1 has no window: three queries
        ("loop", r"layers\.4\.controllers\.v\.gain_weight", None, "tensor-missing"),
        ("loop", r"middle_cycle_cross_pass_queries", lambda t: t[:4], "shape-mismatch"),
    ],
)
def test_a_defect_is_one_finding(
    model: str, pattern: str, change: Any, code: str, one: Path, loop: Path, tmp_path: Path
) -> None:
    source = {"one": one, "loop": loop}[model]
    (name,) = DamagedCheckpoint(source).names(pattern)
    path = damaged_copy(source, tmp_path / "damaged", pattern, change)
    found = prove(build_plan(open_checkpoint(path))).findings
    assert [(f.code, f.tensor) for f in found if f.code != "family-unchecked"] == [(code, name)]


def test_what_is_not_described_is_refused_by_name() -> None:
    refused: list[tuple[dict[str, Any], type[Exception], str]] = [
        (TWO | {"quantization_config": {"quant_method": "modelopt"}}, UnsupportedError, "quantised by modelopt is not"),
        (LOOP | {"quantization_config": {"quant_method": "mxfp8"}}, UnsupportedError, "quantised by mxfp8 is not"),
        (TWO | {"layer_types": ["hybrid"] * 3}, ConfigError, "layer_types must give hybrid or hybrid_sliding"),
        (LOOP | {"loop_layer_index_end": 5}, ConfigError, "2 and 5, must be multiples of 2 within 8 layers"),
    ]
    for config, error, says in refused:
        with pytest.raises(error, match=says):
            inkling2.FAMILY.schema(inkling2.FAMILY.describe(config))
