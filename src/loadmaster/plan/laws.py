"""The laws on elements, checked once for each class of layers and stage slot, on boxes, not for each tensor.

1. every element of every parameter is written exactly once;
2. every stored element is read by a rank or waived;
3. what is divided is tiled, what is replicated is held as often as declared;
4. no cast narrows without a reason.

The other checks, and the proof itself, are in `loadmaster.plan.proof`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from itertools import groupby

import numpy as np

from loadmaster.architectures.algebra import Cast, Expression, Leaf, Region, Reorder, Stored, leaves
from loadmaster.architectures.items import Item
from loadmaster.architectures.lower import coverage, edges, multiplicity, num_elements, tiles
from loadmaster.architectures.schema import Tensor
from loadmaster.dtypes import widens
from loadmaster.findings import Finding
from loadmaster.parallel import ParallelLayout, cut
from loadmaster.plan.classes import LayerClass
from loadmaster.plan.composition import PlannedParam, axis_of, parts_of
from loadmaster.plan.forms import StoredForm
from loadmaster.plan.logical import view
from loadmaster.plan.plan import Plan
from loadmaster.plan.rank import RankPlan
from loadmaster.plan.specs import itemsize

# Laws 1 and 4 ---------------------------------------------------------------------------------------------------------


def check_destinations(by_slot: Iterable[Sequence[PlannedParam]]) -> Iterator[Finding]:
    """Check each parameter once: stage slots that hold the same parameter share it."""
    for c in {id(c): c for composed in by_slot for c in composed}.values():
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
    if isinstance(e, Cast) and e.reason is None and not widens(e.operand.dtype, e.dtype):
        yield Finding(
            "law-cast", "error", f"{e.operand.dtype} would be narrowed to {e.dtype} without a reason", param=param
        )
    if isinstance(e, (Cast, Reorder)):
        yield from _casts(e.operand, param)


# Laws 2 and 3 ---------------------------------------------------------------------------------------------------------

Reads = dict[Leaf, list[Region]]
"""Leaf -> the boxes that one rank reads of it. A leaf over experts has the expert as its first dim."""


def class_reads(by_slot: Sequence[Sequence[PlannedParam]]) -> list[Reads]:
    """Return what each stage slot reads of a layer."""
    known: dict[int, list[tuple[Leaf, Region]]] = {}
    slot_reads = []
    for composed in by_slot:
        reads: Reads = defaultdict(list)
        for c in composed:
            if id(c) not in known:
                known[id(c)] = [(v.leaf, box) for p in c.pieces for v in leaves(p.source) for box in _boxes(v, p.ids)]
            for leaf, box in known[id(c)]:
                reads[leaf].append(box)
        slot_reads.append(reads)
    return slot_reads


def top_reads(plan: Plan, rank: RankPlan) -> Reads:
    """Return what a rank reads of the model's own tensors, substitutes (a copy of the embedding) included."""
    top_keys = {i.key for i in plan.top_class.items}
    reads: Reads = defaultdict(list)
    for group in rank.groups:
        for v in group.views:
            if v.leaf.name.rpartition("/")[0] in top_keys:
                reads[v.leaf].extend(_boxes(v, group.piece.ids))
    return reads


def _boxes(view: Stored, ids: tuple[int, ...] | None) -> Iterator[Region]:
    box = _of_leaf(view)
    if not view.leaf.member:
        yield box
        return
    assert ids is not None
    start = 0
    for i in range(1, len(ids) + 1):
        if i == len(ids) or ids[i] != ids[i - 1] + 1:
            yield ((ids[start], ids[i - 1] + 1), *box)
            start = i


def _of_leaf(view: Stored) -> Region:
    """Return a view's box in the dims of its leaf, of which it may have others of one element."""
    if view.factors == view.leaf.shape:
        return view.box
    longer = [(n, box) for n, box in zip(view.factors, view.box, strict=True) if n > 1]
    assert [n for n, _ in longer] == [n for n in view.leaf.shape if n > 1], (
        "views of split dims need a common refinement"
    )
    boxes = iter(box for _, box in longer)
    return tuple(next(boxes) if n > 1 else (0, 1) for n in view.leaf.shape)


