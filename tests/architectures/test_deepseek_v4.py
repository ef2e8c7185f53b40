"""DeepSeek-V4: counts and bytes as published, and tiny checkpoints planned, cut, damaged and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from loadmaster.architectures.deepseek_v4 import FAMILY
from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import ConfigError, LayoutError
from loadmaster.findings import Finding
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.sizing.cuts import list_boundaries
from loadmaster.synth import PRESETS
from loadmaster.synth.inventory import inventory
from loadmaster.synth.models.streams import DEEPSEEK_V4_FLASH as FLASH
from loadmaster.synth.models.streams import DEEPSEEK_V4_PRO as PRO
from loadmaster.synth.presets import Preset
from loadmaster.testing import check_tables, write_checkpoint
from loadmaster.testing.damaged import DamagedCheckpoint
from tests.architectures.damage import damaged_copy

PUBLISHED = {
    "Flash": (FLASH, (69_187, 159_609_485_896)),
    "Flash-0731": (
        FLASH | {"dspark_target_layer_ids": [40, 41, 42], "dspark_markov_rank": 256},
        (72_317, 166_878_536_440),
    ),
    "Pro": (PRO, (145_116, 864_704_792_696)),
    "Pro-0813": (
        PRO | {"dspark_target_layer_ids": [58, 59, 60], "dspark_markov_rank": 512},
        (149_782, 892_727_580_904),
    ),
}
TINY = PRESETS["deepseek-v4-flash"].config_of(tiny=True)
DSPARK = PRESETS["deepseek-v4-pro-0813"].config_of(tiny=True)


@pytest.mark.parametrize("name", PUBLISHED)
def test_tensors_and_bytes_are_the_published_ones(name: str) -> None:
    config, published = PUBLISHED[name]
    entries = inventory(Preset(name, config, {}, 1, e8m0=True), config)
    assert (len(entries), sum(e.signature.num_bytes for e in entries)) == published


@pytest.mark.parametrize(
    "config",
    [TINY, DSPARK, TINY | {"expert_dtype": "fp8"}, DSPARK | {"vision_n_layers": 2}],
    ids=["mtp", "dspark", "fp8", "vision"],
)
def test_the_tables_agree(config: dict[str, Any]) -> None:
    check_tables(FAMILY, config)


def test_with_vision_every_layer_has_biases_for_text_and_for_images_and_the_tower_is_left_unread(
    tmp_path: Path,
) -> None:
    write_checkpoint(FAMILY, DSPARK | {"vision_n_layers": 2}, tmp_path / "vision")
    model = DamagedCheckpoint(tmp_path / "vision")
    gates = [model.names(rf"(layers|mtp)\.\d\.ffn\.gate\.{name}$") for name in ("bias", "bias_vl", "tid2eid")]
    assert [len(names) for names in gates] == [6 + 3, 6 + 3, 2]
    model.copy(r"^norm\.weight$", "vision.norm.weight")
    model.copy(r"^norm\.weight$", "image_start")
    proof = prove(build_plan(open_checkpoint(model.path)))
    assert proof.findings == ()
    assert {w.reason for w in proof.waivers} == {"only the language model is loaded", "mtp not enabled"}


def test_beside_fp8_experts_scales_may_be_f32(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(FAMILY, TINY | {"expert_dtype": "fp8"}, tmp_path / "base")
    stored = {checkpoint.table.signatures[s].dtype for s in checkpoint.table.signature}
    assert {"F8_E4M3", "F32"} <= stored and not {"I8", "F8_E8M0"} & stored
    assert prove(build_plan(checkpoint)).findings == ()


@pytest.fixture(scope="module")
def dspark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("deepseek-v4") / "dspark"
    write_checkpoint(FAMILY, DSPARK, folder)
    return folder


def test_four_streams_cross_every_cut(dspark: Path) -> None:
    listed = list_boundaries(build_plan(open_checkpoint(dspark)))
    assert {c.crosses for c in listed[1:6]} == {(("hidden_states", 4 * 96 * 2),)}
    assert all(c.refused is None for c in listed[1:6])
    proof = prove(build_plan(open_checkpoint(dspark), ParallelLayout(3, 2)))
    assert proof.proven and [w.reason for w in proof.waivers] == ["mtp not enabled"]


def test_blocks_of_dspark_are_loaded_together(dspark: Path) -> None:
    checkpoint = open_checkpoint(dspark)
    proof = prove(build_plan(checkpoint, ParallelLayout(2, num_draft_layers=1)))
    num_layers = len(proof.plan.schema.layers)
    assert proof.proven and proof.waivers == ()
    assert proof.plan.rank(1).draft_layers == (num_layers, num_layers + 1, num_layers + 2)
    with pytest.raises(LayoutError, match="2 MTP layer\\(s\\) asked for, and the model has 1") as error:
        build_plan(checkpoint, ParallelLayout(2, num_draft_layers=2))
    assert error.value.code == "draft-missing"


@pytest.mark.parametrize(
    ("pattern", "change", "expected"),
    [
        (r"layers\.2\.ffn\.experts\.1\.w1\.scale", None, ("scale-missing", "layers.2.ffn.experts.1.w1.scale")),
        (r"layers\.2\.attn\.wq_b\.scale", None, ("scale-missing", "layers.2.attn.wq_b.scale")),
        (
            r"layers\.3\.ffn\.experts\.0\.w2\.scale",
            lambda t: t.float(),
            ("dtype-inadmissible", "layers.3.ffn.experts.0.w2.scale"),
        ),
        (
            r"layers\.3\.ffn\.experts\.0\.w2\.scale",
            lambda t: t.view(torch.uint8)[:, :1].view(torch.float8_e8m0fnu),
            ("shape-mismatch", "layers.3.ffn.experts.0.w2.scale"),
        ),
        (
            r"layers\.3\.attn\.wkv\.scale",
            lambda t: t.float(),
            ("dtype-inadmissible", "layers.3.attn.wkv.scale"),
        ),
        (r"layers\.0\.ffn\.gate\.tid2eid", None, ("tensor-missing", "layers.0.ffn.gate.tid2eid")),
        (r"layers\.1\.ffn\.gate\.tid2eid", lambda t: t.int(), ("dtype-inadmissible", "layers.1.ffn.gate.tid2eid")),
    ],
)
def test_a_defect_is_one_finding(
    pattern: str, change: Any, expected: tuple[str, str], dspark: Path, tmp_path: Path
) -> None:
    path = damaged_copy(dspark, tmp_path / "damaged", pattern, change)
    found: tuple[Finding, ...] = prove(build_plan(open_checkpoint(path))).findings
    assert [(f.code, f.tensor) for f in found] == [expected]


def test_what_is_not_described_is_refused_by_name() -> None:
    for changes, error, says in (
        ({"compress_ratios": [0, 8, 4, 128, 4, 0]}, ConfigError, "compress_ratios must give 0, 4 or 128"),
        ({"compress_ratios": [0, 4]}, ConfigError, "compress_ratios must give 0, 4 or 128"),
    ):
        with pytest.raises(error, match=says):
            FAMILY.schema(FAMILY.describe(TINY | changes))
