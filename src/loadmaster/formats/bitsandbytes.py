"""bitsandbytes' formats: 4-bit codes in blocks of 64 that run over the whole weight, and INT8 rows.

The 4-bit codes of a weight are stored as one column, row after row, and so are the factors of their blocks (``absmax``), which
are themselves codes with factors where they are nested. A table in the checkpoint (``quant_map``) gives the codes meaning. A
JSON text in a U8 tensor (``quant_state``) holds what is not in the headers; `read_state` reads it.

Source: ``bitsandbytes/functional.py`` (``QuantState.as_dict``, ``quantize_4bit``, ``int8_vectorwise_dequant``) and
``Linear8bitLt`` in ``bitsandbytes/nn/modules.py``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cache
from typing import Any, Final, Literal

from loadmaster.formats.table import EVERY, OPEN, OUT, Component, Format, Grain

BLOCK: Final = 64
"""Values of a 4-bit weight that share a factor."""

NESTED_BLOCK: Final = 256
"""Factors that share a factor of theirs."""

STATE: Final = "weight.quant_state.bitsandbytes__"
"""How the suffix of the JSON text begins; the kind of the codes follows."""


@cache
def bitsandbytes(kind: Literal["nf4", "fp4"], *, nested: bool) -> Format:
    """Return the 4-bit format: two codes a byte (the first in the high nibble), ``value = quant_map[code] * absmax``.

    ``nested``: ``absmax = nested_quant_map[code] * nested_absmax + offset``, with a ``nested_absmax`` for each 256. Rows must be
    whole blocks. Which nested block a factor belongs to depends on its place in the whole weight, so no part of a weight
    stays encoded.
    """
    by_block = (OUT, Grain(1, BLOCK, "cover"))
    more = (
        Component("weight.nested_absmax", ("F32",), (Grain(EVERY, BLOCK * NESTED_BLOCK, "whole"),), free=True),
        Component("weight.nested_quant_map", ("F32",), (Grain(-1, 256, "inner"),), free=True),
    )
    return Format(
        f"bitsandbytes_{kind}",
        (
            Component("weight", ("U8",), (OUT, Grain(1, 2)), joined="column"),
            Component("weight.absmax", ("U8",) if nested else ("F32",), by_block, joined="all", free=True),
            Component("weight.quant_map", ("F32",), (Grain(-1, 16, "inner"),), free=True),
            *(more if nested else ()),
            Component(STATE + kind, ("U8",), (Grain(-1, OPEN, "inner"),), free=True),
        ),
        transient=True,
    )


BITSANDBYTES_INT8: Final = Format(
    "bitsandbytes_int8",
    (
        Component("weight", ("I8",), (OUT, Grain(1))),
        Component("SCB", ("F32",), (OUT, Grain(-1, 1, "inner")), joined="last", free=True),
        Component("weight_format", ("U8",), optional=True, waived="weight_format 0: rows as they are", zeros=True),
    ),
)
"""LLM.int8: the largest magnitude of each row, ``value = weight * SCB / 127``."""


def state_of(format_: Format) -> str | None:
    """Return the suffix of the text that a format stores beside a weight; None where it has none."""
    return next((c.suffix for c in format_.components if c.suffix.startswith(STATE)), None)


def write_state(format_: Format, shape: tuple[int, ...]) -> bytes:
    """Return the text of a weight of ``shape`` whose nested factors have 1/32 added to them."""
    return json.dumps(_said(format_, shape) | ({"nested_offset": 0.03125} if _is_nested(format_) else {})).encode()


def read_state(format_: Format, text: bytes) -> float:
    """Hold the text of a weight against its format, and return what is added to its nested factors (0: they are not nested).

    Raises:
        ValueError: it is not such a text, or contradicts the headers; says how.
    """
    try:
        state = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its quant_state is not JSON: {error}") from error
    if not isinstance(state, Mapping):
        raise ValueError("its quant_state is not an object")
    for key, value in _said(format_, format_.of).items():
        if state.get(key) != value:
            raise ValueError(f"its quant_state says {key} {state.get(key)!r}, and the headers {value!r}")
    offset = state.get("nested_offset", 0.0)
    if type(offset) not in (int, float) or not math.isfinite(offset):
        raise ValueError(f"its quant_state says nested_offset {offset!r}, expected a number")
    return float(offset) if _is_nested(format_) else 0.0


def _is_nested(format_: Format) -> bool:
    return any(c.suffix == "weight.nested_absmax" for c in format_.components)


def _said(format_: Format, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return what a text repeats of the headers."""
    said = {"quant_type": format_.name.removeprefix("bitsandbytes_"), "blocksize": BLOCK, "shape": list(shape)}
    return said | ({"nested_blocksize": NESTED_BLOCK} if _is_nested(format_) else {})
