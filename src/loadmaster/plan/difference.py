"""What changes when a model is laid out anew: the stored bytes that each rank can keep, and those that it newly needs.

All figures are bytes of stored tensors, counted by element: rank 3 keeps what it read under the old layout and needs under
the new one. A rank is the same device in both; ranks that the new layout adds begin empty. Elements are counted on the
boxes of each class of layers, as the laws are, and not tensor by tensor.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loadmaster.architectures.algebra import Leaf, Region
from loadmaster.architectures.lower import coverage, edges
from loadmaster.arguments import expect_int
from loadmaster.errors import ArgumentError
from loadmaster.parallel import ParallelLayout
from loadmaster.plan.composition import PlannedParam
from loadmaster.plan.laws import Reads, class_reads, top_reads
from loadmaster.plan.plan import Plan
from loadmaster.plan.specs import itemsize

Cells = npt.NDArray[np.bool_]
"""Which cells of a tensor a reader has, flat."""


@dataclass(frozen=True, slots=True)
class RankChange:
    """What one rank of the new layout needs: bytes of stored tensors.

    ``needed_bytes`` = ``kept_bytes`` (it has them) + ``host_bytes`` (another rank of its host has them) + ``remote_bytes``
    (only ranks of other hosts have them) + ``storage_bytes`` (no rank has them). ``dropped_bytes`` are those that it had and no
    longer needs. ``resident_bytes`` are those of its parameters, after and before (0 for a new rank).
    """

    rank: int
    needed_bytes: int
    kept_bytes: int
    host_bytes: int
    remote_bytes: int
    storage_bytes: int
    dropped_bytes: int
    resident_bytes: int
    resident_before: int

    @property
    def new_bytes(self) -> int:
        """Bytes that the rank needs and does not have."""
        return self.needed_bytes - self.kept_bytes


@dataclass(frozen=True, slots=True)
class LayoutDifference:
    """Two layouts of one model, and what each rank of either must do. Without ``ranks_per_host`` all are on one host."""

    before: ParallelLayout
    after: ParallelLayout
    ranks_per_host: int | None
    ranks: tuple[RankChange, ...]

    @property
    def is_equal(self) -> bool:
        """Whether every rank needs exactly what it has."""
        return all(r.new_bytes == r.dropped_bytes == 0 for r in self.ranks)

    @property
    def new_bytes(self) -> int:
        """Bytes that ranks need and do not have."""
        return sum(r.new_bytes for r in self.ranks)


def compare_layouts(before: Plan, after: Plan, ranks_per_host: int | None = None) -> LayoutDifference:
    """Compare two plans of one checkpoint for one target.

    Ranks ``0 … ranks_per_host - 1`` are on the first host, and so on.

    Raises:
        ArgumentError: the plans are of different checkpoints or targets, or ``ranks_per_host`` is not a positive number.
    """
    if before.checkpoint.digest != after.checkpoint.digest or before.target.name != after.target.name:
        raise ArgumentError("the plans are of different checkpoints or targets", hint="compare the checkpoints instead")
    if ranks_per_host is not None:
        expect_int("ranks_per_host", ranks_per_host, 1)
    num_ranks = max(before.num_ranks, after.num_ranks)
    counts = _Counts(ranks_per_host or num_ranks)
    for layers, old, new in _layers(before, after):
        counts.add(layers, old, new)
    derived = [[plan.rank(rank) for rank in range(plan.num_ranks)] for plan in (before, after)]
    of_model = [{rank.rank: top_reads(p, rank) for rank in d} for p, d in zip((before, after), derived, strict=True)]
    counts.add(1, of_model[0], of_model[1])
    resident = [Counter({rank.rank: rank.resident_bytes for rank in ranks}) for ranks in derived]
    ranks = tuple(
        RankChange(
            rank=rank,
            needed_bytes=counts.needed[rank],
            kept_bytes=counts.kept[rank],
            host_bytes=counts.host[rank],
            remote_bytes=counts.remote[rank],
            storage_bytes=counts.needed[rank] - counts.kept[rank] - counts.host[rank] - counts.remote[rank],
            dropped_bytes=counts.had[rank] - counts.kept[rank],
            resident_bytes=resident[1][rank],
            resident_before=resident[0][rank],
        )
        for rank in range(num_ranks)
    )
    return LayoutDifference(before.layout, after.layout, ranks_per_host, ranks)


Readers = Mapping[int, Reads]
"""Rank -> what it reads of one layer."""


def _layers(before: Plan, after: Plan) -> Iterator[tuple[int, Readers, Readers]]:
    """Yield layers that are read alike: how many there are, and the readers of one of them before and after.

    Layers are alike if they are of the same class and on the same stage in both plans.
    """
    reads = [{n: class_reads(_by_slot(plan, n)) for n in range(len(plan.classes))} for plan in (before, after)]
    alike: Counter[tuple[tuple[int, int] | None, tuple[int, int] | None]] = Counter()
    for layer in sorted({*before.class_of, *after.class_of}):
        places = [
            (plan.class_of[layer][0], plan.stage_of(layer)) if layer in plan.class_of else None
            for plan in (before, after)
        ]
        alike[places[0], places[1]] += 1

    def readers(which: int, place: tuple[int, int] | None) -> Readers:
        if place is None:
            return {}
        number, stage = place
        return dict(zip((before, after)[which].layout.stage_ranks(stage), reads[which][number], strict=True))

    for (old, new), count in alike.items():
        yield count, readers(0, old), readers(1, new)


def _by_slot(plan: Plan, number: int) -> list[tuple[PlannedParam, ...]]:
    return [plan.composed[number, slot] for slot in range(plan.layout.stage_size)]


class _Counts:
    """Bytes by rank, added up over layers."""

    def __init__(self, ranks_per_host: int) -> None:
        self.ranks_per_host = ranks_per_host
        self.had: Counter[int] = Counter()
        self.needed: Counter[int] = Counter()
        self.kept: Counter[int] = Counter()
        self.host: Counter[int] = Counter()
        self.remote: Counter[int] = Counter()

    def add(self, num_layers: int, old: Readers, new: Readers) -> None:
        for leaf in dict.fromkeys(leaf for readers in (old, new) for reads in readers.values() for leaf in reads):
            self._add_leaf(leaf, num_layers, old, new)

    def _add_leaf(self, leaf: Leaf, num_layers: int, old: Readers, new: Readers) -> None:
        parts = _Parts(leaf)
        had = {rank: parts.number(reads[leaf]) for rank, reads in old.items() if leaf in reads}
        needs = {rank: parts.number(reads[leaf]) for rank, reads in new.items() if leaf in reads}
        hosts: dict[int, set[int]] = defaultdict(set)
        for rank, part in had.items():
            hosts[rank // self.ranks_per_host].add(part)
        parts.measure(num_layers)
        anywhere = frozenset(had.values())
        for rank, part in had.items():
            self.had[rank] += parts.num_bytes(part)
        for rank, part in needs.items():
            mine = had.get(rank)
            own = frozenset(() if mine is None else (mine,))
            near = own | hosts.get(rank // self.ranks_per_host, set())
            needed, kept = parts.num_bytes(part), parts.shared(part, own)
            on_host = parts.shared(part, near)
            self.needed[rank] += needed
            self.kept[rank] += kept
            self.host[rank] += on_host - kept
            self.remote[rank] += parts.shared(part, anywhere | own) - on_host


class _Parts:
    """The parts of a stored tensor that ranks read, each with a number: most ranks read the same as another."""

    def __init__(self, leaf: Leaf) -> None:
        self.leaf = leaf
        self.numbers: dict[tuple[Region, ...], int] = {}
        self.cells: list[Cells] = []
        self.weights: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self.unions: dict[frozenset[int], npt.NDArray[np.int64]] = {}
        self.known: dict[tuple[int, frozenset[int]], int] = {}

    def number(self, boxes: Sequence[Region]) -> int:
        """Return the number of a part."""
        return self.numbers.setdefault(tuple(boxes), len(self.numbers))

    def measure(self, times: int) -> None:
        """Divide the tensor into cells that every part has whole or not at all; each element counts ``times``."""
        every = [box for boxes in self.numbers for box in boxes]
        shape = tuple(max(box[d][1] for box in every) for d in range(len(every[0])))
        cuts = edges(every, shape)
        sizes: npt.NDArray[np.int64] = np.ones((), dtype=np.int64)
        for edge in cuts:
            sizes = np.multiply.outer(sizes, np.diff(np.array(edge, dtype=np.int64)))
        self.weights = sizes.reshape(-1) * itemsize(self.leaf.dtype) * times
        self.cells = [coverage(cuts, boxes).reshape(-1) for boxes in self.numbers]

    def num_bytes(self, part: int) -> int:
        """Return the bytes of a part."""
        return self.shared(part, frozenset((part,)))

    def shared(self, part: int, others: frozenset[int]) -> int:
        """Return the bytes of a part that are in any of the others."""
        if not others:
            return 0
        if (part, others) not in self.known:
            if others not in self.unions:
                self.unions[others] = self.weights * np.logical_or.reduce([self.cells[i] for i in others])
            self.known[part, others] = int(self.unions[others][self.cells[part]].sum())
        return self.known[part, others]
