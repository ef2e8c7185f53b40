"""Why a tensor is missing: which of a checkpoint's findings explains it.

A missing shard can hold nine hundred tensors, and that is one defect, not nine hundred. The plan looks up each missing
tensor here first. A complete checkpoint costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from loadmaster.checkpoint.index import Index
from loadmaster.findings import Finding


@dataclass(frozen=True, slots=True)
class Causes:
    """The findings that explain missing tensors, by file and by tensor.

    ``of_file`` are the findings of missing or unreadable files, ``of_tensor`` those of single tensors (a wrong size, a shard
    that is not in the index). ``index`` is the checkpoint's, where it has one; ``stale`` is the finding that
    the index names tensors which their shard does not have.
    """

    of_file: Mapping[str, Finding] = field(default_factory=dict)
    of_tensor: Mapping[str, Finding] = field(default_factory=dict)
    index: Index | None = None
    stale: Finding | None = None

    def claimed_file(self, tensor: str) -> str | None:
        """Return the file in which the index says that ``tensor`` is."""
        return self.index.weight_map.get(tensor) if self.index else None

    def explain(self, tensor: str) -> Finding | None:
        """Return the finding that explains why ``tensor`` is missing; None if there is none."""
        file = self.claimed_file(tensor)
        if finding := self.of_file.get(file or ""):
            return finding
        return self.of_tensor.get(tensor) or (self.stale if file is not None else None)

    @property
    def suspect(self) -> Finding | None:
        """The finding of the first unread file, where no index says what it holds: a missing tensor may be in it."""
        return next(iter(self.of_file.values()), None) if self.index is None or not len(self.index.names) else None
