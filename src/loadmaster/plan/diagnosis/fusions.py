"""Fusions: parameters whose parts are all quantised, but in different ways, so that the parameter cannot stay quantised.

Such a parameter is dequantised to the model's dtype: its values are right, and it takes two to four times the memory. A part
that is plain next to quantised ones is reported where the config does not announce it (`remarks`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from loadmaster.architectures.items import Item
from loadmaster.architectures.target import Target
from loadmaster.findings import Finding
from loadmaster.plan.binding import Defect
from loadmaster.plan.classes import TOP, LayerClass
from loadmaster.plan.composition import Part, parts_of, stays_encoded
from loadmaster.plan.forms import StoredForm

StoredPart = tuple[Item, int | None, StoredForm]
"""An item, or that of one expert, and its form."""


def unlike(target: Target, classes: Sequence[LayerClass], num_layers: int, dtype: str) -> Iterator[Defect]:
    """Report, for each parameter that is dequantised because its parts are quantised differently, the first odd part.

    A part is odd if it is stored differently from most of the same parameter, here or in other layers. ``dtype`` is the model's.
    """
    for param in target.params:
        if param.form != "stored":
            continue
        composed = [(bound, parts) for bound in classes if (parts := parts_of(param, bound))]
        if not any(_is_unlike(parts) for _, parts in composed):
            continue
        overall: Counter[StoredForm] = Counter()
        for bound, parts in composed:
            for _, _, form in _stored_parts(parts):
                overall[form] += len(bound.layers)
        for bound, parts in composed:
            if _is_unlike(parts):
                here = Counter(form for _, _, form in _stored_parts(parts))
                usual = max(here, key=lambda f: (here[f], overall[f]))
                odd = [f for f in _stored_parts(parts) if f[2] != usual]
                for layer in bound.layers:
                    name = param.name if layer == TOP else target.named(param.name, layer, num_layers)
                    yield _defect(name, odd, usual, layer, dtype)


def _is_unlike(parts: Sequence[Part]) -> bool:
    forms = {form for part in parts for form in part.forms}
    return len(forms) > 1 and all(form.quantised for form in forms) and all(map(stays_encoded, parts))


def _stored_parts(parts: Sequence[Part]) -> Iterator[StoredPart]:
    for part in parts:
        for expert in range(part.item.members) if part.item.by_expert else (None,):
            yield part.item, expert, part.forms[expert or 0 if len(part.forms) > 1 else 0]


def _defect(name: str, odd: Sequence[StoredPart], usual: StoredForm, layer: int, dtype: str) -> Defect:
    item, expert, form = odd[0]
    suffix, what = _difference(form, usual)
    more = f" (and {len(odd) - 1:,} more parts differ)" if len(odd) > 1 else ""
    message = f"{what.format(name=name)}{more}; {name} is dequantised to {dtype}"
    finding = Finding("parts-differ", "warning", message, item.stored_name(suffix, layer, expert), name)
    return Defect(finding, (layer,), item.key)


def _difference(odd: StoredForm, usual: StoredForm) -> tuple[str, str]:
    """Return the suffix of the component in which two quantised forms differ, and how; ``{name}`` is the parameter."""
    assert odd.format is not None
    assert usual.format is not None
    dtypes = {c.suffix: d for c, d in zip(odd.format.components, odd.dtypes, strict=True)}
    others = {c.suffix: d for c, d in zip(usual.format.components, usual.dtypes, strict=True)}
    values = odd.format.components[0].suffix
    if odd.format.name != usual.format.name:
        return values, f"it is stored as {odd.format.name}, other parts of {{name}} use {usual.format.name}"
    if lacking := next((s for s in others if s not in dtypes), None):
        return values, f"it has no {lacking}, other parts of {{name}} have one"
    if extra := next((s for s in dtypes if s not in others), None):
        return extra, "other parts of {name} have no such tensor"
    if other := next((s for s in dtypes if dtypes[s] != others[s]), None):
        return other, f"it is {dtypes[other]}, other parts of {{name}} use {others[other]}"
    return values, "its scales are divided differently from those of other parts of {name}"
