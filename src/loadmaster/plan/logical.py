"""A logical tensor as an expression over what is stored: decoded, with the order of rows that the model has, not placed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from loadmaster.architectures.algebra import Expression, Leaf, concat, decode, reorder, restrict, stored, whole
from loadmaster.architectures.items import Item
from loadmaster.architectures.schema import Tensor
from loadmaster.architectures.views import permute
from loadmaster.errors import ConfigError
from loadmaster.formats import Component, Format
from loadmaster.plan.forms import StoredForm


def view(item: Item, form: StoredForm, part: Tensor) -> Expression:
    """Return one logical tensor as it is stored: decoded where it is quantised, and not placed.

    Where the item is a stack of experts, so is the result. Rows of heads that are stored pair by pair are in the model's order.
    """
    e = _stored_part(item, form, part)
    return reorder(e, 0, (pairs_of(part), 2)) if item.pairs and part.head else e


def pairs_of(tensor: Tensor) -> int:
    """Return how many pairs of rows a head has.

    Raises:
        ConfigError: the number of its rows is odd.
    """
    if tensor.head % 2:
        raise ConfigError(
            f"config.json: heads of {tensor.name} have {tensor.head} rows, expected an even number: rotary embeddings turn pairs "
            "of rows"
        )
    return tensor.head // 2


def _stored_part(item: Item, form: StoredForm, part: Tensor) -> Expression:
    if form.format is None:
        leaf = Leaf(f"{item.key}/weight", form.dtype, item.plain_dims, item.by_expert)
        dims = range(len(item.plain_dims))
        e = permute(stored(leaf), (*dims[:-2], dims[-1], dims[-2])) if item.is_transposed else _rows(item, leaf)
        return _part_of(item, e, part)
    format_ = item.stored_in(form.format)
    leaves = (
        (c, Leaf(f"{item.key}/{c.suffix}", dtype, item.component_dims(c), item.by_expert))
        for c, dtype in zip(format_.components, form.dtypes, strict=True)
    )
    operands = tuple(stored(leaf) if c.is_scalar else _rows(item, leaf) for c, leaf in leaves)
    if item.numbers_each and item.stacked:
        operands = _with_numbers_of(part, item, form.format, operands)
        format_ = form.format.stacked()
    if not item.apart:
        return _part_of(item, decode(format_, operands, item.shape), part)
    groups = (decode(format_, _of_group(item, format_, operands, g), item.group) for g in range(item.groups))
    rows = (item.rows(part.name), *whole(item.group[1:]))
    return concat(0, tuple(restrict(group, rows) for group in groups))


def _rows(item: Item, leaf: Leaf) -> Expression:
    """Return all rows of a stored tensor, or of the slices that it is stored in, one after another."""
    if not item.first.slices:
        return stored(leaf)
    return concat(0, tuple(stored(replace(leaf, slice=number)) for number in range(item.first.slices)))


def _part_of(item: Item, e: Expression, part: Tensor) -> Expression:
    """Return the rows of an item that a part takes; where there are groups, those of each, one after another."""
    if not item.is_cut(part.name):
        return e
    along = 1 if item.stacked else 0
    before, after = whole(e.shape[:along]), whole(e.shape[along + 1 :])
    return concat(along, tuple(restrict(e, (*before, rows, *after)) for rows in item.runs(part.name)))


def _with_numbers_of(
    part: Tensor, item: Item, format_: Format, operands: Sequence[Expression]
) -> tuple[Expression, ...]:
    """Return the components of a stack with the numbers of one part, where each part has its own."""
    number = next(i for i, t in enumerate(item.parts) if t.name == part.name)

    def own(component: Component, operand: Expression) -> Expression:
        region = (*whole(operand.shape[:-1]), (number, number + 1))
        return restrict(operand, region) if component.is_scalar else operand

    return tuple(own(c, o) for c, o in zip(format_.components, operands, strict=True))


def _of_group(item: Item, format_: Format, operands: Sequence[Expression], group: int) -> tuple[Expression, ...]:
    """Return the components of one of the groups that are encoded apart: those without an out dim hold for all groups."""

    def share(component: Component, operand: Expression) -> Expression:
        region = list(whole(operand.shape))
        for d, grain in enumerate(component.grains):
            if grain.dim == 0:
                rows = operand.shape[d] // item.groups
                region[d] = (group * rows, (group + 1) * rows)
        return restrict(operand, tuple(region))

    return tuple(share(c, o) for c, o in zip(format_.components, operands, strict=True))
