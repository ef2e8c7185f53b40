"""DeepSeek-V4.1: count, bytes and bytes of each layer as published; tiny checkpoints planned, cut, damaged and loaded."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from loadmaster.architectures.deepseek_v41 import FAMILY
from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import ConfigError, LayoutError
from loadmaster.findings import Finding
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.sizing.cuts import list_boundaries
from loadmaster.synth import PRESETS
from loadmaster.synth.inventory import inventory
from loadmaster.testing import check_loading, check_tables, write_checkpoint
from loadmaster.testing.damaged import DamagedCheckpoint
from tests.architectures.damage import damaged_copy

PRESET = PRESETS["deepseek-v4.1-flash"]
RELEASE, TINY = PRESET.config_of(tiny=False), PRESET.config_of(tiny=True)
TEXT = TINY["text_config"]
ENGRAM = "layers.1.engram."


def text(**changes: Any) -> dict[str, Any]:
    """Return the tiny config with changes in the section of the language model."""
    return {**TINY, "text_config": {**TEXT, **changes}}


def vision(hidden: int) -> list[int]:
    """Elements of each tensor of the tower, 32 blocks of 1024, of the aligner, and of what marks an image."""
    block = [3072 * 1024, 3072, 1024 * 1024, 1024, 5632 * 1024, 1024 * 2816, 1024, 1024]
    aligner = [hidden * 9216, hidden, hidden * hidden, hidden]
    return [*[hidden] * 3, *aligner, 1024 * 588, 1024, 1024, *block * 32]


def test_count_bytes_and_bytes_of_each_layer_are_the_published_ones() -> None:
    entries = [e for e in inventory(PRESET, RELEASE) if e.item]
    tower = vision(5120)
    assert len(entries) + len(tower) == 96_085
    assert sum(e.signature.num_bytes for e in entries) + 2 * sum(tower) == 510_286_023_000
    dense: Counter[str] = Counter()
    routed: Counter[str] = Counter()
    for e in entries:
        block = ".".join(e.name.split(".")[:2])
        (routed if ".experts." in e.name else dense)[block] += e.signature.num_bytes
    published = dict.fromkeys(range(40), 170_055_128) | {1: 101_705_205_400, 14: 101_724_174_888, 20: 181_006_040}
    published |= dict.fromkeys((2, 8), 186_248_920) | dict.fromkeys((24, 28, 32, 36), 175_630_808)
    assert {layer: dense[f"layers.{layer}"] for layer in range(40)} == published
    assert {routed[f"layers.{layer}"] for layer in range(40)} == {7_219_445_760}
    drafts = [f"mtp.{n}" for n in range(3)]
    assert (sum(dense[d] for d in drafts), sum(routed[d] for d in drafts)) == (713_428_872, 7_219_445_760)


def test_the_tables_of_the_release_are_in_the_memory_of_the_host_and_divided_between_24_hash_heads() -> None:
    schema = FAMILY.schema(FAMILY.describe(RELEASE))
    tables = [t for kind in schema.kinds.values() for t in kind if t.table == "host"]
    assert [t.shape for t in tables] == [(384_006_168, 256), (384_016_682, 256)]
    assert all(t.placement is not None and len(t.placement.sections) == 24 for t in tables)
    assert sum(rows * (256 + 8) for rows, _ in (t.shape for t in tables)) == 202_758_032_400


def test_the_tables_agree() -> None:
    check_tables(FAMILY, TINY)
    check_tables(FAMILY, text(dspark_target_layer_ids=[]))
    check_tables(FAMILY, text(engram_layer_ids=[]))


def test_tables_are_divided_over_data_parallel_ranks_too_or_held_on_the_device(tmp_path: Path) -> None:
    layouts = [
        ParallelLayout(2, 2, data_parallel_size=2, tables_across_dp=True),
        ParallelLayout(1, 2, tables="device"),
    ]
    assert check_loading(FAMILY, TINY, tmp_path / "tiny", layouts=layouts) > 100


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("deepseek-v4.1") / "model"
    write_checkpoint(FAMILY, TINY, folder)
    return folder


def test_the_table_is_counted_for_the_host_of_the_stage_that_has_it(sound: Path) -> None:
    """Layer 1 has 88 rows in 4 hash heads (17, 19, 23, 29), layer 4 has 152 (31, 37, 41, 43), each of 64 + 2 bytes."""
    checkpoint = open_checkpoint(sound)
    proof = prove(build_plan(checkpoint, ParallelLayout(2, 2, layer_partition=(4, 4))))
    assert proof.proven and {f.code for f in proof.findings} == set()
    assert [r.host_bytes for r in proof.ranks] == [36 * 66, 52 * 66, 68 * 66, 84 * 66]


def test_stages_begin_at_sources_alone_and_take_the_streams_and_the_premix(sound: Path) -> None:
    checkpoint = open_checkpoint(sound)
    listed = list_boundaries(build_plan(checkpoint))
    assert [c.layer for c in listed if c.refused is None] == [1, 2, 4, 5]
    assert {c.crosses for c in listed[1:8]} == {(("hidden_states", 4 * 96 * 2), ("pre_mix", 4 * 4))}
    with pytest.raises(LayoutError, match="layer 3 reads the compressed KV cache of layer 2") as error:
        build_plan(checkpoint, ParallelLayout(2, layer_partition=(3, 5)))
    assert error.value.code == "layout-cut"
    assert error.value.hint == "nearest: --layer-partition 4,4; stages can begin at layers 0-2, 4-5"
    with pytest.raises(LayoutError, match="6 pipeline stages, and the layers can be divided over 5 at most"):
        build_plan(checkpoint, ParallelLayout(6))


@pytest.mark.parametrize(
    ("pattern", "change", "code", "tensor"),
    [
        (rf"{ENGRAM}embed\.scale", None, "scale-missing", f"{ENGRAM}embed.scale"),
        (rf"{ENGRAM}embed\.weight", lambda t: t[:-1], "shape-mismatch", f"{ENGRAM}embed.weight"),
        (rf"{ENGRAM}embed\.scale", lambda t: t.float(), "dtype-inadmissible", f"{ENGRAM}embed.scale"),
        (
            rf"{ENGRAM}embed\.scale",
            lambda t: t.view(torch.uint8)[:3].view(torch.float8_e8m0fnu),
            "shape-mismatch",
            f"{ENGRAM}embed.scale",
        ),
        (r"layers\.3\.attn\.wq_b\.scale", lambda t: t.float(), "dtype-inadmissible", "layers.3.attn.wq_b.scale"),
        (r"layers\.3\.ffn\.gate\.bias_vl", None, "tensor-missing", "layers.3.ffn.gate.bias_vl"),
        (
            r"layers\.2\.attn\.compressor\.wgate\.weight",
            None,
            "tensor-missing",
            "layers.2.attn.compressor.wgate.weight",
        ),
        (r"layers\.7\.attn\.indexer\.wq_b\.", None, "tensor-missing", "layers.7.attn.indexer.wq_b.weight"),
    ],
)
def test_a_defect_is_one_finding(
    pattern: str, change: Any, code: str, tensor: str, sound: Path, tmp_path: Path
) -> None:
    path = damaged_copy(sound, tmp_path / "damaged", pattern, change)
    found: tuple[Finding, ...] = prove(build_plan(open_checkpoint(path))).findings
    assert [(f.code, f.tensor) for f in found] == [(code, tensor)]


@pytest.mark.parametrize(
    ("pattern", "copy"),
    [
        (r"layers\.2\.attn\.indexer\.weights_proj\.weight", "layers.3.attn.indexer.weights_proj.weight"),
        (r"layers\.2\.attn\.compressor\.wgate\.weight", "layers.5.attn.compressor.wgate.weight"),
        (rf"{ENGRAM}q_weight", "layers.3.engram.q_weight"),
    ],
)
def test_what_another_layer_has_no_use_for_is_unexpected(pattern: str, copy: str, sound: Path, tmp_path: Path) -> None:
    damaged = DamagedCheckpoint(Path(shutil.copytree(sound, tmp_path / "damaged")))
    damaged.copy(pattern, copy)
    found = prove(build_plan(open_checkpoint(damaged.path))).findings
    assert [(f.code, f.tensor) for f in found] == [("tensor-unexpected", copy)]


def test_an_indexer_on_the_wrong_layer_by_the_config_is_missed_there_and_too_many_here(
    sound: Path, tmp_path: Path
) -> None:
    damaged = DamagedCheckpoint(Path(shutil.copytree(sound, tmp_path / "damaged")))
    damaged.config(text_config={**TEXT, "index_source_layer_ids": [2, 4, 5, 6]})
    found = prove(build_plan(open_checkpoint(damaged.path))).findings
    assert {(f.code, str(f.tensor).split(".attn")[0]) for f in found} >= {
        ("tensor-missing", "layers.6"),
        ("tensor-unexpected", "layers.7"),
    }


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"engram_num_embeddings": [88, 153]},
            r"engram_num_embeddings is \[88, 153\], and the hash heads have \[88, 152\]",
        ),
        (
            {"kv_source_layer_ids": [4, 5]},
            "layer 2 has compress_ratio 2, and kv_source_layer_ids has no layer up to it",
        ),
        ({"compress_ratios": [0, 0, 2]}, "compress_ratios must give a number for each of 8 layers"),
    ],
)
def test_a_config_that_contradicts_itself_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        FAMILY.schema(FAMILY.describe(text(**changes)))
