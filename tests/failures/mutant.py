"""Sound tiny checkpoints, and mutants of them that carry one defect each."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from loadmaster.checkpoint import open_checkpoint
from loadmaster.findings import Finding
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import Proof, build_plan, prove

Change = Callable[[torch.Tensor], torch.Tensor]
INDEX = "model.safetensors.index.json"


class Mutant:
    """A checkpoint in a folder of its own; each change is written at once, and the index, where there is one, follows."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self, pattern: str = "") -> list[str]:
        """Return the stored names that hold a match of ``pattern``, in order."""
        found = [n for shard in self._shards().values() for n in shard]
        return sorted(n for n in found if re.search(pattern, n))

    def drop(self, pattern: str) -> Mutant:
        return self._each(pattern, lambda name, tensor: {})

    def rename(self, pattern: str, new: str) -> Mutant:
        return self._each(pattern, lambda name, tensor: {re.sub(pattern, new, name): tensor})

    def change(self, pattern: str, change: Change) -> Mutant:
        return self._each(pattern, lambda name, tensor: {name: change(tensor).contiguous()})

    def copy(self, pattern: str, new: str) -> Mutant:
        return self._each(pattern, lambda name, tensor: {name: tensor, re.sub(pattern, new, name): tensor.clone()})

    def config(self, **changes: Any) -> Mutant:
        config = json.loads((self.path / "config.json").read_text())
        merged = {k: v for k, v in {**config, **changes}.items() if v is not ...}
        (self.path / "config.json").write_text(json.dumps(merged))
        return self

    def quantization(self, **changes: Any) -> Mutant:
        config = json.loads((self.path / "config.json").read_text())
        return self.config(quantization_config={**config["quantization_config"], **changes})

    def prove(self, *sizes: int, drafts: int = 0, capacity: int | None = None, **layout: Any) -> Proof:
        plan = build_plan(open_checkpoint(self.path), ParallelLayout(*sizes, num_draft_layers=drafts, **layout))
        return prove(plan, capacity_bytes=capacity)

    def only(self, *sizes: int, drafts: int = 0, **layout: Any) -> Finding:
        """Return the one finding that a defect amounts to."""
        findings = self.prove(*sizes, drafts=drafts, **layout).findings
        assert len(findings) == 1, findings
        return findings[0]

    def _shards(self) -> dict[str, dict[str, torch.Tensor]]:
        return {file.name: load_file(file) for file in sorted(self.path.glob("model*.safetensors"))}

    def _each(self, pattern: str, made: Callable[[str, torch.Tensor], dict[str, torch.Tensor]]) -> Mutant:
        weight_map, hits = {}, 0
        for file, tensors in self._shards().items():
            kept: dict[str, torch.Tensor] = {}
            for name, tensor in tensors.items():
                hit = re.search(pattern, name) is not None
                hits += hit
                kept |= made(name, tensor) if hit else {name: tensor}
            save_file(kept, self.path / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(kept, file)
        assert hits, f"nothing matches {pattern}"
        if (self.path / INDEX).exists():
            (self.path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
        return self
