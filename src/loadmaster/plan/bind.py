"""Binding: logical tensors to stored ones, in columns, and the classes of layers that meet the same signatures.

A layer's tensors over all layers of its kind are matrices of ids. Layers with the same signatures (dtype and shape of
every tensor) form a class; each class is checked once. What is missing, misshapen, in a form its parameter does not
allow, or left over becomes a defect: a finding together with the layer it touches, which the plan turns into ranks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from loadmaster.architectures.items import Item, items
from loadmaster.architectures.schema import Family, Schema, Spelling, Tensor
from loadmaster.checkpoint import Checkpoint, Signature, TensorTable
from loadmaster.errors import ConfigError
from loadmaster.findings import Finding, Severity
from loadmaster.formats import Component, Format
from loadmaster.limits import UNMET
from loadmaster.plan.claims import KV_CACHE_SCALES, Claims
from loadmaster.plan.defects import TOP, Defect
from loadmaster.plan.missing import Missing, explain
from loadmaster.plan.names import Names
from loadmaster.plan.remarks import Sound, remarks
from loadmaster.plan.strays import unexpected
from loadmaster.plan.waivers import Waiver, WaiverRequest, waive_ids, waive_names, waive_requested

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Form:
    """How a stored item lies in the checkpoint: the number format of its values and, where it is quantised, the format.

    ``format`` has just the components that are there and are read; ``dtypes`` are theirs.
    """

    dtype: str
    format: Format | None = None
    dtypes: tuple[str, ...] = ()

    @property
    def quantised(self) -> bool:
        """Whether it is stored in a quantised format."""
        return self.format is not None


@dataclass(frozen=True)
class LayerClass:
    """Layers of one kind that meet the same signatures. ``layers`` are stored numbers (`TOP` for the model itself).

    ``items`` are what is stored. ``forms`` gives by an item's key the form of each sound one, one an expert where
    experts differ. ``ids`` gives for each leaf (``key/suffix``) the stored ids, ``[layers]`` or ``[layers, experts]``.
    """

    kind: str
    layers: tuple[int, ...]
    items: tuple[Item, ...]
    forms: Mapping[str, tuple[Form, ...]]
    ids: Mapping[str, Ids]
    draft: bool = False

    @cached_property
    def item_of(self) -> Mapping[str, Item]:
        """Logical name -> the item that holds it."""
        return {t.name: item for item in self.items for t in item.parts}


@dataclass(frozen=True, slots=True)
class Binding:
    """Everything that binding found. ``top`` is the model's own class; ``classes`` are those of its layers and drafts."""

    top: LayerClass
    classes: tuple[LayerClass, ...]
    defects: tuple[Defect, ...]
    waivers: tuple[Waiver, ...]
    remarks: tuple[Finding, ...] = ()
    """Findings on the waivers that users asked for."""


def bind(
    checkpoint: Checkpoint,
    family: Family,
    schema: Schema,
    claims: Claims,
    *,
    num_drafts: int,
    waive: Sequence[WaiverRequest] = (),
) -> Binding:
    """Bind ``schema`` to the checkpoint's headers. The first ``num_drafts`` MTP layers are wanted, the rest waived.

    ``waive`` asks for waivers of tensors that are left over then.

    Raises:
        ConfigError: so much is missing or unlike the config that it is another model's.
    """
    spelling = _spelling(checkpoint.table, family, schema)
    for glance in (True, False):
        binder = _Binder(checkpoint, spelling, claims, glance=glance)
        top, classes, unwanted = _classes(binder, schema, num_drafts)
        by_name = waive_names(checkpoint.table, binder.used, (*family.waived, *schema.waived, *KV_CACHE_SCALES))
        if binder.used.all() or not binder.glanced:
            break
    unread = {"mtp not enabled": [i.reshape(-1) for c in unwanted for i in c.ids.values()], **binder.unread}
    defects = [*binder.defects, *remarks(binder.sound, claims)]
    requested: list[Waiver] = []
    about_requests: list[Finding] = []
    if waive or binder.missing or not binder.used.all():
        names = Names(checkpoint.table, np.flatnonzero(~binder.used).tolist())
        found, unasked = explain(
            binder.missing, names, checkpoint.losses, binder.stored, binder.suffixes, len(schema.layers)
        )
        unread["mtp not enabled"].append(np.array(unasked, dtype=np.int32))
        defects += found
        if waive:
            read = _read(checkpoint.table, (top, *classes), binder.unread)
            requested, about_requests = waive_requested(checkpoint.table, names.strays, read, waive)
        defects += unexpected(names, checkpoint, len(schema.layers))
    waivers = [w for reason, ids in unread.items() for w in waive_ids(checkpoint.table, reason, ids)]
    return Binding(top, tuple(classes), tuple(defects), (*waivers, *by_name, *requested), remarks=tuple(about_requests))


