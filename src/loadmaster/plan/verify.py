"""The proof: the laws that make a plan a promise, checked over all ranks from headers alone.

Laws on elements are checked once for each class of layers and tensor-parallel rank, on boxes, never once a tensor:

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
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from loadmaster.architectures.algebra import Cast, Expression, Leaf, Region, Stored, leaves, whole
from loadmaster.architectures.lower import coverage, multiplicity, num_elements, tiles
from loadmaster.architectures.schema import Tensor
from loadmaster.dtypes import widens
from loadmaster.findings import Finding, errors
from loadmaster.parallel import cut
from loadmaster.plan.bind import Form, LayerClass, Waiver
from loadmaster.plan.compose import Composed
from loadmaster.plan.plan import Plan
from loadmaster.plan.rank import RankPlan, itemsize

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


@dataclass(frozen=True, slots=True)
class RankFigures:
    """What one rank holds and reads; bytes unless named otherwise. ``layers`` is half open.

    ``needed_bytes`` go into its parameters, ``fetched_bytes`` are read for them, ``replica_bytes`` are needed by a lower
    rank as well. ``carries`` is what its stage is handed by the one before.
    """

    rank: int
    pp_rank: int
    tp_rank: int
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


def prove(plan: Plan, *, capacity_bytes: int | None = None, staging_bytes: int = STAGING_BYTES) -> Proof:
    """Check the laws on ``plan``.

    ``capacity_bytes`` is the device memory that each rank's parameters must fit in, if given.
    """
    findings: list[Finding] = list(plan.findings)
    tp_size = plan.layout.tensor_parallel_size
    replicas: dict[int, list[int]] = {}  # class -> for each tensor-parallel rank, replicated bytes a layer
    for number, bound in enumerate(plan.classes):
        by_rank = [plan.composed[number, tp] for tp in range(tp_size)]
        for composed in by_rank:
            findings += _destinations(composed)
        declared = {t.name: _holders(t, plan) for t in bound.tensors}
        found, replicas[number] = _sources(bound, [_class_reads(c) for c in by_rank], declared, _hindered(bound, plan))
        findings += found
    for own in plan.top.values():
        for composed in own.values():
            findings += _destinations(composed)

    figures, top_reads = [], []
    for rank in range(plan.num_ranks):
        derived = plan.rank(rank)
        top_reads.append(_top_reads(plan, derived))
        figures.append(_figures(plan, derived, replicas, staging_bytes))
    stages = _declared_stages(plan)
    declared = {t.name: _holders(t, plan) * len(stages[t.name]) for t in plan.binding.top.tensors}
    found, top_replicas = _sources(plan.binding.top, top_reads, declared, _hindered(plan.binding.top, plan))
    findings += found
    ranks = tuple(
        replace(f, replica_bytes=f.replica_bytes + more) for f, more in zip(figures, top_replicas, strict=True)
    )

    if not errors(tuple(findings)):
        findings += _check_bytes(plan, ranks)
    if capacity_bytes is not None:
        findings += _check_capacity(ranks, capacity_bytes)
    order = {"error": 0, "warning": 1, "note": 2}
    return Proof(plan, tuple(sorted(findings, key=lambda f: order[f.severity])), plan.binding.waivers, ranks)


# Laws 1 and 4 ---------------------------------------------------------------------------------------------------------


def _destinations(composed: Sequence[Composed]) -> Iterator[Finding]:
    for c in composed:
        if not tiles([p.box for p in c.pieces], c.spec.shape):
            yield Finding(
                "law-destination",
                "error",
                f"{list(c.spec.shape)} is not filled exactly once by its {len(c.pieces)} piece(s)",
                param=c.spec.name,
            )
        for piece in c.pieces:
            yield from _casts(piece.source, c.spec.name)


def _casts(e: Expression, param: str) -> Iterator[Finding]:
    if isinstance(e, Cast):
        if e.reason is None and not widens(e.operand.dtype, e.dtype):
            yield Finding(
                "law-cast", "error", f"{e.operand.dtype} would be narrowed to {e.dtype} without a reason", param=param
            )
        yield from _casts(e.operand, param)


# Laws 2 and 3 ---------------------------------------------------------------------------------------------------------

Reads = dict[Leaf, list[Region]]
"""Leaf -> the boxes that one rank reads of it. A leaf over experts has the expert as its first dim."""


def _class_reads(composed: Sequence[Composed]) -> Reads:
    reads: Reads = defaultdict(list)
    for c in composed:
        for piece in c.pieces:
            for view in leaves(piece.source):
                reads[view.leaf].extend(_boxes(view, piece.ids))
    return reads


def _top_reads(plan: Plan, rank: RankPlan) -> Reads:
    """Return what a rank reads of the model's own tensors, substitutes (a copy of the embedding) included."""
    own = {f"{t.name}/" for t in plan.binding.top.tensors}
    reads: Reads = defaultdict(list)
    for batch in rank.batches:
        for view in batch.views:
            if view.leaf.name[: view.leaf.name.index("/") + 1] in own:
                reads[view.leaf].extend(_boxes(view, batch.piece.ids))
    return reads


