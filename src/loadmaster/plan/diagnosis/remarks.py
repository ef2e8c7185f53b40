"""Remarks: sound tensors that contradict the config or differ from the same tensor in other layers."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from loadmaster.architectures.schema import Tensor
from loadmaster.findings import Finding, Severity
from loadmaster.plan.binding import Defect, SoundItem
from loadmaster.plan.claims import Claims

SINGLY = 4
"""Up to this many modules of one layer get a remark each; more get one remark for the layer."""


Remark = tuple[str, Severity, str]
"""Code, severity and message."""


def remarks(sounds: Sequence[SoundItem], claims: Claims) -> Iterator[Defect]:
    """Report contradictions with the config, and formats that differ from the others."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for sound in sounds:
        counts[sound.item.key][sound.form.dtype] += len(sound.layers)
    affected: dict[tuple[int, Remark], list[SoundItem]] = defaultdict(list)
    for sound in sounds:
        expected = _expected(sound.item.first, counts[sound.item.key], claims.model_dtype)
        for layer in sound.layers:
            if (remark := _remark(sound, layer, expected, claims)) is not None:
                affected[layer, remark].append(sound)
    for (layer, remark), on in affected.items():
        yield from _on_layer(layer, remark, on) if len(on) > SINGLY else _singly(layer, remark, on)


def _singly(layer: int, remark: Remark, on: Sequence[SoundItem]) -> Iterator[Defect]:
    code, severity, message = remark
    for sound in on:
        for member in sound.members:
            experts = (member,) if sound.item.by_expert else ()
            finding = Finding(code, severity, message, sound.name(layer, member))
            yield Defect(finding, (layer,), sound.item.key, experts)


def _on_layer(layer: int, remark: Remark, on: Sequence[SoundItem]) -> Iterator[Defect]:
    """One remark on what many modules of a layer have in common: a whole layer left unquantised, say."""
    code, severity, message = remark
    names = [s.name(layer, s.members[0]) for s in on]
    first = names[0].split(".")
    shared = next(i for i in range(len(first) + 1) if len({tuple(n.split(".")[: i + 1]) for n in names}) > 1)
    number = sum(len(s.members) for s in on)
    finding = Finding(code, severity, f"{number:,} tensors: {message}", ".".join([*first[:shared], "*"]))
    yield Defect(finding, (layer,), "")


def _expected(tensor: Tensor, counts: Counter[str], model: str) -> str:
    """Return the plain format that a tensor is expected in: its own, that of most layers, or the model's."""
    if tensor.keep:
        return tensor.keep
    if not tensor.usual:
        return model
    commonest, count = counts.most_common(1)[0]
    return commonest if commonest in tensor.usual and count > counts[model] else model


def _remark(sound: SoundItem, layer: int, expected: str, claims: Claims) -> Remark | None:
    form, first = sound.form, sound.item.first
    name = sound.item.stored_name("weight", layer, sound.members[0])
    says = claims.contradicts(name, form.format, rarely=first.rarely) if first.quantised or form.quantised else None
    if says is not None:
        message = f"config says {says}, file says {form.dtype}; using the file"
        return "format-contradiction", "warning", message
    if not form.quantised and form.dtype != expected:
        return "dtype-noted", "note", f"stored as {form.dtype}, expected {expected}; using the file"
    return None
