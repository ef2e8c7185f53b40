"""Damages a sound checkpoint on purpose: drops, renames, changes or copies tensors, or changes the config."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import torch

    Change = Callable[[torch.Tensor], torch.Tensor]

INDEX = "model.safetensors.index.json"


class DamagedCheckpoint:
    """A checkpoint in a folder. Each change is written at once, and the index, where there is one, is updated."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self, pattern: str = "") -> list[str]:
        """Return the stored names that match ``pattern`` anywhere, sorted."""
        stored = [n for shard in self._shards().values() for n in shard]
        return sorted(n for n in stored if re.search(pattern, n))

    def drop(self, pattern: str) -> Self:
        """Remove tensors."""
        return self.each(pattern, lambda name, tensor: {})

    def rename(self, pattern: str, new: str) -> Self:
        """Replace the match with ``new`` in every name that has one."""
        return self.each(pattern, lambda name, tensor: {re.sub(pattern, new, name): tensor})

    def change(self, pattern: str, change: Change) -> Self:
        """Replace each tensor with the result of ``change``."""
        return self.each(pattern, lambda name, tensor: {name: change(tensor).contiguous()})

    def copy(self, pattern: str, new: str) -> Self:
        """Store tensors again under another name."""
        return self.each(pattern, lambda name, tensor: {name: tensor, re.sub(pattern, new, name): tensor.clone()})

    def config(self, **changes: Any) -> Self:
        """Change values of config.json; ``...`` removes one."""
        config = json.loads((self.path / "config.json").read_text())
        merged = {k: v for k, v in {**config, **changes}.items() if v is not ...}
        (self.path / "config.json").write_text(json.dumps(merged))
        return self

    def quantization(self, **changes: Any) -> Self:
        """Change values of the config's ``quantization_config``."""
        config = json.loads((self.path / "config.json").read_text())
        return self.config(quantization_config={**config["quantization_config"], **changes})

    def _shards(self) -> dict[str, dict[str, torch.Tensor]]:
        from safetensors.torch import load_file

        return {file.name: load_file(file) for file in sorted(self.path.glob("model*.safetensors"))}

    def tensor(self, name: str) -> torch.Tensor:
        """Return a stored tensor."""
        return next(shard[name] for shard in self._shards().values() if name in shard)

    def each(self, pattern: str, replace: Callable[[str, torch.Tensor], dict[str, torch.Tensor]]) -> Self:
        """Replace each tensor that matches with the tensors, by name, that ``replace`` returns."""
        from safetensors.torch import save_file

        weight_map: dict[str, str] = {}
        hits = 0
        for file, tensors in self._shards().items():
            kept: dict[str, torch.Tensor] = {}
            for name, tensor in tensors.items():
                hit = re.search(pattern, name) is not None
                hits += hit
                kept |= replace(name, tensor) if hit else {name: tensor}
            save_file(kept, self.path / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(kept, file)
        assert hits, f"nothing matches {pattern}"
        if (self.path / INDEX).exists():
            (self.path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
        return self
