"""Sound tiny checkpoints that tests damage, and the proof of them."""

from __future__ import annotations

from typing import Any

from loadmaster.checkpoint import open_checkpoint
from loadmaster.findings import Finding
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import Proof, build_plan, prove
from loadmaster.testing import damaged
from loadmaster.testing.damaged import INDEX

__all__ = ["INDEX", "DamagedCheckpoint"]


class DamagedCheckpoint(damaged.DamagedCheckpoint):
    """A checkpoint that is changed, and proven as it is then."""

    def prove(self, *sizes: int, drafts: int = 0, capacity: int | None = None, **layout: Any) -> Proof:
        plan = build_plan(open_checkpoint(self.path), ParallelLayout(*sizes, num_draft_layers=drafts, **layout))
        return prove(plan, capacity_bytes=capacity)

    def only(self, *sizes: int, drafts: int = 0, **layout: Any) -> Finding:
        """Return the one finding that a defect amounts to."""
        findings = self.prove(*sizes, drafts=drafts, **layout).findings
        assert len(findings) == 1, findings
        return findings[0]
