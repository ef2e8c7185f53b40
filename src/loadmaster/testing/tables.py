"""The tables alone: whether they agree with one another for a config, and which stored names they give for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from loadmaster.architectures.faults import spelling_labels, table_faults
from loadmaster.architectures.items import Item, items
from loadmaster.architectures.registry import FAMILIES
from loadmaster.architectures.schema import Family, Schema, Tensor
from loadmaster.errors import LoadmasterError
from loadmaster.testing.faults import expect_none

Shapes = dict[str, tuple[int, ...]]
"""Stored name → shape."""


def check_tables(family: Family, config: Mapping[str, Any]) -> None:
    """Check that the tables agree with one another for ``config``, a config.json of any size.

    Every logical tensor is spelled, in every spelling, and makes up exactly one native parameter; no spelled name is
    unknown to the other tables; no two tensors of any layers or experts share a stored name; what is packed or fused fits
    together; what is divided has the dim and the unit; what is divided along the out dim is consumed along the in dim
    (where tensors are named as the shared blocks name them); nothing needed is waived; no architecture is taken.

    Raises:
        FamilyFaults: they don't.
    """
    expect_none(family.name, _faults(family, config))


def unreached(family: Family, *configs: Mapping[str, Any]) -> frozenset[str]:
    """Return the spelled logical names that the schema has for none of ``configs``.

    Blocks that families share spell more than each of them needs, such as biases. What is left here after a config of
    every published model should be just that: a name that is missing in the schema is left as well.
    """
    described = set()
    for config in configs:
        schema = family.schema(family.describe(config))
        described |= {t.name for tensors in (schema.top, *schema.kinds.values()) for t in tensors}
    return frozenset(name for spelling in family.spellings for name in spelling if name not in described)


def stored_shapes(family: Family, config: Mapping[str, Any], spelling: int = 0, *, drafts: bool = True) -> Shapes:
    """Return every tensor that a checkpoint of ``config`` stores, unquantised, as the tables say.

    ``spelling`` numbers the family's spellings, 0 being the usual one. ``drafts``: with those of the MTP layers.
    """
    schema = family.schema(family.describe(config))
    return {
        item.stored_name("weight", layer, expert): item.plain_shape
        for layer, expert, item in _stored(family, schema, spelling)
        if drafts or layer < len(schema.layers)
    }


def _stored(family: Family, schema: Schema, spelling: int) -> Iterator[tuple[int, int | None, Item]]:
    """Yield layer (-1: the model itself), expert and item of every stored tensor."""
    kinds = enumerate((*schema.layers, *schema.drafts))
    for layer, tensors in [(-1, schema.top), *((layer, schema.kinds[kind]) for layer, kind in kinds)]:
        for item in items(tensors, family.spellings[spelling]):
            for expert in range(item.members) if item.members else (None,):
                yield layer, expert, item


def _faults(family: Family, config: Mapping[str, Any]) -> Iterator[str]:
    names = config.get("architectures")
    if not family.architectures:
        yield "family: it describes no architecture"
    elif not isinstance(names, list) or names[:1] != [n for n in names[:1] if n in family.architectures]:
        yield f"family: the config is of {names}, and it describes {', '.join(family.architectures)}"
    for other in FAMILIES:
        taken = sorted(set(other.architectures) & set(family.architectures))
        if taken and other != family:
            yield f"family: {taken[0]} is taken by loadmaster's own family {other.name!r}, which is looked up first"
    try:
        schema = family.schema(family.describe(config))
    except LoadmasterError as error:
        yield f"schema: it refuses this config: {error.message}"
        return
    except Exception as error:
        yield f"schema: it fails on this config: {type(error).__name__}: {error}"
        return
    found = table_faults(family, schema)
    yield from found
    if isinstance(schema, Schema):
        yield from _flow_faults(schema)
    if not found:
        for number, label in enumerate(spelling_labels(family)):
            yield from (f"{label}: {fault}" for fault in _shared_names(family, schema, number))


YIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "o": ("q", "q_b"),
    "out": ("qkvz",),
    "down": ("gate", "up", "gate_up"),
}
"""Within a module (``attn.``, ``mlp.``): last word of a logical name → those of the tensors whose outputs it consumes."""


def _flow_faults(schema: Schema) -> Iterator[str]:
    """Yield placements that do not meet: what a column-parallel product yields, a row-parallel one consumes.

    Only the names that `loadmaster.architectures.blocks` uses are known, so this finds nothing where others are used.
    """
    for tensors in dict.fromkeys((*schema.kinds.values(),)):
        by_name = {t.name: t for t in tensors}
        for consumer in tensors:
            module, _, word = consumer.name.rpartition(".")
            made = (by_name.get(f"{module}.{name}") for name in YIELDS.get(word, ()))
            for producer in (t for t in made if t is not None and len(t.shape) == len(consumer.shape) == 2):
                out, into = _parts(producer, 0), _parts(consumer, 1)
                if (out is None) != (into is None):
                    yield (
                        f"schema: {producer.name} is {'not ' if out is None else ''}divided along its out dim, and "
                        f"{consumer.name}, which consumes it, is {'not ' if into is None else ''}divided along its in dim"
                    )
                elif out != into:
                    yield (
                        f"schema: {producer.name} is divided in {out} units along its out dim, and {consumer.name}, which "
                        f"consumes it, in {into} along its in dim"
                    )


def _parts(t: Tensor, dim: int) -> int | None:
    """Return in how many units a tensor is divided along ``dim``; None where it is not."""
    p = t.placement
    return None if p is None or p.dim != dim else t.shape[dim] // p.unit


def _shared_names(family: Family, schema: Schema, spelling: int) -> Iterator[str]:
    """Yield the first stored name that stands for two tensors."""
    holders: dict[str, str] = {}
    for layer, expert, item in _stored(family, schema, spelling):
        name = item.stored_name("weight", layer, expert)
        place = "the model itself" if layer < 0 else f"layer {layer}"
        holder = f"{item.key} of {place}" + (f", expert {expert}" if expert is not None else "")
        if name in holders:
            yield f"{holders[name]} and {holder} are both stored as {name}"
            return
        holders[name] = holder
