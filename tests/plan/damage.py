"""Checkpoints in memory, to be damaged one tensor at a time and written out again."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

Shards = dict[str, dict[str, torch.Tensor]]
"""File name → tensor name → tensor."""


def read_shards(path: Path) -> Shards:
    shards: Shards = {}
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, "pt") as f:
            shards[file.name] = {name: f.get_tensor(name).clone() for name in f.keys()}  # noqa: SIM118
    return shards


def write_shards(path: Path, shards: Shards) -> None:
    """Write shards and a true index over them."""
    weight_map = {}
    for file, tensors in shards.items():
        save_file(tensors, path / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, file))
    if len(shards) > 1:
        (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


class Damaged:
    """A sound checkpoint's folder, in which one shard at a time is written anew and put back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shards = read_shards(path)
        write_shards(path, self.shards)

    def names(self) -> Iterator[tuple[str, str]]:
        """Yield (file, tensor) of every tensor."""
        for file, tensors in self.shards.items():
            for name in tensors:
                yield file, name

    def samples(self) -> Iterator[tuple[str, str]]:
        """Yield (file, tensor) of the first and the last tensor of each kind: a name without its layer and expert."""
        kinds: dict[str, list[tuple[str, str]]] = {}
        for file, name in self.names():
            kinds.setdefault(re.sub(r"\d+", "*", name), []).append((file, name))
        for alike in kinds.values():
            yield from dict.fromkeys((alike[0], alike[-1]))

    def replace(self, file: str, changes: dict[str, torch.Tensor | None]) -> None:
        """Write ``file`` with some tensors changed, added or (None) removed; the index follows."""
        tensors = {**self.shards[file], **{n: t for n, t in changes.items() if t is not None}}
        for name, tensor in changes.items():
            if tensor is None:
                del tensors[name]
        save_file(tensors, self.path / file, metadata={"format": "pt"})
        if len(self.shards) > 1:
            weight_map = {n: f for f, ts in self.shards.items() for n in (tensors if f == file else ts)}
            (self.path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    def restore(self, file: str) -> None:
        self.replace(file, {})
