"""LongCat-Flash: two attentions in a layer, experts without weights, the MTP layer, n-gram tables, and defects."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from loadmaster.architectures.longcat_flash import FAMILY
from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import UnsupportedError
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.synth import PRESETS
from loadmaster.synth.inventory import inventory
from loadmaster.testing import check_loading, check_tables, compare_with_transformers, write_checkpoint
from loadmaster.testing.damaged import DamagedCheckpoint
from tests.architectures.damage import damaged_copy

CHAT, WITH_MTP = (PRESETS["longcat-flash"].config_of(tiny=tiny) for tiny in (False, True))
TINY = {k: v for k, v in WITH_MTP.items() if k != "num_nextn_predict_layers"}
NGRAMS = TINY | {
    "architectures": ["LongcatFlashNgramForCausalLM"],
    **{"ngram_vocab_size_ratio": 3, "emb_split_num": 4, "emb_neighbor_num": 3},
}
"""Eight tables of 961, 963 … 975 rows of 12 elements."""


def test_names_and_shapes_are_those_of_transformers() -> None:
    compare_with_transformers(FAMILY, TINY)
    check_tables(FAMILY, WITH_MTP)
    check_tables(FAMILY, NGRAMS)


def test_the_model_has_561_billion_parameters() -> None:
    """Its card says 560."""
    entries = inventory(PRESETS["longcat-flash"], CHAT)
    assert round(sum(e.signature.num_bytes for e in entries) / 2e9) == 561
    assert sum(".experts." in e.name for e in entries) == 28 * 512 * 3


def test_every_rank_gets_its_bytes(tmp_path: Path) -> None:
    layouts = [ParallelLayout(3, 2, num_draft_layers=1), ParallelLayout(1, 4, enable_expert_parallel=True)]
    assert check_loading(FAMILY, WITH_MTP, tmp_path / "mtp", layouts=layouts) > 300
    assert check_loading(FAMILY, NGRAMS, tmp_path / "ngrams", layouts=[ParallelLayout(2, 2)]) > 100


def test_tables_of_ngrams_are_on_the_first_stage_and_divided_by_rows(tmp_path: Path) -> None:
    write_checkpoint(FAMILY, NGRAMS, tmp_path / "ngrams")
    plan = build_plan(open_checkpoint(tmp_path / "ngrams"), ParallelLayout(2, 2))
    tables = [[s for s in plan.rank(rank).specs if s.name.startswith("ngram_embeddings.embedders.")] for rank in (0, 2)]
    assert [len(of_rank) for of_rank in tables] == [8, 0]
    assert {s.shape for s in tables[0]} == {(512, 12)}  # 961 to 975 rows, padded to 1,024
    assert not any(s.host for s in tables[0])  # vLLM has them on the device
    hosted = build_plan(open_checkpoint(tmp_path / "ngrams"), ParallelLayout(2, 2, tables="host")).rank(0)
    assert sum(s.host for s in hosted.specs) == 8


@pytest.fixture(scope="module")
def longcat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("longcat") / "longcat"
    write_checkpoint(FAMILY, WITH_MTP, folder)
    return folder


def test_experts_without_weights_and_an_mtp_layer_that_is_not_counted_are_left_unread(
    longcat: Path, tmp_path: Path
) -> None:
    stored = DamagedCheckpoint(Path(shutil.copytree(longcat, tmp_path / "stored")))
    stored.copy(r"layers\.0\.mlp\.experts\.0\.up_proj", "layers.0.mlp.experts.9.up_proj")
    stored.config(num_nextn_predict_layers=...)
    proof = prove(build_plan(open_checkpoint(stored.path)))
    assert proof.proven
    assert {w.reason for w in proof.waivers} == {
        "config.json has no num_nextn_predict_layers, the number of MTP layers",
        "an expert that returns its input has no weights",
    }


@pytest.mark.parametrize(
    ("pattern", "change", "code"),
    [
        (r"layers\.1\.mlp\.router\.classifier", lambda t: t[:4], "shape-mismatch"),  # no rows of the zero experts
        (r"layers\.1\.mlp\.router\.e_score_correction_bias", lambda t: t[:4], "shape-mismatch"),
        (r"layers\.2\.self_attn\.1\.kv_b_proj", None, "tensor-missing"),
        (r"layers\.0\.mlps\.1\.up_proj", None, "tensor-missing"),
    ],
)
def test_a_defect_is_one_finding(pattern: str, change: Any, code: str, longcat: Path, tmp_path: Path) -> None:
    (name,) = DamagedCheckpoint(longcat).names(pattern)
    path = damaged_copy(longcat, tmp_path / "damaged", pattern, change)
    found = prove(build_plan(open_checkpoint(path))).findings
    assert [(f.code, f.tensor) for f in found if f.code != "family-unchecked"] == [(code, name)]


def test_the_router_of_a_model_without_zero_experts_has_a_row_for_each_expert() -> None:
    schema = FAMILY.schema(FAMILY.describe(TINY | {"zero_expert_num": 0}))
    shapes = {t.name: t.shape for t in schema.kinds["sparse"]}
    assert shapes["moe.router"] == (8, 96)


@pytest.mark.parametrize("changes", [{"emb_split_num": 5}, {"emb_split_num": 96}, {"emb_neighbor_num": 1}])
def test_tables_that_do_not_divide_the_hidden_size_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match="tables of n-grams do not divide hidden_size 96"):
        FAMILY.schema(FAMILY.describe(NGRAMS | changes))
