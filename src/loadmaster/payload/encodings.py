"""How NaN, infinity and zero look in each number format, told from integers and not from converted values.

A float's magnitude bits order as integers do, and what is not finite lies at their top end. So two maxima over a part of a
tensor say everything: of its codes as unsigned integers (reached by negative numbers) and as signed ones (by positive
numbers). Nothing is converted, and no memory is written.

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
"""Part of a tensor as unsigned integers of its elements' width, one dim."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """One number format. ``size`` is bytes an element, ``top`` the first code without sign that is not finite.

    ``infinity``: whether that code is infinity and those above it are NaN; else all from it on are NaN. Without ``signed``
    codes have no sign bit, and without ``zero`` no code means zero. ``top`` None: every code is a finite number.
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
            if self.top is None and codes[:4096].any():  # seldom zero: most tensors are told by their first page
                return False, False
            high = int(codes.max())
            return self.top is not None and high >= self.top, self.zero and high == 0
        if self is FNUZ:
            return bool((codes == self.sign).any()), not codes.any()
        high, positive = int(codes.max()), int(codes.view(f"<i{self.size}").max())
        return positive >= self.top or high >= self.sign | self.top, positive <= 0 and high <= self.sign

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
"""Both 8-bit formats of this kind: the one code that is not a number is the sign alone."""

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
    """Return a format's encoding. Integers, and floats of fewer than 8 bits (always finite), are looked at as bytes."""
    return FORMATS.get(dtype, _BYTES)


def decode(codes: Codes, dtype: str) -> npt.NDArray[Any]:
    """Return the numbers of a scale's codes, F32 (F64 for F64). For scales, which are few: they are converted.

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
    made: npt.NDArray[np.float32] = np.arange(256, dtype=np.uint8).view(dtype).astype(np.float32)
    return made


_SMALL: Final = {
    "F8_E4M3": _table(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": _table(ml_dtypes.float8_e5m2),
    "F8_E4M3FNUZ": _table(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": _table(ml_dtypes.float8_e5m2fnuz),
    "F8_E8M0": _table(ml_dtypes.float8_e8m0fnu),
    "U8": _table(ml_dtypes.float8_e8m0fnu),
}
"""Numbers of all codes of one byte; U8 is met as MXFP4's exponents only."""
