"""Binding: logical tensors to stored ones, in columns, and the classes of layers that meet the same signatures.

A layer's tensors over all layers of its kind are matrices of ids. Layers with the same signatures (dtype and shape of
every tensor) form a class; each class is checked once. What is missing, misshapen, in a form its parameter does not
allow, or left over becomes a defect: a finding together with the layer it touches, which the plan turns into ranks.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches

import numpy as np
import numpy.typing as npt

from loadmaster.architectures.schema import Family, Schema, Tensor
from loadmaster.checkpoint import Checkpoint, Signature, TensorTable
from loadmaster.findings import Finding, Severity
from loadmaster.formats import Format
from loadmaster.plan.claims import Claims

Ids = npt.NDArray[np.int32]
TOP = -1
"""Stands for the model itself where a layer's number is asked for."""


@dataclass(frozen=True, slots=True)
class Form:
    """How a logical tensor is stored: its number format, and whether in the checkpoint's quantised format."""

    dtype: str
    quantised: bool


@dataclass(frozen=True, slots=True)
class LayerClass:
    """Layers of one kind that meet the same signatures. ``layers`` are stored numbers (`TOP` for the model itself).

    ``forms`` gives the form of each sound tensor, one an expert where experts differ. ``ids`` gives for each leaf
    (``tensor/suffix``) the stored ids, ``[layers]`` or ``[layers, experts]``.
    """

    kind: str
    layers: tuple[int, ...]
    tensors: tuple[Tensor, ...]
    forms: Mapping[str, tuple[Form, ...]]
    ids: Mapping[str, Ids]
    draft: bool = False


@dataclass(frozen=True, slots=True)
class Defect:
    """A finding and the layer (or `TOP`), logical tensor and expert that it touches; ``group`` joins defects that are alike."""

    finding: Finding
    layer: int
    logical: str
    expert: int | None = None


@dataclass(frozen=True, slots=True)
class Waiver:
    """A named reason for leaving stored tensors unread."""

    reason: str
    num_tensors: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Binding:
    """Everything that binding found. ``top`` is the model's own class; ``classes`` are those of its layers and drafts."""

    top: LayerClass
    classes: tuple[LayerClass, ...]
    defects: tuple[Defect, ...]
    waivers: tuple[Waiver, ...]


def bind(checkpoint: Checkpoint, family: Family, schema: Schema, claims: Claims, *, num_drafts: int) -> Binding:
    """Bind ``schema`` to the checkpoint's headers. The first ``num_drafts`` MTP layers are wanted, the rest waived."""
    binder = _Binder(checkpoint, family, claims)
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
    waivers = binder.waive_drafts(unwanted)
    waivers += binder.waive_names((*family.waived, *schema.waived))
    binder.remark()
    binder.report_strays()
    return Binding(top, tuple(classes), tuple(binder.defects), tuple(waivers))


@dataclass(frozen=True, slots=True)
class _Sound:
    """A sound tensor of some layers, and of some experts of each: what remarks are made of once all layers are seen."""

    tensor: Tensor
    form: Form
    layers: tuple[int, ...]
    members: list[int]


