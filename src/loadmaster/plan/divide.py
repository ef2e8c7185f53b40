"""Whether every dim divides over the ranks, before anything is cut; and if not, the sizes that would be legal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from loadmaster.architectures.schema import Placement, Schema
from loadmaster.errors import LayoutError
from loadmaster.parallel import ParallelLayout, cut
from loadmaster.plan.bind import Binding
from loadmaster.plan.compose import can_pad, unit_of, words_fed

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


def check_divisible(binding: Binding, schema: Schema, layout: ParallelLayout) -> None:
    """Refuse a layout over which some dim does not divide.

    Raises:
        LayoutError: names the dim, and the tensor-parallel sizes that all dims divide by.
    """
    if layout.enable_expert_parallel:
        for num_experts in {t.experts for kind in schema.kinds.values() for t in kind if t.experts}:
            layout.expert_slots(num_experts)
    dims = list(dict.fromkeys(_dims(binding, layout)))
    bad = [d for d in dims if not d.divides(layout)]
    if not bad:
        return
    sizes = [replace(layout, tensor_parallel_size=n) for n in range(1, LARGEST + 1)]
    legal = [str(at.tensor_parallel_size) for at in sizes if all(d.divides(at) for d in dims)]
    worst = min(bad, key=lambda d: d.size // d.unit)  # heads before rows
    count = layout.axes(0)[worst.axis][1]
    among = f"{count} tensor-parallel ranks" if worst.axis == "tp" else f"{count} ranks (tensor × data parallel)"
    more = f", and {len(bad) - 1} more" if len(bad) > 1 else ""
    raise LayoutError(
        f"{worst.what}: {worst.size // worst.unit} unit(s) of {worst.unit}{worst.why} do not divide over {among}{more}",
        hint=f"tensor-parallel sizes that divide this model: {', '.join(legal) or 'none with this data-parallel size'}",
        code="layout-indivisible",
    )


def _dims(binding: Binding, layout: ParallelLayout) -> Iterator[_Dim]:
    for bound in (binding.top, *binding.classes):
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
                    yield _Dim(name, t.shape[p.dim], unit, "moe" if t.experts else "tp", p.repeat, padded, why)
