"""MTP layers of EXAONE and Ling: planned where they are asked for, left unread where not, and defects in them."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from loadmaster.architectures.registry import find_family
from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import UnsupportedError
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.testing import check_loading
from loadmaster.testing.plans import write_checkpoint
from tests.architectures.damage import damaged_copy
from tests.architectures.test_text_models import DENSE, MODELS

WITH_MTP = ("ExaoneMoeForCausalLM", "BailingMoeV2ForCausalLM", "BailingMoeV2_5ForCausalLM")
EXAONE_45: dict[str, Any] = {
    "architectures": ["Exaone4_5_ForConditionalGeneration"],
    "dtype": "bfloat16",
    "num_nextn_predict_layers": 1,  # beside the section
    "text_config": {**DENSE, "model_type": "exaone4"},
}
CONFIGS = {name: {"architectures": [name], "dtype": "bfloat16", **MODELS[name]} for name in WITH_MTP} | {
    "Exaone4_5_ForConditionalGeneration": EXAONE_45
}
APART = "mtp."
STORED = dict.fromkeys(CONFIGS, APART) | {
    name: f"model.layers.{MODELS[name]['num_hidden_layers']}." for name in WITH_MTP[1:]
}
"""What the names of an MTP layer begin with: those of Ling follow the decoder layers."""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("drafts")
    for name, config in CONFIGS.items():
        write_checkpoint(find_family(config), config, folder / name)
    return {name: folder / name for name in CONFIGS}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_draft_is_on_the_last_stage_and_shares_embedding_and_head(name: str, written: dict[str, Path]) -> None:
    proof = prove(build_plan(open_checkpoint(written[name]), ParallelLayout(2, num_draft_layers=1)))
    assert proof.proven
    first, last = (
        {s.name: s.alias for s in proof.plan.rank(rank).specs if s.name.startswith("mtp.")} for rank in (0, 1)
    )
    assert first == {}
    added = {n for n in last if not n.startswith(("mtp.0.self_attn", "mtp.0.mlp", "mtp.0.input", "mtp.0.post"))}
    assert added == {
        f"mtp.0.{part}.weight"
        for part in ("eh_proj", "enorm", "hnorm", "shared_head.norm", "embed_tokens", "shared_head.head")
    }
    assert last["mtp.0.shared_head.head.weight"] == "lm_head.weight"


@pytest.mark.parametrize(("name", "has_experts"), list(zip(CONFIGS, (False, True, True, False), strict=True)))
def test_drafts_of_ling_have_experts_and_those_of_exaone_an_mlp(
    name: str, has_experts: bool, written: dict[str, Path]
) -> None:
    plan = build_plan(open_checkpoint(written[name]), ParallelLayout(num_draft_layers=1))
    names = {s.name for s in plan.rank(0).specs}
    assert ("mtp.0.mlp.experts.w13_weight" in names) == has_experts
    assert ("mtp.0.mlp.gate_up_proj.weight" in names) != has_experts


@pytest.mark.parametrize("name", CONFIGS)
def test_a_draft_that_is_not_asked_for_is_left_unread(name: str, written: dict[str, Path]) -> None:
    checkpoint = open_checkpoint(written[name])
    proof = prove(build_plan(checkpoint))
    stored = [n for n in checkpoint.table.names if n.startswith(STORED[name])]
    assert proof.proven and len(stored) >= 12
    assert [(w.reason, w.num_tensors) for w in proof.waivers] == [("mtp not enabled", len(stored))]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_norm_of_a_draft_that_is_missing_is_one_finding(name: str, written: dict[str, Path], tmp_path: Path) -> None:
    norm = STORED[name] + ("norm.weight" if STORED[name] == APART else "final_layernorm.weight")
    path = damaged_copy(written[name], tmp_path / "damaged", f"^{norm}$".replace(".", r"\."), None)
    found = prove(build_plan(open_checkpoint(path), ParallelLayout(num_draft_layers=1))).findings
    assert [(f.code, f.tensor) for f in found if f.code != "family-unchecked"] == [("tensor-missing", norm)]


def test_every_rank_gets_its_bytes_of_exaone_45(tmp_path: Path) -> None:
    layouts = [ParallelLayout(2, 2, num_draft_layers=1)]
    assert check_loading(find_family(EXAONE_45), EXAONE_45, tmp_path, layouts=layouts) > 90


def test_an_mtp_layer_that_the_config_does_not_mention_is_left_unread(written: dict[str, Path], tmp_path: Path) -> None:
    path = Path(copytree(written["Exaone4_5_ForConditionalGeneration"], tmp_path / "silent"))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "num_nextn_predict_layers"}))
    proof = prove(build_plan(open_checkpoint(path)))
    assert proof.proven
    assert [w.reason for w in proof.waivers] == ["config.json says nothing of MTP layers"]


def test_several_layers_under_one_name_are_refused() -> None:
    for name in ("ExaoneMoeForCausalLM", "Exaone4_5_ForConditionalGeneration"):
        config = CONFIGS[name] | {"num_nextn_predict_layers": 2}
        family = find_family(config)
        with pytest.raises(UnsupportedError, match="num_nextn_predict_layers 2 is not supported; supported: 0 and 1"):
            family.schema(family.describe(config))
