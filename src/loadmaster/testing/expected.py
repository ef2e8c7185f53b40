"""Computes what a rank's parameters must be from whole stored tensors, by the same tables but without the planner.

Slow and simple: each stored tensor is read completely, cut with numpy, and joined with the other parts of its parameter.
Bytes are compared, so values are read as unsigned integers of their width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from math import lcm, prod
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from loadmaster.architectures.items import Item, items, layer_items
from loadmaster.architectures.schema import Param, Tensor
from loadmaster.architectures.spelling import Spelling
from loadmaster.dtypes import DTYPES
from loadmaster.formats import Component, Format, Grain
from loadmaster.parallel import cut
from loadmaster.plan import Plan
from loadmaster.plan.claims import read_claims
from loadmaster.plan.composition import component_name

Bits: TypeAlias = npt.NDArray[np.unsignedinteger]
WIDTHS = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
PLAIN = Component("weight", (), (Grain(0), Grain(1), Grain(2)))


class Expected:
    """The parameters of one rank of ``plan``, whose checkpoint has the names of ``spelling``, and of ``drafts`` in MTP layers."""

    def __init__(self, plan: Plan, rank: int, spelling: Spelling, drafts: Spelling | None = None) -> None:
        self.plan, self.spelling, self.drafts = plan, spelling, drafts
        self.at = plan.layout.coordinate(rank)
        self.derived = plan.rank(rank)
        self.table = plan.checkpoint.table
        config = plan.family.describe(plan.config)
        self.formats = read_claims(config, plan.dtype).formats
        self.model_params = {p.name: p for p in plan.target.params if p.stage is not None}
        self._of_layer: dict[int, dict[str, tuple[Tensor, Item]]] = {}
        self._formats: dict[tuple[int, str], Format | None] = {}

    def arrays(self) -> dict[str, Bits]:
        """Return every parameter that is a copy of stored bytes, by name."""
        arrays: dict[str, Bits] = {}
        for param in self.model_params.values():
            if param.is_on(self.at.pp_rank, len(self.plan.stages)):
                arrays.update(self._model_param(param, param.name))
        num_layers = len(self.plan.schema.layers)
        for layer in (*range(*self.derived.layers), *self.derived.draft_layers):
            for param in self.plan.target.params:
                if param.stage is None:
                    name = self.plan.named(param.name, layer)
                    components = dict(self._param(param, name, layer))
                    if not components and param.otherwise and layer >= num_layers:
                        components = self._model_param(self.model_params[param.otherwise], name)
                    arrays.update(components)
        return {name: array for name, array in arrays.items() if name in self._copied}

    @cached_property
    def _copied(self) -> set[str]:
        """Parameters that are not computed: they have the dtype of all stored tensors that they are made of."""
        specs = self.derived.specs
        computed = {
            specs[i].name
            for b in self.derived.groups
            if any(v.dtype != specs[b.params[0]].dtype for v in b.views)
            for i in b.params
        }
        return {s.name for s in specs} - computed

    def _model_param(self, param: Param, name: str) -> dict[str, Bits]:
        components = dict(self._param(param, name, -1))
        if components or not param.otherwise:
            return components
        return self._model_param(self.model_params[param.otherwise], name)

    def _holders(self, layer: int) -> Mapping[str, tuple[Tensor, Item]]:
        """Return logical name -> tensor and the stored item that holds it."""
        if layer not in self._of_layer:
            schema, drafts = self.plan.schema, self.drafts
            of_model = layer < 0
            stored = items(schema.top, self.spelling) if of_model else layer_items(schema, layer, self.spelling, drafts)
            self._of_layer[layer] = {t.name: (t, item) for item in stored for t in item.parts}
        return self._of_layer[layer]

    def _param(self, param: Param, name: str, layer: int) -> Iterator[tuple[str, Bits]]:
        """Yield the components of a parameter, its parts joined. Nothing where a part does not exist, or it holds more."""
        holders = self._holders(layer)
        if param.unless in holders or not all(p in holders for p in param.parts) or param.sizes:
            return
        parts = [self._part(*holders[p], layer, param.rotary) for p in param.parts]
        if any(p is None or p.keys() != (parts[0] or {}).keys() for p in parts):
            return
        if len({self._format(holders[p][1], layer) for p in param.parts}) > 1:
            return  # parts in several formats, which are decoded
        sound = [p for p in parts if p is not None]
        for suffix, (component, _) in sound[0].items():
            arrays = [p[suffix][1] for p in sound]
            lead = 1 if holders[param.parts[0]][0].experts else 0
            along = next((d for d, g in enumerate(component.grains) if g.dim == 0 and g.kind != "inner"), None)
            if component.is_scalar:
                arrays = [a.reshape(*a.shape[:lead], -1) for a in arrays]  # one number for each part
            if len({a.dtype for a in arrays}) > 1:
                continue  # parts of several widths, which are cast to one
            joined = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=lead + (along or 0))
            yield component_name(name, suffix) if component is not PLAIN else name, joined

    def _part(
        self, t: Tensor, item: Item, layer: int, rotary: str | None = None
    ) -> Mapping[str, tuple[Component, Bits]] | None:
        """Return the components of one logical tensor on this rank: its experts, rows and columns, heads in ``rotary`` order."""
        format_ = self._format(item, layer)
        if format_ is not None and format_.transient:
            return None  # its parameters are computed
        components = format_.components if format_ else (PLAIN,)
        parts = {}
        for component in components:
            if component.waived or self._id(item, component.suffix, layer, self._first(item, component)) is None:
                continue
            array = self._whole(item, component, layer, t)
            if array is None:
                return None
            placed = self._placed(array, component, t, item, layer)
            if t.head and (order := _order(t.head, stored_in_pairs=item.pairs, rotary=rotary)):
                placed = _in_order(placed, component, t.head, order)
            parts[component.suffix] = (component, placed)
        return parts or None

    def _format(self, item: Item, layer: int) -> Format | None:
        key = layer, item.key
        if key not in self._formats:
            self._formats[key] = self._find_format(item, layer)
        return self._formats[key]

    def _find_format(self, item: Item, layer: int) -> Format | None:
        for f in item.formats(self.formats):
            number = self._id(item, f.components[0].suffix, layer)
            if number is not None:
                stored = self.table.signatures[self.table.signature[number]].dtype
                if stored in f.components[0].dtypes and self._fits(item, f, layer):
                    return f
        return None

    def _fits(self, item: Item, format_: Format, layer: int) -> bool:
        """Return whether components have the shapes that a format gives them, which tells those of other bits apart."""
        if not format_.everywhere:
            return True
        shaped = item.stored_in(format_)
        ids = ((c, self._id(item, c.suffix, layer)) for c in shaped.components)
        table = self.table
        return all(n is None or table.signatures[table.signature[n]].shape == item.component_shape(c) for c, n in ids)

    def _id(self, item: Item, suffix: str, layer: int, member: int | None = 0) -> int | None:
        return self.table.ids.get(item.stored_name(suffix, layer, member))

    def _first(self, item: Item, component: Component) -> int | None:
        """Return the first expert or slice; None for what is stored once for all slices."""
        return None if item.first.slices and component.is_scalar else 0

    def _whole(self, item: Item, component: Component, layer: int, t: Tensor) -> Bits | None:
        """Return a component as stored (unquantised weights as out × in), with the rank's experts as first dim."""
        slots = self._slots(t.experts)
        first = self._first(item, component)
        members = slots if item.by_expert else range(item.members or 1) if first is not None else (None,)
        arrays = [self._read(self._id(item, component.suffix, layer, m)) for m in members]
        sound = [a for a in arrays if a is not None]
        if len(sound) < len(arrays):
            return None
        array = np.stack(sound) if item.by_expert else np.concatenate(sound) if len(sound) > 1 else sound[0]
        if item.flat:
            array = array.reshape(item.first.experts, -1, *array.shape[1:])
        if item.stacked:
            array = array[list(slots)]
            if item.numbers_each and component.is_scalar:
                array = array[:, [p.name for p in item.parts].index(t.name)]
        if component.joined is not None:
            array = array.reshape(*array.shape[: 1 if t.experts else 0], *component.dims(item.shape[-2:]))
        return np.swapaxes(array, -1, -2) if item.is_transposed and component is PLAIN else array

    def _slots(self, num_experts: int) -> tuple[int, ...]:
        if not num_experts:
            return ()
        slots = self.plan.layout.expert_slots(num_experts)
        return slots[slice(*self.plan.layout.held_slots(len(slots), self.at.stage_slot))]

    def _read(self, number: int | None) -> Bits | None:
        if number is None:
            return None
        signature = self.table.signatures[self.table.signature[number]]
        width = WIDTHS.get(DTYPES[signature.dtype].bits)
        if width is None:
            return None
        file = self.plan.model_path / self.plan.checkpoint.files[self.table.file[number]].name
        count = prod(signature.shape)
        return np.fromfile(file, width, count, offset=int(self.table.start[number])).reshape(signature.shape)

    def _unit(self, t: Tensor, item: Item, layer: int) -> int:
        """Return how many elements a cut keeps together: by its unit, its words, and those of the tensor that it feeds."""
        p = t.placement
        assert p is not None
        format_ = self._format(item, layer)
        unit = lcm(p.unit, format_.exact_span(p.dim) if format_ else 1)
        consumer, fed = self._holders(layer).get(p.feeds or "", (None, None))
        if consumer is not None and fed is not None and (fed_format := self._format(fed, layer)):
            unit = lcm(unit, t.shape[p.dim] // consumer.shape[1] * fed_format.exact_span(1))
        return unit

    def _placed(self, array: Bits, component: Component, t: Tensor, item: Item, layer: int) -> Bits:
        """Return the rank's rows and columns of ``t``. Factors count rows in the whole item, including the parts before ``t``."""
        p, layout = t.placement, self.plan.layout
        if item.groups > 1:
            return self._of_groups(array, component, t, item, layer)
        packed = item.is_cut(t.name)
        first, last = item.rows(t.name)
        if p is None or (t.experts and layout.enable_expert_parallel):
            return _cut(array, component, t, 0, first, last) if packed else array
        over_stage = t.experts or (t.table and layout.tables_across_dp)
        index, count = layout.axes(self.at.stage_slot)["moe" if over_stage else "tp"]
        size = t.shape[p.dim]
        format_, unit = self._format(item, layer), self._unit(t, item, layer)
        if (more := p.padding(size, count, unit)) and (format_ is None or format_.zero_filled):
            array = _lengthened(_cut(array, component, t, 0, first, last), component, t, more)
            size, first, packed = size + more, 0, False
        mine = cut(size, unit, count, index, repeat=p.repeat, sections=p.sections)
        if p.dim == 0:
            return _cut(array, component, t, 0, first + mine.start, first + mine.stop)
        array = _cut(array, component, t, p.dim, mine.start, mine.stop)
        return _cut(array, component, t, 0, first, last) if packed else array

    def _of_groups(self, array: Bits, component: Component, t: Tensor, item: Item, layer: int) -> Bits:
        """Return the rank's rows of a part whose groups alternate with those of others; factors follow row by row."""
        p, groups = t.placement, item.groups
        mine = range(t.shape[0])
        if p is not None:
            assert p.dim == 0 and not t.experts, "parts in groups are weights that are divided by rows"
            index, count = self.plan.layout.axes(self.at.stage_slot)["tp"]
            held = cut(t.shape[0], self._unit(t, item, layer), count, index, repeat=p.repeat)
            mine = range(held.start, held.stop)
        share, step = t.shape[0] // groups, item.group[0]
        start = item.rows(t.name)[0]
        runs: dict[int, list[int]] = {}  # group -> the rows within it
        for row in mine:
            runs.setdefault(row // share, []).append(start + row % share)
        if component.is_scalar:
            return np.repeat(array.reshape(1), len(runs))
        along = next((d for d, g in enumerate(component.grains) if g.dim == 0), None)
        if along is None:
            return np.concatenate([array] * len(runs))
        span = component.grains[along].span
        stored: list[int] = []
        for group, rows in runs.items():
            if item.apart:  # blocks begin anew in each group
                stored += dict.fromkeys(group * -(-step // span) + row // span for row in rows)
            else:
                stored += dict.fromkeys((group * step + row) // span for row in rows)
        return np.take(array, stored, axis=along)


def _order(head: int, *, stored_in_pairs: bool, rotary: str | None) -> list[int]:
    """Return which stored row of a head each row of the parameter is; nothing where they are as stored."""
    half = head // 2
    if rotary == "halves" or (stored_in_pairs and rotary is None):
        return [*range(0, head, 2), *range(1, head, 2)]
    return [] if stored_in_pairs or rotary is None else [row for i in range(half) for row in (i, half + i)]


def _in_order(array: Bits, component: Component, head: int, order: Sequence[int]) -> Bits:
    """Return a component with the rows of each head taken in ``order``; factors that hold for whole heads stay."""
    along = next((d for d, g in enumerate(component.grains) if g.dim == 0 and g.span == 1 and g.kind != "inner"), None)
    if along is None:
        return array
    rows = [first + row for first in range(0, array.shape[along], head) for row in order]
    return np.take(array, rows, axis=along)


def _lengthened(array: Bits, component: Component, t: Tensor, more: int) -> Bits:
    """Return a component with zeros for ``more`` elements at the end of the divided dim."""
    assert t.placement is not None
    lead = 1 if t.experts else 0
    grains = component.grains[: array.ndim - lead]
    along = [more // g.span if g.dim == t.placement.dim and g.kind != "inner" else 0 for g in grains]
    return np.pad(array, [(0, n) for n in (*(0,) * lead, *along)])


def _cut(array: Bits, component: Component, t: Tensor, dim: int, start: int, stop: int) -> Bits:
    """Return the stored elements of a component that hold, or cover, ``start`` to ``stop`` of a logical dim."""
    lead = 1 if t.experts else 0
    at: list[slice] = [slice(None)] * array.ndim
    for d, grain in enumerate(component.grains[: array.ndim - lead]):
        if grain.dim == dim and grain.kind in ("exact", "cover"):
            at[lead + d] = slice(start // grain.span, -(-stop // grain.span))
    return array[tuple(at)]
