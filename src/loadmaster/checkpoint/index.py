"""Reads ``model.safetensors.index.json``, which says which file each tensor is in, and checks it against the headers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from loadmaster.checkpoint.content import check_content
from loadmaster.checkpoint.names import Names
from loadmaster.checkpoint.plain_index import read_plain
from loadmaster.checkpoint.small_files import SmallFiles, UnreadableError
from loadmaster.checkpoint.table import TensorTable
from loadmaster.findings import Finding
from loadmaster.limits import INDEX_BYTES, NAME_CHARACTERS, SHARDS, TENSORS, Limit, LimitError

INDEX_NAME = "model.safetensors.index.json"
_EXTRA = 10_000
"""Commas, objects and lists that an index may have outside its weight_map, in its metadata."""


@dataclass(frozen=True, eq=False)
class Index:
    """Which file each tensor is in: ``place`` is the position in ``files`` for each of ``names``.

    ``total_size`` is the stated total size in bytes (None: not stated).
    """

    names: Names
    place: npt.NDArray[np.int32]
    files: tuple[str, ...]
    total_size: int | None

    @classmethod
    def of(cls, weight_map: Mapping[str, str], total_size: int | None = None) -> Index:
        """Return the index of tensor → file."""
        number = {file: i for i, file in enumerate(dict.fromkeys(weight_map.values()))}
        place = np.fromiter(map(number.__getitem__, weight_map.values()), dtype=np.int32, count=len(weight_map))
        return cls(Names.of(list(weight_map)), place, tuple(number), total_size)

    @cached_property
    def weight_map(self) -> dict[str, str]:
        """Tensor → file, as a dict that is made when it is first asked for."""
        return dict(zip(self.names, map(self.files.__getitem__, self.place.tolist()), strict=True))


IndexRead = tuple[Index | None, tuple[Finding, ...]]
"""An index, or None with a finding where the file is not one."""


def read_index(files: SmallFiles, name: str = INDEX_NAME) -> IndexRead:
    """Read an index; None with a finding where it is not one."""
    try:
        text = files.read(name, INDEX_BYTES)
        if (finding := check_content(name, text, len(text))) is not None:
            return None, (finding,)
        found = read_plain(text)
        rest = text if found is None else found[1]
        if (num_values := rest.count(b",")) > TENSORS.value + _EXTRA:
            raise LimitError(TENSORS, num_values)
        if rest.count(b"{") + rest.count(b"[") > _EXTRA:
            return None, (_invalid(name, f"the index has more than {_EXTRA:,} objects and lists"),)
        value: Any = orjson.loads(rest)
    except LimitError as error:
        return None, (Finding("limit-exceeded", "error", f"it has {error}", file=name, hint=error.hint),)
    except (UnreadableError, ValueError) as error:
        return None, (_invalid(name, f"the index cannot be read: {error}"),)
    weight_map = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(weight_map, dict) or set(map(type, weight_map.values())) - {str}:
        return None, (_invalid(name, "the index has no weight_map of tensor names to file names"),)
    if (longest := max(map(len, weight_map), default=0)) > NAME_CHARACTERS.value:
        return None, (_beyond(name, NAME_CHARACTERS, longest),)
    metadata = value.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    stated = int(total) if isinstance(total, int | float) and total < 2**63 else None
    index = Index.of(weight_map, stated) if found is None else Index(*found[0], stated)
    if outside := sorted(f for f in index.files if "/" in f or f in ("", ".", "..")):
        return None, (_invalid(name, f"the index names files outside the folder: {outside[0][:200]!r}"),)
    if strange := sorted(f for f in index.files if len(f) > 255 or not f.isprintable()):
        return None, (_invalid(name, f"the index names impossible files: {strange[0][:200]!r}"),)
    if len(index.files) > SHARDS.value:
        return None, (_beyond(name, SHARDS, len(index.files)),)
    return index, ()


def _beyond(name: str, limit: Limit, count: int) -> Finding:
    message = f"the index has {limit.exceeded(count)}"
    return Finding("limit-exceeded", "error", message, file=name, hint=limit.hint)


def _invalid(name: str, message: str) -> Finding:
    hint = "fetch the index again, or remove it: the shards' headers hold the same information"
    return Finding("index-invalid", "error", message, file=name, hint=hint)


def as_stored(index: Index, table: TensorTable, files: Sequence[str]) -> Index | None:
    """Return the index over the table's own names, if it has the same tensors in the same files; None otherwise.

    ``files`` are those that were read, by the table's numbers. The result shares the table's memory.
    """
    matched = table.names.matched(index.names)
    if matched is None:
        return None
    numbers = {file: i for i, file in enumerate(files)}
    place = index.place[matched]
    claimed = np.array([numbers.get(file, -1) for file in index.files], dtype=np.int32)
    return (
        Index(table.names, place, index.files, index.total_size) if np.array_equal(claimed[place], table.file) else None
    )


def disagreements(index: Index, table: TensorTable, files: Sequence[str], passed_over: Set[str]) -> list[Finding]:
    """Compare the index with the headers, from which it differs (`as_stored`).

    ``files`` are those that were read, by the table's numbers. Tensors in ``passed_over``, and files that were not read,
    already have a finding.
    """
    holders = list(map(files.__getitem__, table.file.tolist()))
    claimed = index.weight_map
    known = set(files)
    kinds: dict[str, list[tuple[str, str]]] = {"absent": [], "elsewhere": [], "unlisted": []}
    for name, file in claimed.items():
        if name in passed_over:
            continue
        number = table.ids.get(name)
        if number is None and file in known:
            kinds["absent"].append((name, file))
        elif number is not None and holders[number] != file and file in known:
            kinds["elsewhere"].append((name, holders[number]))
    unlisted = table.ids.keys() - claimed.keys() - passed_over
    kinds["unlisted"] = [(name, holders[table.ids[name]]) for name in unlisted]
    return [_disagreement(kind, cases) for kind, cases in kinds.items() if cases]


_SAYS = {
    "absent": "the index says that it is in {file}, but that file's header does not have it",
    "elsewhere": "it is in {file}, but the index names another shard",
    "unlisted": "it is in {file}, but the index does not list it",
}


def _disagreement(kind: str, cases: list[tuple[str, str]]) -> Finding:
    name, file = min(cases)
    more = f" (and {len(cases) - 1:,} more like it)" if len(cases) > 1 else ""
    hint = "the index is stale: fetch it again, or remove it and the headers are used"
    return Finding("index-disagrees", "error", _SAYS[kind].format(file=file) + more, name, file=INDEX_NAME, hint=hint)


def check_total(index: Index, payload_bytes: int) -> list[Finding]:
    """Compare the total size that the index states with the tensors' bytes."""
    if index.total_size in (None, payload_bytes):
        return []
    message = f"the index states a total size of {index.total_size:,} bytes, but the tensors have {payload_bytes:,}"
    return [Finding("index-total-size", "warning", message, file=INDEX_NAME)]
