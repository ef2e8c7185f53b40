"""MiniMax-M3: parameters and names of transformers, heads of the indexer, MXFP8, MTP layers, and defects."""

from __future__ import annotations

from math import prod
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from loadmaster.architectures.minimax_m3 import ATTENTIONS
from loadmaster.architectures.registry import find_family
from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import ConfigError, UnsupportedError
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.synth import PRESETS
from loadmaster.synth.inventory import Entry, inventory
from loadmaster.synth.models.mixtures import MINIMAX_M3, TINY_MINIMAX_M3
from loadmaster.synth.presets import Preset, merged
from loadmaster.testing import check_loading, check_tables, compare_with_transformers, write_checkpoint
from loadmaster.testing.damaged import DamagedCheckpoint
from tests.architectures.damage import damaged_copy

M3 = MINIMAX_M3
"""As released, without keys that name no tensor."""
TINY = merged(M3, TINY_MINIMAX_M3)
MXFP8 = PRESETS["minimax-m3-mxfp8"].config_of(tiny=True)
FAMILY = find_family(M3)
FULL, SPARSE = ATTENTIONS


def text(**changes: Any) -> dict[str, Any]:
    return merged(TINY, {"text_config": changes})


def entries_of(config: dict[str, Any]) -> list[Entry]:
    return inventory(Preset("m3", config, {}, 1), config)


def test_the_language_model_has_the_parameters_of_transformers() -> None:
    """427,040,140,160 with the vision part, which has 865,567,232."""
    entries = entries_of(M3)
    assert sum(prod(e.signature.shape) for e in entries) == 427_040_140_160 - 865_567_232
    assert (
        len([e for e in entries if e.name.startswith("language_model.model.layers.59.block_sparse_moe.experts.")])
        == 384
    )


@pytest.mark.parametrize("config", [TINY, M3], ids=["tiny", "released"])
def test_names_and_shapes_are_those_of_transformers(config: dict[str, Any]) -> None:
    compare_with_transformers(FAMILY, config)


def test_every_rank_gets_its_bytes_in_all_names_and_in_mxfp8(tmp_path: Path) -> None:
    layouts = [ParallelLayout(2, 2, num_draft_layers=2), ParallelLayout(1, 4, enable_expert_parallel=True)]
    check_tables(FAMILY, MXFP8)
    assert check_loading(FAMILY, MXFP8, tmp_path / "mxfp8", layouts=layouts) > 500
    assert check_loading(FAMILY, TINY, tmp_path / "plain", layouts=[ParallelLayout(3, 4)]) > 500


def test_modelopt_and_compressed_tensors_call_the_exponents_weight_scale(tmp_path: Path) -> None:
    weights = {"num_bits": 8, "type": "float", "strategy": "group", "group_size": 32}
    for number, method in enumerate(
        (
            {"quant_method": "modelopt", "quant_algo": "MXFP8"},
            {
                "quant_method": "compressed-tensors",
                "format": "mxfp8-quantized",
                "config_groups": {"0": {"weights": weights}},
            },
        )
    ):
        checkpoint = write_checkpoint(FAMILY, TINY | {"quantization_config": method}, tmp_path / str(number))
        plan = prove(build_plan(checkpoint, ParallelLayout(1, 2))).require_proven()
        shapes = {s.name: (s.dtype, s.shape) for s in plan.rank(1).specs}
        assert shapes["layers.0.mlp.down_proj.weight"] == ("F8_E4M3", (96, 80))
        assert shapes["layers.0.mlp.down_proj.weight_scale"] == ("U8", (96, 3))  # inputs 80 to 160: half of 32, 32, 32


@pytest.fixture(scope="module")
def m3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("m3") / "m3"
    write_checkpoint(FAMILY, MXFP8, folder)
    return folder


def test_heads_of_the_indexer_are_repeated_like_heads_of_keys(m3: Path) -> None:
    plan = build_plan(open_checkpoint(m3), ParallelLayout(1, 4))  # two heads of 16 elements
    for name, shape in (("q_proj", (16, 96)), ("k_proj", (16, 96)), ("q_norm", (16,))):
        assert {s.shape for s in plan.rank(3).specs if s.name == f"layers.2.self_attn.index_{name}.weight"} == {shape}
    assert not [s for s in plan.rank(3).specs if s.name.startswith("layers.1.self_attn.index")]


