"""Which of the spellings that a family is published in a checkpoint has, by the names and shapes in its headers."""

from __future__ import annotations

from collections.abc import Sequence

from loadmaster.architectures.items import Item, items, layer_items
from loadmaster.architectures.schema import Family, Schema
from loadmaster.architectures.spelling import Spelling
from loadmaster.checkpoint import TensorTable
from loadmaster.plan.classes import TOP


def spelling_of(table: TensorTable, family: Family, schema: Schema) -> Spelling:
    """Return the spelling that names, and gives the shape of, most of what a first layer of each kind stores.

    Where none does, it is the usual one. Shapes tell stacks of experts that are stored (in, out) from those (out, in).
    """
    if not family.variants:
        return family.spelling
    firsts = [schema.layers.index(kind) for kind in dict.fromkeys(schema.layers)]

    def score(spelling: Spelling) -> int:
        of_layers = (_fit(table, layer_items(schema, layer, spelling), layer) for layer in firsts)
        return _fit(table, items(schema.top, spelling), TOP) + sum(of_layers)

    return max(family.spellings, key=score)


def draft_spelling_of(table: TensorTable, family: Family, schema: Schema) -> Spelling | None:
    """Return the spelling of MTP layers that fits best; None where they are spelled as the others."""
    if len(family.drafts) < 2 or not schema.drafts:
        return family.draft_spelling()
    layer = len(schema.layers)
    return max(family.drafts, key=lambda s: _fit(table, layer_items(schema, layer, family.spelling, s), layer))


def _fit(table: TensorTable, stored: Sequence[Item], layer: int) -> int:
    """Return how well items fit what is stored of a layer: a point for each name, and one for each shape."""
    points = 0
    wanted = [(item, suffix) for suffix in ("weight", "weight_packed", "_blocks", "qweight") for item in stored]
    numbers = table.names.find([item.stored_name(suffix, layer, 0) for item, suffix in wanted])
    for (item, _), number in zip(wanted, numbers.tolist(), strict=True):
        if number >= 0:
            signature = table.signatures[table.signature[number]]
            points += 2 if signature.shape == item.plain_shape else 1
    return points
