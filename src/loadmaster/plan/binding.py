"""Binding: logical tensors to stored ones, in columns.

A layer's tensors over all layers of its kind are matrices of ids. Layers with the same signatures (dtype and shape of
every tensor) form a class; each class is checked once. Binding notes what is missing, misshapen, or in a form that its
parameter does not allow, with the layer it belongs to; `loadmaster.plan.diagnosis` turns these notes into findings.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from loadmaster.architectures.items import Item, items, layer_items
from loadmaster.architectures.schema import Family, Schema
from loadmaster.architectures.spelling import Spelling
from loadmaster.checkpoint import Checkpoint, TensorTable
from loadmaster.errors import ConfigError
from loadmaster.findings import Finding, Severity
from loadmaster.formats import Format
from loadmaster.limits import UNMET
from loadmaster.plan.claims import KV_CACHE_SCALES, Claims
from loadmaster.plan.classes import TOP, Ids, LayerClass
from loadmaster.plan.forms import FormDefect, StoredForm, judge
from loadmaster.plan.spellings import draft_spelling_of, spelling_of
from loadmaster.plan.waivers import Waiver, waive_names

NOT_ENABLED = "mtp not enabled"
"""The reason for leaving an MTP layer unread that no option asks for."""


@dataclass(frozen=True, slots=True)
class Defect:
    """A finding, and the layers (`TOP` for the model itself), item (by its key) and experts that it touches.

    ``experts`` empty: it touches every rank that holds the layer. ``cause`` is the finding about files that explains it; it is
    reported there.
    """

    finding: Finding
    layers: tuple[int, ...]
    logical: str
    experts: tuple[int, ...] = ()
    cause: Finding | None = None


@dataclass(frozen=True, slots=True)
class MissingTensor:
    """A tensor of ``shape`` that is nowhere: the finding that says so, and the layer, item and expert (or slice) that need it."""

    finding: Finding
    layer: int
    item: Item
    member: int | None
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """Its stored name."""
        return self.finding.tensor or ""

    @property
    def path(self) -> str:
        """Its place within its layer, without the component's suffix; ``self_attn.q_proj.weight``, say."""
        return self.item.path(self.member)

    def defect(self, *, hint: str | None = None, cause: Finding | None = None) -> Defect:
        """Return it as a separate defect."""
        finding = replace(self.finding, hint=hint) if hint else self.finding
        return Defect(finding, (self.layer,), self.item.key, _touched(self.item, self.member), cause)


@dataclass(frozen=True, slots=True)
class SoundItem:
    """A sound item of some layers, and of some experts of each: what remarks are made of once all layers are seen.

    Of an item in slices, ``members`` has the first one.
    """

    item: Item
    form: StoredForm
    layers: tuple[int, ...]
    members: list[int]

    def name(self, layer: int, member: int) -> str:
        """Return the stored name of the values."""
        suffix = self.form.format.components[0].suffix if self.form.format else "weight"
        return self.item.stored_name(suffix, layer, member if self.item.members else None)


@dataclass(frozen=True)
class Binding:
    """Everything that binding found. ``top`` is the model's own class; ``classes`` are those of its layers and drafts.

    ``missing``, ``defects`` and ``sound`` are what `loadmaster.plan.diagnosis` explains. ``items`` gives the stored items
    that each layer needs, ``suffixes`` those of all components, ``used`` which stored tensors are bound or waived by name.
    ``unread`` gives by reason the ids of what is bound and left unread, ``waived_names`` the waivers that the family has.
    """

    top: LayerClass
    classes: tuple[LayerClass, ...]
    defects: tuple[Defect, ...] = ()
    missing: tuple[MissingTensor, ...] = ()
    sound: tuple[SoundItem, ...] = ()
    items: Mapping[int, tuple[Item, ...]] = field(default_factory=dict)
    suffixes: tuple[str, ...] = ()
    used: npt.NDArray[np.bool_] = field(default_factory=lambda: np.ones(0, dtype=np.bool_))
    unread: Mapping[str, Sequence[Ids]] = field(default_factory=dict)
    waived_names: tuple[Waiver, ...] = ()

    @property
    def all_classes(self) -> tuple[LayerClass, ...]:
        """The model's own class, then those of its layers and drafts."""
        return (self.top, *self.classes)

    def read(self, table: TensorTable) -> npt.NDArray[np.bool_]:
        """Return which stored tensors the classes need; a tensor in an unsound form is needed too."""
        read = np.zeros(len(table) + 1, dtype=np.bool_)  # the last is for -1
        for bound in self.all_classes:
            for ids in bound.ids.values():
                read[ids] = True
        for columns in self.unread.values():
            for ids in columns:
                read[ids] = False
        return read[:-1]


