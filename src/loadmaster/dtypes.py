"""The number formats that a checkpoint may hold: their widths, and which formats contain which.

This table uses no library's dtype objects. The modules that use torch or numpy map these names to theirs.
Names and widths are those of the safetensors format
(https://github.com/huggingface/safetensors, ``safetensors/src/tensor.rs``, enum ``Dtype``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Dtype:
    """One number format.

    ``bits`` is the storage width. Floats are described by the set of values they hold: ``precision`` significand bits
    (the hidden one included) and exponents ``min_exponent`` (of the smallest subnormal's last bit) to ``max_exponent``.
    Integers have ``precision`` value bits, ``signed`` or not; ``kind`` is ``float``, ``int``, ``bool`` or ``complex``.
    """

    name: str
    bits: int
    kind: str
    precision: int = 0
    min_exponent: int = 0
    max_exponent: int = 0
    signed: bool = True


def _float(name: str, bits: int, precision: int, min_exponent: int, max_exponent: int, signed: bool = True) -> Dtype:
    return Dtype(name, bits, "float", precision, min_exponent, max_exponent, signed)


DTYPES: Final[dict[str, Dtype]] = {
    d.name: d
    for d in (
        Dtype("BOOL", 8, "bool", 1, signed=False),
        _float("F4", 4, 2, -1, 2),  # E2M1
        _float("F6_E2M3", 6, 4, -3, 2),
        _float("F6_E3M2", 6, 3, -4, 4),
        _float("F8_E4M3", 8, 4, -9, 8),  # the "fn" form: no infinities, largest value 448
        _float("F8_E5M2", 8, 3, -16, 15),
        _float("F8_E8M0", 8, 1, -127, 127, signed=False),  # powers of two: block scales
        _float("F8_E4M3FNUZ", 8, 4, -10, 7),
        _float("F8_E5M2FNUZ", 8, 3, -17, 15),
        _float("F16", 16, 11, -24, 15),
        _float("BF16", 16, 8, -133, 127),
        _float("F32", 32, 24, -149, 127),
        _float("F64", 64, 53, -1074, 1023),
        Dtype("C64", 64, "complex", 24),
        Dtype("U8", 8, "int", 8, signed=False),
        Dtype("I8", 8, "int", 7),
        Dtype("U16", 16, "int", 16, signed=False),
        Dtype("I16", 16, "int", 15),
        Dtype("U32", 32, "int", 32, signed=False),
        Dtype("I32", 32, "int", 31),
        Dtype("U64", 64, "int", 64, signed=False),
        Dtype("I64", 64, "int", 63),
    )
}

PLAIN: Final = ("BF16", "F16", "F32")
"""The unquantised floating-point formats that a model's weights are published in."""


def num_bytes(dtype: str, num_elements: int) -> int:
    """Return the bytes that ``num_elements`` packed elements take.

    >>> num_bytes("F4", 6), num_bytes("BF16", 6)
    (3, 12)

    Raises:
        ValueError: sub-byte elements that do not fill whole bytes.
    """
    bits = DTYPES[dtype].bits * num_elements
    if bits % 8:
        raise ValueError(f"{num_elements} elements of {dtype} do not fill whole bytes")
    return bits // 8


def widens(source: str, target: str) -> bool:
    """Return whether every value of ``source`` is exactly a value of ``target`` (inclusion of value sets).

    >>> widens("BF16", "F32"), widens("F16", "BF16"), widens("BF16", "F16"), widens("F8_E8M0", "F32")
    (True, False, False, True)
    """
    if source == target:
        return True
    a, b = DTYPES[source], DTYPES[target]
    if a.signed and not b.signed:
        return False
    if a.kind == "float" and b.kind == "float":
        return a.precision <= b.precision and b.min_exponent <= a.min_exponent and a.max_exponent <= b.max_exponent
    if a.kind in ("int", "bool") and b.kind in ("int", "float"):
        return a.precision <= b.precision
    return False


def join(dtypes: tuple[str, ...]) -> str:
    """Return the narrowest plain format that holds every value of all ``dtypes``.

    >>> join(("BF16", "BF16")), join(("BF16", "F16"))
    ('BF16', 'F32')

    Raises:
        ValueError: no plain format holds them all.
    """
    for candidate in (*PLAIN, "F64"):
        if all(widens(d, candidate) for d in dtypes):
            return candidate
    raise ValueError(f"no plain format holds all of {sorted(set(dtypes))}")
