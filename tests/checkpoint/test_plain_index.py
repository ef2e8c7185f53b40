"""The index is read by columns exactly where a JSON parser reads the same."""

from __future__ import annotations

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadmaster.checkpoint.index import Index
from loadmaster.checkpoint.plain_index import read_plain

MAP = {f"model.layers.{i}.{part}.weight": f"model-0000{i % 3}-of-00003.safetensors" for i in range(9) for part in "qkv"}
WHOLE = {"metadata": {"total_size": 12, "note": "a {b}, c"}, "weight_map": MAP, "more": ["x", "y"]}
TEXTS = {
    "as Hugging Face writes it": json.dumps(WHOLE, indent=2, sort_keys=True),
    "tight": json.dumps(WHOLE, separators=(",", ":")),
    "on one line": json.dumps(WHOLE),
    "with tabs": json.dumps(WHOLE, indent="\t"),
    "one tensor": json.dumps({"weight_map": {"a": "b"}}),
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_every_way_to_write_an_index_is_read_by_columns(text: str) -> None:
    columns, rest = read_plain(text.encode())  # type: ignore[misc]
    value = json.loads(text)
    assert list(Index(*columns, None).weight_map.items()) == list(value["weight_map"].items())
    assert json.loads(rest) == {**value, "weight_map": {}}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"weight_map": {}}),
        json.dumps({"weight_map": {"a": 1, "b": "f"}}),
        json.dumps({"weight_map": {"é": "f"}}),
        json.dumps({"weight_map": {"é": "f"}}, ensure_ascii=False),
        json.dumps({"weight_map": {"a": "f", "b": {"c": "f"}}}),
        json.dumps({"metadata": {"weight_map": {"a": "f"}}, "weight_map": {"b": "f"}}),
        '{"weight_map": {"a": "f", "b":  "f"}}',
        '{"weight_map": {"a": "f","b": "f", "c": "f"}}',
        '{"weight_map": {"a": "f",, "b": "f"}}',
        '{"weight_map": {"a\n": "f"}}',
        '{"weight_map": {"a\0": "f"}}',
        '{"weight_map": {"a": "f\0"}}',
        '{"weight_map": {"a": \0"f", "b": \0"f"}}',
        '{"weight_map": {"a": "f"',
        '{"weight_map": {"a": "f",',
        '{"weight_map": {"a": "f"]}',
    ],
)
def test_what_differs_is_left_to_the_json_parser(text: str) -> None:
    assert read_plain(text.encode()) is None


@given(data=st.data())
def test_an_index_with_bytes_changed_is_read_as_a_json_parser_reads_it(data: st.DataObject) -> None:
    text = bytearray(data.draw(st.sampled_from(sorted(TEXTS.values()))).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.sampled_from(b'"{}[]:,\\ \n\0a0\xe9'))
    found = read_plain(bytes(text))
    if found is None:
        return
    try:
        rest = orjson.loads(found[1])
    except ValueError:
        with pytest.raises(ValueError, match=r"."):
            orjson.loads(bytes(text))
        return
    value = orjson.loads(bytes(text))
    if (
        rest.get("weight_map") != {}
    ):  # not the model's own: read_index refuses it, and what it would read is refused too
        assert "weight_map" not in value
        return
    assert {**rest, "weight_map": Index(*found[0], None).weight_map} == value
