"""The tables alone: whether they agree with one another for a config, and which stored names they give for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from loadmaster.architectures.config import Config
from loadmaster.architectures.faults import spelling_labels, table_faults
from loadmaster.architectures.items import Item, items
from loadmaster.architectures.registry import FAMILIES, language_config
from loadmaster.architectures.schema import Family, Schema
from loadmaster.errors import LoadmasterError
from loadmaster.testing.faults import expect_none

Shapes = dict[str, tuple[int, ...]]
"""Stored name → shape."""


def check_tables(family: Family, config: Mapping[str, Any]) -> None:
    """Check that the tables agree with one another for ``config``, a config.json of any size.

    Every logical tensor is spelled, in every spelling, and makes up exactly one native parameter; no spelled name is
    unknown to the other tables; no two tensors of any layers or experts share a stored name; what is packed or fused fits
    together; what is divided has the dim and the unit; nothing needed is waived; no architecture is taken.

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
        schema = family.schema(Config(language_config(family, config)))
        described |= {t.name for tensors in (schema.top, *schema.kinds.values()) for t in tensors}
    return frozenset(name for spelling in family.spellings for name in spelling if name not in described)


def stored_shapes(family: Family, config: Mapping[str, Any], spelling: int = 0, *, drafts: bool = True) -> Shapes:
    """Return every tensor that a checkpoint of ``config`` stores, unquantised, as the tables say.

    ``spelling`` numbers the family's spellings, 0 being the usual one. ``drafts``: with those of the MTP layers.
    """
    schema = family.schema(Config(language_config(family, config)))
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
        schema = family.schema(Config(language_config(family, config)))
    except LoadmasterError as error:
        yield f"schema: it refuses this config: {error.message}"
        return
    except Exception as error:
        yield f"schema: it fails on this config: {type(error).__name__}: {error}"
        return
    found = table_faults(family, schema)
    yield from found
    if not found:
        for number, label in enumerate(spelling_labels(family)):
            yield from (f"{label}: {fault}" for fault in _shared_names(family, schema, number))


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