def _holders(tensor: Tensor, plan: Plan, expert: int | None) -> int:
    """Return how many ranks of a stage are declared to hold each element of a logical tensor (of one expert)."""
    layout = plan.layout
    if tensor.experts and layout.enable_expert_parallel:
        return _copies(layout, tensor.experts)[expert or 0]
    axis = axis_of(tensor, layout)
    count = layout.axes(0)[axis][1]
    copies = layout.stage_size // count
    p = tensor.placement
    if p is None:
        return count * copies
    if p.pad is not None:  # zeros may be added, and no element is held twice
        return copies
    return cut(tensor.shape[p.dim], p.unit, count, 0, repeat=p.repeat, sections=p.sections).replicas * copies


@cache
def _copies(layout: ParallelLayout, num_experts: int) -> Mapping[int, int]:
    """Return how many ranks of a stage hold each expert."""
    return Counter(layout.expert_slots(num_experts))


def declared_stages(plan: Plan) -> dict[str, set[int]]:
    """Return the stages that are declared to hold each of the model's own tensors."""
    num_stages = len(plan.stages)
    by_name = {p.name: p for p in plan.target.params}
    stages: dict[str, set[int]] = {t.name: set() for t in plan.schema.top}
    drafts = [c for c in plan.classes if c.draft]
    for p in plan.target.params:
        held = [n for n in range(num_stages) if p.is_on(n, num_stages)] if p.stage else [num_stages - 1]
        if p.parts[0] in stages:
            stages[p.parts[0]].update(held)
            continue
        draft_needs = p.stage is None and any(p.parts[0] not in c.item_of for c in drafts)
        if p.otherwise and (p.stage is not None or draft_needs):
            original = by_name[p.otherwise]
            while original.parts[0] not in stages and original.otherwise:
                original = by_name[original.otherwise]
            stages[original.parts[0]].update(held)
    return stages


def _hindered(bound: LayerClass, plan: Plan) -> set[str]:
    """Return the items of a class that are defective, or fused with one that is: their defect is reported already."""
    defective = {i.key for i in bound.items} - set(bound.forms)
    holders = bound.item_of
    fused = [{holders[part].key for part in p.parts if part in holders} for p in plan.target.params]
    return defective.union(*(keys for keys in fused if defective & keys))