def _read(
    table: TensorTable, classes: Iterable[LayerClass], unread: Mapping[str, Sequence[Ids]]
) -> npt.NDArray[np.bool_]:
    """Return which stored tensors the classes need; what lies in an unsound form is needed too."""
    read = np.zeros(len(table) + 1, dtype=np.bool_)  # the last is for -1
    for bound in classes:
        for ids in bound.ids.values():
            read[ids] = True
    for columns in unread.values():
        for ids in columns:
            read[ids] = False
    return read[:-1]


def _classes(binder: _Binder, schema: Schema, num_drafts: int) -> tuple[LayerClass, list[LayerClass], list[LayerClass]]:
    """Return the classes of the model itself, of its layers and wanted drafts, and of the drafts that are not wanted."""
    top = binder.classes("top", schema.top, (TOP,))[0]
    kinds: dict[str, list[int]] = defaultdict(list)
    for layer, kind in enumerate(schema.layers):
        kinds[kind].append(layer)
    classes = [c for kind, layers in kinds.items() for c in binder.classes(kind, schema.kinds[kind], tuple(layers))]
    unwanted: list[LayerClass] = []
    for i, kind in enumerate(schema.drafts):
        layer = len(schema.layers) + i
        binder.draft_wanted = i < num_drafts
        bound = binder.classes(kind, schema.kinds[kind], (layer,), draft=True)
        (classes if i < num_drafts else unwanted).extend(bound)
    return top, classes, unwanted


def _spelling(table: TensorTable, family: Family, schema: Schema) -> Spelling:
    """Return the spelling that names most of what a first layer of each kind stores; the usual one where none does."""
    if not family.variants:
        return family.spelling
    samples = [(TOP, schema.top), *((schema.layers.index(kind), schema.kinds[kind]) for kind in set(schema.layers))]

    def score(spelling: Spelling) -> int:
        found = (
            item.stored_name(suffix, layer, 0) in table.ids
            for layer, tensors in samples
            for item in items(tensors, spelling)
            for suffix in ("weight", "weight_packed", "_blocks", "qweight")
        )
        return sum(found)

    return max(family.spellings, key=score)


@dataclass(frozen=True, slots=True)
class _Fault:
    """Why an item's signatures are not sound: a finding without its name, which is that of the component ``suffix``.

    ``{values}`` in the message stands for the name of the component that holds the values. ``shape`` is that of a
    component which is missing.
    """

    code: str
    suffix: str
    message: str
    values: str = "weight"
    hint: str | None = None
    shape: tuple[int, ...] | None = None


