"""Finds the shapes of weights that MLX or bitsandbytes stored, which their headers alone do not give.

MLX puts codes into words, as many as its settings in config.json say, module by module. bitsandbytes stores the 4-bit codes of a
weight as one column: which of them are a row follows from what the module is, and from the config.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import product
from math import prod
from typing import Any

from loadmaster.architectures.config import Config
from loadmaster.architectures.mlx import key_of_mlx
from loadmaster.checkpoint.table import Signature
from loadmaster.describe.dims import Sizes
from loadmaster.describe.roles import ROLES, TOP
from loadmaster.describe.stored import NUMBERED, Encoded, with_experts
from loadmaster.formats import Format, bitsandbytes
from loadmaster.formats.bitsandbytes import STATE
from loadmaster.plan.claims import read_claims


def decoded(
    tensors: Mapping[str, Signature], config: Mapping[str, Any], sizes: Sizes
) -> tuple[dict[str, Signature], list[str]]:
    """Return the tensors with each such weight as one (`Encoded`), and questions about shapes that are not certain."""
    result, questions = dict(tensors), list[str]()
    found = list(_of_mlx(tensors, config)) if key_of_mlx(config) else []
    for name, format_ in _of_bitsandbytes(tensors):
        shape, is_known = _shape(name, 2 * prod(tensors[name].shape), sizes)
        if shape is None:
            questions.append(f"{name}: how many rows does it have? Headers do not say it, nor does the config")
            continue
        if not is_known:
            questions.append(f"{name}: has it the shape {list(shape)}? Headers do not say it")
        found.append((name, shape, format_))
    for name, whole, format_ in found:
        for component in format_.components[1:]:
            result.pop(f"{name.removesuffix('weight')}{component.suffix}", None)
        result[name] = Encoded(tensors[name].dtype, whole, format_.name)
    return result, questions


def _of_mlx(
    tensors: Mapping[str, Signature], config: Mapping[str, Any]
) -> Iterator[tuple[str, tuple[int, ...], Format]]:
    claims = read_claims(Config(config), "BF16")
    assert claims.modules is not None
    for name, stored in tensors.items():
        module = name.removesuffix(".weight")
        scales, format_ = tensors.get(f"{module}.scales"), claims.modules.get(module, claims.formats[0])
        if stored.dtype != "U32" or not stored.shape or scales is None or not scales.shape or format_ is None:
            continue
        values, factors = (c.grains for c in format_.components[:2])
        inner = prod(g.span for g in values if g.kind == "inner")
        columns = stored.shape[-1] // inner * values[1].span
        if scales.shape[-1] * factors[1].span == columns:
            yield name, (*stored.shape[:-1], columns), format_


def _of_bitsandbytes(tensors: Mapping[str, Signature]) -> Iterator[tuple[str, Format]]:
    for state in tensors:
        module, found, kind = state.partition(f".{STATE}")
        name = f"{module}.weight"
        if found and kind in ("nf4", "fp4") and name in tensors:
            yield name, bitsandbytes(kind, nested=f"{name}.nested_absmax" in tensors)


def _shape(name: str, elements: int, sizes: Sizes) -> tuple[tuple[int, int] | None, bool]:
    """Return the shape of a weight of so many elements, and whether its name and the config give it."""
    match = NUMBERED.fullmatch(with_experts(name))
    module = re.sub(r"\.weight$", "", match[3] if match else name)
    for role in (*ROLES, *TOP):
        if len(role.dims) != 2 or re.fullmatch(role.name, module) is None:
            continue
        for templates in product(*role.dims):
            rows, columns = (d.value if (d := sizes.evaluate(t)) else 0 for t in templates)
            if rows * columns == elements:
                return (rows, columns), True
    hidden = sizes.evaluate("hidden")
    if hidden is None or elements % hidden.value:
        return None, False
    return (elements // hidden.value, hidden.value), False