class _Binder:
    """The state of one binding: which stored tensors are used, and what was found."""

    def __init__(self, checkpoint: Checkpoint, family: Family, claims: Claims) -> None:
        self.checkpoint = checkpoint
        self.table: TensorTable = checkpoint.table
        self.spelling = family.spelling
        self.claims = claims
        self.format: Format | None = claims.format
        self.used = np.zeros(len(self.table), dtype=np.bool_)
        self.defects: list[Defect] = []
        self.missing: list[Defect] = []
        self.sound: list[_Sound] = []
        self.draft_wanted = True
        index = checkpoint.index
        present = {f.name for f in checkpoint.files}
        self.lost = {n for n, f in index.weight_map.items() if f not in present} if index else set()

    def classes(
        self, kind: str, tensors: tuple[Tensor, ...], layers: tuple[int, ...], *, draft: bool = False
    ) -> list[LayerClass]:
        """Look up the tensors of ``layers``, group the layers by signature, and check each group once."""
        ids: dict[str, Ids] = {}
        for tensor in tensors:
            for suffix in self._suffixes(tensor):
                found = self._look_up(tensor, suffix, layers)
                self.used[found[found >= 0]] = True
                ids[f"{tensor.name}/{suffix}"] = found
        padded = np.append(self.table.signature, -1).astype(np.int32)  # id -1 has signature -1
        signatures = {leaf: padded[i] for leaf, i in ids.items()}
        groups: dict[bytes, list[int]] = defaultdict(list)
        for row in range(len(layers)):
            groups[b"".join(s[row].tobytes() for s in signatures.values())].append(row)
        return [
            self._class(kind, tensors, tuple(layers[r] for r in rows), {k: v[rows] for k, v in ids.items()}, draft)
            for rows in groups.values()
        ]

    def _suffixes(self, tensor: Tensor) -> tuple[str, ...]:
        if tensor.quantised and self.format is not None:
            return tuple(c.suffix for c in self.format.components)
        return ("weight",)

    def stored_name(self, tensor: str, suffix: str, layer: int, expert: int | None = None) -> str:
        """Return the checkpoint's name of a component of a logical tensor."""
        name = self.spelling[tensor].format(layer=layer, expert=expert)
        return name if suffix == "weight" else name.removesuffix("weight") + suffix

    def _look_up(self, tensor: Tensor, suffix: str, layers: tuple[int, ...]) -> Ids:
        get = self.table.ids.get
        if not tensor.experts:
            found = [get(self.stored_name(tensor.name, suffix, layer), -1) for layer in layers]
            return np.array(found, dtype=np.int32)
        rows = []
        for layer in layers:
            before, after = self.stored_name(tensor.name, suffix, layer, None).split("None")
            rows.append([get(f"{before}{e}{after}", -1) for e in range(tensor.experts)])
        return np.array(rows, dtype=np.int32)

    def _class(
        self, kind: str, tensors: tuple[Tensor, ...], layers: tuple[int, ...], ids: dict[str, Ids], draft: bool
    ) -> LayerClass:
        absent = {t.optional for t in tensors if t.optional} - {
            t.optional for t in tensors if t.optional and (ids[f"{t.name}/weight"] >= 0).any()
        }
        tensors = tuple(t for t in tensors if t.optional is None or t.optional not in absent)
        forms = {}
        for tensor in tensors:
            form = self._forms(tensor, layers, ids)
            if form is not None:
                forms[tensor.name] = form
        return LayerClass(kind, layers, tensors, forms, ids, draft)

    def _forms(self, tensor: Tensor, layers: tuple[int, ...], ids: dict[str, Ids]) -> tuple[Form, ...] | None:
        """Check one logical tensor of a class; return its form (one an expert where they differ), None if defective."""
        columns = [ids[f"{tensor.name}/{s}"][0].reshape(-1) for s in self._suffixes(tensor)]
        signatures = [tuple(int(i) for i in pair) for pair in self._signature_rows(columns)]
        verdicts: dict[tuple[int, ...], Form | Callable[[str, str], Finding]] = {}
        forms: list[Form] = []
        sound = True
        for expert, pair in enumerate(signatures):
            if pair not in verdicts:
                verdicts[pair] = self._verdict(tensor, pair)
            verdict = verdicts[pair]
            member = expert if tensor.experts else None
            if isinstance(verdict, Form):
                forms.append(verdict)
                continue
            sound = False
            for layer in layers:
                name = self.stored_name(tensor.name, "weight", layer, member)
                scale = self.stored_name(tensor.name, self._suffixes(tensor)[-1], layer, member)
                self._add(verdict(name, scale), layer, tensor.name, member)
        if not sound:
            return None
        for form in dict.fromkeys(forms):
            members = [e for e, f in enumerate(forms) if f == form]
            self.sound.append(_Sound(tensor, form, layers, members))
        return (forms[0],) if len(set(forms)) == 1 else tuple(forms)

    def _signature_rows(self, columns: list[Ids]) -> Iterator[tuple[int, ...]]:
        padded = np.append(self.table.signature, -1)
        return zip(*(padded[c].tolist() for c in columns), strict=True)

    def _signature(self, number: int) -> Signature | None:
        return self.table.signatures[number] if number >= 0 else None

    def _verdict(self, tensor: Tensor, numbers: tuple[int, ...]) -> Form | Callable[[str, str], Finding]:
        """Return the form that a weight's signatures give it, or a function from its names to the finding."""
        weight, *rest = (self._signature(n) for n in numbers)
        scale = rest[0] if rest else None
        shape = tensor.shape
        if weight is None:
            return lambda name, _: Finding(
                "tensor-missing", "error", f"expected {' or '.join(tensor.dtypes)} {list(shape)}, in no shard", name
            )
        if weight.shape != shape:
            return lambda name, _: Finding(
                "shape-mismatch", "error", f"expected {list(shape)} from the config, found {list(weight.shape)}", name
            )
        if weight.dtype in tensor.dtypes:
            if scale is not None:
                return lambda name, scale_name: Finding(
                    "scale-stray",
                    "error",
                    f"a scale lies beside {name}, which is {weight.dtype} and not quantised",
                    scale_name,
                    hint="either the weight was dequantised and its scale left behind, or the weight is mislabelled",
                )
            return Form(weight.dtype, quantised=False)
        values = self.format.components[0] if self.format else None
        if not tensor.quantised or (values is not None and weight.dtype not in values.dtypes):
            allowed = [*tensor.dtypes, *(values.dtypes if tensor.quantised and values else ())]
            return lambda name, _: Finding(
                "dtype-inadmissible", "error", f"expected {' or '.join(allowed)}, found {weight.dtype}", name
            )
        if self.format is None:
            known = weight.dtype in ("F8_E4M3",)
            return lambda name, _: Finding(
                "format-contradiction" if known else "dtype-inadmissible",
                "error",
                f"stored as {weight.dtype}, and config.json has no quantization_config that says how"
                if known
                else f"expected {' or '.join(tensor.dtypes)}, found {weight.dtype}",
                name,
                hint="quantization_config must give quant_method and weight_block_size" if known else None,
            )
        component = self.format.components[1]
        expected = component.shape(shape)
        if scale is None:
            return lambda name, scale_name: Finding(
                "scale-missing",
                "error",
                f"{name} is {weight.dtype} and needs its scale, {component.dtypes[0]} {list(expected)}, in no shard",
                scale_name,
            )
        if scale.shape != expected:
            return lambda name, scale_name: Finding(
                "shape-mismatch",
                "error",
                f"expected {list(expected)}, one factor for each block of {list(self.format.block) if self.format else ''}"
                f" of {name}, found {list(scale.shape)}",
                scale_name,
            )
        if scale.dtype not in component.dtypes:
            return lambda _, scale_name: Finding(
                "dtype-inadmissible",
                "error",
                f"expected {' or '.join(component.dtypes)}, found {scale.dtype}",
                scale_name,
            )
        return Form(weight.dtype, quantised=True)

    def remark(self) -> None:
        """Report sound forms that are worth a word: contradictions with the config, and formats unlike the others'."""
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for sound in self.sound:
            counts[sound.tensor.name][sound.form.dtype] += len(sound.layers)
        for sound in self.sound:
            expected = self._expected(sound.tensor, counts[sound.tensor.name])
            for layer in sound.layers:
                for code, severity, message, members in self._remarks(sound, layer, expected):
                    for member in members:
                        name = self.stored_name(sound.tensor.name, "weight", layer, member)
                        expert = member if sound.tensor.experts else None
                        self._add(Finding(code, severity, message, name), layer, sound.tensor.name, expert)

    def _expected(self, tensor: Tensor, counts: Counter[str]) -> str:
        """Return the plain format that a tensor is expected in: its own, that of most layers, or the model's."""
        model = self.claims.model_dtype
        if tensor.keep:
            return tensor.keep
        if not tensor.usual:
            return model
        commonest, count = counts.most_common(1)[0]
        return commonest if commonest in tensor.usual and count > counts[model] else model

    def _remarks(self, sound: _Sound, layer: int, expected: str) -> Iterator[tuple[str, Severity, str, list[int]]]:
        form = sound.form
        sample = self.stored_name(sound.tensor.name, "weight", layer, sound.members[0])
        if sound.tensor.quantised and self.format is not None and form.quantised == self.claims.ignores(sample):
            says = "left unquantised" if form.quantised else "quantised"
            message = (
                f"quantization_config says that it is to be {says}, stored as {form.dtype}: the headers are followed"
            )
            yield "format-contradiction", "warning", message, sound.members
        elif not form.quantised and form.dtype != expected:
            yield "dtype-noted", "note", f"stored as {form.dtype}, expected {expected}; loaded from that", sound.members

    def _add(self, finding: Finding, layer: int, logical: str, expert: int | None) -> None:
        if finding.severity == "error" and not self.draft_wanted:
            finding = replace(finding, severity="warning")
        if finding.code in ("tensor-missing", "scale-missing"):
            if finding.tensor in self.lost:
                return  # its shard is missing, which is reported as such
            self.missing.append(Defect(finding, layer, logical, expert))
        else:
            self.defects.append(Defect(finding, layer, logical, expert))

    def waive_drafts(self, classes: list[LayerClass]) -> list[Waiver]:
        """Waive the MTP layers that nobody asked for."""
        ids = np.unique(np.concatenate([i.reshape(-1) for c in classes for i in c.ids.values()] or [np.array([-1])]))
        return self._waiver("mtp not enabled", ids[ids >= 0])

    def waive_names(self, patterns: tuple[tuple[str, str], ...]) -> list[Waiver]:
        """Waive unused stored tensors whose whole name matches a pattern of the family."""
        waivers: list[Waiver] = []
        unused = np.flatnonzero(~self.used)
        for pattern, reason in patterns:
            matches = re.compile(pattern).fullmatch
            ids = np.array([i for i in unused if matches(self.table.names[i])], dtype=np.int64)
            self.used[ids] = True
            waivers += self._waiver(reason, ids)
        return waivers

    def _waiver(self, reason: str, ids: npt.NDArray[np.integer]) -> list[Waiver]:
        return [Waiver(reason, len(ids), int(self.table.nbytes[ids].sum()))] if len(ids) else []

    def report_strays(self) -> None:
        """Pair what is missing with what is left over, and report the rest of both."""
        strays = {self.table.names[i]: int(i) for i in np.flatnonzero(~self.used)}
        for defect in self.missing:
            name = defect.finding.tensor or ""
            nearest = self._nearest(name, strays)
            strays.pop(nearest or "", None)  # renamed: one defect, not two
            hint = f"nearest: {nearest}" if nearest else None
            self.defects.append(replace(defect, finding=replace(defect.finding, hint=hint)))
        for name, number in strays.items():
            signature = self.table.signatures[self.table.signature[number]]
            layer = re.search(r"\.layers\.(\d+)\.", name)
            self.defects.append(
                Defect(
                    Finding(
                        "tensor-unexpected",
                        "error",
                        f"{signature.dtype} {list(signature.shape)} belongs to no parameter of this architecture",
                        name,
                        file=self.checkpoint.files[self.table.file[number]].name,
                        hint="is config.json the one this checkpoint was published with?",
                    ),
                    int(layer[1]) if layer else TOP,
                    re.sub(r"\d+", "#", name),
                )
            )

    def _nearest(self, name: str, strays: Mapping[str, int]) -> str | None:
        close = get_close_matches(name, strays, 1, 0.6) if len(strays) <= 2000 else []
        if close:
            return close[0]
        prefix = name[: m.end()] if (m := re.search(r"\.layers\.\d+\.", name)) else name.split(".")[0]
        tail = name.rsplit(".", 1)[-1]
        candidates = [n for n in self.table.names if n.startswith(prefix) and n.endswith(tail)]
        close = get_close_matches(name, candidates[:2000], 1, 0.6)
        return close[0] if close else None