class _Binder:
    """The state of one binding: which stored tensors are used, and what was found.

    ``glance``: a component of experts is not looked for where the first and the last of a layer have none. That it did
    so is in ``glanced``; it has missed nothing if every stored tensor is used.
    """

    def __init__(self, checkpoint: Checkpoint, spelling: Spelling, claims: Claims, *, glance: bool) -> None:
        self.glance = glance
        self.glanced = False
        self.checkpoint = checkpoint
        self.table: TensorTable = checkpoint.table
        self.spelling = spelling
        self.claims = claims
        self.suffixes = tuple(dict.fromkeys(["weight", *(c.suffix for f in claims.formats for c in f.components)]))
        self.padded = np.append(self.table.signature, -1).astype(np.int32)  # id -1 has signature -1
        self.used = np.zeros(len(self.table), dtype=np.bool_)
        self.defects: list[Defect] = []
        self.missing: list[Missing] = []
        self.stored: dict[int, tuple[Item, ...]] = {}  # layer -> what it needs
        self.sound: list[Sound] = []
        self.unread: dict[str, list[Ids]] = defaultdict(list)  # reason -> ids of components that are waived
        self.draft_wanted = True

    def classes(
        self, kind: str, tensors: tuple[Tensor, ...], layers: tuple[int, ...], *, draft: bool = False
    ) -> list[LayerClass]:
        """Look up the tensors of ``layers``, group the layers by signature, and check each group once."""
        stored = items(tensors, self.spelling)
        ids: dict[str, Ids] = {}
        for item in stored:
            for suffix in self.suffixes if item.first.quantised else ("weight",):
                found = self._look_up(item, suffix, layers)
                there = found[found >= 0]
                self.used[there] = True
                if len(there):
                    ids[f"{item.key}/{suffix}"] = found
        signatures = {leaf: self.padded[i] for leaf, i in ids.items()}
        groups: dict[bytes, list[int]] = defaultdict(list)
        for row in range(len(layers)):
            groups[b"".join(s[row].tobytes() for s in signatures.values())].append(row)
        return [
            self._class(kind, stored, tuple(layers[r] for r in rows), {k: v[rows] for k, v in ids.items()}, draft)
            for rows in groups.values()
        ]

    def _look_up(self, item: Item, suffix: str, layers: tuple[int, ...]) -> Ids:
        get = self.table.ids.get
        if not item.members:
            return np.array([get(item.stored_name(suffix, layer), -1) for layer in layers], dtype=np.int32)
        rows = np.full((len(layers), item.members), -1, dtype=np.int32)
        _, after = item.stored_name(suffix, 0, None).split("None")
        endings = [f"{e}{after}" for e in range(item.members)]
        for row, layer in enumerate(layers):
            before, _ = item.stored_name(suffix, layer, None).split("None")
            if self.glance and before + endings[0] not in self.table.ids and before + endings[-1] not in self.table.ids:
                self.glanced = True
            else:
                rows[row] = [get(before + ending, -1) for ending in endings]
        return rows

    def _class(
        self, kind: str, stored: tuple[Item, ...], layers: tuple[int, ...], ids: dict[str, Ids], draft: bool
    ) -> LayerClass:
        present = {i.first.optional for i in stored if any((v >= 0).any() for v in self._components(i, ids).values())}
        stored = tuple(i for i in stored if i.first.optional is None or i.first.optional in present)
        self.stored.update(dict.fromkeys(layers, stored))
        forms = {}
        for item in stored:
            form = self._forms(item, layers, self._components(item, ids))
            if form is not None:
                forms[item.key] = form
        return LayerClass(kind, layers, stored, forms, ids, draft)

    def _components(self, item: Item, ids: Mapping[str, Ids]) -> dict[str, Ids]:
        """Return suffix -> ids of what is there of an item."""
        leaves = ((suffix, f"{item.key}/{suffix}") for suffix in self.suffixes)
        return {suffix: ids[leaf] for suffix, leaf in leaves if leaf in ids}

    def _forms(self, item: Item, layers: tuple[int, ...], found: Mapping[str, Ids]) -> tuple[Form, ...] | None:
        """Check one item of a class; return its form (one an expert where they differ), None if defective."""
        columns = {suffix: self.padded[ids[0].reshape(-1)].tolist() for suffix, ids in found.items()}
        num = item.members or 1
        rows = list(zip(*columns.values(), strict=True)) if columns else [()] * num
        ignored = item.first.rarely or self.claims.ignores(item.stored_name("weight", layers[0], 0))
        verdicts: dict[tuple[int, ...], Form | _Fault] = {}
        forms: list[Form] = []
        for expert, row in enumerate(rows):
            if row not in verdicts:
                signatures = {s: self.table.signatures[n] for s, n in zip(columns, row, strict=True) if n >= 0}
                verdicts[row] = self._verdict(item, signatures, ignored=ignored)
            verdict = verdicts[row]
            if isinstance(verdict, Form):
                forms.append(verdict)
                continue
            for layer in layers:
                self._report(item, verdict, layer, expert if item.members else None)
        if len(forms) < num:
            return None
        for form in dict.fromkeys(forms):
            members = [e for e, f in enumerate(forms) if f == form]
            self.sound.append(Sound(item, form, layers, members))
        self._leave_unread(found)
        return (forms[0],) if len(set(forms)) == 1 else tuple(forms)

    def _leave_unread(self, found: Mapping[str, Ids]) -> None:
        for format_ in self.claims.formats if self.draft_wanted else ():
            for component in format_.components:
                if component.waived and component.suffix in found:
                    self.unread[component.waived].append(found[component.suffix].reshape(-1))

    def _report(self, item: Item, fault: _Fault, layer: int, expert: int | None) -> None:
        if len(self.missing) + len(self.defects) >= UNMET.value:
            hint = "is config.json this checkpoint's, and are most of the shards there?"
            raise ConfigError(f"more than {UNMET.value:,} {UNMET.of}", hint=hint)
        name, message = item.stored_name(fault.suffix, layer, expert), fault.message
        if "{values}" in message:
            message = message.replace("{values}", item.stored_name(fault.values, layer, expert))
        severity: Severity = "error" if self.draft_wanted else "warning"
        finding = Finding(fault.code, severity, message, name, hint=fault.hint)
        if fault.shape is not None:
            self.missing.append(Missing(finding, layer, item, expert, fault.shape))
        else:
            experts = () if expert is None else (expert,)
            self.defects.append(Defect(finding, (layer,), item.key, experts))

    def _verdict(self, item: Item, found: Mapping[str, Signature], *, ignored: bool) -> Form | _Fault:
        """Return the form that the signatures of an item's components give it, or why they give it none."""
        formats = self.claims.formats if item.first.quantised else ()
        plain = item.first.dtypes
        weight = found.get("weight")
        if weight is not None and weight.dtype in plain:
            if weight.shape != item.plain_shape:
                return _Fault("shape-mismatch", "weight", _shapes(item.plain_shape, weight.shape))
            beside = next((s for s in found if s != "weight"), None)
            if beside is not None:
                return _Fault(
                    "scale-stray",
                    beside,
                    f"it lies beside {{values}}, which is {weight.dtype} and not quantised",
                    hint="either the weight was dequantised and its scale left behind, or the weight is mislabelled",
                )
            return Form(weight.dtype)
        met = [f for f in formats if f.components[0].suffix in found]
        fitting = [f for f in met if found[f.components[0].suffix].dtype in f.components[0].dtypes]
        if fitting:
            verdicts = [self._encoded(item, f, found) for f in fitting]
            return next((v for v in verdicts if isinstance(v, Form)), verdicts[0])
        if met or weight is not None:
            return self._inadmissible(item, met, found)
        return self._missing(item, found, ignored=ignored)

    def _encoded(self, item: Item, format_: Format, found: Mapping[str, Signature]) -> Form | _Fault:
        """Hold every component of a format against what is stored."""
        values = format_.components[0].suffix
        shaped = format_.stacked() if item.stacked else format_
        for component, alone in zip(shaped.components, format_.components, strict=True):
            signature, expected = found.get(component.suffix), component.shape(item.shape)
            if signature is None:
                if component.optional:
                    continue
                return _Fault(
                    "scale-missing",
                    component.suffix,
                    f"{{values}} is {found[values].dtype} ({format_.name}) and needs it, "
                    f"{' or '.join(component.dtypes)} {list(expected)}, in no shard",
                    values,
                    shape=expected,
                )
            if signature.shape != expected and not (alone.is_scalar and signature.shape == expected[:-1]):
                of = "" if component.suffix == values else f", for {{values}} in {format_.name}"
                return _Fault("shape-mismatch", component.suffix, _shapes(expected, signature.shape) + of, values)
            if signature.dtype not in component.dtypes:
                return _Fault(
                    "dtype-inadmissible", component.suffix, _dtypes(component.dtypes, signature.dtype), values
                )
        known = {c.suffix for c in format_.components}
        stray = next((s for s in found if s not in known), None)
        if stray is not None:
            return _Fault(
                "scale-stray", stray, f"it lies beside {{values}}, whose format ({format_.name}) has none", values
            )
        read = tuple(c for c in format_.components if c.suffix in found and not c.waived)
        dtypes = tuple(found[c.suffix].dtype for c in read)
        return Form(dtypes[0], replace(format_, components=read), dtypes)

    def _inadmissible(self, item: Item, met: list[Format], found: Mapping[str, Signature]) -> _Fault:
        """Say what is wrong with values in a number format that neither the parameter nor a claimed format allows."""
        suffix = met[0].components[0].suffix if met else "weight"
        signature = found[suffix]
        shape = met[0].components[0].shape(item.shape) if met else item.plain_shape
        if not item.first.quantised and signature.shape != shape:
            return _Fault("shape-mismatch", suffix, _shapes(shape, signature.shape))
        if item.first.quantised and not self.claims.formats and signature.dtype in ENCODED:
            return _Fault(
                "format-contradiction",
                suffix,
                f"stored as {signature.dtype}, and config.json has no quantization_config that says how",
                hint="quantization_config must give quant_method and what belongs to it",
            )
        allowed = [*item.first.dtypes, *(d for f in met for d in f.components[0].dtypes)]
        return _Fault("dtype-inadmissible", suffix, _dtypes(tuple(dict.fromkeys(allowed)), signature.dtype))

    def _missing(self, item: Item, found: Mapping[str, Signature], *, ignored: bool) -> _Fault:
        """Say which values are missing: those of the claimed format, unless the config leaves the module out of it."""
        formats = self.claims.formats if item.first.quantised else ()
        others = [f for f in formats if any(c.suffix in found for c in f.components[1:])] or list(formats)
        values: Component | None = others[0].components[0] if others and (found or not ignored) else None
        suffix = values.suffix if values else "weight"
        plain = [] if suffix != "weight" else [*item.first.dtypes]
        dtypes = [*plain, *(values.dtypes if values else ())]
        if values and item.stacked:
            values = others[0].stacked().components[0]
        shape = values.shape(item.shape) if values else item.plain_shape
        message = f"expected {' or '.join(dtypes)} {list(shape)}, in no shard"
        return _Fault("tensor-missing", suffix, message, shape=shape)


ENCODED = ("F8_E4M3", "U8", "I8", "I32", "F4")
"""Number formats whose meaning the config has to tell."""


def _shapes(expected: tuple[int, ...], found: tuple[int, ...]) -> str:
    return f"expected {list(expected)} from the config, found {list(found)}"


def _dtypes(allowed: tuple[str, ...], found: str) -> str:
    return f"expected {' or '.join(allowed)}, found {found}"
