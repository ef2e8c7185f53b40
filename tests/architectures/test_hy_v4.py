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
from loadmaster.synth.inventory import inventory
from loadmaster.synth.presets import Preset
from loadmaster.testing import check_loading, check_tables, compare_with_transformers, write_checkpoint
from loadmaster.testing.damaged import DamagedCheckpoint
from tests.architectures.damage import damaged_copy

PREVIEW: dict[str, Any] = {
    "architectures": ["HYV4ForCausalLM"],
    "model_type": "hy_v4",
    "dtype": "bfloat16",
    "vocab_size": 120832,
    "hidden_size": 6144,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 78,
    "num_attention_heads": 64,
    "mlp_layer_types": ["dense", *["sparse"] * 77],
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "num_nextn_predict_layers": 1,
    "enable_ihc": True,
    "hc_mult": 4,
}
TINY: dict[str, Any] = {
    **{k: v for k, v in PREVIEW.items() if k != "mlp_layer_types"},
    "vocab_size": 320,
    "hidden_size": 96,
    "intermediate_size": 160,
    "moe_intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "q_lora_rank": 48,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 24,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "index_topk": 16,
    "index_head_dim": 16,
    "index_n_heads": 4,
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
"""Layers 0, 1 and 5 have an indexer; 2, 3 and 4 reuse the selection of layer 1."""


def test_names_and_shapes_are_those_of_transformers() -> None:
    compare_with_transformers(FAMILY, TINY)
    compare_with_transformers(FAMILY, {"architectures": ["HYV4ForCausalLM"], "num_hidden_layers": 3})


@pytest.mark.parametrize("changes", [{"gating_type": "headwise"}, {"gated_mla": False, "learnable_sink": False}])
def test_the_tables_agree_in_models_with_other_gates(changes: dict[str, Any]) -> None:
    check_tables(FAMILY, TINY | changes)


def test_mixers_and_mtp_tensors_are_as_many_as_in_the_release() -> None:
    entries = inventory(Preset("preview", PREVIEW, {}, 1), PREVIEW)
    mixers = [e for e in entries if ".hc_" in e.name]
    assert len(mixers) == 471 and {e.signature.dtype for e in mixers} == {"F32"}
    assert sum(e.name.startswith("model.mtp_layers.0.") for e in entries) == 27


def test_every_rank_gets_its_bytes_in_all_names(tmp_path: Path) -> None:
    layouts = [ParallelLayout(2, 2, num_draft_layers=1), ParallelLayout(1, 4, enable_expert_parallel=True)]
    assert check_loading(FAMILY, TINY, tmp_path, layouts=layouts) > 800


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
