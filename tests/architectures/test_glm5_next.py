"""GLM-5.3-Flash: counts and bytes as published, transformers' names, four streams, and defects of KDA and the pooled indexer."""

from __future__ import annotations

from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from loadmaster.architectures.registry import find_family
from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import ConfigError, UnsupportedError
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.sizing.cuts import list_boundaries
from loadmaster.synth import PRESETS
from loadmaster.synth.inventory import inventory
from loadmaster.synth.presets import merged
from loadmaster.testing import write_checkpoint
from loadmaster.testing.damaged import DamagedCheckpoint
from tests.architectures.damage import damaged_copy

BODY = "model.language_model.layers."
LINEAR = "linear_attention"


PRESET = PRESETS["glm-5.3-flash"]
TINY = PRESET.config_of(tiny=True)
FAMILY = find_family(TINY)
TOWER = (347, 563_627_008)
"""Tensors and elements of the vision tower, in BF16."""


def test_tensors_and_bytes_are_the_published_ones() -> None:
    entries = [e for e in inventory(PRESET, PRESET.config_of(tiny=False)) if e.item]
    assert len(entries) + TOWER[0] == 76_108
    assert sum(e.signature.num_bytes for e in entries) + 2 * TOWER[1] == 328_326_771_576
    assert sum(e.name.endswith("_scale_inv") for e in entries) == 37_338


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("glm5-next") / "model"
    write_checkpoint(FAMILY, TINY, folder)
    return folder


def test_four_streams_cross_every_cut_and_the_mtp_layer_is_waived(sound: Path) -> None:
    listed = list_boundaries(build_plan(open_checkpoint(sound)))
    assert [c.crosses for c in listed[1:5]] == [(("hidden_states", 4 * 96 * 2),)] * 4
    assert all(c.refused is None for c in listed[1:5])
    proof = prove(build_plan(open_checkpoint(sound), ParallelLayout(5)))
    assert proof.findings == () and [w.reason for w in proof.waivers] == ["mtp not enabled"]


def test_the_vision_tower_is_waived(sound: Path, tmp_path: Path) -> None:
    damaged = DamagedCheckpoint(Path(copytree(sound, tmp_path / "copy")))
    damaged.copy(r"model\.language_model\.norm\.weight", "model.visual.post_layernorm.weight")
    reasons = [w.reason for w in prove(build_plan(open_checkpoint(damaged.path))).waivers]
    assert reasons == ["mtp not enabled", "only the language model is loaded"]


@pytest.mark.parametrize(
    ("pattern", "change", "code"),
    [
        (rf"{BODY}0\.self_attn\.k_conv1d\.weight", lambda t: t[:112], "shape-mismatch"),
        (rf"{BODY}1\.self_attn\.A_log", lambda t: t[:7], "shape-mismatch"),
        (rf"{BODY}2\.self_attn\.dt_bias", None, "tensor-missing"),
        (rf"{BODY}2\.self_attn\.g_a_proj\.weight", None, "tensor-missing"),
        (rf"{BODY}3\.self_attn\.indexer\.index_kpool_compress_ape", lambda t: t[:3], "shape-mismatch"),
        (rf"{BODY}3\.hc_ffn_scale", None, "tensor-missing"),
        (rf"{BODY}4\.hc_attn_fn", lambda t: t[:, :288].contiguous(), "shape-mismatch"),
        (rf"{BODY}3\.self_attn\.q_b_proj\.weight_scale_inv", None, "scale-missing"),
    ],
)
def test_a_defect_is_one_finding(pattern: str, change: Any, code: str, sound: Path, tmp_path: Path) -> None:
    (name,) = DamagedCheckpoint(sound).names(pattern)
    path = damaged_copy(sound, tmp_path / "damaged", pattern, change)
    found = prove(build_plan(open_checkpoint(path), ParallelLayout(2, 2))).findings
    assert [(f.code, f.tensor, f.severity) for f in found] == [(code, name, "error")]


def test_headers_decide_which_linear_layers_are_quantised(sound: Path, tmp_path: Path) -> None:
    """The list of the config is only a claim: with another one the same bytes are planned, and the difference is said."""
    damaged = DamagedCheckpoint(Path(copytree(sound, tmp_path / "copy")))
    damaged.quantization(modules_to_not_convert=["lm_head"])
    proof = prove(build_plan(open_checkpoint(damaged.path), ParallelLayout(2, 2)))
    assert proof.proven and {f.severity for f in proof.findings} <= {"warning", "note"} and proof.findings


def test_what_is_not_described_is_refused_by_key() -> None:
    refused: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"layer_types": [LINEAR] * 4}, ConfigError, "layer_types must give one of linear_attention"),
        ({"indexer_types": ["full", "full", "full", "shared", "full"]}, UnsupportedError, "indexer_types with shared"),
        ({"attention_bias": True}, UnsupportedError, "attention_bias"),
    ]
    for changes, error, says in refused:
        with pytest.raises(error, match=says):
            FAMILY.schema(FAMILY.describe(merged(TINY, {"text_config": changes})))
