"""Gemma-3n: transformers' names, streams and per-layer embeddings that cross cuts, shared keys, and defects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loadmaster.architectures.gemma3n import FAMILY
from loadmaster.architectures.registry import find_family
from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import ConfigError, LayoutError
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.sizing.cuts import list_boundaries
from loadmaster.testing import check_loading, compare_with_transformers, write_checkpoint
from tests.architectures.damage import Change, damaged_copy
from tests.architectures.test_text_models import MODELS

TINY: dict[str, Any] = {"architectures": ["Gemma3nForCausalLM"], "dtype": "bfloat16"} | MODELS["Gemma3nForCausalLM"]
"""Four layers, each second one without a window; the last reads the keys and values of layer 1."""


@pytest.mark.parametrize("changes", [{}, {"num_kv_shared_layers": 0, "intermediate_size": 256}])
def test_names_and_shapes_are_those_of_transformers(changes: dict[str, Any]) -> None:
    compare_with_transformers(FAMILY, TINY | changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("gemma3n") / "tiny"
    write_checkpoint(FAMILY, TINY, made)
    return made


def test_every_rank_gets_its_bytes_in_either_spelling(tmp_path: Path) -> None:
    layouts = [ParallelLayout(2, 2, layer_partition=(1, 3)), ParallelLayout(1, 8)]
    assert check_loading(FAMILY, TINY, tmp_path / "tiny", layouts=layouts) > 500


def test_streams_and_inputs_of_all_layers_cross_the_only_cut_that_is_possible(folder: Path) -> None:
    listed = list_boundaries(build_plan(open_checkpoint(folder)))
    crossing = (("hidden_states", 3 * 128 * 2), ("per_layer_inputs", 4 * 12 * 2))
    assert [c.crosses for c in listed[1:4] if c.refused is None] == [crossing]
    with pytest.raises(LayoutError, match="layer 3 reads the KV cache of layer 1"):
        build_plan(open_checkpoint(folder), ParallelLayout(2, layer_partition=(2, 2)))


def test_streams_are_joined_on_the_last_stage(folder: Path) -> None:
    plan = build_plan(open_checkpoint(folder), ParallelLayout(2, layer_partition=(1, 3)))
    held = [{s.name.split(".")[0] for s in plan.rank(rank).specs if s.name.startswith("altup")} for rank in (0, 1)]
    assert held == [{"altup_projections"}, {"altup_unembed_projections"}]
    assert {s.name: s.shape for s in plan.rank(1).specs if "gate_up" in s.name} == {
        "layers.1.mlp.gate_up_proj.weight": (2 * 192, 128),
        "layers.2.mlp.gate_up_proj.weight": (2 * 256, 128),
        "layers.3.mlp.gate_up_proj.weight": (2 * 256, 128),
    }


@pytest.mark.parametrize(
    ("pattern", "change", "code", "tensor"),
    [
        (r"\.0\.altup\.prediction", lambda t: t[:3], "shape-mismatch", "model.layers.0.altup.prediction_coefs.weight"),
        (r"altup_unembed_projections\.1", None, "tensor-missing", "model.altup_unembed_projections.1.weight"),
        (r"\.2\.laurel\.linear_left", None, "tensor-missing", "model.layers.2.laurel.linear_left.weight"),
        (r"\.1\.mlp\.down_proj", lambda t: t.repeat(1, 2), "shape-mismatch", "model.layers.1.mlp.down_proj.weight"),
    ],
)
def test_a_defect_is_one_finding(
    pattern: str, change: Change | None, code: str, tensor: str, folder: Path, tmp_path: Path
) -> None:
    path = damaged_copy(folder, tmp_path / "copy", pattern, change)
    (finding,) = prove(build_plan(open_checkpoint(path))).findings
    assert (finding.code, finding.tensor) == (code, tensor)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"intermediate_size": [256, 192]}, "intermediate_size must be a number, or one for each of 4 layers"),
        ({"num_kv_shared_layers": 4}, "num_kv_shared_layers leaves 0 of 4 layers with keys and values of their own"),
        ({"altup_num_inputs": 9}, "altup_num_inputs is 9, expected at most 8"),
    ],
)
def test_what_the_tables_cannot_say_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        FAMILY.schema(FAMILY.describe(TINY | changes))
    assert find_family(TINY) is FAMILY
