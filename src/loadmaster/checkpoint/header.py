"""Parses one shard's header and checks it against the published safetensors format.

    8 bytes   N, the header's length, little-endian
    N bytes   a JSON object: name → {"dtype", "shape", "data_offsets": [begin, end]}, and "__metadata__", strings
    the rest  the tensors, without gaps, up to the end of the file

Source: https://github.com/huggingface/safetensors (README, "Format", and ``SafeTensors::read_metadata``): N is at most
100,000,000; the JSON begins with ``{`` and may be padded with spaces; offsets leave no gap, overlap or tail. Writers pad
the header so that the data begins at a multiple of 8; readers, the official one included, do not require it, nor do we.

JSON parsers silently keep the last of duplicate keys, so a header that is not written in the published package's form is
parsed strictly. Before that, its brackets and commas are counted (`loadmaster.limits`): a parser would make gigabytes of a
few million brackets.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from loadmaster.checkpoint.canonical import METADATA, Header, read_canonical
from loadmaster.checkpoint.content import check_content
from loadmaster.checkpoint.names import Names
from loadmaster.dtypes import DTYPES
from loadmaster.findings import Finding
from loadmaster.limits import DIMS, HEADER_BYTES, NAME_CHARACTERS, SIGNATURES, TENSORS, Limit

FORMAT_BYTES = 100_000_000
"""The longest header that the format allows; `HEADER_BYTES` is less."""
FETCH = "the download is incomplete; fetch the shard again"
OTHER_FORMATS = {
    b"<!DOCTYPE": "a web page",
    b"<html": "a web page",
    b"PK\x03\x04": "a zip archive, as torch.save writes it",
    b"\x80\x02": "a pickle",
    b"GGUF": "a GGUF file",
}
"""Other files found under a shard's name: their first bytes, and what they are."""
_KEYS = {"dtype", "shape", "data_offsets"}
_LIMIT = 2**63
_METADATA_COMMAS = 1_000_000
"""Commas that a header may have in addition to those of its entries: metadata is free text."""
_HALVES = re.compile(r"[\ud800-\udfff]")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Characters that no tensor name may have: control characters, which terminals interpret, and lone surrogates."""


class HeaderError(Exception):
    """A header that cannot be used; carries its finding."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.message)
        self.finding = finding


def _refuse(
    file: str, message: str, *, code: str = "header-invalid", tensor: str | None = None, hint: str | None = None
) -> HeaderError:
    if tensor is not None and (len(tensor) > NAME_CHARACTERS.value or _UNPRINTABLE.search(tensor)):
        tensor = ascii(tensor[:80])[1:-1] + "…" * (len(tensor) > 80)
    return HeaderError(Finding(code, "error", message, tensor=tensor, file=file, hint=hint))


def _beyond(file: str, limit: Limit, count: int, tensor: str | None = None) -> HeaderError:
    return _refuse(file, f"it has {limit.exceeded(count)}", code="limit-exceeded", tensor=tensor, hint=limit.hint)


def check_length(file: str, first: bytes, size: int) -> int:
    """Return a header's length in bytes, from the first bytes of its file of ``size`` bytes.

    Raises:
        HeaderError: the file is not a safetensors file, or is shorter than its header.
    """
    if (finding := check_content(file, first, size)) is not None:
        raise HeaderError(finding)
    if size < 8:
        raise _refuse(file, f"the file has {size} bytes, too few for a header", code="file-truncated", hint=FETCH)
    for begins, what in OTHER_FORMATS.items():
        if first.startswith(begins) and first[8:9] != b"{":
            raise _refuse(
                file, f"the file is {what}, not a safetensors file", hint="fetch the shard again, or convert it"
            )
    length = int.from_bytes(first[:8], "little")
    if length > FORMAT_BYTES:
        raise _refuse(file, f"the header's length is {length:,} bytes; the format allows {FORMAT_BYTES:,}")
    if length < 2:
        raise _refuse(file, f"the header's length is {length}, too short for a JSON object")
    if 8 + length > size:
        raise _refuse(
            file,
            f"the header should end at byte {8 + length:,}, but the file has {size:,} bytes",
            code="file-truncated",
            hint="the download is incomplete, or this is not a safetensors file",
        )
    if length > HEADER_BYTES.value:
        raise _beyond(file, HEADER_BYTES, length)
    return length


def check_counts(file: str, text: bytes) -> None:
    """Check that a header has no more objects, lists and values than its entries can need.

    Raises:
        HeaderError: it has more.
    """
    num_objects = text.count(b"{")
    if num_objects > TENSORS.value + 2:
        raise _beyond(file, TENSORS, num_objects - 1)
    if text.count(b"[") > 2 * TENSORS.value + 2 or text.count(b",") > _METADATA_COMMAS + (4 + DIMS.value) * num_objects:
        raise _refuse(file, f"the header has more lists and values than {num_objects:,} entries can need")


def parse_header(file: str, text: bytes) -> Header:
    """Return the entries of a header's JSON.

    Raises:
        HeaderError: the format does not allow it; gives the first reason.
    """
    return check_header(file, text, read_canonical(text))


