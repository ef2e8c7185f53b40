"""Stored forms: how a tensor is stored (plain, or in which quantised format), judged from the headers of its components.

The headers decide; what they leave open (which format an F8 tensor is in) the config's claims decide. A form that its
parameter does not allow is a `FormDefect`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from loadmaster.architectures.items import Item
from loadmaster.architectures.target import Held
from loadmaster.checkpoint import Signature
from loadmaster.formats import Component, Format


@dataclass(frozen=True, slots=True)
class StoredForm:
    """How an item is stored in the checkpoint: the number format of its values and, where it is quantised, the format.

    ``format`` has only the components that are stored and read; ``dtypes`` are theirs.
    """

    dtype: str
    format: Format | None = None
    dtypes: tuple[str, ...] = ()

    @property
    def quantised(self) -> bool:
        """Whether it is stored in a quantised format."""
        return self.format is not None

    def held_as(self, formats: Mapping[str, Sequence[Held]]) -> StoredForm:
        """Return the form with two stored dims as one, where an engine holds its format so (`Held.flat`)."""
        if self.format is None or not any(h.flat for h in formats.get(self.format.name, ())):
            return self
        flat = {h.suffix for h in formats[self.format.name] if h.flat}
        components = (c.flat() if c.suffix in flat else c for c in self.format.components)
        return replace(self, format=replace(self.format, components=tuple(components)))


@dataclass(frozen=True, slots=True)
class FormDefect:
    """Why an item's signatures are not sound: a finding without its name, which is that of the component ``suffix``.

    ``{values}`` in the message is the name of the component that holds the values. ``shape`` is that of a
    component which is missing. ``of_all``: it is one component for all slices of the item.
    """

    code: str
    suffix: str
    message: str
    values: str = "weight"
    hint: str | None = None
    shape: tuple[int, ...] | None = None
    of_all: bool = False


def judge(
    item: Item, stored: Mapping[str, Signature], claimed: Sequence[Format], *, ignored: bool
) -> StoredForm | FormDefect:
    """Return the form that the signatures of an item's components give it, or why they give it none.

    ``stored`` gives the signature of each component that is stored, by its suffix. ``claimed`` are the formats that the
    config announces; ``ignored`` says that it leaves this module out of them.
    """
    formats = item.formats(claimed)
    plain = item.first.dtypes
    weight = stored.get("weight")
    if weight is not None and weight.dtype in plain:
        if weight.shape != item.plain_shape:
            return FormDefect("shape-mismatch", "weight", _shapes(item.plain_shape, weight.shape))
        beside = next((s for s in stored if s != "weight"), None)
        if beside is not None:
            return FormDefect(
                "scale-stray",
                beside,
                f"it is stored next to {{values}}, which is {weight.dtype} and not quantised",
                hint="either the weight was dequantised and its scale left behind, or the weight is mislabelled",
            )
        return StoredForm(weight.dtype)
    met = [f for f in formats if f.components[0].suffix in stored]
    fitting = [f for f in met if stored[f.components[0].suffix].dtype in f.components[0].dtypes]
    if fitting:  # of formats with the same values, the one whose other components are there, and fit, explains a defect
        fitting.sort(key=lambda f: _fit(item, f, stored), reverse=True)
        verdicts = [_encoded(item, f, stored) for f in fitting]
        return next((v for v in verdicts if isinstance(v, StoredForm)), verdicts[0])
    if met or weight is not None:
        return _inadmissible(item, met, stored, formats)
    return _missing(item, stored, formats, ignored=ignored)


def _fit(item: Item, format_: Format, stored: Mapping[str, Signature]) -> tuple[int, int]:
    """Return how many components of a format are stored, and how many of them in the shape that it gives them."""
    shaped = item.stored_in(format_)
    there = [c for c in shaped.components if c.suffix in stored]
    return len(there), sum(stored[c.suffix].shape == item.component_shape(c) for c in there)


def _encoded(item: Item, format_: Format, stored: Mapping[str, Signature]) -> StoredForm | FormDefect:
    """Check every component of a format against what is stored."""
    values = format_.components[0].suffix
    format_ = format_.for_weight(item.shape, {suffix: s.shape for suffix, s in stored.items()})
    if fault := _in_run(item, format_):
        return fault
    shaped = item.stored_in(format_)
    for component, alone in zip(shaped.components, format_.components, strict=True):
        signature, expected = stored.get(component.suffix), item.component_shape(component)
        if signature is None:
            if component.optional:
                continue
            return FormDefect(
                "scale-missing",
                component.suffix,
                f"no shard holds it; {{values}} is {stored[values].dtype} ({format_.name}) and needs it as "
                f"{' or '.join(component.dtypes)} {list(expected)}",
                values,
                shape=expected,
                of_all=alone.is_scalar,
            )
        is_column = alone.is_scalar and expected[-1] == 1  # for experts, or a weight, alone
        if signature.shape != expected and not (is_column and signature.shape == expected[:-1]):
            of = "" if component.suffix == values else f", for {{values}} in {format_.name}"
            return FormDefect("shape-mismatch", component.suffix, _shapes(expected, signature.shape) + of, values)
        if signature.dtype not in component.dtypes:
            return FormDefect(
                "dtype-inadmissible", component.suffix, _dtypes(component.dtypes, signature.dtype), values
            )
    known = {c.suffix for c in format_.components}
    stray = next((s for s in stored if s not in known), None)
    if stray is not None:
        return FormDefect(
            "scale-stray",
            stray,
            f"it is stored next to {{values}}, whose format ({format_.name}) has no such tensor",
            values,
        )
    read = tuple(c for c in format_.components if c.suffix in stored and not c.waived)
    dtypes = tuple(stored[c.suffix].dtype for c in read)
    return StoredForm(dtypes[0], replace(format_, components=read), dtypes)


def _in_run(item: Item, format_: Format) -> FormDefect | None:
    """Refuse a weight whose blocks run on from row to row: its factors belong to no rows, so it cannot be cut."""
    block = format_.block[1] if format_.is_run else 1
    if item.shape[-1] % block == 0:
        return None
    message = f"its rows have {item.shape[-1]} elements, and blocks of {block} ({format_.name}) run on from row to row"
    return FormDefect("dtype-inadmissible", format_.components[0].suffix, message)


def _inadmissible(
    item: Item, met: Sequence[Format], stored: Mapping[str, Signature], claimed: Sequence[Format]
) -> FormDefect:
    """Say what is wrong with values in a number format that neither the parameter nor a claimed format allows."""
    suffix = met[0].components[0].suffix if met else "weight"
    signature = stored[suffix]
    shape = item.component_shape(met[0].components[0]) if met else item.plain_shape
    if not item.first.quantised and signature.shape != shape:
        return FormDefect("shape-mismatch", suffix, _shapes(shape, signature.shape))
    quantised = item.first.quantised or signature.dtype == "U32"
    if quantised and not claimed and signature.dtype in ENCODED:
        return FormDefect(
            "format-contradiction",
            suffix,
            f"stored as {signature.dtype}, but config.json has no quantization_config for it",
            hint="add quantization_config, with quant_method and its settings, to config.json",
        )
    allowed = [*item.first.dtypes, *(d for f in met for d in f.components[0].dtypes)]
    return FormDefect("dtype-inadmissible", suffix, _dtypes(tuple(dict.fromkeys(allowed)), signature.dtype))


def _missing(item: Item, stored: Mapping[str, Signature], formats: Sequence[Format], *, ignored: bool) -> FormDefect:
    """Say which values are missing: those of the claimed format, unless the config leaves the module out of it."""
    others = [f for f in formats if any(c.suffix in stored for c in f.components[1:])] or list(formats)
    values: Component | None = others[0].components[0] if others and (stored or not ignored) else None
    suffix = values.suffix if values else "weight"
    plain = [] if suffix != "weight" else [*item.first.dtypes]
    dtypes = [*plain, *(values.dtypes if values else ())]
    if values:
        values = item.stored_in(others[0]).components[0]
    shape = item.component_shape(values) if values else item.plain_shape
    message = f"expected {' or '.join(dtypes)} {list(shape)}, in no shard"
    return FormDefect("tensor-missing", suffix, message, shape=shape)


ENCODED = ("F8_E4M3", "U8", "I8", "I32", "U32", "F4")
"""Number formats whose meaning only the config gives."""


def _shapes(expected: tuple[int, ...], found: tuple[int, ...]) -> str:
    return f"expected {list(expected)} from the config, found {list(found)}"


def _dtypes(allowed: tuple[str, ...], found: str) -> str:
    return f"expected {' or '.join(allowed)}, found {found}"
