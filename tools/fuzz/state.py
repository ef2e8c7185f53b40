"""What a damaged checkpoint is, read without the package: its tensors, its config, and whether its files are sound."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.fuzz.bases import Base
from tools.fuzz.shards import INDEX, Array, unpack


@dataclass(frozen=True)
class State:
    """Tensors and config of a damaged folder, or why its files are unsound."""

    tensors: Mapping[str, Array]
    config: Any
    unsound: str | None


def state_of(base: Base, written: Mapping[str, bytes], folder: Path) -> State:
    """Read what was written; links to the base's shards need no second look."""
    tensors: dict[str, Array] = {}
    places: dict[str, str] = {}
    unsound = None
    config = json.loads(written["config.json"])
    index = json.loads(written[INDEX]) if INDEX in written else None
    files = sorted(p.name for p in folder.glob("*.safetensors"))
    if index is not None:
        weight_map = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(weight_map, dict) or not all(isinstance(f, str) for f in weight_map.values()):
            return State({}, config, "the index is none")
        listed = set(weight_map.values())
        if listed - set(files):
            unsound = "the index names a file that is not there"
        files = [f for f in files if f in listed]
    for file in files:
        found: Mapping[str, Array] | None = base.shards[file] if file not in written else unpack(written[file])
        if found is None:
            return State({}, config, f"the official package refuses {file}")
        if found.keys() & tensors.keys():
            unsound = "a tensor is in two shards"
        tensors |= found
        places |= dict.fromkeys(found, file)
    if index is not None and index["weight_map"] != places:
        unsound = unsound or "the index and the headers disagree"
    return State(tensors, config, unsound)


BELIEVED = ("weight_block_size", "block_structure", "group_size", "desc_act", "actorder")
"""Config values that no header contradicts, where tensors have the same shapes either way: what they say is followed."""


def sizes_said(config: Any) -> list[Any]:
    """Return what a config states of blocks and groups, wherever it does."""
    if not isinstance(config, dict):
        return []
    here = [value for key, value in config.items() if key in BELIEVED]
    return here + [said for value in config.values() for said in sizes_said(value)]


def same_sizes(state: State, base: Base) -> bool:
    """Return whether the config states the same of blocks and groups."""
    return sizes_said(state.config) == sizes_said(base.config)


def same_config(state: State, base: Base) -> bool:
    """Return whether the config says the same, to the letter: 2.0 is not 2."""
    return json.dumps(state.config) == json.dumps(base.config)
