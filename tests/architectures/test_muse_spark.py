"""Muse-Spark: names of transformers, F32 hidden states across cuts, experts of another width, also in NVFP4."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from loadmaster.architectures.muse_spark import FAMILY
from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import UnsupportedError
from loadmaster.loader import load_rank
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.sizing.cuts import list_boundaries
from loadmaster.synth import PRESETS
from loadmaster.synth.presets import merged
from loadmaster.testing import check_loading, compare_with_transformers, write_checkpoint
from loadmaster.testing.damaged import DamagedCheckpoint
from tests.architectures.damage import damaged_copy

NVFP4 = PRESETS["muse-spark-nvfp4"].config_of(tiny=True)


def test_sizes_that_a_config_leaves_out_are_those_of_transformers() -> None:
    compare_with_transformers(FAMILY, NVFP4 | {"text_config": {"num_hidden_layers": 2}, "audio_config": {}})


def test_every_rank_gets_its_bytes_of_plain_experts_too(tmp_path: Path) -> None:
    layouts = [ParallelLayout(2, 2), ParallelLayout(1, 4, enable_expert_parallel=True)]
    plain = {key: value for key, value in NVFP4.items() if key != "quantization_config"}
    assert check_loading(FAMILY, plain, tmp_path, layouts=layouts) > 200


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("muse") / "spark"
    write_checkpoint(FAMILY, NVFP4, folder)
    return folder


def test_hidden_states_cross_cuts_as_f32(spark: Path) -> None:
    listed = list_boundaries(build_plan(open_checkpoint(spark)))
    assert {c.crosses for c in listed[1:4]} == {(("hidden_states", 96 * 4),)}


def test_scales_of_stacked_experts_follow_their_names(spark: Path) -> None:
    names = open_checkpoint(spark).table.ids
    stem = "model.language_model.layers.1.mlp.experts.gate_up_proj"
    assert {stem, f"{stem}_weight_scale", f"{stem}_weight_scale_2", f"{stem}_input_scale"} <= names.keys()


def test_every_rank_gets_its_bytes_of_experts_in_nvfp4(tmp_path: Path) -> None:
    layouts = [ParallelLayout(2, 2), ParallelLayout(1, 4, enable_expert_parallel=True)]
    assert check_loading(FAMILY, NVFP4, tmp_path, layouts=layouts) > 200


def test_gate_and_up_of_an_expert_have_factors_of_their_own(spark: Path) -> None:
    name = "layers.1.mlp.experts.{}_weight_scale_2"
    (stored,) = (
        DamagedCheckpoint(spark).tensor(n)
        for n in DamagedCheckpoint(spark).names(r"\.1\..*gate_up_proj_weight_scale_2")
    )
    assert stored.shape == (8, 2)
    assert not torch.equal(stored[:, 0], stored[:, 1])
    layout = ParallelLayout(1, 2, enable_expert_parallel=True)
    tensors = load_rank(prove(build_plan(open_checkpoint(spark), layout)).require_proven(), 1).tensors
    assert torch.equal(tensors[name.format("w13")], stored[4:])
    assert tensors[name.format("w2")].shape == (4, 1)


@pytest.mark.parametrize(
    ("pattern", "change", "code"),
    [
        (r"layers\.1\.mlp\.experts\.gate_up_proj_weight_scale$", None, "scale-missing"),
        (r"layers\.1\.mlp\.experts\.gate_up_proj_weight_scale_2", lambda t: t[:, 0].contiguous(), "shape-mismatch"),
        (r"layers\.2\.mlp\.experts\.gate_up_proj_input_scale", lambda t: t[:, :1], "shape-mismatch"),
        (r"layers\.1\.mlp\.experts\.gate_up_proj$", lambda t: t[:, : t.shape[1] // 2], "shape-mismatch"),
        (r"layers\.2\.mlp\.experts\.post_expert_norm\.weight", lambda t: t[:48], "shape-mismatch"),
        (r"layers\.3\.post_attention_residual_gate\.gate", None, "tensor-missing"),
        (r"layers\.3\.mlp\.gate\.weight", lambda t: t[:, :64], "shape-mismatch"),
    ],
)
def test_a_defect_is_one_finding(pattern: str, change: Any, code: str, spark: Path, tmp_path: Path) -> None:
    (name,) = DamagedCheckpoint(spark).names(pattern)
    path = damaged_copy(spark, tmp_path / "damaged", pattern, change)
    found = prove(build_plan(open_checkpoint(path))).findings
    assert [(f.code, f.tensor) for f in found if f.code != "family-unchecked"] == [(code, name)]


def test_biases_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="attention_bias True is not supported"):
        FAMILY.schema(FAMILY.describe(merged(NVFP4, {"text_config": {"attention_bias": True}})))
