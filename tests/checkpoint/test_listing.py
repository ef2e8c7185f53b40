"""What lies in a folder beside sound shards, or in their place: each is a finding of its own, and good folders have none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import CheckpointError
from loadmaster.findings import Finding

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 5360000000\n"
INDEX = "model.safetensors.index.json"


def shard(i: int, n: int = 3) -> str:
    return f"model-{i:05d}-of-{n:05d}.safetensors"


@pytest.fixture
def indexed(tmp_path: Path) -> Path:
    for i in (1, 2, 3):
        save_file({f"t{i}.a": np.zeros(2, np.float32), f"t{i}.b": np.zeros(1, np.float32)}, tmp_path / shard(i))
    weight_map = {f"t{i}.{x}": shard(i) for i in (1, 2, 3) for x in "ab"}
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {"total_size": 36}, "weight_map": weight_map}))
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


@pytest.fixture
def bare(indexed: Path) -> Path:
    (indexed / INDEX).unlink()
    return indexed


def found(folder: Path) -> list[tuple[str, str, str | None]]:
    return [(f.code, f.severity, f.file) for f in open_checkpoint(folder).findings]


def only(folder: Path) -> Finding:
    (finding,) = open_checkpoint(folder).findings
    return finding


def test_a_folder_as_it_is_cloned_or_downloaded_has_no_findings(indexed: Path) -> None:
    for name in (
        "README.md",
        "tokenizer.json",
        "tokenizer.model",
        "chat_template.jinja",
        ".gitattributes",
        "merges.txt",
    ):
        (indexed / name).write_text("x")
    for name in (
        "original/consolidated.00.pth",
        "original/consolidated.safetensors",
        "onnx/model.onnx",
        ".git/lfs/objects/ab/shard.part",
        ".cache/huggingface/download/model-00001-of-00003.safetensors.metadata",
        ".cache/huggingface/download/model-00001-of-00003.safetensors.lock",
        "figures/memory.png",
    ):
        (indexed / name).parent.mkdir(parents=True, exist_ok=True)
        (indexed / name).touch()
    assert found(indexed) == []
    (indexed / INDEX).unlink()
    assert found(indexed) == []


@pytest.mark.parametrize("first", [0, 1])
def test_numbered_shards_without_an_index_are_whole_from_whichever_number_they_begin(
    first: int, tmp_path: Path
) -> None:
    for i in range(first, first + 2):
        save_file({f"t{i}": np.zeros(1, np.float32)}, tmp_path / shard(i, 2))
    (tmp_path / "config.json").write_text("{}")
    assert found(tmp_path) == []


def test_without_an_index_a_missing_shard_is_known_by_its_number(bare: Path) -> None:
    (bare / shard(2)).unlink()
    assert found(bare) == [("shard-missing", "error", shard(2))]


def test_many_missing_shards_are_one_finding(tmp_path: Path) -> None:
    save_file({"t": np.zeros(1, np.float32)}, tmp_path / shard(7, 142))
    (tmp_path / "config.json").write_text("{}")
    finding = only(tmp_path)
    assert (finding.code, finding.file) == ("shard-missing", shard(1, 142))
    assert "and 140 more like it" in finding.message


@pytest.mark.parametrize("content", [b"", POINTER], ids=["empty", "pointer"])
@pytest.mark.parametrize("file", [shard(2), INDEX, "config.json"])
def test_an_empty_file_and_an_lfs_pointer_are_told_for_what_they_are(file: str, content: bytes, indexed: Path) -> None:
    (indexed / file).write_bytes(content)
    finding = only(indexed)
    assert (finding.code, finding.file) == ("file-lfs-pointer" if content else "file-empty", file)
    if content:
        assert "5,360,000,000 bytes" in finding.message
        assert "git lfs pull" in str(finding.hint)


def test_a_repository_cloned_without_lfs_is_one_finding(tmp_path: Path) -> None:
    for i in range(1, 143):
        (tmp_path / shard(i, 142)).write_bytes(POINTER)
    (tmp_path / "config.json").write_text("{}")
    finding = only(tmp_path)
    assert (finding.code, finding.severity, finding.file) == ("file-lfs-pointer", "error", shard(1, 142))
    assert "and 141 more like it" in finding.message


def test_a_link_to_nothing_is_unreadable_and_says_so(indexed: Path) -> None:
    (indexed / shard(1)).unlink()
    (indexed / shard(1)).symlink_to("../../blobs/1234")
    finding = only(indexed)
    assert (finding.code, finding.file) == ("shard-unreadable", shard(1))
    assert "link to a file that does not exist" in str(finding.hint)


@pytest.mark.parametrize("name", ["x.incomplete", "x.part", "x.aria2", ".cache/huggingface/download/ab.12.incomplete"])
def test_a_partial_download_is_a_warning_beside_whole_shards_and_the_cause_where_one_is_missing(
    name: str, indexed: Path
) -> None:
    (indexed / name).parent.mkdir(parents=True, exist_ok=True)
    (indexed / name).touch()
    assert found(indexed) == [("download-partial", "warning", name)]
    (indexed / shard(3)).unlink()
    finding = only(indexed)
    assert (finding.code, finding.file) == ("shard-missing", shard(3))
    assert name in str(finding.hint)
    assert "resume" in str(finding.hint)


def test_a_shard_that_aria2_has_not_finished_may_have_holes(indexed: Path) -> None:
    (indexed / f"{shard(2)}.aria2").touch()
    finding = only(indexed)
    assert (finding.code, finding.severity) == ("download-partial", "warning")
    assert f"aria2 did not finish {shard(2)}" in finding.message


@pytest.mark.parametrize("with_index", [True, False])
@pytest.mark.parametrize(
    "name", ["consolidated.safetensors", "consolidated-00001-of-00002.safetensors", "adapter_model.safetensors"]
)
def test_what_is_known_to_lie_beside_shards_is_a_note_and_not_read(name: str, with_index: bool, indexed: Path) -> None:
    if not with_index:
        (indexed / INDEX).unlink()
    save_file({"t1.a": np.zeros(9, np.float32), "layers.0.wq": np.zeros(9, np.float32)}, indexed / name)
    assert found(indexed) == [("shard-stray", "note", name)]
    assert len(open_checkpoint(indexed).table) == 6


def test_a_consolidated_file_alone_is_the_checkpoint(tmp_path: Path) -> None:
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "consolidated.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert open_checkpoint(tmp_path).table.names == ["a"]


def test_a_stray_shard_is_a_warning_and_one_with_tensors_of_its_own_is_unindexed(indexed: Path) -> None:
    save_file({"t1.a": np.zeros(9, np.float32)}, indexed / "model-00004-of-00003.safetensors")
    assert found(indexed) == [("shard-stray", "warning", "model-00004-of-00003.safetensors")]
    save_file({"t4": np.zeros(9, np.float32), "t5": np.zeros(9, np.float32)}, indexed / "extra.safetensors")
    checkpoint = open_checkpoint(indexed)
    finding = next(f for f in checkpoint.findings if f.code == "shard-unindexed")
    assert (finding.severity, finding.file) == ("warning", "extra.safetensors")
    assert "t4 and 1 more" in finding.message
    assert checkpoint.causes.explain("t5") == finding
    assert len(checkpoint.table) == 6


def test_two_revisions_in_one_folder_are_one_duplicate_finding_for_each_pair_of_shards(bare: Path) -> None:
    save_file({f"t{i}.{x}": np.zeros(1, np.float32) for i in (1, 2) for x in "ab"}, bare / "model.safetensors")
    duplicates = open_checkpoint(bare).findings
    assert [(f.code, f.tensor) for f in duplicates] == [("tensor-duplicate", "t1.a"), ("tensor-duplicate", "t2.a")]
    assert all("and 1 more like it" in f.message for f in duplicates)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (
            ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"],
            ("pytorch_model", "save_pretrained"),
        ),
        (["model.pt"], ("model.pt", "save_pretrained")),
        (["model-Q4_K_M.gguf"], ("GGUF", "safetensors repository")),
        (["config.json", "README.md"], ("it holds README.md, config.json",)),
        ([".cache/huggingface/download/ab.12.incomplete"], ("ab.12.incomplete", "resume")),
        ([], ("the folder is empty",)),
    ],
)
def test_a_folder_without_safetensors_says_what_it_holds_and_what_to_do(
    files: list[str], says: tuple[str, ...], tmp_path: Path
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=r"no \.safetensors file") as refused:
        open_checkpoint(tmp_path)
    assert [f.code for f in refused.value.findings] == ["checkpoint-missing"]
    for text in says:
        assert text in str(refused.value.hint)


def test_an_index_that_disagrees_is_one_finding_a_kind_and_says_that_it_is_stale(indexed: Path) -> None:
    stale = {**{f"gone.{i}": shard(1) for i in range(9)}, "t1.a": shard(2), "t3.a": shard(3), "t3.b": shard(3)}
    (indexed / INDEX).write_text(json.dumps({"metadata": {"total_size": 7}, "weight_map": stale}))
    findings = open_checkpoint(indexed).findings
    assert [(f.code, f.tensor) for f in findings] == [
        ("index-disagrees", "gone.0"),
        ("index-disagrees", "t1.a"),
        ("index-disagrees", "t1.b"),
    ]
    assert "and 8 more like it" in findings[0].message
    assert all("stale" in str(f.hint) for f in findings)


def test_an_index_over_damaged_shards_is_not_blamed_for_their_damage(indexed: Path) -> None:
    content = (indexed / shard(1)).read_bytes()
    (indexed / shard(1)).write_bytes(content.replace(b'"shape":[2]', b'"shape":[3]'))
    save_file({"t1.b": np.zeros(1, np.float32), "t2.a": np.zeros(1, np.float32)}, indexed / shard(2))
    assert {f.code for f in open_checkpoint(indexed).findings} == {
        "header-extent",
        "tensor-duplicate",
        "index-disagrees",
    }
    save_file({f"t2.{x}": np.zeros(1, np.float32) for x in "ab"}, indexed / shard(2))
    assert [f.code for f in open_checkpoint(indexed).findings] == ["header-extent"]