def check_header(file: str, text: bytes, header: Header | None) -> Header:
    """Return the entries of a header's JSON, of which `read_canonical` made ``header``; see `parse_header`."""
    if header is not None and not header.names.repeated():
        if len(header.kinds) > SIGNATURES.value:
            raise _beyond(file, SIGNATURES, len(header.kinds))
        firsts = np.flatnonzero(np.diff(np.maximum.accumulate(header.kind), prepend=-1)).tolist()
        dtypes, shapes = [d for d, _ in header.kinds], [list(s) for _, s in header.kinds]
        _check_values(file, [header.names[i] for i in firsts], dtypes, shapes, [])
        return header
    check_counts(file, text)
    if not text.startswith(b"{"):
        raise _refuse(file, f"the header begins with {text[:1]!r}, expected '{{'")
    value = _parse_strictly(file, text)
    metadata = value.pop(METADATA, None)
    if isinstance(metadata, _Entry):
        metadata = dict.fromkeys(_KEYS, metadata)
    if metadata is not None and not (isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())):
        raise _refuse(file, "__metadata__ is not an object of strings")
    if any(map(_HALVES.search, (metadata or {}).values())):
        raise _refuse(file, "the header is not JSON: __metadata__ has half of a character (a lone surrogate)")
    names, entries = list(value), list(value.values())
    _check_names(file, names)
    if set(map(type, entries)) - {_Entry}:
        name, entry = next((n, e) for n, e in value.items() if type(e) is not _Entry)
        if not isinstance(entry, dict):
            raise _refuse(file, "its entry is not an object", tensor=name)
        absent = next((k for k in ("dtype", "shape", "data_offsets") if k not in entry), None)
        if absent is not None:
            raise _refuse(file, f"its entry has no {absent!r}", tensor=name)
        more = ", ".join(sorted(entry.keys() - _KEYS))
        raise _refuse(file, f"its entry has unknown keys: {ascii(more[:80])[1:-1]}", tensor=name)
    dtypes, shapes, offsets = map(list, zip(*entries, strict=True)) if entries else ([], [], [])
    _check_values(file, names, dtypes, shapes, offsets)
    known: dict[tuple[str, tuple[int, ...]], int] = {}
    kind = [known.setdefault(k, len(known)) for k in zip(dtypes, map(tuple, shapes), strict=True)]
    bounds = np.array(offsets, dtype=np.int64).reshape(-1, 2)
    return Header(Names.of(names), list(known), np.array(kind, dtype=np.int32), bounds[:, 0], bounds[:, 1])


class _Entry(NamedTuple):
    """An object with the keys of an entry and any values; takes a third of a dict's memory."""

    dtype: Any
    shape: Any
    offsets: Any


def _parse_strictly(file: str, text: bytes) -> dict[str, Any]:
    """Return a header's object, each entry an `_Entry`.

    Raises:
        HeaderError: it is not JSON, or an object has a key twice.
    """

    def strict(pairs: list[tuple[str, Any]]) -> dict[str, Any] | _Entry:
        values = dict(pairs)
        if len(values) != len(pairs):
            seen: set[str] = set()
            twice = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
            raise _refuse(file, "the header names it twice", code="header-duplicate-key", tensor=twice)
        if values.keys() == _KEYS:
            return _Entry(values["dtype"], values["shape"], values["data_offsets"])
        return values

    def integer(text: str) -> int:
        if text == "-0":
            raise _refuse(file, "a number is -0, expected an integer from 0 on")
        return int(text)

    def constant(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    parse_int = integer if b"-0" in text else None  # slow where there are many numbers
    try:
        value = json.loads(text.decode(), object_pairs_hook=strict, parse_int=parse_int, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise _refuse(file, f"the header is not JSON: {error}") from error
    if isinstance(value, _Entry):
        value = dict(zip(("dtype", "shape", "data_offsets"), value, strict=True))
    if not isinstance(value, dict):
        raise _refuse(file, "the header is not a JSON object")
    return value


def _check_names(file: str, names: list[str]) -> None:
    """Check that names are short and printable."""
    for name in names:
        if len(name) > NAME_CHARACTERS.value:
            raise _beyond(file, NAME_CHARACTERS, len(name), tensor=name)
        if not name.isprintable() and _UNPRINTABLE.search(name):
            raise _refuse(file, f"the name {name[:80]!a} has characters that no tensor name may have")


def _length(value: object) -> int:
    return len(value) if isinstance(value, list) else 0


def _check_values(
    file: str, names: list[str], dtypes: Sequence[Any], shapes: Sequence[Any], offsets: Sequence[Any]
) -> None:
    """Check types and ranges of all entries at once; look for the wrong entry only if a check fails."""
    for name, dtype in zip(names, dtypes, strict=True) if set(map(type, dtypes)) - {str} else ():
        if not isinstance(dtype, str):
            raise _refuse(file, f"its dtype is {str(dtype)[:80]}, expected a string", tensor=name)
    if unknown := set(dtypes) - DTYPES.keys():
        name = names[next(i for i, d in enumerate(dtypes) if d in unknown)]
        raise _refuse(
            file,
            f"its dtype is {dtypes[names.index(name)][:80]!r}, which the format does not have",
            code="header-unknown-dtype",
            tensor=name,
            hint=f"known: {', '.join(DTYPES)}",
        )
    for name, shape in zip(names, shapes, strict=False) if max(map(_length, shapes), default=0) > DIMS.value else ():
        if _length(shape) > DIMS.value:
            raise _beyond(file, DIMS, len(shape), tensor=name)
    for what, lists in (("shape", shapes), ("data_offsets", offsets)):
        sound = (
            not set(map(type, lists)) - {list}
            and not set(map(type, chain.from_iterable(lists))) - {int}
            and min(chain.from_iterable(lists), default=0) >= 0
            and max(chain.from_iterable(lists), default=0) < _LIMIT
            and (what == "shape" or not set(map(len, lists)) - {2})
        )
        if sound:
            continue
        for name, value in zip(names, lists, strict=True):
            good = isinstance(value, list) and all(type(n) is int and 0 <= n < _LIMIT for n in value)
            if not good or (what == "data_offsets" and len(value) != 2):
                wanted = "two integers" if what == "data_offsets" else "a list of integers"
                raise _refuse(
                    file, f"its {what} is {str(value)[:80]}, expected {wanted} from 0 to 2^63 − 1", tensor=name
                )
