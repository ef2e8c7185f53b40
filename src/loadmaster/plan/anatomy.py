"""What a plan consists of, for pictures: bytes by kind on each rank, layers by stage, and where each shard's bytes go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from loadmaster.architectures.cuts import crossing
from loadmaster.plan.composition import PlannedParam
from loadmaster.plan.laws import declared_stages
from loadmaster.plan.plan import Plan
from loadmaster.plan.rank import RankPlan

Kind = Literal["experts", "attention", "feed-forward", "embedding", "head", "MTP", "scales", "other"]
KINDS: Final[tuple[Kind, ...]] = (
    "experts",
    "attention",
    "feed-forward",
    "scales",
    "embedding",
    "head",
    "MTP",
    "other",
)
"""In the order in which they are drawn."""

_ROOTS: Final[Mapping[str, Kind]] = {
    "moe": "experts",
    "attn": "attention",
    "indexer": "attention",
    "linear": "attention",
    "mlp": "feed-forward",
    "shared": "feed-forward",
    "embed": "embedding",
    "head": "head",
    "mtp": "MTP",
}
"""The first word of a logical tensor's name -> its kind."""


@dataclass(frozen=True, slots=True)
class LayerBytes:
    """One row of a stage: a layer by its stored number (None: what the model itself has there), and its resident bytes by kind
    on the stage's first rank.
    """

    layer: int | None
    name: str
    sizes: Mapping[Kind, int]

    @property
    def num_bytes(self) -> int:
        """Bytes of all kinds."""
        return sum(self.sizes.values())


@dataclass(frozen=True, slots=True)
class StageAnatomy:
    """One pipeline stage: its ranks, its rows from the first to the last, what it receives, and that in bytes a token."""

    number: int
    ranks: tuple[int, ...]
    layers: tuple[int, int]
    rows: tuple[LayerBytes, ...]
    carries: tuple[str, ...]
    carries_bytes: int


@dataclass(frozen=True)
class Anatomy:
    """What a plan consists of.

    ``sizes`` gives for each rank its resident bytes by kind. ``shards`` ``[files, stages + 1]`` are the bytes of each file
    that each stage needs, and last those that nobody reads; bytes that several stages need count for the first.
    """

    stages: tuple[StageAnatomy, ...]
    sizes: tuple[Mapping[Kind, int], ...]
    shards: npt.NDArray[np.int64]

    @property
    def totals(self) -> dict[Kind, int]:
        """Resident bytes of all ranks by kind; kinds that do not occur are left out."""
        total: Counter[Kind] = Counter()
        for sizes in self.sizes:
            total.update(sizes)
        return {kind: total[kind] for kind in KINDS if total[kind]}


def dissect(plan: Plan) -> Anatomy:
    """Return what a plan consists of."""
    sizer = _Sizer(plan)
    derived = [plan.rank(rank) for rank in range(plan.num_ranks)]
    stages = []
    for number, layers in enumerate(plan.stages):
        ranks = plan.layout.stage_ranks(number)
        carried = crossing(plan.schema, plan.target, layers[0])
        token_bytes = sum(f.token_bytes(plan.dtype) for f in carried)
        names = tuple(f.name for f in carried)
        stages.append(StageAnatomy(number, ranks, layers, sizer.rows(derived[ranks[0]]), names, token_bytes))
    return Anatomy(tuple(stages), tuple(sizer.total(rank) for rank in derived), _shards(plan))


class _Sizer:
    """Adds up parameters by kind; what ranks and layers share is counted once."""

    def __init__(self, plan: Plan) -> None:
        self.known: dict[tuple[int, bool], Counter[Kind]] = {}
        blocks = [(plan.block(layer), layer) for layer in plan.class_of]
        self.layers = dict(blocks)
        self.drafts = {block for block, layer in blocks if plan.classes[plan.class_of[layer][0]].draft}

    def rows(self, rank: RankPlan) -> tuple[LayerBytes, ...]:
        made = []
        for held in rank.held:
            if held.alias is None:
                name = held.new.rstrip(".")
                made.append(LayerBytes(self.layers.get(held.new), name, self._sizes(held.composed, held.new)))
        return tuple(made)

    def total(self, rank: RankPlan) -> Mapping[Kind, int]:
        total: Counter[Kind] = Counter()
        for held in rank.held:
            if held.alias is None:
                total.update(self._sizes(held.composed, held.new))
        return total

    def _sizes(self, composed: tuple[PlannedParam, ...], block: str) -> Counter[Kind]:
        key = (id(composed), block in self.drafts)
        if key not in self.known:
            sizes: Counter[Kind] = Counter()
            values = {c.spec.name for c in composed}.difference(*(c.spec.components for c in composed))
            for c in composed:
                is_values = c.spec.name in values
                sizes[_kind(c.parts[0], is_values=is_values, is_draft=key[1])] += c.num_bytes
            self.known[key] = sizes
        return self.known[key]


def _kind(logical: str, *, is_values: bool, is_draft: bool) -> Kind:
    if is_draft:
        return "MTP"
    if not is_values:
        return "scales"
    return _ROOTS.get(logical.partition(".")[0], "other")


def _shards(plan: Plan) -> npt.NDArray[np.int64]:
    table, num_files, num_stages = plan.table, len(plan.checkpoint.files), len(plan.stages)
    stage_of = np.full(len(table) + 1, num_stages, dtype=np.int64)  # the last is for -1
    for bound in plan.classes:
        of_layers = [plan.stage_of(layer) for layer in bound.layers]
        for ids in bound.ids.values():
            for row, stage in enumerate(of_layers):
                stage_of[ids[row]] = stage
    declared = declared_stages(plan)
    for item in plan.top_class.items:
        stages = set().union(*(declared.get(t.name, set()) for t in item.parts))
        for leaf, ids in plan.top_class.ids.items():
            if stages and leaf.partition("/")[0] == item.key:
                stage_of[ids] = min(stages)
    cells = table.file.astype(np.int64) * (num_stages + 1) + stage_of[:-1]
    counts = np.bincount(cells, weights=table.nbytes, minlength=num_files * (num_stages + 1))
    return counts.astype(np.int64).reshape(num_files, num_stages + 1)
