"""Checks that a family's tables agree with one another for a config, and lists the stored names that they give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from loadmaster.architectures.faults import spelling_labels, table_faults
from loadmaster.architectures.items import Item, items, layer_items
from loadmaster.architectures.registry import FAMILIES
from loadmaster.architectures.schema import Family, Schema, Tensor
from loadmaster.errors import LoadmasterError
from loadmaster.testing.faults import expect_none

Shapes = dict[str, tuple[int, ...]]
"""Stored name → shape."""


def check_tables(family: Family, config: Mapping[str, Any]) -> None:
    """Check that the tables agree with one another for ``config``, a config.json of any size.

    Every spelling names every logical tensor, and each is part of exactly one native parameter; spellings name no other
    tensors; no two tensors share a stored name; shapes of packed and fused tensors fit together; divided tensors have the
    dim and the unit; outputs divided along the out dim are consumed along the in dim (where tensors have the names of the
    shared blocks); no needed tensor is waived; no other family has the architecture.

    Raises:
        FamilyFaults: they do not agree.
    """
    expect_none(family.name, _faults(family, config))


def unreached(family: Family, *configs: Mapping[str, Any]) -> frozenset[str]:
    """Return the spelled logical names that the schema has for none of ``configs``.

    The shared blocks spell more than each family needs, such as biases. With a config of every published model, only such
    names should be returned; a tensor that is missing in the schema is returned too.
    """
    described = set()
    for config in configs:
        schema = family.schema(family.describe(config))
        described |= {t.name for tensors in (schema.top, *schema.kinds.values()) for t in tensors}
    return frozenset(name for spelling in family.spellings for name in spelling if name not in described)


def stored_shapes(
    family: Family, config: Mapping[str, Any], spelling: int = 0, *, drafts: bool = True, optional: bool = True
) -> Shapes:
    """Return every tensor of an unquantised checkpoint of ``config``, by the tables.

    ``spelling`` is the number of one of the family's spellings; 0 is the usual one. ``drafts``: include MTP layers;
    ``optional``: include tensors that a checkpoint may lack.
    """
    schema = family.schema(family.describe(config))
    shapes: Shapes = {}
    for layer, item, names in _stored(family, schema, spelling):
        if (drafts or layer < len(schema.layers)) and (optional or item.first.optional is None):
            shapes.update(dict.fromkeys(names, item.plain_shape))
    return shapes


def _stored(family: Family, schema: Schema, spelling: int) -> Iterator[tuple[int, Item, list[str]]]:
    """Yield layer (-1: none) and item of every stored tensor, with its names: one, or one for each expert or slice."""
    body, drafts = family.spellings[spelling], family.draft_spelling(spelling)
    for layer in range(-1, len(schema.layers) + len(schema.drafts)):
        for item in items(schema.top, body) if layer < 0 else layer_items(schema, layer, body, drafts):
            members = range(item.members) if item.members else (None,)
            yield layer, item, [item.stored_name("weight", layer, member) for member in members]


def _faults(family: Family, config: Mapping[str, Any]) -> Iterator[str]:
    names = config.get("architectures")
    if not family.architectures:
        yield "family: it names no architecture"
    elif not isinstance(names, list) or names[:1] != [n for n in names[:1] if n in family.architectures]:
        yield f"family: the config names {names}, but the family describes {', '.join(family.architectures)}"
    for other in FAMILIES:
        shared = sorted(set(other.architectures) & set(family.architectures))
        if shared and other != family:
            yield f"family: {shared[0]} already belongs to loadmaster's family {other.name!r}, which is looked up first"
    try:
        schema = family.schema(family.describe(config))
    except LoadmasterError as error:
        yield f"schema: it refuses this config: {error.message}"
        return
    except Exception as error:
        yield f"schema: it fails on this config: {type(error).__name__}: {error}"
        return
    faults = table_faults(family, schema)
    yield from faults
    if isinstance(schema, Schema):
        yield from _flow_faults(schema)
    if not faults:
        for number, label in enumerate(spelling_labels(family)):
            yield from (f"{label}: {fault}" for fault in _shared_names(family, schema, number))


YIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "o": ("q", "q_b", "q_direct"),
    "out": ("qkvz", "v", "z"),
    "down": ("gate", "up", "gate_up"),
}
"""In a module (``attn.``, ``mlp.``): last word of a logical name → last words of the tensors whose outputs it consumes."""


def _flow_faults(schema: Schema) -> Iterator[str]:
    """Yield placements that do not match: a row-parallel product must consume what a column-parallel one yields.

    Only the names in `loadmaster.architectures.blocks` are known; tensors with other names are not checked.
    """
    for tensors in dict.fromkeys((*schema.kinds.values(),)):
        by_name = {t.name: t for t in tensors}
        for consumer in tensors:
            module, _, word = consumer.name.rpartition(".")
            producers = (by_name.get(f"{module}.{name}") for name in YIELDS.get(word, ()))
            for producer in (t for t in producers if t is not None and len(t.shape) == len(consumer.shape) == 2):
                out, into = _parts(producer, 0), _parts(consumer, 1)
                if (out is None) != (into is None):
                    yield (
                        f"schema: {producer.name} is {'not ' if out is None else ''}divided along its out dim, but "
                        f"{consumer.name}, which consumes it, is {'not ' if into is None else ''}divided along its in dim"
                    )
                elif out != into:
                    yield (
                        f"schema: {producer.name} is divided in {out} units along its out dim, but {consumer.name}, which "
                        f"consumes it, in {into} along its in dim"
                    )


def _parts(t: Tensor, dim: int) -> int | None:
    """Return the number of units of a tensor divided along ``dim``; None where it is not divided."""
    p = t.placement
    return None if p is None or p.dim != dim else t.shape[dim] // p.unit


def _shared_names(family: Family, schema: Schema, spelling: int) -> Iterator[str]:
    """Yield the first stored name that two tensors share."""
    holders: dict[str, tuple[int, Item, int]] = {}
    for layer, item, names in _stored(family, schema, spelling):
        for member, name in enumerate(names):
            holder = layer, item, member
            if name in holders:
                yield f"{_named(*holders[name])} and {_named(*holder)} are both stored as {name}"
                return
            holders[name] = holder


def _named(layer: int, item: Item, member: int) -> str:
    owner = "the model itself" if layer < 0 else f"layer {layer}"
    return f"{item.key} of {owner}" + (f", expert {member}" if item.members else "")
