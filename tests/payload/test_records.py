"""SHA-256 as it is recorded in the field, held against the files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from loadmaster.checkpoint import open_checkpoint
from loadmaster.payload.records import read_records
from tests.conftest import Tiny
from tests.payload.inject import only, verify

A, B = "a" * 64, "b" * 64


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("manifest", "text"),
    [
        ("SHA256SUMS", f"{A}  x.bin\n{B} *y.bin\n"),
        ("sha256sum.txt", f"# made by hand\n\n{A}  ./x.bin\n{B}  ./y.bin\n{A}  below/x.bin\n"),
        ("all.sha256", f"SHA256 (x.bin) = {A.upper()}\nSHA256 (y.bin) = {B}\n"),
    ],
)
def test_a_manifest_is_read_as_its_tool_writes_it(manifest: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "x.bin").touch()
    (tmp_path / "y.bin").touch()
    (tmp_path / manifest).write_text(text)
    records = read_records(tmp_path)
    assert {n: [r.sha256 for r in rs] for n, rs in records.of.items()} == {"x.bin": [A], "y.bin": [B]}
    assert records.findings == ()


def test_a_bare_digest_speaks_of_the_file_it_is_named_after(tmp_path: Path) -> None:
    (tmp_path / "x.bin").touch()
    (tmp_path / "x.bin.sha256").write_text(A + "\n")
    assert [r.sha256 for r in read_records(tmp_path).of["x.bin"]] == [A]


def test_a_line_that_says_nothing_and_a_file_that_is_not_there_are_warnings(tmp_path: Path) -> None:
    (tmp_path / "SHA256SUMS").write_text(f"{A[:-1]}  x.bin\n{B}  y.bin\n")
    records = read_records(tmp_path)
    assert records.of == {}
    assert [(f.code, f.severity, f.file) for f in records.findings] == [
        ("sha256-record", "warning", "SHA256SUMS"),
        ("sha256-record", "warning", "y.bin"),
    ]


def test_files_are_held_against_a_manifest_and_counted(tiny_copy: Tiny) -> None:
    path = tiny_copy("glm-5.1-fp8")
    shards = sorted(path.glob("*.safetensors"))
    recorded = [*shards[:2], path / "config.json"]
    (path / "SHA256SUMS").write_text("".join(f"{sha256(f)}  {f.name}\n" for f in recorded))
    result = verify(path)
    assert (result.findings, result.num_recorded, result.num_mismatched) == ((), 3, 0)
    assert result.num_unrecorded == len(shards) - 2
    assert result.read_bytes == sum(f.stat().st_size for f in (*shards, path / "config.json"))


def test_a_file_that_is_not_as_recorded_is_an_error(tiny_copy: Tiny) -> None:
    path = tiny_copy("smollm2")
    (path / "model.safetensors.sha256").write_text(f"{A}  model.safetensors\n")
    result = verify(path)
    found = only(list(result.findings))
    assert (found.code, found.severity, found.file) == ("sha256-mismatch", "error", "model.safetensors")
    assert A in found.message and sha256(path / "model.safetensors") in found.message
    assert (result.sound, result.num_mismatched) == (False, 1)
    unasked = verify(path, hashing=False)
    assert (unasked.findings, unasked.num_recorded, unasked.num_unrecorded) == ((), 0, 1)


def test_the_hubs_cache_names_blobs_by_their_sha256(tiny_copy: Tiny, tmp_path: Path) -> None:
    plain = tiny_copy("smollm2")
    blobs, snapshot = tmp_path / "models--o--n" / "blobs", tmp_path / "models--o--n" / "snapshots" / "0a1b"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    digest = sha256(plain / "model.safetensors")
    (plain / "model.safetensors").rename(blobs / digest)
    (plain / "config.json").rename(blobs / ("c" * 40))
    (snapshot / "model.safetensors").symlink_to(f"../../blobs/{digest}")
    (snapshot / "config.json").symlink_to("../../blobs/" + "c" * 40)
    result = verify(snapshot)
    assert (result.findings, result.num_recorded, result.num_unrecorded) == ((), 1, 0)
    with (blobs / digest).open("r+b") as file:
        file.seek(-2, 2)
        file.write(b"\x12\x34")
    found = only([f for f in verify(snapshot).findings if f.code == "sha256-mismatch"])
    assert found.file == "model.safetensors" and "the hub's cache" in found.message


def test_a_download_of_the_hubs_client_has_a_record_beside_it(tiny_copy: Tiny) -> None:
    path = tiny_copy("smollm2")
    folder = path / ".cache" / "huggingface" / "download"
    folder.mkdir(parents=True)
    (folder / "model.safetensors.metadata").write_text(f"{'0' * 40}\n{B}\n1700000000.0\n")
    (folder / "config.json.metadata").write_text(f"{'0' * 40}\n{'c' * 40}\n1700000000.0\n")
    found = only(list(verify(path).findings))
    assert (found.code, found.file) == ("sha256-mismatch", "model.safetensors")


def test_one_file_alone_is_not_held_against_records_of_its_neighbours(tiny_copy: Tiny) -> None:
    path = tiny_copy("glm-5.1-fp8")
    shards = sorted(path.glob("*.safetensors"))
    (path / "SHA256SUMS").write_text("".join(f"{A}  {f.name}\n" for f in shards))
    result = verify(shards[0])
    assert (result.num_recorded, result.num_mismatched) == (1, 1)
    assert open_checkpoint(shards[0]).files[0].name == shards[0].name
