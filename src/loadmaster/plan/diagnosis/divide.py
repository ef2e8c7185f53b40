"""Whether every dim divides over the ranks, before anything is cut; and if not, the sizes that would be legal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from loadmaster.architectures.schema import Placement, Schema
from loadmaster.errors import LayoutError
from loadmaster.parallel import ParallelLayout, cut
from loadmaster.plan.classes import LayerClass
from loadmaster.plan.composition import axis_of, can_pad, unit_of, words_fed

LARGEST = 256
"""Tensor-parallel sizes up to this are tried for a hint."""


@dataclass(frozen=True, slots=True)
class _Dim:
    """A dim that is divided: of what, its size and unit, over which axis, whether units may repeat, and how it is padded."""

    what: str
    size: int
    unit: int
    axis: str
    repeat: bool
    padded: Placement | None
    why: str

    def divides(self, layout: ParallelLayout) -> bool:
        count = layout.axes(0)[self.axis][1]
        more = self.padded.padding(self.size, count, self.unit) if self.padded else 0
        try:
            cut(self.size + more, self.unit, count, 0, repeat=self.repeat)
        except LayoutError:
            return count == 1
        return True


def check_divisible(classes: Sequence[LayerClass], schema: Schema, layout: ParallelLayout) -> None:
    """Refuse a layout over which some dim of the classes does not divide, or the experts cannot be distributed.

    Raises:
        LayoutError: names the dim, and which tensor-parallel sizes all dims and the experts divide over: sliced or whole.
    """
    counts = {t.experts for kind in schema.kinds.values() for t in kind if t.experts}
    try:
        for num_experts in counts:
            layout.expert_slots(num_experts)
    except LayoutError as error:
        hint = f"{error.hint}; {_sizes(classes, counts, layout)}"
        raise LayoutError(error.message, hint=hint, code=error.code) from None
    bad = [d for d in dict.fromkeys(_dims(classes, layout)) if not d.divides(layout)]
    if not bad:
        return
    worst = min(bad, key=lambda d: d.size // d.unit)  # heads before rows
    count = layout.axes(0)[worst.axis][1]
    among = f"{count} tensor-parallel ranks" if worst.axis == "tp" else f"{count} ranks (tensor × data parallel)"
    more = f", and {len(bad) - 1} more" if len(bad) > 1 else ""
    raise LayoutError(
        f"{worst.what}: {worst.size // worst.unit} unit(s) of {worst.unit}{worst.why} do not divide over {among}{more}",
        hint=_sizes(classes, counts, layout),
        code="layout-indivisible",
    )


def _sizes(classes: Sequence[LayerClass], counts: set[int], layout: ParallelLayout) -> str:
    """Return the valid tensor-parallel sizes, with expert parallelism as requested and the other way."""
    asked = _legal(classes, counts, layout)
    data = " with this data-parallel size" if layout.data_parallel_size > 1 else ""
    hint = f"valid tensor-parallel sizes for this model{data}: {_listed(asked)}"
    if not counts:
        return hint
    spread = not layout.enable_expert_parallel
    other = replace(layout, enable_expert_parallel=spread, expert_placement="linear", num_redundant_experts=0)
    others = _legal(classes, counts, other)
    if others == asked:
        return f"{hint}, with --enable-expert-parallel or without"
    return f"{hint}; {'with' if spread else 'without'} --enable-expert-parallel: {_listed(others)}"


def _legal(classes: Sequence[LayerClass], counts: set[int], layout: ParallelLayout) -> list[int]:
    """Return the tensor-parallel sizes, with the rest of a layout, over which everything divides."""
    dims = list(dict.fromkeys(_dims(classes, layout)))
    legal = []
    for size in range(1, LARGEST + 1):
        at = replace(layout, tensor_parallel_size=size)
        try:
            for num_experts in counts:
                at.expert_slots(num_experts)
        except LayoutError:
            continue
        if all(d.divides(at) for d in dims):
            legal.append(size)
    return legal


def _listed(sizes: list[int]) -> str:
    return ", ".join(map(str, sizes)) or "none"


def _dims(classes: Sequence[LayerClass], layout: ParallelLayout) -> Iterator[_Dim]:
    for bound in classes:
        for item in bound.items:
            for t in item.parts:
                if t.placement is None or (t.experts and layout.enable_expert_parallel):
                    continue
                for form in bound.forms.get(item.key, ()):
                    unit = unit_of(t, form, words_fed(t, bound))
                    why = f" (words of {form.format.name})" if form.format and unit != t.placement.unit else ""
                    p = t.placement
                    name = f"{t.name} ({item.name})"
                    padded = p if can_pad(t, form) else None
                    size = t.shape[p.dim]
                    if p.sections:
                        size, unit, why = len(p.sections), 1, " (sections of rows)"
                    yield _Dim(name, size, unit, axis_of(t, layout), p.repeat, padded, why)
