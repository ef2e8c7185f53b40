"""Zeros that fill up parameters: where a dim does not divide, and where an engine's kernels need larger sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from loadmaster.architectures.algebra import Concat, Decode, Expression, Fill, Shard
from loadmaster.architectures.schema import Param, Tensor
from loadmaster.errors import UnsupportedError

ExpertSizes: TypeAlias = tuple[int, int]
"""The hidden and the inner elements of each expert on a rank, including the zeros after those of the model."""


def next_size(e: Expression, param: Param) -> Expression:
    """Return what a rank holds of a parameter, filled up to the next of its sizes, or to a multiple of the last."""
    rows = e.shape[0]
    more = next((size - rows for size in param.sizes if size >= rows), -rows % param.sizes[-1] if param.sizes else 0)
    return Concat(0, (e, Fill((more, *e.shape[1:]), e.dtype, param.filler))) if more else e


def with_zeros(e: Expression, tensor: Tensor, dim: int, size: int) -> Expression:
    """Return ``e``, a view of ``tensor``, with ``size`` zeros after it along ``dim``; they are encoded where ``e`` is."""
    return _followed(e, tensor.name, dim, size, e.shape)


def with_room(e: Expression, tensor: Tensor, lead: int, shares: int, sizes: ExpertSizes | None) -> Expression:
    """Return a tensor of experts, filled up with zeros to ``sizes`` on each rank.

    A dim with a placement becomes ``inner`` units, whether ``shares`` ranks divide it or each rank has whole experts
    (``shares`` is 1); every other dim becomes ``hidden`` elements. ``lead`` dims of ``e`` come before those of ``tensor``.

    Raises:
        UnsupportedError: a dim is larger than its size, or zeros cannot follow in the tensor's format.
    """
    if sizes is None:
        return e
    placement, (hidden, inner) = tensor.placement, sizes
    shape = list(e.shape)
    if placement is not None:
        shape[placement.dim + lead] //= shares
    for dim in range(len(tensor.shape)):
        size = inner * placement.unit if placement is not None and dim == placement.dim else hidden
        more = size - shape[dim + lead]
        if more < 0:
            raise UnsupportedError(
                f"{tensor.name} has {shape[dim + lead]} elements of dim {dim} on a rank, and room for {size}"
            )
        if more:
            e = _followed(e, tensor.name, dim + lead, more, shape)
            shape[dim + lead] = size
    return e


def _followed(e: Expression, name: str, dim: int, size: int, shape: Sequence[int]) -> Expression:
    """Return ``e`` with ``size`` zeros after it along ``dim``; ``shape`` is that of ``e`` on a rank."""
    filled = (*shape[:dim], size, *shape[dim + 1 :])
    encoded = _encoded(e)
    if encoded is None:
        return Concat(dim, (e, Fill(filled, e.dtype, 0.0)))
    format_ = encoded.format
    spans = [g.span for c in format_.components for g in c.grains if g.dim == dim and g.kind != "inner"]
    if not format_.zero_filled or any(shape[dim] % span or size % span for span in spans):
        raise UnsupportedError(f"{name}: {size} zeros cannot follow {shape[dim]} elements in {format_.name}")
    operands = zip(format_.components, encoded.operands, strict=True)
    fills = tuple(Fill(component.shape(filled), operand.dtype, 0.0) for component, operand in operands)
    origin = tuple(o + (n if d == dim else 0) for d, (o, n) in enumerate(zip(encoded.origin, shape, strict=True)))
    return Concat(dim, (e, Decode(format_, fills, filled, origin)))


def _encoded(e: Expression) -> Decode | None:
    """Return the values whose format ``e`` has; None where it is not encoded."""
    match e:
        case Decode():
            return e
        case Shard():
            return _encoded(e.operand)
        case Concat():
            return _encoded(e.parts[0])
        case _:
            return None
