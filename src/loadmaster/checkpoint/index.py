"""``model.safetensors.index.json``: which file each tensor is said to be in. The headers decide; the index is a claim."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from loadmaster.findings import Finding

INDEX_NAME = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Index:
    """Tensor → file, and the total size stated (bytes, None where it isn't)."""

    weight_map: dict[str, str]
    total_size: int | None


def read_index(path: Path) -> tuple[Index | None, tuple[Finding, ...]]:
    """Read an index; None with a finding where it is not one."""
    try:
        value: Any = orjson.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        return None, (Finding("index-invalid", "error", f"the index cannot be read: {error}", file=path.name),)
    weight_map = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(weight_map, dict) or set(map(type, weight_map.values())) - {str}:
        message = "the index has no weight_map of tensor names to file names"
        return None, (Finding("index-invalid", "error", message, file=path.name),)
    if outside := sorted(f for f in set(weight_map.values()) if "/" in f or f in ("", ".", "..")):
        message = f"the index names files outside the folder: {outside[0]!r}"
        return None, (Finding("index-invalid", "error", message, file=path.name),)
    metadata = value.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    return Index(weight_map, int(total) if isinstance(total, int | float) else None), ()


def missing_shards(index: Index, present: Iterable[str]) -> list[Finding]:
    """Report each shard that the index names and the folder lacks, with how many tensors it should hold."""
    counts = Counter(index.weight_map.values())
    return [
        Finding(
            "shard-missing",
            "error",
            f"the index puts {counts[name]} tensor(s) in it, and it is not in the folder",
            file=name,
            hint="download it; its tensors are not reported one by one",
        )
        for name in sorted(counts.keys() - set(present))
    ]


def compare(index: Index, places: Mapping[str, str], payload_bytes: int) -> list[Finding]:
    """Hold the index against where the headers have the tensors (``places``: tensor → file)."""
    files = set(places.values())
    kinds: dict[str, list[tuple[str, str]]] = {"absent": [], "elsewhere": [], "unlisted": []}
    if index.weight_map != dict(places):
        for name, file in index.weight_map.items():
            found = places.get(name)
            if found is None and file in files:
                kinds["absent"].append((name, file))
            elif found is not None and found != file:
                kinds["elsewhere"].append((name, file))
        kinds["unlisted"] = [(name, places[name]) for name in places.keys() - index.weight_map.keys()]
    says = {
        "absent": "the index puts it in {file}, whose header has no such tensor",
        "elsewhere": "the index puts it in {file}, and it is in another shard",
        "unlisted": "it is in {file}, and the index does not list it",
    }
    findings = []
    for kind, cases in kinds.items():
        if cases:
            name, where = min(cases)
            more = f" (and {len(cases) - 1} more like it)" if len(cases) > 1 else ""
            findings.append(
                Finding("index-disagrees", "error", says[kind].format(file=where) + more, tensor=name, file=INDEX_NAME)
            )
    if not findings and index.total_size not in (None, payload_bytes):
        message = f"the index states a total size of {index.total_size:,} bytes, and the tensors have {payload_bytes:,}"
        findings.append(Finding("index-total-size", "warning", message, file=INDEX_NAME))
    return findings
