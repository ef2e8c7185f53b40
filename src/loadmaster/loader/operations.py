"""Views, casts and dequantisation between a stored tensor and a parameter: the only arithmetic in loading."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import lcm

import torch

from loadmaster.architectures.algebra import (
    Cast,
    Decode,
    Expression,
    Fill,
    Region,
    Reorder,
    Stored,
    leaves,
    restrict,
    whole,
)
from loadmaster.checkpoint import TensorTable
from loadmaster.errors import LoadError
from loadmaster.kernels import fp8_dequantise
from loadmaster.kernels.dequantise import dequantise
from loadmaster.plan import RankPlan
from loadmaster.plan.moves import MoveGroup
from loadmaster.plan.specs import itemsize
from loadmaster.plan.strided import strided_run
from loadmaster.torch_dtypes import TORCH


def view_of(view: Stored, tensor: torch.Tensor) -> torch.Tensor:
    """Return ``view`` of a whole stored tensor ``[*leaf.shape]``, sharing its memory."""
    picked = tensor.view(view.factors)[tuple(slice(a, b) for a, b in view.box)]
    return _ordered(view, picked)


def view_of_span(view: Stored, span: torch.Tensor) -> torch.Tensor:
    """Return ``view`` of the bytes (uint8) of a stored tensor from the view's first byte to the end of its last."""
    width = itemsize(view.dtype)
    strides: list[int] = []
    stride = 1
    for n in reversed(view.factors):
        strides.insert(0, stride)
        stride *= n
    sizes = tuple(b - a for a, b in view.box)
    return _ordered(
        view, torch.as_strided(span[: span.numel() // width * width].view(TORCH[view.dtype]), sizes, strides)
    )


def _ordered(view: Stored, box: torch.Tensor) -> torch.Tensor:
    dropped = [d for d in range(len(view.factors)) if d not in view.order]
    return box.permute(*view.order, *dropped).reshape(view.shape) if dropped else box.permute(*view.order)


def evaluate(e: Expression, operands: Iterator[torch.Tensor]) -> torch.Tensor:
    """Return the values of a piece's source; ``operands`` are its views of stored tensors, left to right."""
    match e:
        case Stored():
            return next(operands)
        case Cast():
            return evaluate(e.operand, operands).to(TORCH[e.dtype])
        case Decode():
            return dequantise(e.format, [evaluate(o, operands) for o in e.operands], e.shape, e.origin)
        case Reorder():
            values = evaluate(e.operand, operands)
            apart = values.view(*e.shape[: e.dim], -1, *e.grid, *e.shape[e.dim + 1 :])
            return apart.transpose(e.dim + 1, e.dim + 2).reshape(e.shape)
        case Fill():
            return torch.full(e.shape, e.value, dtype=TORCH[e.dtype])
        case _:
            raise AssertionError(f"{type(e).__name__} is not a source")


def write(target: torch.Tensor, e: Expression, operands: Iterator[torch.Tensor], *, with_kernels: bool = False) -> None:
    """Write the values of a piece's source to a part of a parameter; on a GPU in one pass, ``with_kernels`` that have it.

    The bits are the same either way.
    """
    decode = e.operand if isinstance(e, Cast) else e
    if with_kernels and isinstance(decode, Decode) and decode.format.name == "fp8_block" and target.dim() == 2:
        values, scale = (evaluate(o, operands) for o in decode.operands)
        if target.stride(1) == 1 and values.stride(1) == 1:
            rows, columns = decode.format.block
            phase = (decode.origin[0] % rows, decode.origin[1] % columns)
            fp8_dequantise.dequantise_blocks_into(target, values, scale, (rows, columns), phase)
            return
        operands = iter((values, scale))
    target.copy_(evaluate(e, operands))


def span_bytes(views: Sequence[Stored]) -> int:
    """Return the bytes of all spans under a source, each rounded up to 16 so that any dtype is aligned."""
    return sum(-(-strided_run(v.factors, v.box, itemsize(v.dtype)).span // 16) * 16 for v in views)


@contextmanager
def naming(rank: int, name: str) -> Iterator[None]:
    """Say in an error of the arithmetic which tensor of which rank it is about.

    Raises:
        LoadError: instead of the ValueError that `dequantise` raises.
    """
    try:
        yield
    except ValueError as error:
        raise LoadError(f"rank {rank}: {name}: {error}", hint="no part of the model was loaded") from error


@dataclass(frozen=True, slots=True)
class Operand:
    """A view under a source, to be read: ``span`` bytes of a stored ``tensor``, from ``start`` of its file on.

    ``at`` is their offset in memory that holds all operands of the source, each aligned for any dtype.
    """

    view: Stored
    tensor: int
    file: int
    start: int
    at: int
    span: int

    @property
    def end(self) -> int:
        """The offset of the next operand in that memory."""
        return self.at + -(-self.span // 16) * 16


def operands_of(part: Expression, group: MoveGroup, place: int, table: TensorTable) -> list[Operand]:
    """Return the operands of (a part of) a group's source at one of its places, left to right."""
    made: list[Operand] = []
    for view, tensor in zip(leaves(part), group.tensors[place].tolist(), strict=True):
        run = strided_run(view.factors, view.box, itemsize(view.dtype))
        at = made[-1].end if made else 0
        start = int(table.start[tensor]) + run.offset
        made.append(Operand(view, tensor, int(table.file[tensor]), start, at, run.span))
    return made


def slabs(source: Expression, limit: int) -> Iterator[tuple[Region, Expression]]:
    """Cut a source into regions whose operands take at most ``limit`` bytes of staging each.

    A region is halved along the dim that makes the spans shortest: the first, or the last of what is stored transposed.
    """

    def halves(region: Region, dim: int) -> tuple[Region, Region]:
        a, b = region[dim]
        middle = a + -(-(b - a) // (2 * words[dim])) * words[dim]
        return (*region[:dim], (a, middle), *region[dim + 1 :]), (*region[:dim], (middle, b), *region[dim + 1 :])

    def num_bytes(region: Region) -> int:
        return span_bytes(tuple(leaves(restrict(source, region))))

    def cut(region: Region) -> Iterator[tuple[Region, Expression]]:
        if num_bytes(region) <= limit:
            yield region, restrict(source, region)
            return
        divisible = [halves(region, d) for d, (a, b) in enumerate(region) if b - a > words[d]]
        assert divisible, "one element is larger than the staging memory"
        for half in min(divisible, key=lambda two: num_bytes(two[0])):
            yield from cut(half)

    words = _words(source)
    yield from cut(whole(source.shape))


def _words(source: Expression) -> tuple[int, ...]:
    """Return for each dim how many elements must not be split: a packed word, or what is reordered together."""
    match source:
        case Cast():
            return _words(source.operand)
        case Reorder():
            words = _words(source.operand)
            return (*words[: source.dim], lcm(words[source.dim], source.width), *words[source.dim + 1 :])
        case Decode():
            return tuple(source.format.exact_span(d) for d in range(len(source.shape)))
        case _:
            return (1,) * len(source.shape)


Tensors = Mapping[str, torch.Tensor]
"""A rank's parameters by name."""


def fill(tensors: Tensors, derived: RankPlan, group: MoveGroup) -> None:
    """Write a constant to all places of a group."""
    source = group.piece.source
    for place in range(len(group.params)):
        destination(tensors, derived, group, place, whole(source.shape)).copy_(evaluate(source, iter(())))


def destination(tensors: Tensors, derived: RankPlan, group: MoveGroup, place: int, region: Region) -> torch.Tensor:
    """Return the part of a parameter that ``region`` of a group's source fills, at one of its places, in the source's dtype.

    An engine may call the same bits otherwise (`Held`).
    """
    param = tensors[derived.specs[group.params[place]].name].view(TORCH[group.piece.source.dtype])
    if group.piece.ids is not None:
        param = param[int(group.slots[place])]
    return param[tuple(slice(a + c, a + d) for (a, _), (c, d) in zip(group.box, region, strict=True))]
