"""The weight algebra: a parameter of the running model as an expression over stored tensors.

Expressions are frozen values over *leaves*, which are names until a plan binds them. Placement is part of the
expression (`Shard`); `localise` turns it into regions for one coordinate, and `restrict` pushes a region down to the
leaves, as a database pushes a predicate down to the scan. What reaches the bottom is boxes of stored tensors; what stays
above them is the few operations that have to run (decode, cast).

    Stored     a view of a stored tensor: a box in its factored shape, with its dims in any order
    Each       a stack of one member expression over many tensors (experts): a list slot -> id
    Concat     parts one after another: the node that gives positions
    Decode     stored components -> values: dequantisation
    Cast       another number format, with the reason where precision is lost
    Reorder    rows of each head in another order
    Fill       a constant
    Shard      placement over an axis of the layout; removed by `localise`

Not here: a family's expressions (`deepseek.py`, `llama.py`), and where tensors are in files (`loadmaster.plan`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

from loadmaster.errors import LayoutError
from loadmaster.formats import Component, Format
from loadmaster.parallel import cut, deal

Region: TypeAlias = tuple[tuple[int, int], ...]
"""A box: half-open start and stop for each dim. Never empty."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A stored tensor by name: its number format and stored shape.

    ``member``: one tensor for each expert. ``slice`` is its number among the tensors that hold the rows of one. Where dims are
    stored joined (`loadmaster.formats.Component.joined`), the shape has them apart.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    member: bool = False
    slice: int | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """A view of a leaf: ``box`` in the shape ``factors`` (the leaf's shape with dims split), whose dims appear in ``order``.

    A dim of the factored shape that ``order`` leaves out has been picked: its interval in ``box`` has length one.
    """

    leaf: Leaf
    factors: tuple[int, ...]
    box: Region
    order: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The view's shape."""
        return tuple(self.box[d][1] - self.box[d][0] for d in self.order)

    @property
    def dtype(self) -> str:
        """The leaf's number format."""
        return self.leaf.dtype


@dataclass(frozen=True, slots=True)
class Each:
    """A stack over many tensors: slot ``s`` of the new first dim is ``member`` with its leaves bound to ``ids[s]``."""

    member: Expression
    ids: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of slots, then the member's shape."""
        return (len(self.ids), *self.member.shape)

    @property
    def dtype(self) -> str:
        """The member's number format."""
        return self.member.dtype


