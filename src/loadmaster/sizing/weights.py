"""The bytes of parameters on any layout, without planning each: classes are bound once, and composed for what is divided.

A parameter's size depends on the layout through its own axis alone: attention through the tensor-parallel size, experts through
the ranks of a stage and whether they are dealt out whole. So a few hundred layouts share a few dozen compositions. Sizes are
those of stage slot 0: where experts do not divide evenly, the first ranks get one more. Another slot holds more only where a cut
splits a quantisation block, and then by a few scales; a plan of the layout has the exact sizes of all ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from loadmaster.parallel import ParallelLayout
from loadmaster.plan import Plan
from loadmaster.plan.classes import LayerClass
from loadmaster.plan.composition import PlannedParam, UnplacedParam, compose
from loadmaster.plan.diagnosis.divide import check_divisible
from loadmaster.plan.model import PlannedModel
from loadmaster.plan.rank import held_at


@dataclass(frozen=True)
class Weights:
    """Bytes of parameters on each rank of a stage. ``layers`` gives those of each decoder layer.

    ``first``, ``middle``, ``last`` and ``only`` are what a stage holds beside its decoder layers: embedding, norm, head and MTP
    layers, with the copies that sharing needs. ``embedding`` is the part of the first stage that a step does not read as a whole.
    ``drafts`` are the MTP layers' own parameters. All are on devices; ``host``: those in the memory of the host, if any.
    """

    layers: tuple[int, ...]
    first: int
    middle: int
    last: int
    only: int
    embedding: int
    drafts: int
    host: Weights | None = None

    @cached_property
    def up_to(self) -> tuple[int, ...]:
        """Bytes of the layers before each layer, and of all."""
        sums = [0]
        for size in self.layers:
            sums.append(sums[-1] + size)
        return tuple(sums)

    def beside(self, *, is_first: bool, is_last: bool) -> int:
        """Return the bytes of a stage beside its decoder layers."""
        if is_first and is_last:
            return self.only
        return self.first if is_first else self.last if is_last else self.middle

    def stage(self, first: int, end: int) -> int:
        """Return the bytes of the stage that holds the layers ``first`` to ``end``."""
        beside = self.beside(is_first=first == 0, is_last=end == len(self.layers))
        return self.up_to[end] - self.up_to[first] + beside


class WeightSizes:
    """Sizes of a plan's parameters on any layout; the plan itself may have any layout, with the MTP layers wanted."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._composed: dict[tuple[int, str, object], tuple[PlannedParam, ...]] = {}
        self._known: dict[tuple[object, ...], Weights] = {}

    def at(self, layout: ParallelLayout) -> Weights:
        """Return the sizes on a layout, whatever its pipeline stages.

        Raises:
            LayoutError: some dim does not divide over the ranks; says which, and which sizes would.
        """
        key = (
            layout.tensor_parallel_size,
            layout.stage_size,
            layout.enable_expert_parallel,
            layout.num_redundant_experts,
            layout.tables,
            layout.tables_across_dp,
        )
        if key not in self._known:
            check_divisible(self._plan.all_classes, self._plan.schema, layout)
            host, device = self._weights(layout, host=True), self._weights(layout, host=False)
            self._known[key] = replace(device, host=host if any((*host.layers, host.only)) else None)
        return self._known[key]

    def _weights(self, layout: ParallelLayout, *, host: bool) -> Weights:
        """Return the sizes of the parameters that are in the memory of the host, or of those on devices."""
        plan = self._plan

        def in_memory(params: Iterable[PlannedParam]) -> int:
            return sum(c.num_bytes for c in params if c.spec.host == host)

        num_layers, num_drafts = len(plan.schema.layers), plan.layout.num_draft_layers
        blocks = [p for p in plan.target.params if p.stage is None]
        composed = {
            (number, 0): tuple(c for p in blocks for c in self._at(number, bound, p.name, layout))
            for number, bound in enumerate(plan.classes)
        }
        tops = [p for p in plan.target.params if p.stage is not None]
        top = {0: {p.name: made for p in tops if (made := self._at(-1, plan.top_class, p.name, layout))}}
        of_class = {number: in_memory(params) for (number, _), params in composed.items()}
        sizes = [of_class[plan.class_of[layer][0]] for layer in range(len(plan.schema.blocks(num_drafts)))]

        def beside(stages: tuple[tuple[int, int], ...], pp_rank: int) -> int:
            model = PlannedModel(
                layout=replace(
                    layout, pipeline_parallel_size=len(stages), layer_partition=None, num_draft_layers=num_drafts
                ),
                target=plan.target,
                schema=plan.schema,
                stages=stages,
                table=plan.table,
                top_class=plan.top_class,
                classes=plan.classes,
                composed=composed,
                top=top,
            )
            held = held_at(model, pp_rank, 0)
            resident = in_memory(c for h in held if h.alias is None for c in h.composed)
            return resident - sum(sizes[slice(*stages[pp_rank])])

        two = ((0, num_layers - 1), (num_layers - 1, num_layers))
        three = ((0, 1), (1, num_layers - 1), (num_layers - 1, num_layers))
        return Weights(
            layers=tuple(sizes[:num_layers]),
            first=beside(two, 0) if num_layers > 1 else 0,
            middle=beside(three, 1) if num_layers > 2 else 0,
            last=beside(two, 1) if num_layers > 1 else 0,
            only=beside(((0, num_layers),), 0),
            embedding=0 if host else _embedding(top[0]),
            drafts=sum(sizes[num_layers:]),
        )

    def _at(self, number: int, bound: LayerClass, name: str, layout: ParallelLayout) -> tuple[PlannedParam, ...]:
        """Return what stage slot 0 holds of a parameter of a class."""
        param = next(p for p in self._plan.target.params if p.name == name)
        item = bound.item_of.get(param.parts[0])
        is_of_experts = item is not None and bool(item.first.experts)
        experts = (layout.stage_size, layout.enable_expert_parallel, layout.num_redundant_experts)
        tables = (layout.tensor_parallel_size, layout.stage_size, layout.tables, layout.tables_across_dp)
        is_table = item is not None and item.first.table is not None
        key = (number, name, experts if is_of_experts else tables if is_table else layout.tensor_parallel_size)
        if key not in self._composed:
            whole: UnplacedParam | None = compose(param, bound, self._plan.numerics, layout)
            self._composed[key] = () if whole is None else tuple(whole.at(layout.axes(0)))
        return self._composed[key]


def _embedding(top: Mapping[str, tuple[PlannedParam, ...]]) -> int:
    return sum(
        c.num_bytes
        for params in top.values()
        for c in params
        if c.parts == ("embed",) and c.spec.name.endswith("weight")
    )
