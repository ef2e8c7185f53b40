"""Groups a checkpoint's tensors: one weight for all layers and experts, its components of a number format taken together.

Only names, shapes and dtypes are read. A weight that is stored quantised has the shape that it has decoded.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from loadmaster.checkpoint.table import Signature
from loadmaster.formats import (
    BITSANDBYTES_INT8,
    FP4,
    FP8_CHANNEL,
    FP8_TENSOR,
    FP8_TENSOR_OTHERS,
    INT8_CHANNEL,
    MXFP4,
    MXFP4_LINEAR,
    MXFP4_PACKED,
    NVFP4,
    NVFP4_MODELOPT,
    Component,
    Format,
    awq,
    fp8_block,
    gptq,
    int4_packed,
    mxfp8,
)

FORMATS: Final[tuple[Format, ...]] = (
    NVFP4,
    NVFP4_MODELOPT,
    MXFP4,
    MXFP4_PACKED,
    MXFP4_LINEAR,
    FP4,
    int4_packed(None),
    gptq(None),
    gptq(None, bits=8),
    awq(None),
    fp8_block(),
    mxfp8(suffix="weight_scale_inv"),
    mxfp8(),
    FP8_CHANNEL,
    fp8_block(suffix="weight_scale", input_scale=True),
    FP8_TENSOR,
    *FP8_TENSOR_OTHERS,
    INT8_CHANNEL,
    BITSANDBYTES_INT8,
)
"""The formats that are looked for, in this order."""


@dataclass(frozen=True, slots=True)
class Weight:
    """One weight of a layer, or of the model itself.

    ``name`` is its stored name without what precedes a layer's own names, with ``{expert}`` where each expert has one.
    ``shape`` is the decoded shape, ``dtype`` that of the values, ``format`` the name of its number format (None: plain).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    format: str | None = None
    experts: int = 0


@dataclass(frozen=True, slots=True)
class Encoded(Signature):
    """A weight whose components were taken together already: its decoded shape, and the name of its number format."""

    format: str


@dataclass(frozen=True, slots=True)
class Stack:
    """The decoder layers: stored under ``prefix`` + number + ``.``, the weights of each in the order of their names."""

    prefix: str
    layers: Mapping[int, tuple[Weight, ...]]


@dataclass(frozen=True, slots=True)
class Grouped:
    """All tensors of a checkpoint: the decoder's ``stack``, the ``top`` weights beside it, and ``others``: number by prefix."""

    stack: Stack
    top: tuple[Weight, ...]
    others: Mapping[str, int]


NUMBERED = re.compile(r"(.*?)\.(\d+)\.(.+)")
"""A name with the number of a layer: what precedes it, the number, and the layer's own name."""


def with_experts(name: str) -> str:
    """Return a name with ``{expert}`` in place of an expert's number.

    >>> with_experts("mlp.experts.3.up_proj.weight")
    'mlp.experts.{expert}.up_proj.weight'
    """
    return re.sub(r"(experts?)\.\d+\.", r"\1.{expert}.", name, count=1)


def group(tensors: Mapping[str, Signature], num_layers: int | None) -> Grouped | None:
    """Return the tensors in groups; None where no names have a layer's number.

    The decoder is the prefix with ``num_layers`` layers or more, and of several the one with the most tensors.
    """
    numbered: dict[str, dict[int, dict[str, Signature]]] = defaultdict(lambda: defaultdict(dict))
    alone: dict[str, Signature] = {}
    for name, signature in tensors.items():
        if match := NUMBERED.fullmatch(name):
            numbered[match[1] + "."][int(match[2])][match[3]] = signature
        else:
            alone[name] = signature
    if not numbered:
        return None

    def weight_of(prefix: str) -> tuple[bool, bool, int]:
        layers = numbered[prefix]
        is_tower = re.search(r"vis|audio|image|mtp", prefix) is not None
        return num_layers is not None and len(layers) >= num_layers, not is_tower, sum(map(len, layers.values()))

    main = max(numbered, key=weight_of)
    base = main.removesuffix(".").rpartition(".")[0]
    base = f"{base}." if base else ""
    others: Counter[str] = Counter()
    for prefix, layers in numbered.items():
        if prefix != main:
            others[_apart(prefix, base)] += sum(map(len, layers.values()))
    own: dict[str, Signature] = {}
    for name, signature in alone.items():
        tower = next((p for p in others if p.endswith(".") and name.startswith(p)), None)
        if tower is None and (name.startswith(base) or _is_head(name)):
            own[name] = signature
        else:
            others[tower or _apart(name, base)] += 1
    seen: dict[frozenset[tuple[str, Signature]], tuple[Weight, ...]] = {}
    stack = {}
    for number, names in sorted(numbered[main].items()):
        key = frozenset(names.items())
        if key not in seen:
            seen[key] = weights(names)
        stack[number] = seen[key]
    return Grouped(Stack(main, stack), weights(own), dict(others))