class SourceLaws:
    """Checks that each stored element of a class is read as often as declared, and counts what readers repeat.

    ``stages`` is how many stages hold each of the model's own tensors; one for all others.
    """

    def __init__(self, bound: LayerClass, plan: Plan, stages: Mapping[str, int]) -> None:
        self.bound, self.plan, self.stages = bound, plan, stages
        self.hindered = _hindered(bound, plan)

    def check(self, readers: Sequence[Reads]) -> tuple[list[Finding], list[int]]:
        """Return the findings, and each reader's replicated bytes: those that an earlier reader also needs."""
        findings: list[Finding] = []
        repeated = [0] * len(readers)
        read = {leaf for reader in readers for leaf in reader}
        for item in self.bound.items:
            if item.key in self.hindered:
                continue
            declared = self._declared(item)
            for leaf in sorted(declared, key=lambda leaf: leaf.name):
                if leaf not in read:
                    what = f"{leaf.name} ({self.bound.kind}) is read by no parameter of any rank"
                    findings.append(Finding("law-source", "error", what))
                    continue
                findings += self._check_leaf(leaf, declared[leaf], readers, repeated)
        return findings, repeated

    def _declared(self, item: Item) -> dict[Leaf, list[tuple[Region, int]]]:
        """Return for each leaf of an item the boxes that exist, and how many ranks are declared to hold them."""
        forms = self.bound.forms[item.key]
        boxes: dict[Leaf, list[tuple[Region, int]]] = defaultdict(list)
        num_experts = item.first.experts
        for part in item.parts:
            copies = self.stages.get(part.name, 1) * self._uses(part.name)
            experts: list[tuple[int | None, StoredForm]]
            if item.by_expert:
                experts = [(e, forms[e if len(forms) > 1 else 0]) for e in range(num_experts)]
            else:
                experts = [(e, forms[0]) for e in (range(num_experts) if num_experts else (None,))]
            for (holders, form), group in groupby(
                ((_holders(part, self.plan, e) * copies, form, e) for e, form in experts), key=lambda x: x[:2]
            ):
                run = [e for _, _, e in group]
                for v in leaves(view(item, form, part)):
                    box = v.box
                    if run[0] is not None and run[-1] is not None:
                        slots = (run[0], run[-1] + 1)
                        box = (slots, *v.box) if item.by_expert else (slots, *v.box[1:])
                    boxes[v.leaf].append((box, holders))
        return boxes

    def _uses(self, part: str) -> int:
        """Return how often a parameter of this class has a part: twice where keys serve as values too."""
        uses = ((p.parts.count(part), p) for p in self.plan.target.params)
        return max((count for count, p in uses if count > 1 and parts_of(p, self.bound)), default=1)

    def _check_leaf(
        self, leaf: Leaf, declared: list[tuple[Region, int]], readers: Sequence[Reads], repeated: list[int]
    ) -> Iterator[Finding]:
        """Check one leaf; a leaf over experts has the expert as its first dim.

        Values are read exactly as often as declared. Scales may be read more often, where a cut falls inside a block or
        where they apply to all of a tensor that is cut. Nothing outside the declared boxes is read.
        """
        of_values = leaf.name.rpartition("/")[2] in self._values
        num_experts = self.bound_experts(leaf)
        shape = (num_experts, *leaf.shape) if leaf.member else leaf.shape
        by_reader = [reader.get(leaf, []) for reader in readers]
        distinct: Counter[tuple[Region, ...]] = Counter(tuple(boxes) for boxes in by_reader)
        every = [b for boxes in distinct for b in boxes]
        cuts = edges(every + [box for box, _ in declared], shape)
        covers = {boxes: coverage(cuts, boxes) for boxes in distinct}
        counts = np.zeros([len(c) - 1 for c in cuts], dtype=np.int64)
        for boxes, times in distinct.items():
            counts += times * multiplicity(cuts, boxes)
        expected = np.zeros_like(counts)
        for box, holders in declared:
            inside = coverage(cuts, [box])
            expected = expected + holders * inside if of_values else np.maximum(expected, holders * inside)
        wrong = counts != expected if of_values else (counts < expected) | (counts > 0) & (expected == 0)
        if bool(wrong.any()):
            actual, wanted = (sorted({int(n) for n in array[wrong]}) for array in (counts, expected))
            yield Finding(
                "law-source",
                "error",
                f"elements of {leaf.name} ({self.bound.kind}) are read {actual} times, declared {wanted}",
            )
        seen = np.zeros(counts.shape, dtype=np.bool_)
        for i, mine_boxes in enumerate(by_reader):
            if mine_boxes:
                mine = covers[tuple(mine_boxes)]
                again = num_elements(cuts, mine & seen)
                if len(mine_boxes) > 1:  # parts of one packed tensor share its g_idx, or its one factor
                    times_read = multiplicity(cuts, mine_boxes)
                    most = int(times_read.max(initial=0))
                    again += sum((n - 1) * num_elements(cuts, times_read == n) for n in range(2, most + 1))
                repeated[i] += itemsize(leaf.dtype) * again
                seen |= mine

    @cached_property
    def _values(self) -> set[str]:
        forms = (f.format for forms in self.bound.forms.values() for f in forms)
        return {"weight", *(f.components[0].suffix for f in forms if f)}

    def bound_experts(self, leaf: Leaf) -> int:
        """Return how many experts the leaf's item has."""
        key = leaf.name.rpartition("/")[0]
        return next(i.first.experts for i in self.bound.items if i.key == key)
