"""Hy4: names of the release and of transformers, streams and selections that cross cuts, and defects of a tiny checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from loadmaster.architectures.hy_v4 import FAMILY
from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import ConfigError, UnsupportedError
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.sizing.cuts import list_boundaries
from loadmaster.synth import PRESETS
from loadmaster.synth.inventory import inventory
from loadmaster.testing import check_tables, compare_with_transformers, write_checkpoint
from loadmaster.testing.damaged import DamagedCheckpoint
from tests.architectures.damage import damaged_copy

PREVIEW = PRESETS["hy4-preview"].config_of(tiny=False)
TINY = PRESETS["hy4-preview"].config_of(tiny=True)


def test_sizes_that_a_config_leaves_out_are_those_of_transformers() -> None:
    compare_with_transformers(FAMILY, {"architectures": ["HYV4ForCausalLM"], "num_hidden_layers": 3})


@pytest.mark.parametrize("changes", [{"gating_type": "headwise"}, {"gated_mla": False, "learnable_sink": False}])
def test_the_tables_agree_in_models_with_other_gates(changes: dict[str, Any]) -> None:
    check_tables(FAMILY, TINY | changes)


def test_mixers_and_mtp_tensors_are_as_many_as_in_the_release() -> None:
    entries = inventory(PRESETS["hy4-preview"], PREVIEW)
    mixers = [e for e in entries if ".hc_" in e.name]
    assert len(mixers) == 471 and {e.signature.dtype for e in mixers} == {"F32"}
    assert sum(e.name.startswith("model.mtp_layers.0.") for e in entries) == 27


@pytest.fixture(scope="module")
def hy4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("hy4") / "hy4"
    write_checkpoint(FAMILY, TINY, folder)
    return folder


def test_streams_cross_every_cut_and_selections_the_cuts_before_layers_that_share(hy4: Path) -> None:
    listed = list_boundaries(build_plan(open_checkpoint(hy4)))
    streams, selection = ("hidden_states", 4 * 96 * 2), ("topk_indices", 16 * 8)
    assert [c.crosses for c in listed[1:6]] == [(streams,), *[(streams, selection)] * 3, (streams,)]
    proof = prove(build_plan(open_checkpoint(hy4), ParallelLayout(6)))
    assert proof.proven and [f.code for f in proof.findings] == ["family-unchecked"]


@pytest.mark.parametrize(
    ("pattern", "change", "code"),
    [
        (r"layers\.3\.hc_attn_layer\.hc_pre\.hc_fn", None, "tensor-missing"),
        (r"layers\.3\.hc_mlp_layer\.hc_pre\.hc_base", lambda t: t[:4], "shape-mismatch"),
        (r"layers\.1\.self_attn\.indexer\.wk", None, "tensor-missing"),
        (r"layers\.2\.self_attn\.learnable_sink_param", lambda t: t.repeat(2), "shape-mismatch"),
        (r"hc_head\.hc_head_scale", None, "tensor-missing"),
    ],
)
def test_a_defect_is_one_finding(pattern: str, change: Any, code: str, hy4: Path, tmp_path: Path) -> None:
    (name,) = DamagedCheckpoint(hy4).names(pattern)
    path = damaged_copy(hy4, tmp_path / "damaged", pattern, change)
    found = prove(build_plan(open_checkpoint(path))).findings
    assert [(f.code, f.tensor) for f in found if f.code != "family-unchecked"] == [(code, name)]


def test_an_indexer_stored_for_a_layer_that_shares_is_left_over(hy4: Path, tmp_path: Path) -> None:
    damaged = DamagedCheckpoint(Path(shutil.copytree(hy4, tmp_path / "damaged")))
    damaged.copy(r"layers\.1\.self_attn\.indexer\.wk\.", "layers.2.self_attn.indexer.wk.")
    found = prove(build_plan(open_checkpoint(damaged.path))).findings
    assert ("tensor-unexpected", "model.layers.2.self_attn.indexer.wk.weight") in [(f.code, f.tensor) for f in found]


def test_what_is_not_described_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="enable_ihc False is not supported"):
        FAMILY.schema(FAMILY.describe(TINY | {"enable_ihc": False}))
    with pytest.raises(ConfigError, match="indexer_types begins with shared"):
        FAMILY.schema(FAMILY.describe(TINY | {"indexer_types": ["shared"] * 6}))
