"""``config.json``, read as what it is: a JSON object. What its keys mean is the architectures' business."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from loadmaster.checkpoint.pointer import check_content
from loadmaster.findings import Finding


def read_config(folder: Path) -> tuple[dict[str, Any] | None, tuple[Finding, ...]]:
    """Read a folder's config.json; None with a finding where there is none, or none that can be used."""
    path = folder / "config.json"
    if not path.is_file():
        hint = "it is published beside the shards; copy it there"
        return None, (Finding("config-missing", "error", "there is no config.json", file="config.json", hint=hint),)

    def strict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            twice = next(k for i, (k, _) in enumerate(pairs) if k in dict(pairs[:i]))
            raise ValueError(f"the key {twice!r} stands twice")
        return made

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        text = path.read_bytes()
        if (found := check_content(path.name, text, len(text))) is not None:
            return None, (found,)
        value = json.loads(text, object_pairs_hook=strict, parse_constant=refuse)
    except (OSError, ValueError, RecursionError) as error:
        return None, (Finding("config-invalid", "error", f"config.json cannot be read: {error}", file="config.json"),)
    if not isinstance(value, dict):
        return None, (Finding("config-invalid", "error", "config.json is not a JSON object", file="config.json"),)
    return value, ()
