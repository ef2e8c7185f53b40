"""Lists the tensors of a preset's checkpoint: names, dtypes and shapes, in file order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from loadmaster.architectures.items import Item, items, layer_items
from loadmaster.checkpoint import Signature
from loadmaster.formats import Component, Format
from loadmaster.formats.bitsandbytes import state_of, write_state
from loadmaster.plan.claims import Claims, read_claims
from loadmaster.synth.presets import Preset


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor to write.

    ``item`` is the stored item that it belongs to, None outside the language model. An encoded weight has one entry for each
    ``component`` of its ``format``, in order; ``number`` counts them.
    """

    name: str
    signature: Signature
    item: Item | None = None
    format: Format | None = None
    component: Component | None = None
    number: int = 0


STORED_OPTIONS = ("g_idx", "input_scale", "input_global_scale", "activation_scale", "qscale_act")
"""Optional components that are written wherever a format has them."""


def inventory(preset: Preset, config: dict[str, Any]) -> list[Entry]:
    """Return every tensor of the checkpoint; quantised ones are in the first format that the config claims."""
    family = preset.family_of(config)
    language = family.describe(config)
    schema = family.schema(language)
    claims = read_claims(language, "BF16")
    entries = [e for item in items(schema.top, family.spelling) for e in _entries(preset, claims, item, -1)]
    for layer in range(len(schema.layers) + len(schema.drafts)):
        for item in layer_items(schema, layer, family.spelling, family.draft_spelling()):
            if item.first.optional is None or preset.own_draft_head:
                entries += _entries(preset, claims, item, layer)
    return entries + [Entry(name, Signature(*signature)) for name, signature in preset.extra.items()]


def _entries(preset: Preset, claims: Claims, item: Item, layer: int) -> Iterator[Entry]:
    first = item.first
    sample = item.stored_name("weight", layer, 0)
    formats = item.formats(claims.formats)
    quantised = bool(formats) and (not first.rarely or formats[0].everywhere) and not claims.ignores(sample)
    format_ = (claims.experts if first.experts and claims.experts else formats[0]) if quantised else None
    if claims.modules is not None and formats:
        format_ = claims.modules.get(sample.rpartition(".")[0], formats[0])
    if format_ is not None and (suffix := state_of(format_)) is not None:
        format_ = format_.for_weight(item.shape, {suffix: (len(write_state(format_, item.shape)),)})
    members = range(item.members) if item.members else (None,)
    if format_ is None:
        dtype = first.keep or ("F32" if first.name in preset.f32 else claims.model_dtype)
        signature = Signature(dtype, item.plain_shape)
        for member in members:
            yield Entry(item.stored_name("weight", layer, member), signature, item)
        return
    components = [(c, s) for c, s in _components(preset, item, format_) if not c.optional or c.suffix in STORED_OPTIONS]
    for member in members:
        written = ((c, s) for c, s in components if not (first.slices and c.is_scalar and member))  # one for all slices
        for number, (component, signature) in enumerate(written):
            name = item.stored_name(component.suffix, layer, None if first.slices and component.is_scalar else member)
            yield Entry(name, signature, item, format_, component, number)


def _components(preset: Preset, item: Item, format_: Format) -> Iterator[tuple[Component, Signature]]:
    """Yield the components of a format, and how a preset stores them of an item."""
    shaped = item.stored_in(format_)
    for component, unstacked in zip(shaped.components, format_.components, strict=True):
        shape = item.component_shape(component)
        if item.stacked and unstacked.is_scalar and shape[-1] == 1:
            shape = shape[:-1]  # one number for each expert
        e8m0 = preset.e8m0 and "F8_E8M0" in component.dtypes
        yield component, Signature("F8_E8M0" if e8m0 else component.dtypes[0], shape)