def _boxes(view: Stored, ids: tuple[int, ...] | None) -> Iterator[Region]:
    assert view.factors == view.leaf.shape, "views of split dims need a common refinement"
    if not view.leaf.member:
        yield view.box
        return
    assert ids is not None
    start = 0
    for i in range(1, len(ids) + 1):
        if i == len(ids) or ids[i] != ids[i - 1] + 1:
            yield ((ids[start], ids[i - 1] + 1), *view.box)
            start = i


def _holders(tensor: Tensor, plan: Plan) -> int:
    """Return on how many tensor-parallel ranks of a stage each element is declared to be."""
    size = plan.layout.tensor_parallel_size
    if tensor.experts and plan.layout.enable_expert_parallel:
        return 1
    if tensor.placement is None:
        return size
    d = tensor.placement
    return cut(tensor.shape[d.dim], d.unit, size, 0, repeat=d.repeat).replicas


def _declared_stages(plan: Plan) -> dict[str, set[int]]:
    """Return on which stages each of the model's own tensors is declared to be."""
    last = len(plan.stages) - 1
    native = {p.name: p for p in plan.family.native}
    stages: dict[str, set[int]] = {t.name: set() for t in plan.schema.top}
    drafts = [c for c in plan.classes if c.draft]
    for p in plan.family.native:
        own = p.parts[0] in stages
        if own:
            stages[p.parts[0]].add(0 if p.stage == "first" else last)
            continue
        draft_needs = p.stage is None and any(p.parts[0] not in {t.name for t in c.tensors} for c in drafts)
        if p.otherwise and (p.stage is not None or draft_needs):
            original = native[p.otherwise]
            while original.parts[0] not in stages and original.otherwise:
                original = native[original.otherwise]
            stages[original.parts[0]].add(last)
    return stages


def _hindered(bound: LayerClass, plan: Plan) -> set[str]:
    """Return the tensors of a class that are defective, or fused with one that is: their defect is reported already."""
    defective = {t.name for t in bound.tensors} - set(bound.forms)
    return defective | {part for p in plan.family.native if defective & set(p.parts) for part in p.parts}