@dataclass(frozen=True, slots=True)
class Concat:
    """Parts one after another along ``dim``; all agree in the other dims and in number format."""

    dim: int
    parts: tuple[Expression, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The parts' shape, summed along ``dim``."""
        first = self.parts[0].shape
        total = sum(p.shape[self.dim] for p in self.parts)
        return (*first[: self.dim], total, *first[self.dim + 1 :])

    @property
    def dtype(self) -> str:
        """The parts' common number format."""
        return self.parts[0].dtype


@dataclass(frozen=True, slots=True)
class Decode:
    """Stored components -> F32 values of ``shape``.

    ``origin`` is the position of the first element in the whole tensor: it stays absolute, because a cut keeps the block grid of
    the whole tensor. The operands are the components' views that cover the elements from there.
    """

    format: Format
    operands: tuple[Expression, ...]
    shape: tuple[int, ...]
    origin: tuple[int, ...]

    @property
    def dtype(self) -> str:
        """Decoded values are F32."""
        return "F32"

    @property
    def phase(self) -> tuple[int, ...]:
        """Elements of the first quantisation block before the first element, for each dim (of a format with such blocks)."""
        return tuple(o % b for o, b in zip(self.origin, self.format.block, strict=True))


@dataclass(frozen=True, slots=True)
class Cast:
    """The same values in another number format. ``reason`` says why, where precision is lost."""

    operand: Expression
    dtype: str
    reason: str | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The operand's shape."""
        return self.operand.shape


@dataclass(frozen=True, slots=True)
class Reorder:
    """``operand`` with the elements of ``dim`` in another order.

    ``grid`` is ``(a, b)``: each run of ``a * b`` elements is seen as a matrix of ``a`` rows, and read column by column. With
    ``(n, 2)``, the first elements of n pairs come before all the second ones; ``(2, n)`` is the way back. No cut divides a run.
    """

    operand: Expression
    dim: int
    grid: tuple[int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        """The operand's shape."""
        return self.operand.shape

    @property
    def dtype(self) -> str:
        """The operand's number format."""
        return self.operand.dtype

    @property
    def width(self) -> int:
        """The elements of a run, which are reordered together."""
        return prod(self.grid)


@dataclass(frozen=True, slots=True)
class Fill:
    """A constant."""

    shape: tuple[int, ...]
    dtype: str
    value: float


@dataclass(frozen=True, slots=True)
class Shard:
    """``operand`` divided along ``dim`` over ``axis`` in whole ``unit``s (see `loadmaster.parallel.cut`).

    ``sections`` are units of different sizes. ``dealt``: in single elements (experts); where they do not divide, the first
    coordinates have one more.
    """

    operand: Expression
    dim: int
    axis: str
    unit: int = 1
    repeat: bool = False
    dealt: bool = False
    sections: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The whole operand's shape: the expression has no coordinate yet."""
        return self.operand.shape

    @property
    def dtype(self) -> str:
        """The operand's number format."""
        return self.operand.dtype


Expression: TypeAlias = Stored | Each | Concat | Decode | Cast | Reorder | Fill | Shard
Coordinates: TypeAlias = Mapping[str, tuple[int, int]]
"""Axis -> (index, size)."""


def stored(leaf: Leaf) -> Stored:
    """Return the whole of a leaf."""
    return Stored(leaf, leaf.shape, tuple((0, n) for n in leaf.shape), tuple(range(len(leaf.shape))))


def decode(format_: Format, operands: tuple[Expression, ...], shape: tuple[int, ...]) -> Decode:
    """Return the decoding of whole components."""
    return Decode(format_, operands, shape, (0,) * len(shape))


def reorder(e: Expression, dim: int, grid: tuple[int, int]) -> Expression:
    """Return ``e`` reordered (`Reorder`); a second `reorder` that undoes the first leaves ``e`` itself.

    >>> pairs = stored(Leaf("q", "BF16", (8, 4)))
    >>> reorder(reorder(pairs, 0, (4, 2)), 0, (2, 4)) == pairs
    True
    """
    if isinstance(e, Reorder) and (e.dim, e.grid) == (dim, grid[::-1]):
        return e.operand
    return Reorder(e, dim, grid)


def whole(shape: tuple[int, ...]) -> Region:
    """Return the region of the whole shape."""
    return tuple((0, n) for n in shape)


def compose(outer: Region, inner: Region) -> Region:
    """Return ``inner``, given relative to ``outer``, in the coordinates that ``outer`` is given in.

    >>> compose(((10, 20),), ((2, 5),))
    ((12, 15),)
    """
    return tuple((a + c, a + d) for (a, _), (c, d) in zip(outer, inner, strict=True))


def restrict(e: Expression, region: Region) -> Expression:
    """Return the expression of ``e[region]``, pushed down to the leaves.

    Structural: ``restrict(restrict(e, r), s) == restrict(e, compose(r, s))``.

    Raises:
        LayoutError: the region splits a packed word.
    """
    shape = e.shape
    assert len(region) == len(shape), (region, shape)
    assert all(0 <= a < b <= n for (a, b), n in zip(region, shape, strict=True)), (region, shape)
    if all(a == 0 and b == n for (a, b), n in zip(region, shape, strict=True)):
        return e
    match e:
        case Stored():
            box = list(e.box)
            for d, (a, b) in zip(e.order, region, strict=True):
                first = box[d][0]
                box[d] = (first + a, first + b)
            return Stored(e.leaf, e.factors, tuple(box), e.order)
        case Each():
            (a, b), *rest = region
            return Each(restrict(e.member, tuple(rest)), e.ids[a:b])
        case Concat():
            return concat(e.dim, tuple(_restricted_parts(e, region)))
        case Decode():
            return _restrict_decode(e, region)
        case Cast():
            return Cast(restrict(e.operand, region), e.dtype, e.reason)
        case Reorder():
            assert not any(edge % e.width for edge in region[e.dim]), "a cut inside what is reordered together"
            return Reorder(restrict(e.operand, region), e.dim, e.grid)
        case Fill():
            return Fill(tuple(b - a for a, b in region), e.dtype, e.value)
        case Shard():
            raise AssertionError("restrict needs a localised expression")


def concat(dim: int, parts: tuple[Expression, ...]) -> Expression:
    """Return the concatenation; of a single part, the part itself."""
    return parts[0] if len(parts) == 1 else Concat(dim, parts)


def _restricted_parts(e: Concat, region: Region) -> Iterator[Expression]:
    start, stop = region[e.dim]
    at = 0
    for part in e.parts:
        n = part.shape[e.dim]
        a, b = max(start, at), min(stop, at + n)
        if a < b:
            yield restrict(part, (*region[: e.dim], (a - at, b - at), *region[e.dim + 1 :]))
        at += n


def _restrict_decode(e: Decode, region: Region) -> Decode:
    operands = tuple(
        restrict(operand, _of_component(e, component, whole(operand.shape), region))
        for component, operand in zip(e.format.components, e.operands, strict=True)
    )
    return Decode(
        e.format,
        operands,
        tuple(b - a for a, b in region),
        tuple(o + a for o, (a, _) in zip(e.origin, region, strict=True)),
    )


def _of_component(e: Decode, component: Component, all_of_it: Region, region: Region) -> Region:
    """Return the part of a component that covers ``region``: packed words exactly, quantisation blocks rounded outward."""
    if component.is_scalar:
        return all_of_it
    part = []
    for grain, everything in zip(component.grains, all_of_it, strict=True):
        if grain.kind in ("whole", "inner"):
            part.append(everything)
            continue
        origin, (a, b) = e.origin[grain.dim], region[grain.dim]
        first = origin // grain.span
        lo, hi = (origin + a) // grain.span, -(-(origin + b) // grain.span)
        ragged = b != e.shape[grain.dim] and (origin + b) % grain.span
        if grain.kind == "exact" and ((origin + a) % grain.span or ragged):
            raise LayoutError(
                f"a cut at elements {origin + a} to {origin + b} of dim {grain.dim} splits a packed word "
                f"of {grain.span} ({e.format.name}, {component.suffix})",
                hint=f"cuts of this dim must be multiples of {grain.span}",
                code="layout-block-cut",
            )
        part.append((lo - first, hi - first))
    return tuple(part)


def localise(e: Expression, coordinates: Coordinates) -> Expression:
    """Return the part of ``e`` at one coordinate: every `Shard` becomes a region, pushed down to the leaves.

    Raises:
        LayoutError: a dim does not divide; the hint names the possible sizes.
    """
    match e:
        case Stored() | Fill():
            return e
        case Each():
            return Each(localise(e.member, coordinates), e.ids)
        case Concat():
            return Concat(e.dim, tuple(localise(p, coordinates) for p in e.parts))
        case Decode():
            return Decode(e.format, tuple(localise(o, coordinates) for o in e.operands), e.shape, e.origin)
        case Cast():
            return Cast(localise(e.operand, coordinates), e.dtype, e.reason)
        case Reorder():
            return Reorder(localise(e.operand, coordinates), e.dim, e.grid)
        case Shard():
            operand = localise(e.operand, coordinates)
            index, count = coordinates[e.axis]
            if count == 1:
                return operand
            region = list(whole(operand.shape))
            if e.dealt:
                region[e.dim] = deal(operand.shape[e.dim], count, index)
            else:
                part = cut(operand.shape[e.dim], e.unit, count, index, repeat=e.repeat, sections=e.sections)
                region[e.dim] = (part.start, part.stop)
            return restrict(operand, tuple(region))


def axes(e: Expression) -> frozenset[str]:
    """Return the axes of the layout that ``e`` is divided over."""
    match e:
        case Shard():
            return axes(e.operand) | {e.axis}
        case Concat():
            return frozenset().union(*(axes(p) for p in e.parts))
        case Decode():
            return frozenset().union(*(axes(o) for o in e.operands))
        case Each():
            return axes(e.member)
        case Cast() | Reorder():
            return axes(e.operand)
        case Stored() | Fill():
            return frozenset()


def leaves(e: Expression) -> Iterator[Stored]:
    """Yield the views of stored tensors under ``e``, left to right."""
    match e:
        case Stored():
            yield e
        case Each():
            yield from leaves(e.member)
        case Concat():
            for part in e.parts:
                yield from leaves(part)
        case Decode():
            for operand in e.operands:
                yield from leaves(operand)
        case Cast() | Reorder() | Shard():
            yield from leaves(e.operand)
        case Fill():
            return
