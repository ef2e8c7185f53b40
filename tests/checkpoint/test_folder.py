"""Folders: with an index and without, with strays and holes, and no checkpoint at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from loadmaster.checkpoint import LocalStore, open_checkpoint, resolve_model
from loadmaster.errors import CheckpointError, LoadError
from loadmaster.findings import Finding

A, B = {"a": np.arange(4, dtype=np.float32), "b": np.ones(2, np.float16)}, {"c": np.zeros((2, 2), np.int64)}
INDEX = {"a": "model-1-of-2.safetensors", "b": "model-1-of-2.safetensors", "c": "model-2-of-2.safetensors"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file(A, tmp_path / "model-1-of-2.safetensors")
    save_file(B, tmp_path / "model-2-of-2.safetensors")
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    write_index(tmp_path, INDEX, 16 + 4 + 32)
    return tmp_path


def write_index(folder: Path, weight_map: object, total: object = None) -> None:
    index = {"metadata": {"total_size": total} if total is not None else {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def only(folder: Path) -> Finding:
    (finding,) = open_checkpoint(folder).findings
    return finding


def test_offsets_are_absolute_and_give_the_bytes(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    table = checkpoint.table
    assert checkpoint.findings == ()
    assert (len(table), table.payload_bytes) == (3, 52)
    with LocalStore(folder) as store:
        for name, array in (A | B).items():
            i = table.ids[name]
            file = checkpoint.files[table.file[i]].name
            assert store.read_range(file, int(table.start[i]), int(table.nbytes[i])) == array.tobytes()


def test_ids_are_in_file_order_and_shards_in_natural_order(tmp_path: Path) -> None:
    for i in (1, 2, 10):
        save_file({f"t{i}": np.zeros(1, np.float32)}, tmp_path / f"model-{i}-of-10.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert open_checkpoint(tmp_path).table.names == ["t1", "t2", "t10"]


def test_a_single_file_opens_with_the_config_beside_it(folder: Path) -> None:
    checkpoint = open_checkpoint(folder / "model-2-of-2.safetensors")
    assert checkpoint.table.names == ["c"]
    assert checkpoint.config is not None


def test_the_digest_covers_headers_and_sizes_not_payload(folder: Path) -> None:
    before = open_checkpoint(folder).digest
    content = bytearray((folder / "model-2-of-2.safetensors").read_bytes())
    content[-1] = 1
    (folder / "model-2-of-2.safetensors").write_bytes(content)
    assert open_checkpoint(folder).digest == before
    save_file({"c": np.zeros((4,), np.int64)}, folder / "model-2-of-2.safetensors")
    assert open_checkpoint(folder).digest != before


def test_a_missing_shard_is_one_finding_that_counts_its_tensors(folder: Path) -> None:
    (folder / "model-1-of-2.safetensors").unlink()
    found = only(folder)
    assert (found.code, found.file) == ("shard-missing", "model-1-of-2.safetensors")
    assert "2 tensor(s)" in found.message


def test_an_index_without_any_of_its_shards_is_opened_and_they_are_missing(folder: Path) -> None:
    for name in ("model-1-of-2.safetensors", "model-2-of-2.safetensors"):
        (folder / name).unlink()
    assert [f.code for f in open_checkpoint(folder).findings] == ["shard-missing"] * 2


@pytest.mark.parametrize(
    ("weight_map", "tensor", "says"),
    [
        (INDEX | {"d": "model-1-of-2.safetensors"}, "d", "does not have it"),
        (INDEX | {"a": "model-2-of-2.safetensors"}, "a", "another shard"),
        ({k: v for k, v in INDEX.items() if k != "b"}, "b", "does not list it"),
    ],
)
def test_an_index_that_disagrees_with_the_headers_is_found(
    weight_map: dict[str, str], tensor: str, says: str, folder: Path
) -> None:
    write_index(folder, weight_map, 52)
    found = only(folder)
    assert (found.code, found.tensor) == ("index-disagrees", tensor)
    assert says in found.message


def test_a_wrong_total_size_is_a_warning(folder: Path) -> None:
    write_index(folder, INDEX, 53)
    assert (only(folder).code, only(folder).severity) == ("index-total-size", "warning")


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"weight_map": {"a": 1}}', '{"weight_map": {"a": "../x.safetensors"}}']
)
def test_an_index_that_is_none_is_found(content: str, folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(content)
    assert only(folder).code == "index-invalid"


def test_an_index_with_a_name_that_no_tensor_can_have_is_found(folder: Path) -> None:
    write_index(folder, INDEX | {"x" * 5000: "model-1-of-2.safetensors"}, 52)
    found = only(folder)
    assert (found.code, found.message) == (
        "limit-exceeded",
        "the index has 5,000 characters of a tensor's name, and the limit is 512",
    )


def test_a_tensor_in_two_shards_is_found_with_both_files(folder: Path) -> None:
    save_file(B | {"a": A["a"]}, folder / "model-2-of-2.safetensors")
    codes = {f.code: f for f in open_checkpoint(folder).findings}
    assert codes["tensor-duplicate"].tensor == "a"
    assert codes["tensor-duplicate"].file == "model-2-of-2.safetensors"
    assert "model-1-of-2.safetensors" in codes["tensor-duplicate"].message


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (None, "config-missing"),
        *((text, "config-invalid") for text in ("{", "[]", '{"a": NaN}', '{"a": 1, "a": 2}', "[" * 100_000, "\xff")),
    ],
)
def test_a_config_that_cannot_be_read_is_found(content: str | None, code: str, folder: Path) -> None:
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_bytes(content.encode("latin-1"))
    assert only(folder).code == code


def test_a_folder_without_shards_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        open_checkpoint(tmp_path / "nowhere")
    (tmp_path / "README.md").touch()
    with pytest.raises(CheckpointError, match=r"no \.safetensors file") as refused:
        open_checkpoint(tmp_path)
    assert "README.md" in str(refused.value.hint)


def test_a_read_past_the_end_names_file_and_offset(folder: Path) -> None:
    with LocalStore(folder) as store:
        size = store.size("model-1-of-2.safetensors")
        with pytest.raises(LoadError, match=rf"model-1-of-2.safetensors ends at byte {size:,}"):
            store.read_range("model-1-of-2.safetensors", size - 2, 4)


def test_reads_scatter_over_more_buffers_than_one_call_takes(folder: Path) -> None:
    content = (folder / "model-1-of-2.safetensors").read_bytes()
    buffers = [memoryview(bytearray(n)) for n in (0, 1, 2, 5, 0, 30)]
    with LocalStore(folder) as store:
        store.readinto("model-1-of-2.safetensors", 3, buffers)
    assert b"".join(buffers) == content[3:41]


@pytest.mark.parametrize("model", ["./nowhere", "/nowhere/at/all", "a/b/c", "nosuch", "no-such-owner/no-such-model"])
def test_a_model_that_is_neither_folder_nor_cached_is_refused(model: str) -> None:
    with pytest.raises(CheckpointError):
        resolve_model(model)
