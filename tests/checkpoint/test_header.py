"""Headers that are hostile, broken or merely wrong: each gets its finding, and the safetensors package refuses it too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from loadmaster.checkpoint import Checkpoint, open_checkpoint
from loadmaster.checkpoint.header import HeaderError, parse_header
from loadmaster.findings import errors

GOOD = {"a": ("F32", [2], [0, 8]), "b": ("F32", [1], [8, 12])}
DATA = bytes(12)


def entry(dtype: object = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def packed(header: object, data: bytes = bytes(4)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def opened(path: Path, content: bytes) -> Checkpoint:
    (path / "model.safetensors").write_bytes(content)
    (path / "config.json").write_text("{}")
    return open_checkpoint(path)


def official_accepts(path: Path) -> bool:
    try:
        with safe_open(path / "model.safetensors", "np") as file:
            for name in file.keys():  # noqa: SIM118
                file.get_slice(name).get_shape()
    except (SafetensorError, OverflowError, OSError, ValueError):
        return False
    return True


HOSTILE: dict[str, tuple[bytes, str]] = {
    "an empty file": (b"", "file-empty"),
    "seven bytes": (bytes(7), "file-truncated"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "file-lfs-pointer"),
    "a web page": (b"<!DOCTYPE html><html>", "header-invalid"),
    "a pickle": (b"\x80\x02}q\x00(X\x01\x00\x00\x00", "header-invalid"),
    "a header of no bytes": (bytes(8), "header-invalid"),
    "a header longer than allowed": ((10**12).to_bytes(8, "little") + b"{}", "header-invalid"),
    "a header longer than the file": ((10**6).to_bytes(8, "little") + b"{}", "file-truncated"),
    "a header of 2^64 - 1 bytes": (b"\xff" * 8 + b"{}", "header-invalid"),
    "no JSON": (packed(b"{nonsense"), "header-invalid"),
    "not UTF-8": (packed(b'{"\xff": 1}'), "header-invalid"),
    "a list": (packed(b"[]"), "header-invalid"),
    "a space before the brace": (packed(b" {}", b""), "header-invalid"),
    "100,000 nested lists": (packed(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "header-invalid"),
    "an entry that is no object": (packed({"a": 1}), "header-invalid"),
    "no dtype": (packed({"a": {"shape": [1], "data_offsets": [0, 4]}}), "header-invalid"),
    "no shape": (packed({"a": {"dtype": "F32", "data_offsets": [0, 4]}}), "header-invalid"),
    "no offsets": (packed({"a": {"dtype": "F32", "shape": [1]}}), "header-invalid"),
    "an unknown key": (packed({"a": entry() | {"strides": [1]}}), "header-invalid"),
    "metadata that is no object": (packed({"__metadata__": 1, "a": entry()}), "header-invalid"),
    "metadata of numbers": (packed({"__metadata__": {"a": 1}, "a": entry()}), "header-invalid"),
    "an unknown dtype": (packed({"a": entry("F7")}), "header-unknown-dtype"),
    "a dtype that is a number": (packed({"a": entry(7)}), "header-invalid"),
    "a dtype that is a list": (packed({"a": entry(["F32"])}), "header-invalid"),
    "a negative dim": (packed({"a": entry(shape=[-1])}), "header-invalid"),
    "a float dim": (packed({"a": entry(shape=[1.0])}), "header-invalid"),
    "a dim that is true": (packed({"a": entry(shape=[True])}), "header-invalid"),
    "a dim of 2^70": (packed({"a": entry(shape=[2**70])}), "header-invalid"),
    "dims whose product overflows": (packed({"a": entry(shape=[2**40, 2**40])}), "header-extent"),
    "a shape that is a string": (packed({"a": entry(shape="1")}), "header-invalid"),
    "a negative offset": (packed({"a": entry(offsets=[-4, 0])}), "header-invalid"),
    "an offset of 2^64": (packed({"a": entry(offsets=[0, 2**64])}), "header-invalid"),
    "one offset": (packed({"a": entry(offsets=[4])}), "header-invalid"),
    "three offsets": (packed({"a": entry(offsets=[0, 4, 8])}), "header-invalid"),
    "offsets backwards": (packed({"a": entry(offsets=[4, 0])}), "header-extent"),
    "fewer bytes than the shape needs": (packed({"a": entry(shape=[2])}), "header-extent"),
    "more bytes than the shape needs": (packed({"a": entry(offsets=[0, 8])}, bytes(8)), "header-extent"),
    "sub-byte elements that fill no byte": (packed({"a": entry("F4", [3], [0, 2])}, bytes(2)), "header-extent"),
    "an overlap": (packed({"a": entry(), "b": entry(offsets=[2, 6])}, bytes(6)), "header-tiling"),
    "a gap": (packed({"a": entry(), "b": entry(offsets=[6, 10])}, bytes(10)), "header-tiling"),
    "a gap at the beginning": (packed({"a": entry(offsets=[4, 8])}, bytes(8)), "header-tiling"),
    "a tail": (packed({"a": entry()}, bytes(9)), "file-overlong"),
    "a file that ends early": (packed({"a": entry(shape=[100], offsets=[0, 400])}, bytes(99)), "file-truncated"),
    "a tensor twice": (
        packed(
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
        ),
        "header-duplicate-key",
    ),
}
OFFICIAL_IS_LAXER = {"a tensor twice", "an unknown key", "a space before the brace"}
"""What the package lets pass, against the published format: the last of duplicate keys, unknown keys, leading spaces."""


@pytest.mark.parametrize("between", [b"\0", b" ", b"}", b'"', b";", b""])
def test_entries_that_no_comma_parts_are_refused(between: bytes, tmp_path: Path) -> None:
    text = json.dumps({"a": entry(), "b": entry(offsets=[4, 8])}, separators=(",", ":")).encode()
    assert errors(opened(tmp_path, packed(text, bytes(8))).findings) == ()
    found = errors(opened(tmp_path, packed(text.replace(b'},"b"', b"}" + between + b'"b"'), bytes(8))).findings)
    assert [f.code for f in found] == ["header-invalid"]
    assert not official_accepts(tmp_path)


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_one_finding_and_never_an_exception(case: str, tmp_path: Path) -> None:
    content, code = HOSTILE[case]
    found = errors(opened(tmp_path, content).findings)
    assert [f.code for f in found] == [code], found
    assert found[0].file == "model.safetensors"
    assert official_accepts(tmp_path) == (case in OFFICIAL_IS_LAXER)


def test_a_truncated_shard_is_one_finding_and_its_tensors_are_still_known(tmp_path: Path) -> None:
    save_file({f"t{i}": np.zeros(100, np.float32) for i in range(50)}, tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    checkpoint = opened(tmp_path, content[: len(content) // 2])
    assert [f.code for f in checkpoint.findings] == ["file-truncated"]
    assert len(checkpoint.table) == 50


@pytest.mark.parametrize(
    ("begins", "what"), [(b"<!DOCTYPE html>", "a web page"), (b"PK\x03\x04" + bytes(9), "zip archive")]
)
def test_another_format_under_a_shard_s_name_is_called_what_it_is(begins: bytes, what: str, tmp_path: Path) -> None:
    (found,) = opened(tmp_path, begins).findings
    assert found.code == "header-invalid"
    assert what in found.message


def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path: Path) -> None:
    text = json.dumps({"a": entry()}).encode()
    content = packed(text + b" " * (0x280 - len(text)))
    assert content.startswith(b"\x80\x02")
    assert opened(tmp_path, content).findings == ()


@pytest.mark.parametrize("padding", [b"", b" ", b"       "])
def test_padding_and_alignment_are_the_writers_business(padding: bytes, tmp_path: Path) -> None:
    text = json.dumps({"a": entry()}).encode() + padding
    checkpoint = opened(tmp_path, packed(text))
    assert checkpoint.findings == ()
    assert checkpoint.table.start.tolist() == [8 + len(text)]
    assert official_accepts(tmp_path)


def test_sub_byte_formats_have_their_widths(tmp_path: Path) -> None:
    header = {"a": entry("F4", [4], [0, 2]), "b": entry("F6_E2M3", [4], [2, 5]), "c": entry("F8_E8M0", [1], [5, 6])}
    assert opened(tmp_path, packed(header, bytes(6))).findings == ()


def test_empty_tensors_and_scalars_are_read(tmp_path: Path) -> None:
    arrays = {"scalar": np.float32(1), "none": np.zeros((0, 3), np.float32), "one": np.zeros(3, np.float32)}
    save_file({k: np.asarray(v) for k, v in arrays.items()}, tmp_path / "model.safetensors")
    checkpoint = opened(tmp_path, (tmp_path / "model.safetensors").read_bytes())
    assert checkpoint.findings == ()
    assert sorted(s.shape for s in checkpoint.table.signatures) == [(), (0, 3), (3,)]


@given(data=st.data())
def test_a_good_file_with_bytes_changed_is_refused_or_read_as_the_official_reader_does(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("mutated")
    save_file(
        {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.int64)}, path / "model.safetensors"
    )
    content = bytearray((path / "model.safetensors").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 41))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    checkpoint = opened(path, bytes(content))
    if errors(checkpoint.findings):
        return
    assert official_accepts(path)
    with safe_open(path / "model.safetensors", "np") as file:
        assert sorted(file.keys()) == sorted(checkpoint.table.names)
        for name, number in checkpoint.table.ids.items():
            signature = checkpoint.table.signatures[checkpoint.table.signature[number]]
            assert tuple(file.get_slice(name).get_shape()) == signature.shape
            assert file.get_slice(name).get_dtype() == signature.dtype


def test_a_name_that_stands_twice_is_found_whatever_its_first_entry_looks_like() -> None:
    text = (
        b'{"a":{"dtype":"F32","shape :[1],0data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    )
    with pytest.raises(HeaderError) as refused:
        parse_header("f", text)
    assert refused.value.finding.code == "header-duplicate-key"


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":{"dtype":"F32","shape":[01],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[00,4]}}',
        b'{"a":{"dtype":"F32","shape":[1,],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,99999999999999999999]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[8]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[+0,4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [-0, 4]}}',
        b'{"a\x01":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
    ],
)
def test_what_is_nearly_as_the_package_writes_it_is_refused(text: bytes) -> None:
    with pytest.raises(HeaderError):
        parse_header("f", text)


def test_a_header_as_the_package_writes_it_is_not_parsed_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json, "loads", None)  # the strict parser: what takes most of the time
    save_file({f"layers.{i}.w": np.ones((i, 2), np.int8) for i in range(3)}, tmp_path / "m", {"format": "np"})
    text = (tmp_path / "m").read_bytes()
    assert len(parse_header("m", text[8 : 8 + int.from_bytes(text[:8], "little")]).names) == 3


def test_a_header_reads_the_same_however_it_is_spaced() -> None:
    entries = {f"t.{i}": {"dtype": "F32", "shape": [i, 2], "data_offsets": [8 * i, 8 * i + 8]} for i in range(12)}
    value = {"__metadata__": {"format": "pt"}, **entries}
    tight = parse_header("f", json.dumps(value, separators=(",", ":")).encode() + b"   ")
    wide = parse_header("f", json.dumps(value).encode())
    for header in (tight, wide):
        assert (header.names, header.ends.tolist()) == (list(entries), [8 * i + 8 for i in range(12)])
        assert [header.kinds[k] for k in header.kind] == [("F32", (i, 2)) for i in range(12)]