def _is_head(name: str) -> bool:
    return re.search(r"(^|\.)(lm_head|embed_out|output|output_layer)\.", name) is not None


def _apart(name: str, base: str) -> str:
    """Return the prefix under which tensors outside the decoder are listed: one part more than they share with it.

    >>> _apart("model.visual.blocks.", "model.language_model."), _apart("logit_scale", "model.")
    ('model.visual.', 'logit_scale')
    """
    parts, own = name.removesuffix(".").split("."), base.removesuffix(".").split(".")
    shared = next((i for i, (a, b) in enumerate(zip(parts, own, strict=False)) if a != b), min(len(parts), len(own)))
    prefix = ".".join(parts[: shared + 1])
    return prefix if prefix == name else f"{prefix}."


def weights(names: Mapping[str, Signature]) -> tuple[Weight, ...]:
    """Return the weights of a layer: those of experts as one, the components of a format as one.

    >>> weights({"experts.0.up.weight": Signature("BF16", (4, 8)), "experts.1.up.weight": Signature("BF16", (4, 8))})
    (Weight(name='experts.{expert}.up.weight', shape=(4, 8), dtype='BF16', format=None, experts=2),)
    """
    found: dict[str, Signature] = {}
    counts: Counter[str] = Counter()
    for name, signature in names.items():
        pattern = with_experts(name)
        found.setdefault(pattern, signature)
        counts[pattern] += pattern != name
    taken: set[str] = set()
    result: list[Weight] = []
    for name, signature in found.items():
        if isinstance(signature, Encoded):
            taken.add(name)
            result.append(Weight(name, signature.shape, signature.dtype, signature.format, counts[name]))
            continue
        for format_ in FORMATS:
            if (stem := _stem(name, format_.components[0])) is None:
                continue
            parts = {_joined(stem, c.suffix): c for c in format_.components if c.suffix != "bias"}
            fits = [p in found and _fits(found[p], c) for p, c in parts.items() if not c.optional]
            if all(fits) and _grid_fits(found, stem, format_):
                taken |= parts.keys() & found.keys()
                plain = stem if format_.components[0].suffix.startswith("_") else f"{stem}.weight"
                shape = _decoded(found[name].shape, format_)
                result.append(Weight(plain, shape, found[name].dtype, format_.name, counts[name]))
                break
    result += [Weight(n, s.shape, s.dtype, None, counts[n]) for n, s in found.items() if n not in taken]
    return tuple(sorted(result, key=lambda w: w.name))


def _joined(stem: str, suffix: str) -> str:
    return stem + suffix if suffix.startswith("_") else f"{stem}.{suffix}"


def _stem(name: str, values: Component) -> str | None:
    ending = values.suffix if values.suffix.startswith("_") else f".{values.suffix}"
    return name.removesuffix(ending) if name.endswith(ending) else None


def _fits(signature: Signature, component: Component) -> bool:
    return signature.dtype in component.dtypes


def _grid_fits(found: Mapping[str, Signature], stem: str, format_: Format) -> bool:
    """Tell formats apart whose components have the same names and dtypes: by the sizes of scales and zero points."""
    if format_.name.startswith(("gptq", "awq")):
        values, scales, zeros = (found[_joined(stem, c.suffix)].shape for c in format_.components[:3])
        if len(values) != 2:
            return False
        if format_.name == "awq":
            return values[1] == zeros[1] and scales[1] == 8 * zeros[1]
        return values[1] == scales[1] and scales[1] * int(format_.name.removeprefix("gptq")) == 32 * zeros[1]
    if not format_.name.startswith(("fp8", "int8")):
        return True
    shape = found[_joined(stem, format_.components[1].suffix)].shape
    if format_.name == "fp8_tensor":
        return shape in ((), (1,))
    rows = found[_joined(stem, "weight")].shape
    is_row = len(shape) == 2 and shape == (rows[0], 1)
    return is_row if format_.name.endswith("channel") else len(shape) >= 2 and not is_row


def _decoded(stored: tuple[int, ...], format_: Format) -> tuple[int, ...]:
    """Return the decoded shape of stored values; dims before those of the format (experts) stay."""
    grains = format_.components[0].grains
    lead, own = stored[: len(stored) - len(grains)], stored[len(stored) - len(grains) :]
    dims = {g.dim: size * g.span for g, size in zip(grains, own, strict=True) if g.kind != "inner"}
    return (*lead, *(dims[d] for d in sorted(dims)))


def formats_of(every: Iterable[Weight]) -> dict[str, int]:
    """Return how many weights have each number format; plain ones by their dtype."""
    return dict(Counter(w.format or w.dtype for w in every).most_common())
