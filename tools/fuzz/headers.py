"""The oracle of the header parser: the published safetensors package.

What we accept, the package opens with the same names, dtypes, shapes and bytes; what it accepts we accept too, unless one
of the stricter rules that `loadmaster.checkpoint.header` states refuses it. No exception leaves but `HeaderError`.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, deserialize

from loadmaster.checkpoint.folder import open_checkpoint
from loadmaster.checkpoint.header import HeaderError, check_length, parse_header
from loadmaster.findings import Finding, errors

Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]

STRICTER = (
    ("header-duplicate-key", ""),
    ("header-invalid", "its entry has unknown keys"),
    ("header-invalid", "the header begins with"),
    ("header-invalid", "the header is not JSON"),
    ("header-invalid", "2^63"),
    ("header-unknown-dtype", ""),
)
"""Refusals, by code and words, of what the package may let pass: see `loadmaster.checkpoint.header`."""


class DisagreementError(Exception):
    """We and the official package disagree about a file."""


def official(content: bytes) -> Tensors | None:
    """Return what the official package reads; None where it refuses."""
    try:
        found = deserialize(content)  # type: ignore[no-untyped-call]
        return {n: (v["dtype"], tuple(v["shape"]), bytes(v["data"])) for n, v in found}
    except (SafetensorError, OverflowError, ValueError):
        return None


def check_parser(content: bytes) -> Finding | None:
    """Run the two functions of the parser; return the finding of a refusal. Anything but a `HeaderError` gets out."""
    try:
        length = check_length("f", content[:64], len(content))
        parse_header("f", content[8 : 8 + length])
    except HeaderError as error:
        return error.finding
    return None


def check_file(content: bytes, folder: Path) -> str:
    """Open one file both ways. Return ``accepted``, ``refused``, or ``stricter``.

    Raises:
        DisagreementError: the ways disagree.
    """
    path = folder / "model.safetensors"
    path.write_bytes(content)
    opened = open_checkpoint(path)
    found = [f for f in errors(opened.findings) if f.code != "config-missing"]  # there is none
    theirs = official(content)
    if found:
        if theirs is None:
            return "refused"
        first = found[0]
        if any(first.code == code and words in first.message for code, words in STRICTER):
            return "stricter"
        raise DisagreementError(f"refused, and the official package accepts it: {first.code}: {first.message}")
    if theirs is None:
        raise DisagreementError("accepted, and the official package refuses it")
    table = opened.table
    ours: Tensors = {}
    for name, number in table.ids.items():
        signature = table.signatures[table.signature[number]]
        start, size = int(table.start[number]), int(table.nbytes[number])
        ours[name] = (signature.dtype, signature.shape, content[start : start + size])
    if ours != theirs:
        raise DisagreementError(f"read otherwise: {ours} against {theirs}"[:1000])
    return "accepted"


def seeds() -> dict[str, bytes]:
    """Return the corpus to begin with: sound files of several forms, and the hostile ones of the header's tests."""
    from tests.checkpoint.test_header import HOSTILE, entry, packed

    sound = {
        "none": packed({}, b""),
        "one": packed({"a": entry()}),
        "two": packed({"a": entry(), "b": entry("BF16", [2, 1], [4, 8])}, bytes(range(8))),
        "swapped": packed({"b": entry("I64", [], [4, 12]), "a": entry()}, bytes(range(12))),
        "metadata": packed({"__metadata__": {"format": "pt"}, "a": entry("F4", [4, 2], [0, 4])}),
        "empty tensors": packed({"a": entry(shape=[0], offsets=[0, 0]), "b": entry(shape=[3, 0], offsets=[0, 0])}, b""),
        "padded": packed(json.dumps({"a": entry("F8_E8M0", [4])}).encode() + b"      "),
        "escaped": packed(b'{"\\u00e9\\n":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}'),
    }
    hostile = {name: content for name, (content, _) in HOSTILE.items() if len(content) < 4096}
    return sound | hostile
