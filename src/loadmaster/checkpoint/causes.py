"""Causes: which of a checkpoint's findings explains that a tensor is nowhere.

A shard that is missing takes nine hundred tensors with it, and that is one defect. What a plan misses is asked for here
first; nothing is computed for a checkpoint that lacks nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from loadmaster.findings import Finding


@dataclass(frozen=True, slots=True)
class Causes:
    """What is known of tensors that could not be read.

    ``of_file`` are the findings of files that are missing or unreadable, ``of_tensor`` those that take a single tensor
    away (a wrong extent, a shard that the index does not name). ``claimed`` is the index's tensor → file, empty without
    one; ``stale`` is the finding that it names tensors which their shard does not have.
    """

    of_file: Mapping[str, Finding] = field(default_factory=dict)
    of_tensor: Mapping[str, Finding] = field(default_factory=dict)
    claimed: Mapping[str, str] = field(default_factory=dict)
    stale: Finding | None = None

    def explain(self, tensor: str) -> Finding | None:
        """Return the finding that is known to explain why ``tensor`` is nowhere; None if there is none."""
        file = self.claimed.get(tensor)
        if found := self.of_file.get(file or ""):
            return found
        return self.of_tensor.get(tensor) or (self.stale if file is not None else None)

    @property
    def suspect(self) -> Finding | None:
        """The first file that was not read and whose tensors no index tells: what explains nothing better may be there."""
        return next(iter(self.of_file.values()), None) if not self.claimed else None
