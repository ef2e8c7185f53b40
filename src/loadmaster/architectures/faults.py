"""Check a family's three tables, without a checkpoint. Each fault is a sentence that names the table.

The tables have to agree with one another: every logical tensor of the schema is spelled, and is part of exactly one
parameter of the native target; the parts of one stored tensor, or of one parameter, fit together.
`loadmaster.testing` compares the tables with checkpoints and with transformers.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Set
from string import Formatter

from loadmaster.architectures.schema import Carried, Family, Param, Placement, Schema, Tensor
from loadmaster.architectures.spelling import Packed, Spelling
from loadmaster.dtypes import DTYPES

Kinds = dict[str, dict[str, Tensor]]
"""The model itself (``top``) and each kind of layer in use → its logical tensors by name."""

TOP = "top"


def fatal_faults(family: Family, schema: Schema) -> tuple[str, ...]:
    """Return the faults that prevent every plan of the family."""
    wrong_schema = tuple(_schema_faults(schema))
    if wrong_schema:
        return wrong_schema  # the other checks would repeat these
    kinds = kinds_in_use(schema)
    drafts = {kind: kinds[kind] for kind in schema.drafts} if family.drafts else {}
    body = {kind: tensors for kind, tensors in kinds.items() if kind not in drafts or kind in schema.layers}
    named = zip(spelling_labels(family), family.spellings, strict=True)
    of_drafts = ((f"drafts[{i}]", spelling) for i, spelling in enumerate(family.drafts))
    once = {kind for kind in drafts if schema.drafts.count(kind) == 1}
    return (
        *(fault for label, spelling in named for fault in _spelling_faults(label, spelling, body)),
        *(fault for label, spelling in of_drafts for fault in _spelling_faults(label, spelling, drafts, once)),
        *_native_faults(family.native, kinds),
    )


def table_faults(family: Family, schema: Schema) -> tuple[str, ...]:
    """Return all faults of the tables for one config's schema."""
    fatal = fatal_faults(family, schema)
    more = () if fatal else (*_waiver_faults(family, schema), *_cut_faults(schema))
    return (*fatal, *more, *_unknown_faults(family, schema))


def kinds_in_use(schema: Schema) -> Kinds:
    """Return the tensors of the model itself and of each kind that some layer has, by their logical names."""
    used = dict.fromkeys((*schema.layers, *schema.drafts))
    return {TOP: {t.name: t for t in schema.top}, **{k: {t.name: t for t in schema.kinds[k]} for k in used}}


def spelling_labels(family: Family) -> tuple[str, ...]:
    """Return the names of the family's spellings in sentences, in order."""
    return ("spelling", *(f"variants[{i}]" for i in range(len(family.variants))))


# The schema -----------------------------------------------------------------------------------------------------------


def _schema_faults(schema: Schema) -> Iterator[str]:
    if not isinstance(schema, Schema):
        yield f"schema: it returns {type(schema).__name__}, expected a Schema"
        return
    for layer, kind in enumerate((*schema.layers, *schema.drafts)):
        if kind not in schema.kinds:
            yield f"schema: layer {layer} is of the kind {kind!r}, and kinds has {', '.join(schema.kinds) or 'none'}"
            return
    if not schema.layers:
        yield "schema: the model has no layers"
    if schema.blocks_a_draft < 1 or len(schema.drafts) % schema.blocks_a_draft:
        yield f"schema: a draft has {schema.blocks_a_draft} blocks, and there are {len(schema.drafts)} blocks of drafts"
    top_names = {t.name for t in schema.top}
    for kind in (TOP, *dict.fromkeys((*schema.layers, *schema.drafts))):
        tensors = schema.top if kind == TOP else schema.kinds[kind]
        for name, count in Counter(t.name for t in tensors).items():
            if count > 1:
                yield f"schema: {_of(kind)} has {name} {count} times"
            if kind != TOP and name in top_names:
                yield f"schema: {name} is a tensor of the model itself and of {_of(kind)}"
        for tensor in tensors:
            yield from _tensor_faults(tensor, kind)


def _tensor_faults(t: Tensor, kind: str) -> Iterator[str]:
    if not t.shape or any(type(n) is not int or n < 1 for n in t.shape):
        yield f"schema: {t.name} has the shape {list(t.shape)}, expected sizes of at least 1"
        return
    if t.experts and kind == TOP:
        yield f"schema: {t.name} is a tensor of the model itself, and has experts"
    if t.quantised and len(t.shape) != 2:
        yield f"schema: {t.name} may be quantised, which weights [out, in] are, and its shape is {list(t.shape)}"
    if t.spare < 0 or (t.spare and (t.quantised or t.experts)):
        yield f"schema: {t.name} has {t.spare} spare rows; only a tensor that is not quantised and has no experts may have some"
    if t.slices:
        yield from _slice_faults(t)
    if t.head:
        yield from _head_faults(t)
    if t.placement is not None:
        yield from _placement_faults(t, t.placement)


