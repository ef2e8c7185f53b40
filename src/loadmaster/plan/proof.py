"""The proof: the laws that make a plan a promise, checked over all ranks from headers alone.

Laws 1 to 4 are about elements (`loadmaster.plan.laws`):

1. every element of every parameter is written exactly once;
2. every stored element is read by a rank or waived;
3. what is divided is tiled, what is replicated is held as often as declared;
4. no cast narrows without a reason;
5. each scale fits its weight, experts are complete (checked when tensors are bound);
6. shards, index and headers agree (checked when the checkpoint is opened);
7. what crosses a stage cut is named;
8. memory is stated, and within the capacity if one is given.

The sum of what all ranks need must equal payload − waived + replicas, to the byte: the left side is counted from the
ranks' reads, the right side from boxes and headers.

What loads and runs takes a `ProvenPlan`. `Proof.require_proven` gives it and nothing else does, so a type checker sees
where a plan was not proven, and so does the loader when it runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from loadmaster.arguments import expect, expect_int
from loadmaster.catalogue import ranked
from loadmaster.errors import PlanError
from loadmaster.findings import Finding, errors, gib
from loadmaster.plan.diagnosis.capacity import fitting_partition
from loadmaster.plan.laws import SourceLaws, check_destinations, class_reads, declared_stages, top_reads
from loadmaster.plan.plan import Plan
from loadmaster.plan.rank import RankPlan
from loadmaster.plan.waivers import Waiver

STAGING_BYTES = 256 * 2**20
"""Default budget of host memory for staging, a rank."""

SCOPE = {
    "checked": [
        "every shard's header, the index and the config",
        "every element of every parameter of every rank is written exactly once",
        "every stored element is read or waived",
        "dtypes, casts, block scales and experts",
        "what crosses a stage cut, and the bytes each rank holds and reads",
    ],
    "not_checked": ["payload bytes (not read)", "numerics"],
}
"""What a proof covers, said with every proof."""

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

    ``resident_bytes`` of its parameters are on its device, ``host_bytes`` are tables in the memory of the host.
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
    host_bytes: int = 0


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


def prove(plan: Plan, *, capacity_bytes: int | None = None, staging_bytes: int = STAGING_BYTES) -> Proof:
    """Check the laws on ``plan``.

    ``capacity_bytes`` is the device memory that each rank's parameters must fit in, if given; ``staging_bytes`` the budget
    of host memory for staging.

    Raises:
        ArgumentError: ``plan`` is no `Plan`, or a size is not a number of bytes.
    """
    expect("plan", plan, Plan, "a Plan, as build_plan returns")
    if capacity_bytes is not None:
        expect_int("capacity_bytes", capacity_bytes, 0)
    expect_int("staging_bytes", staging_bytes, 1)
    findings: list[Finding] = list(plan.findings)
    stage_slots = range(plan.layout.stage_size)
    replicas: dict[int, list[int]] = {}  # class -> for each stage slot, replicated bytes a layer
    for number, bound in enumerate(plan.classes):
        by_slot = [plan.composed[number, slot] for slot in stage_slots]
        findings += check_destinations(by_slot)
        sources = SourceLaws(bound, plan, {})
        found, replicas[number] = sources.check(class_reads(by_slot))
        findings += found
    findings += check_destinations([c for by_name in plan.top.values() for c in by_name.values()])

    figures, reads = [], []
    for derived in map(plan.rank, range(plan.num_ranks)):  # one at a time: a rank has an array of all it reads
        figures.append(_figures(plan, derived, replicas, staging_bytes))
        reads.append(top_reads(plan, derived))
    stages = {name: len(on) for name, on in declared_stages(plan).items()}
    found, top_replicas = SourceLaws(plan.top_class, plan, stages).check(reads)
    findings += found
    ranks = tuple(
        replace(f, replica_bytes=f.replica_bytes + more) for f, more in zip(figures, top_replicas, strict=True)
    )

    if not errors(tuple(findings)):
        findings += _check_bytes(plan, ranks)
    if capacity_bytes is not None:
        findings += _check_capacity(plan, ranks, capacity_bytes)
    return Proof(plan, ranked(findings), plan.waivers, ranks)


def admit(plan: object, *, allow_unproven: bool = False) -> Plan:
    """Return ``plan`` if it may be loaded: it was proven, or the caller allows on purpose that it was not.

    Raises:
        ArgumentError: it is no `Plan`.
        PlanError: it was not proven; carries the findings of a proof of it.
    """
    given = expect("plan", plan, Plan, "a ProvenPlan, as prove(plan).require_proven() returns")
    if allow_unproven or isinstance(given, ProvenPlan):
        return given
    proof = prove(given)
    if not proof.proven:
        raise proof.refusal("pass allow_unproven=True to load an incomplete model on purpose")
    raise PlanError("the plan was not proven", hint="pass prove(plan).require_proven() instead", proof=proof)


# The byte law, capacity and the figures -------------------------------------------------------------------------------


def _check_bytes(plan: Plan, ranks: Sequence[RankFigures]) -> Iterator[Finding]:
    payload = plan.checkpoint.table.payload_bytes
    waived = sum(w.num_bytes for w in plan.waivers)
    needed = sum(r.needed_bytes for r in ranks)
    replicas = sum(r.replica_bytes for r in ranks)
    if needed != payload - waived + replicas:
        yield Finding(
            "law-bytes",
            "error",
            f"all ranks need {needed:,} bytes, but payload {payload:,} − waived {waived:,} + replicas {replicas:,} "
            f"= {payload - waived + replicas:,}",
        )


def _check_capacity(plan: Plan, ranks: Sequence[RankFigures], capacity: int) -> Iterator[Finding]:
    over = [r for r in ranks if r.resident_bytes > capacity]
    if over:
        worst = max(over, key=lambda r: r.resident_bytes)
        needs, has = gib(worst.resident_bytes), gib(capacity)
        if needs == has:
            needs, has = f"{worst.resident_bytes:,} bytes", f"{capacity:,}"
        fitting = fitting_partition(plan, [r.resident_bytes for r in ranks], capacity)
        fits = f", or --layer-partition {','.join(map(str, fitting))}, which fits" if fitting else ""
        yield Finding(
            "memory-capacity",
            "error",
            f"rank {worst.rank} needs {needs} for its parameters; the capacity is {has}",
            ranks=tuple(r.rank for r in over),
            hint=f"use more ranks{fits}",
        )


def _figures(plan: Plan, rank: RankPlan, replicas: Mapping[int, Sequence[int]], staging_bytes: int) -> RankFigures:
    at = plan.layout.coordinate(rank.rank)
    mine = set(range(*rank.layers)) | set(rank.draft_layers)
    repeated = sum(
        replicas[number][at.stage_slot] * len(mine.intersection(bound.layers))
        for number, bound in enumerate(plan.classes)
    )
    return RankFigures(
        rank=rank.rank,
        pp_rank=rank.pp_rank,
        tp_rank=rank.tp_rank,
        dp_rank=rank.dp_rank,
        ep_rank=rank.ep_rank,
        layers=rank.layers,
        draft_layers=rank.draft_layers,
        num_params=rank.num_params,
        resident_bytes=rank.resident_bytes,
        needed_bytes=rank.needed_bytes,
        fetched_bytes=rank.fetched_bytes,
        replica_bytes=repeated,
        num_reads=rank.num_reads,
        staging_bytes=rank.staging_bytes(staging_bytes),
        carries=rank.carries,
        host_bytes=rank.host_bytes,
    )
