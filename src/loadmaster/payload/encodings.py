"""Finds NaN, infinity and zero in each number format by comparing integer codes, without converting values.

A float's magnitude bits order as integers do, and codes that are not finite are at the top. So two maxima over a part of a
tensor are enough: of its codes as unsigned integers (reached by negative numbers) and as signed ones (by positive numbers).
No memory is written.

Sources: IEEE 754; OCP 8-bit Floating Point Specification (E4M3 has no infinities, its NaN is all ones; E5M2 follows IEEE);
OCP Microscaling Formats (E8M0: a biased exponent, 255 is NaN, there is no zero); for the ``FNUZ`` forms
https://onnx.ai/onnx/technical/float8.html (no infinities, NaN where negative zero would be).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[Any]
"""Part of a tensor as a one-dimensional array of unsigned integers, as wide as its elements."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """One number format. ``size`` is bytes per element, ``top`` the first code, without its sign, that is not finite.

    ``infinity``: ``top`` is infinity and the codes above it are NaN; otherwise all codes from ``top`` are NaN. Not
    ``signed``: codes have no sign bit. Not ``zero``: no code means zero. ``top`` None: every code is finite.
    """

    size: int
    top: int | None = None
    infinity: bool = False
    signed: bool = True
    zero: bool = True

    @property
    def sign(self) -> int:
        """The sign bit."""
        return 1 << (8 * self.size - 1)

    def codes(self, data: npt.NDArray[np.uint8]) -> Codes:
        """Return bytes as codes; nothing is copied."""
        return data.view(f"<u{self.size}") if self.size > 1 else data

    def peek(self, codes: Codes) -> tuple[bool, bool]:
        """Return whether some code is not finite, and whether all are zero.

        >>> FORMATS["BF16"].peek(np.array([0x3F80, 0xFF80], dtype="<u2"))  # 1, -infinity
        (True, False)
        """
        if self.top is None or not self.signed:
            if self.top is None and codes[:4096].any():  # rarely zero: the first page decides for most tensors
                return False, False
            high = int(codes.max())
            return self.top is not None and high >= self.top, self.zero and high == 0
        if self is FNUZ:
            return bool((codes == self.sign).any()), not codes.any()
        high, positive = int(codes.max()), int(codes.view(f"<i{self.size}").max())
        return positive >= self.top or high >= self.sign | self.top, positive <= 0 and high <= self.sign

    def peek_each(self, tensors: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Return for each of many tensors, ``[tensors, bytes]``, what `peek` returns.

        >>> FORMATS["BF16"].peek_each(np.array([[0x80, 0xFF], [0, 0x80]], dtype=np.uint8))  # -infinity, -0
        (array([ True, False]), array([False,  True]))
        """
        codes = self.codes(tensors)
        none = np.zeros(len(codes), dtype=np.bool_)
        if self.top is None or self is FNUZ:
            return none if self.top is None else np.any(codes == self.sign, axis=1), np.logical_not(
                np.any(codes, axis=1)
            )
        high = (codes & (self.sign - 1) if self.signed else codes).max(axis=1)
        return high >= self.top, high == 0 if self.zero else none

    def unsound(self, codes: Codes) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Return where NaN is, and where infinity is."""
        none = np.zeros(codes.shape, dtype=np.bool_)
        if self.top is None:
            return none, none
        if self is FNUZ:
            return codes == self.sign, none
        magnitude = codes & (self.sign - 1) if self.signed else codes
        if not self.infinity:
            return magnitude >= self.top, none
        return magnitude > self.top, magnitude == self.top


FNUZ: Final = Encoding(1, 0x80)
"""Both 8-bit FNUZ formats: the only NaN is the sign bit alone."""

EXPONENT: Final = Encoding(1, 0xFF, signed=False, zero=False)
"""E8M0, which MXFP4 stores as U8."""

_BYTES: Final = Encoding(1)

FORMATS: Final[dict[str, Encoding]] = {
    "F64": Encoding(8, 0x7FF0 << 48, infinity=True),
    "F32": Encoding(4, 0x7F80_0000, infinity=True),
    "C64": Encoding(4, 0x7F80_0000, infinity=True),  # pairs of F32
    "F16": Encoding(2, 0x7C00, infinity=True),
    "BF16": Encoding(2, 0x7F80, infinity=True),
    "F8_E5M2": Encoding(1, 0x7C, infinity=True),
    "F8_E4M3": Encoding(1, 0x7F),
    "F8_E4M3FNUZ": FNUZ,
    "F8_E5M2FNUZ": FNUZ,
    "F8_E8M0": EXPONENT,
}


def encoding_of(dtype: str) -> Encoding:
    """Return a format's encoding. Integers, and floats of fewer than 8 bits (always finite), are checked as bytes."""
    return FORMATS.get(dtype, _BYTES)


def decode(codes: Codes, dtype: str) -> npt.NDArray[Any]:
    """Return the values of a scale's codes as F32 (F64 for F64). Only for scales, which are few.

    >>> decode(np.array([126, 129], dtype=np.uint8), "F8_E8M0").tolist()
    [0.5, 4.0]
    """
    if dtype in _SMALL:
        return _SMALL[dtype][codes]
    if dtype == "BF16":
        return (codes.astype("<u4") << 16).view("<f4")
    kind = codes.view(f"<f{codes.itemsize}")
    return kind.astype(np.float32) if codes.itemsize == 2 else kind


def _table(dtype: Any) -> npt.NDArray[np.float32]:
    values: npt.NDArray[np.float32] = np.arange(256, dtype=np.uint8).view(dtype).astype(np.float32)
    return values


_SMALL: Final = {
    "F8_E4M3": _table(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": _table(ml_dtypes.float8_e5m2),
    "F8_E4M3FNUZ": _table(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": _table(ml_dtypes.float8_e5m2fnuz),
    "F8_E8M0": _table(ml_dtypes.float8_e8m0fnu),
    "U8": _table(ml_dtypes.float8_e8m0fnu),
}
"""Values of all one-byte codes; U8 occurs only as MXFP4's exponents."""