def _head_faults(t: Tensor) -> Iterator[str]:
    unit = t.placement.unit if t.placement and t.placement.dim == 0 else t.head
    if t.head < 0 or t.shape[0] % t.head or unit % t.head or t.experts or t.spare or t.slices:
        yield (
            f"schema: {t.name} {list(t.shape)} has heads of {t.head} rows, divided in units of {unit}; its rows and units must "
            "be whole heads, and it must have no experts, spare rows or slices"
        )


def _slice_faults(t: Tensor) -> Iterator[str]:
    if t.slices < 0 or t.shape[0] % t.slices or t.experts or t.spare:
        yield (
            f"schema: {t.name} {list(t.shape)} is stored in {t.slices} slices; only a tensor without experts and spare rows may "
            "be, in slices of equally many rows"
        )
    spans = [g.span for f in t.formats or () for c in f.components for g in c.grains if g.dim == 0]
    if t.quantised and (t.formats is None or {*spans} - {1}):
        yield f"schema: {t.name} is stored in slices, so it needs its own `formats`, whose factors span one row, or all"


def _placement_faults(t: Tensor, p: Placement) -> Iterator[str]:
    if not 0 <= p.dim < len(t.shape):
        yield f"schema: {t.name} is divided along dim {p.dim}, and its shape is {list(t.shape)}"
    elif p.unit < 1 or t.shape[p.dim] % p.unit:
        yield f"schema: {t.name} is divided in units of {p.unit}, and dim {p.dim} has {t.shape[p.dim]} elements"
    elif p.pad is not None and (p.pad < 1 or p.pad % p.unit or p.repeat):
        yield (
            f"schema: {t.name} is padded to multiples of {p.pad}, expected multiples of its unit, {p.unit}, and no padding "
            "where units are repeated"
        )


def _cut_faults(schema: Schema) -> Iterator[str]:
    for name, given in (("carries", schema.carries), ("joined", schema.joined), ("passes", schema.passes)):
        if given and len(given) != len(schema.layers):
            yield f"schema: {name} is given for {len(given)} layers, and there are {len(schema.layers)}"
    if strange := [f for fields in schema.carries for f in fields if not isinstance(f, Carried)]:
        yield f"schema: carries has {strange[0]!r}, expected a Carried: what crosses a cut has a name and a shape"
        return
    if schema.carries and schema.carries[0]:
        needs = ", ".join(f.name for f in schema.carries[0])
        yield f"schema: layer 0 needs {needs} from an earlier layer, and there is none"
    if schema.joined and schema.joined[0]:
        yield f"schema: no stage can begin at layer 0, where the first one does: {schema.joined[0]}"
    for f in dict.fromkeys(f for fields in schema.carries for f in fields):
        if not f.shape or any(type(n) is not int or n < 1 for n in f.shape):
            yield f"schema: {f.name} crosses cuts in the shape {list(f.shape)}, expected sizes of at least 1"
        if f.dtype is not None and f.dtype not in DTYPES:
            yield f"schema: {f.name} crosses cuts as {f.dtype!r}, which is not the name of a number format"


# The spelling ---------------------------------------------------------------------------------------------------------


def _spelling_faults(label: str, spelling: Spelling, kinds: Kinds, once: Set[str] = frozenset()) -> Iterator[str]:
    """Yield the faults of a spelling; ``once`` are the kinds of a single layer, whose names may do without its number."""
    for kind, tensors in kinds.items():
        numbered = {0, 1} if kind in once else {1}
        stored: dict[str, list[str]] = defaultdict(list)
        for t in tensors.values():
            spelled = spelling.get(t.name)
            if spelled is None:
                yield f"{label}: {t.name} ({_of(kind)}) has no stored name"
                continue
            yield from (f"{label}: {fault}" for fault in _name_faults(t, spelled, kind, numbered))
            if isinstance(spelled, Packed):
                yield from (f"{label}: {fault}" for fault in _packed_faults(t, spelled, spelling, tensors, kind))
            stored[spelled if isinstance(spelled, str) else spelled.name].append(t.name)
        for name, holders in stored.items():
            first = spelling[holders[0]]
            if len(holders) > 1 and not (isinstance(first, Packed) and set(holders) <= set(first.parts)):
                yield f"{label}: {' and '.join(holders)} are all stored as {name}; use `packed` for the parts of one tensor"