def bind(checkpoint: Checkpoint, family: Family, schema: Schema, claims: Claims, *, num_blocks: int) -> Binding:
    """Bind ``schema`` to the checkpoint's headers. The first ``num_blocks`` MTP layers are wanted, the rest waived.

    Raises:
        ConfigError: so much is missing or differs from the config that it belongs to another model.
    """
    spelling = spelling_of(checkpoint.table, family, schema)
    drafts = draft_spelling_of(checkpoint.table, family, schema)
    for glance in (True, False):
        binder = _Binder(checkpoint, schema, spelling, drafts, claims, glance=glance)
        top, classes, unwanted = _classes(binder, schema, num_blocks)
        by_name = waive_names(checkpoint.table, binder.used, (*family.waived, *schema.waived, *KV_CACHE_SCALES))
        if binder.used.all() or not binder.glanced:
            break
    return Binding(
        top,
        tuple(classes),
        defects=tuple(binder.defects),
        missing=tuple(binder.missing),
        sound=tuple(binder.sound),
        items=binder.items,
        suffixes=binder.suffixes,
        used=binder.used,
        unread={NOT_ENABLED: [i.reshape(-1) for c in unwanted for i in c.ids.values()], **binder.unread},
        waived_names=tuple(by_name),
    )


def _classes(binder: _Binder, schema: Schema, num_blocks: int) -> tuple[LayerClass, list[LayerClass], list[LayerClass]]:
    """Return the classes of the model itself, of its layers and wanted drafts, and of the drafts that are not wanted."""
    top = binder.classes("top", (TOP,))[0]
    kinds: dict[str, list[int]] = defaultdict(list)
    for layer, kind in enumerate(schema.layers):
        kinds[kind].append(layer)
    classes = [c for kind, layers in kinds.items() for c in binder.classes(kind, tuple(layers))]
    unwanted: list[LayerClass] = []
    for i, kind in enumerate(schema.drafts):
        layer = len(schema.layers) + i
        binder.draft_wanted = i < num_blocks
        bound = binder.classes(kind, (layer,), draft=True)
        (classes if i < num_blocks else unwanted).extend(bound)
    return top, classes, unwanted