def _sources(
    bound: LayerClass, readers: Sequence[Reads], declared: Mapping[str, int], hindered: set[str]
) -> tuple[list[Finding], list[int]]:
    """Check that each stored element of a class is read as often as declared; count what each reader repeats.

    A reader's replicated bytes are those that a reader before it needs as well. Scales may be read more often than
    declared, where a cut falls inside a block; nothing else may.
    """
    findings = []
    repeated = [0] * len(readers)
    for tensor in bound.tensors:
        if tensor.name in hindered:
            continue
        wanted = {leaf for reader in readers for leaf in reader if leaf.name.startswith(f"{tensor.name}/")}
        names = {leaf.name for leaf in wanted}
        quantised = any(f.quantised for f in bound.forms[tensor.name])
        for name in (n for n in bound.ids if n.startswith(f"{tensor.name}/")):
            if name not in names and (name.endswith("/weight") or quantised):
                findings.append(
                    Finding("law-source", "error", f"{name} ({bound.kind}) is read by no parameter of any rank")
                )
        for leaf in sorted(wanted, key=lambda leaf: leaf.name):
            required = _required(tensor, leaf, bound.forms[tensor.name])
            shape = (tensor.experts, *leaf.shape) if leaf.member else leaf.shape
            by_reader = [reader.get(leaf, []) for reader in readers]
            cuts, counts = multiplicity([b for boxes in by_reader for b in boxes] + required, shape)
            inside = coverage(cuts, required)
            counts = counts - inside
            expected = declared[tensor.name] * inside
            wrong = (
                counts != expected if leaf.name.endswith("/weight") else (counts < expected) | (counts > 0) & ~inside
            )
            if bool(wrong.any()):
                found = sorted({int(n) for n in counts[wrong]})
                findings.append(
                    Finding(
                        "law-source",
                        "error",
                        f"elements of {leaf.name} ({bound.kind}) are read {found} times, declared {declared[tensor.name]}",
                    )
                )
            seen = np.zeros(counts.shape, dtype=np.bool_)
            for i, boxes in enumerate(by_reader):
                covers = coverage(cuts, boxes)
                repeated[i] += itemsize(leaf.dtype) * num_elements(cuts, covers & seen)
                seen |= covers
    return findings, repeated


def _required(tensor: Tensor, leaf: Leaf, forms: tuple[Form, ...]) -> list[Region]:
    """Return the boxes of a leaf that exist: all of it, or the experts that are stored in this form."""
    if not leaf.member:
        return [whole(leaf.shape)]
    if len(forms) == 1:
        return [whole((tensor.experts, *leaf.shape))]
    here = [f.dtype == leaf.dtype if leaf.name.endswith("/weight") else f.quantised for f in forms]
    return [((e, e + 1), *whole(leaf.shape)) for e, exists in enumerate(here) if exists]


# The byte law, capacity and the figures -------------------------------------------------------------------------------


def _check_bytes(plan: Plan, ranks: Sequence[RankFigures]) -> Iterator[Finding]:
    payload = plan.checkpoint.table.payload_bytes
    waived = sum(w.num_bytes for w in plan.binding.waivers)
    needed = sum(r.needed_bytes for r in ranks)
    replicas = sum(r.replica_bytes for r in ranks)
    if needed != payload - waived + replicas:
        yield Finding(
            "law-bytes",
            "error",
            f"all ranks need {needed:,} bytes, but payload {payload:,} − waived {waived:,} + replicas {replicas:,} "
            f"= {payload - waived + replicas:,}",
        )


def _check_capacity(ranks: Sequence[RankFigures], capacity: int) -> Iterator[Finding]:
    over = [r for r in ranks if r.resident_bytes > capacity]
    if over:
        worst = max(over, key=lambda r: r.resident_bytes)
        yield Finding(
            "memory-capacity",
            "error",
            f"rank {worst.rank} needs {worst.resident_bytes / 2**30:.2f} GiB for its parameters, "
            f"and the capacity is {capacity / 2**30:.2f} GiB",
            ranks=tuple(r.rank for r in over),
            hint="use more ranks, or another --layer-partition",
        )


def _figures(plan: Plan, rank: RankPlan, replicas: Mapping[int, Sequence[int]], staging_bytes: int) -> RankFigures:
    mine = set(range(*rank.layers)) | set(rank.draft_layers)
    repeated = sum(
        replicas[number][rank.tp_rank] * len(mine.intersection(bound.layers))
        for number, bound in enumerate(plan.classes)
    )
    return RankFigures(
        rank=rank.rank,
        pp_rank=rank.pp_rank,
        tp_rank=rank.tp_rank,
        ep_rank=rank.ep_rank,
        layers=rank.layers,
        draft_layers=rank.draft_layers,
        num_params=len(rank.specs),
        resident_bytes=rank.resident_bytes,
        needed_bytes=rank.needed_bytes,
        fetched_bytes=rank.fetched_bytes,
        replica_bytes=repeated,
        num_reads=rank.num_reads,
        staging_bytes=rank.staging_bytes(staging_bytes),
        carries=rank.carries,
    )