def _name_faults(t: Tensor, spelled: str | Packed, kind: str, numbered: Set[int]) -> Iterator[str]:
    """Yield what is wrong with a name; ``numbered`` are how often the names of layers may have ``{layer}``."""
    name = spelled if isinstance(spelled, str) else spelled.name
    try:
        fields = Counter(f for _, f, _, _ in Formatter().parse(name) if f is not None)
    except ValueError as error:
        yield f"{t.name} is stored as {name!r}, which is not a pattern: {error}"
        return
    by_expert = t.experts > 0 and not (isinstance(spelled, Packed) and spelled.stacked)
    for field, wanted, why in (
        ("layer", kind != TOP, "names of a layer's tensors have {layer}, those of the model itself don't"),
        ("expert", by_expert, "names of tensors stored for each expert have {expert}, others don't"),
        ("slice", t.slices > 0, "names of tensors stored in slices have {slice}, others don't"),
    ):
        if fields[field] != int(wanted) and not (field == "layer" and wanted and fields[field] in numbered):
            yield f"{t.name} is stored as {name}, with {{{field}}} {fields[field]} times, expected {int(wanted)}: {why}"
    if strange := sorted(set(fields) - {"layer", "expert", "slice"}):
        yield f"{t.name} is stored as {name}, and {{{strange[0]}}} is not known: use {{layer}}, {{expert}} and {{slice}}"


def _packed_faults(
    t: Tensor, spelled: Packed, spelling: Spelling, tensors: Mapping[str, Tensor], kind: str
) -> Iterator[str]:
    if t.name not in spelled.parts:
        yield f"{t.name} is packed into {spelled.name}, whose parts are {', '.join(spelled.parts) or 'none'}"
        return
    if t.spare:
        yield f"{t.name} has spare rows, and is packed into {spelled.name}: its rows would not be followed by them"
    if t.slices:
        yield f"{t.name} is stored in slices, and packed into {spelled.name}: it is one or the other"
    if spelled.stacked and not t.experts:
        yield f"{t.name} is stacked in {spelled.name}, and has no experts"
    if spelled.flat and (not spelled.stacked or len(spelled.parts) > 1):
        yield f"{t.name} is flat in {spelled.name}; only one tensor's experts, stacked, can be flat"
    if t.name != spelled.parts[0]:
        if spelled.parts[0] not in tensors:
            yield f"{spelled.name} begins with {spelled.parts[0]}, and {_of(kind)} has {t.name} without it"
        return
    for part in spelled.parts[1:]:
        other = tensors.get(part)
        if spelling.get(part) != spelled:
            yield f"{t.name} and {part} are packed into {spelled.name}, and {part} has another spelling"
        elif other is None:
            yield f"{t.name} and {part} are packed into {spelled.name}, and {_of(kind)} has no {part}"
        elif (other.shape[1:], other.experts, other.quantised) != (t.shape[1:], t.experts, t.quantised):
            yield (
                f"{t.name} {_short(t)} and {part} {_short(other)} are packed into {spelled.name} one after another, so "
                "all but their first dim, their experts and whether they are quantised must be equal"
            )
        elif spelled.by_group and other.groups != t.groups:
            yield f"{spelled.name} is packed by group: {t.name} has {t.groups} and {part} {other.groups}, expected as many"
    if spelled.by_group and (spelled.stacked or spelled.transposed):
        yield f"{spelled.name} is packed by group, which is not supported of experts in one tensor or stored (in, out)"
    for part in spelled.parts if spelled.by_group else ():
        if part in tensors and (tensors[part].groups < 1 or tensors[part].shape[0] % tensors[part].groups):
            rows = tensors[part].shape[0]
            yield f"{spelled.name} is packed by group, and the {rows} rows of {part} are not {tensors[part].groups} equal groups"
    if spelled.pairs and (spelled.by_group or spelled.transposed or spelled.stacked):
        yield f"{spelled.name} is stored pair by pair, which is not supported with by_group, stacked or transposed"
    if spelled.pairs and not any(part in tensors and tensors[part].head for part in spelled.parts):
        yield f"{spelled.name} is stored pair by pair, and none of its parts has heads (`Tensor.head`)"
    if spelled.apart and not spelled.by_group:
        yield f"{spelled.name} is encoded apart in each group, and is not packed by group"


# The native target ----------------------------------------------------------------------------------------------------