class _Binder:
    """The state of one binding: which stored tensors are used, and what was found.

    ``glance``: a component of experts is not looked for where the first and the last of a layer have none. That it did
    so is in ``glanced``; it has missed nothing if every stored tensor is used.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        schema: Schema,
        spelling: Spelling,
        drafts: Spelling | None,
        claims: Claims,
        *,
        glance: bool,
    ) -> None:
        self.glance = glance
        self.glanced = False
        self.checkpoint = checkpoint
        self.table: TensorTable = checkpoint.table
        self.schema = schema
        self.spelling = spelling
        self.drafts = drafts
        self.claims = claims
        every = (t for tensors in (schema.top, *schema.kinds.values()) for t in tensors)
        formats = dict.fromkeys((*claims.formats, *(f for t in every for f in t.formats or ())))
        self.suffixes = _suffixes(tuple(formats))
        self.zeros = {c.suffix: f.components[0].suffix for f in claims.formats for c in f.components if c.zeros}
        self.padded = np.append(self.table.signature, -1).astype(np.int32)  # id -1 has signature -1
        self.used = np.zeros(len(self.table), dtype=np.bool_)
        self.defects: list[Defect] = []
        self.missing: list[MissingTensor] = []
        self.items: dict[int, tuple[Item, ...]] = {}  # layer -> what it needs
        self.sound: list[SoundItem] = []
        self.unread: dict[str, list[Ids]] = defaultdict(list)  # reason -> ids of components that are waived
        self.draft_wanted = True

    def classes(self, kind: str, layers: tuple[int, ...], *, draft: bool = False) -> list[LayerClass]:
        """Look up the tensors of ``layers``, all of one kind; group the layers by signature, and check each group once."""
        stored = (
            items(self.schema.top, self.spelling)
            if layers == (TOP,)
            else layer_items(self.schema, layers[0], self.spelling, self.drafts)
        )
        own = {item.name for item in stored}
        ids: dict[str, Ids] = {}
        wanted = [
            (item, suffix)
            for item in stored
            for suffix in _suffixes(item.formats(self.claims.formats))
            if suffix not in self.zeros or item.named(suffix) not in own  # else the model has this tensor
        ]
        for (item, suffix), found in zip(wanted, self._look_up(wanted, layers), strict=True):
            if suffix in self.zeros:
                values = ids.get(f"{item.key}/{self.zeros[suffix]}")
                found = np.full_like(found, -1) if values is None else np.where(values >= 0, found, -1)
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

    def _look_up(self, wanted: Sequence[tuple[Item, str]], layers: tuple[int, ...]) -> Iterator[Ids]:
        """Yield for each item and suffix the ids over all layers. Of experts and slices, the first and the last are looked for.

        All these names are found at once: where layers are few, most of the time would be spent on beginning to look.
        """
        ends = [(item, suffix, (0, item.members - 1) if item.members else (None,)) for item, suffix in wanted]
        names = [item.stored_name(suffix, layer, e) for item, suffix, of in ends for layer in layers for e in of]
        found = self.table.names.find(names).astype(np.int32)
        at = 0
        for item, suffix, of in ends:
            some = found[at : at + len(layers) * len(of)]
            at += len(some)
            yield self._members(item, suffix, layers, some.reshape(-1, 2)) if item.members else some

    def _members(self, item: Item, suffix: str, layers: tuple[int, ...], ends: Ids) -> Ids:
        """Return the ids of experts or slices, ``[layers, n]``, of which ``ends`` are the first and the last."""
        names = self.table.names
        rows = np.full((len(layers), item.members), -1, dtype=np.int32)
        there = np.logical_or((ends >= 0).any(axis=1), not self.glance).tolist()
        self.glanced |= not all(there)
        around = [item.around_member(suffix, layer) for layer, is_there in zip(layers, there, strict=True) if is_there]
        if around:
            rows[there] = names.find_numbered(around, item.members)
        if item.first.slices and not (rows >= 0).any():  # one for all slices
            return names.find([item.stored_name(suffix, layer) for layer in layers]).astype(np.int32)
        return rows

    def _class(
        self, kind: str, stored: tuple[Item, ...], layers: tuple[int, ...], ids: dict[str, Ids], draft: bool
    ) -> LayerClass:
        present = {i.first.optional for i in stored if any((v >= 0).any() for v in self._components(i, ids).values())}
        stored = tuple(i for i in stored if i.first.optional is None or i.first.optional in present)
        self.items.update(dict.fromkeys(layers, stored))
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

    def _forms(self, item: Item, layers: tuple[int, ...], found: Mapping[str, Ids]) -> tuple[StoredForm, ...] | None:
        """Check one item of a class; return its form (one an expert where they differ), None if defective."""
        num = item.members or 1
        columns = {s: np.broadcast_to(self.padded[ids[0]].reshape(-1), num).tolist() for s, ids in found.items()}
        rows = list(zip(*columns.values(), strict=True)) if columns else [()] * num
        ignored = item.first.rarely or self.claims.ignores(item.stored_name("weight", layers[0], 0))
        verdicts: dict[tuple[int, ...], StoredForm | FormDefect] = {}
        forms: list[StoredForm] = []
        faults: dict[FormDefect, list[int]] = defaultdict(list)
        for member, row in enumerate(rows):
            if row not in verdicts:
                signatures = {s: self.table.signatures[n] for s, n in zip(columns, row, strict=True) if n >= 0}
                verdicts[row] = judge(item, signatures, self.claims.formats, ignored=ignored)
            verdict = verdicts[row]
            if isinstance(verdict, StoredForm):
                forms.append(verdict)
            elif item.first.slices:
                faults[verdict].append(member)
            else:
                for layer in layers:
                    self._report(item, verdict, layer, member if item.members else None)
        if item.first.slices and len(set(forms)) > 1:
            usual = max(forms, key=forms.count)
            faults = {_unlike(f, usual): [n for n, other in enumerate(forms) if other == f] for f in {*forms} - {usual}}
        for fault, members in faults.items():
            self._report_slices(item, fault, layers, members, of_all={s for s, ids in found.items() if ids.ndim == 1})
        if faults or len(forms) < num:
            return None
        for form in dict.fromkeys(forms):
            members = [e for e, f in enumerate(forms) if f == form]
            self.sound.append(SoundItem(item, form, layers, members[:1] if item.first.slices else members))
        self._leave_unread(found)
        return (forms[0],) if len(set(forms)) == 1 else tuple(forms)

    def _leave_unread(self, found: Mapping[str, Ids]) -> None:
        for format_ in self.claims.formats if self.draft_wanted else ():
            for component in format_.components:
                if component.waived and component.suffix in found:
                    self.unread[component.waived].append(found[component.suffix].reshape(-1))

    def _report_slices(
        self, item: Item, fault: FormDefect, layers: tuple[int, ...], members: list[int], of_all: Collection[str]
    ) -> None:
        """Report what slices have in common once, and each one that is missing. ``of_all`` are components for all of them."""
        for layer in layers:
            if fault.of_all or fault.suffix in of_all:
                self._report(item, fault, layer, None)
            elif fault.shape is not None:
                for member in members:
                    self._report(item, fault, layer, member)
            else:
                more = f" (and {len(members) - 1:,} more slices alike)" if len(members) > 1 else ""
                self._report(item, replace(fault, message=fault.message + more), layer, members[0])

    def _report(self, item: Item, fault: FormDefect, layer: int, member: int | None) -> None:
        if len(self.missing) + len(self.defects) >= UNMET.value:
            hint = "check that config.json belongs to this checkpoint and that no shards are missing"
            raise ConfigError(f"more than {UNMET.value:,} {UNMET.of}", hint=hint)
        name, message = item.stored_name(fault.suffix, layer, member), fault.message
        if "{values}" in message:
            message = message.replace("{values}", item.stored_name(fault.values, layer, member))
        severity: Severity = "error" if self.draft_wanted else "warning"
        finding = Finding(fault.code, severity, message, name, hint=fault.hint)
        if fault.shape is not None:
            self.missing.append(MissingTensor(finding, layer, item, member, fault.shape))
        else:
            self.defects.append(Defect(finding, (layer,), item.key, _touched(item, member)))


def _touched(item: Item, member: int | None) -> tuple[int, ...]:
    """Return the expert that a defect of a stored tensor touches; nothing where it touches all ranks that hold the layer."""
    return (member,) if item.by_expert and member is not None else ()


def _suffixes(formats: Sequence[Format]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(["weight", *(c.suffix for f in formats for c in f.components)]))


def _unlike(form: StoredForm, usual: StoredForm) -> FormDefect:
    """Return what is wrong with a slice that is stored in another form than the others, which form one parameter with it."""
    suffix = form.format.components[0].suffix if form.format else "weight"
    stored, others = (f"{f.dtype} ({f.format.name})" if f.format else f.dtype for f in (form, usual))
    return FormDefect(
        "dtype-inadmissible", suffix, f"expected {others}, as most slices of it are stored, found {stored}"
    )