def test_mtp_layers_are_read_on_request_and_need_their_number_in_the_config(m3: Path, tmp_path: Path) -> None:
    proof = prove(build_plan(open_checkpoint(m3), ParallelLayout(2, num_draft_layers=2)))
    assert proof.proven and not [s for s in proof.plan.rank(0).specs if s.name.startswith("mtp.")]
    shapes = {s.name: s.shape for s in proof.plan.rank(1).specs}
    assert shapes["mtp.1.self_attn.index_q_proj.weight"] == (32, 96) and shapes["mtp.1.eh_proj.weight"] == (96, 192)
    uncounted = DamagedCheckpoint(Path(copytree(m3, tmp_path / "uncounted")))
    uncounted.config(text_config=text()["text_config"])
    proof = prove(build_plan(open_checkpoint(uncounted.path)))
    assert proof.proven and [f.code for f in proof.findings] == ["family-unchecked"]
    assert [w.reason for w in proof.waivers] == ["config.json has no num_mtp_modules, their number"]


@pytest.mark.parametrize(
    ("pattern", "change", "code"),
    [
        (r"model\.layers\.2\.self_attn\.index_q_norm\.", None, "tensor-missing"),
        (r"model\.layers\.2\.self_attn\.index_k_proj\.", lambda t: t.repeat(2, 1), "shape-mismatch"),  # a head too many
        (r"model\.layers\.0\.mlp\.down_proj\.weight_scale_inv", lambda t: t[:, :1], "shape-mismatch"),  # of 128, not 32
        (r"model\.layers\.1\.block_sparse_moe\.experts\.3\.w2\.weight_scale_inv", None, "scale-missing"),
        (r"model\.layers\.1\..*experts\.0\.w1\.weight_scale_inv", lambda t: t.float(), "dtype-inadmissible"),
        (r"mtp\.layers\.1\.final_layernorm", None, "tensor-missing"),
    ],
)
def test_a_defect_is_one_finding(pattern: str, change: Any, code: str, m3: Path, tmp_path: Path) -> None:
    path = damaged_copy(m3, tmp_path / "damaged", pattern, change)
    found = prove(build_plan(open_checkpoint(path), ParallelLayout(num_draft_layers=2))).findings
    names = DamagedCheckpoint(m3).names(pattern)
    assert [(f.code, f.tensor) for f in found if f.code != "family-unchecked"] == [(code, names[0])]


def test_what_is_not_described_is_refused_by_name() -> None:
    sparse = {"sparse_attention_config": {"sparse_disable_index_value": [0, 0, 0]}}
    for config, error, says in (
        (text(n_shared_experts=2), UnsupportedError, "n_shared_experts 2 is not supported"),
        (text(**sparse), UnsupportedError, "sparse_disable_index_value 0 of a sparse layer"),
        (text(**sparse, layer_types=[SPARSE] * 3), UnsupportedError, "sparse_disable_index_value 0 of a sparse layer"),
        (text(moe_layer_freq=None), ConfigError, "mlp_layer_types must give dense or sparse for each of 3 layers"),
    ):
        with pytest.raises(error, match=says):
            FAMILY.schema(FAMILY.describe(config))


def test_layer_types_can_stand_in_for_the_list_of_0_and_1() -> None:
    """Where that is null, the list of what is disabled is of the layers that have such a type."""
    named = text(layer_types=[FULL, FULL, SPARSE], sparse_attention_config={"sparse_attention_freq": None})
    assert named["text_config"]["sparse_attention_config"].keys() > {"sparse_disable_index_value"}
    assert [kind.split("/")[1] for kind in schema_layers(named)] == [FULL, FULL, SPARSE]


def schema_layers(config: dict[str, Any]) -> tuple[str, ...]:
    return FAMILY.schema(FAMILY.describe(config)).layers