def _native_faults(native: tuple[Param, ...], kinds: Kinds) -> Iterator[str]:
    of_the_model = {p.name for p in native if p.stage is not None}
    for p in native:
        if not p.parts:
            yield f"native: {p.name} has no parts"
        if (p.stage is None) != ("{block}" in p.name):
            yield (
                f"native: {p.name} {'has no' if p.stage is None else 'has a'} stage: parameters of layers begin with "
                "{block} and have none, those of the model itself have one"
            )
        if p.otherwise is not None and p.otherwise not in of_the_model:
            yield f"native: {p.name} falls back to {p.otherwise}, which is not a parameter of the model itself"
    for kind, tensors in kinds.items():
        params = [p for p in native if (p.stage is not None) == (kind == TOP) and any(n in tensors for n in p.parts)]
        for name, count in Counter(p.name for p in params).items():
            if count > 1:
                yield f"native: {count} parameters of {_of(kind)} are called {name}"
        holders = defaultdict(list)
        for p in params:
            for part in p.parts:
                holders[part].append(p.name)
        for t in tensors.values():
            if not holders[t.name]:
                yield f"native: {t.name} ({_of(kind)}) is in no parameter"
            elif len(holders[t.name]) > 1:
                yield f"native: {t.name} ({_of(kind)}) is in {' and '.join(holders[t.name])}, expected one parameter"
        for p in params:
            yield from _fusion_faults(p, tensors, kind)
            if not p.name.endswith("weight") and any(n in tensors and tensors[n].quantised for n in p.parts):
                yield f"native: {p.name} may be quantised; its name must end in weight, which a scale's suffix replaces"


def _fusion_faults(p: Param, tensors: Mapping[str, Tensor], kind: str) -> Iterator[str]:
    missing = [n for n in p.parts if n not in tensors]
    if missing:
        present = next(n for n in p.parts if n in tensors)
        yield f"native: {p.name} fuses {', '.join(p.parts)}, and {_of(kind)} has {present} without {missing[0]}"
        return
    first, *others = (tensors[n] for n in p.parts)
    for other in others:
        if (other.shape[1:], other.experts) != (first.shape[1:], first.experts):
            yield (
                f"native: {p.name} fuses {first.name} {_short(first)} and {other.name} {_short(other)} along their out "
                "dim, so all their other dims and their experts must be equal"
            )
        elif _across(first) != _across(other):
            yield (
                f"native: {p.name} fuses {first.name} ({_way(first)}) and {other.name} ({_way(other)}): "
                "parts that are divided along another dim must be divided alike"
            )


def _across(t: Tensor) -> Placement | None:
    """Return the placement of a tensor that is divided along a dim other than the one it is fused along."""
    return t.placement if t.placement is not None and t.placement.dim != 0 else None


def _way(t: Tensor) -> str:
    return "not divided" if t.placement is None else f"divided along dim {t.placement.dim}"


# Waivers, and names that no other table has ----------------------------------------------------------------------------


def _waiver_faults(family: Family, schema: Schema) -> Iterator[str]:
    stored = [
        (name if isinstance(name, str) else name.name).format(layer=0, expert=0, slice=0)
        for spelling in (*family.spellings, *family.drafts)
        for tensors in kinds_in_use(schema).values()
        for name in (spelling[n] for n in tensors if n in spelling)
    ]
    for pattern, reason in family.waived:
        try:
            matches = re.compile(pattern).fullmatch
        except re.error as error:
            yield f"waived: the pattern {pattern!r} is not a regular expression: {error}"
            continue
        if needed := next((n for n in stored if matches(n)), None):
            yield f"waived: the pattern {pattern!r} ({reason}) matches {needed}, which the spelling needs"


def _unknown_faults(family: Family, schema: Schema) -> Iterator[str]:
    """Yield names that only the spelling has. Optional tensors (biases) are in the target too, whatever the config has.

    A name that only the target has is no fault: the parts that families share have more than each family needs.
    """
    if not isinstance(schema, Schema):
        return
    described = {t.name for tensors in (schema.top, *schema.kinds.values()) for t in tensors}
    consumed = {part for p in family.native for part in p.parts}
    for label, spelling in zip(spelling_labels(family), family.spellings, strict=True):
        for name in spelling:
            if name not in described | consumed:
                yield f"{label}: {name} is spelled, and neither the schema nor the native target has it"


def _of(kind: str) -> str:
    return "the model itself" if kind == TOP else f"the kind {kind!r}"


def _short(t: Tensor) -> str:
    return f"{list(t.shape)}" + (f" × {t.experts} experts" if t.experts else "")
