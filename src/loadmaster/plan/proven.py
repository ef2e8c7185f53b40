"""What a proof gives: its verdict, each rank's figures, and the plan as one that may be loaded.

What loads and runs takes a `ProvenPlan`. `Proof.require_proven` gives it and nothing else does, so a type checker sees
where a plan was not proven, and so does the loader when it runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from loadmaster.errors import PlanError
from loadmaster.findings import Finding, errors
from loadmaster.plan.plan import Plan
from loadmaster.plan.waivers import Waiver

NUM_SHOWN = 3
"""Findings that the message of a refusal names; all of them are in its ``findings``."""


class ProvenPlan(Plan):
    """A plan that was proven: every parameter of every rank will be complete.

    Given by `Proof.require_proven` alone: it cannot be made, and what is changed of one (`dataclasses.replace`) is refused.
    """

    def __init__(self, *_: object, **__: object) -> None:
        raise TypeError("a ProvenPlan is not made but proven: prove(plan).require_proven()")


@dataclass(frozen=True, slots=True)
class RankFigures:
    """What one rank holds and reads; bytes unless named otherwise. ``layers`` is half open.

    ``needed_bytes`` go into its parameters, ``fetched_bytes`` are read for them, ``replica_bytes`` are needed by a lower
    rank as well, or more than once by this one. ``carries`` is what its stage is handed by the one before.
    """

    rank: int
    pp_rank: int
    tp_rank: int
    dp_rank: int
    ep_rank: int
    layers: tuple[int, int]
    draft_layers: tuple[int, ...]
    num_params: int
    resident_bytes: int
    needed_bytes: int
    fetched_bytes: int
    replica_bytes: int
    num_reads: int
    staging_bytes: int
    carries: tuple[str, ...]


@dataclass(frozen=True)
class Proof:
    """The verdict on a plan: its findings, its waivers, and each rank's figures. ``proven``: no finding is an error."""

    plan: Plan
    findings: tuple[Finding, ...]
    waivers: tuple[Waiver, ...]
    ranks: tuple[RankFigures, ...]

    @property
    def proven(self) -> bool:
        """Whether nothing stands in the way."""
        return not errors(self.findings)

    def require_proven(self) -> ProvenPlan:
        """Return the plan as one that may be loaded.

        Raises:
            PlanError: it is not proven; carries the findings and this proof.
        """
        if not self.proven:
            raise self.refusal()
        plan: ProvenPlan = object.__new__(ProvenPlan)
        vars(plan).update(vars(self.plan))
        return plan

    def refusal(self, hint: str | None = None) -> PlanError:
        """Return the error that says why the plan is not proven; the first findings are in its message."""
        found = errors(self.findings)
        lines = [f"the plan is not proven: {len(found)} error(s)"]
        lines += [f"  {f.code}  {f.summary}" for f in found[:NUM_SHOWN]]
        if len(found) > NUM_SHOWN:
            lines.append(f"  … and {len(found) - NUM_SHOWN} more")
        return PlanError("\n".join(lines), hint=hint, findings=self.findings, proof=self)
