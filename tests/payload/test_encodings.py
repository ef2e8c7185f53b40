"""NaN, infinity and zero told from codes, against the values that numpy and ml_dtypes give every code."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from loadmaster.payload.encodings import FORMATS, decode, encoding_of

SMALL = {
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
}


def every_code(dtype: str) -> tuple[Any, Any]:
    size = FORMATS[dtype].size
    codes = np.arange(2 ** (8 * size), dtype=f"<u{size}")
    return codes, codes.view(SMALL[dtype]).astype(np.float32)


@pytest.mark.parametrize("dtype", SMALL)
def test_every_code_of_a_small_format_is_told_as_its_value_is(dtype: str) -> None:
    codes, values = every_code(dtype)
    nan, infinite = FORMATS[dtype].unsound(codes)
    np.testing.assert_array_equal(nan, np.isnan(values))
    np.testing.assert_array_equal(infinite, np.isinf(values))
    for code, value in zip(codes, values, strict=True):
        unsound, zero = FORMATS[dtype].peek(np.array([code]))
        assert unsound == (not np.isfinite(value)), hex(code)
        assert zero == (value == 0), hex(code)
    np.testing.assert_array_equal(decode(codes, dtype), values)


@pytest.mark.parametrize(("dtype", "kind"), [("F32", np.float32), ("F64", np.float64)])
def test_a_wide_format_has_its_edges_where_numpy_has_them(dtype: str, kind: type) -> None:
    largest = np.finfo(kind).max
    for value, unsound, zero in (
        (0.0, False, True),
        (-0.0, False, True),
        (largest, False, False),
        (-largest, False, False),
        (np.inf, True, False),
        (-np.inf, True, False),
        (np.nan, True, False),
        (-np.nan, True, False),
        (np.finfo(kind).smallest_subnormal, False, False),
    ):
        encoding = FORMATS[dtype]
        codes = encoding.codes(np.array([0.0, value, -0.0], dtype=kind).view(np.uint8))
        assert encoding.peek(codes) == (unsound, zero), value
        nan, infinite = encoding.unsound(codes)
        assert (bool(nan[1]), bool(infinite[1])) == (bool(np.isnan(value)), bool(np.isinf(value)))


def test_integers_are_never_unsound_and_zero_only_if_every_byte_is() -> None:
    encoding = encoding_of("I32")
    data = np.zeros(10_000, dtype=np.uint8)
    assert encoding.peek(encoding.codes(data)) == (False, True)
    data[9_999] = 1
    assert encoding.peek(encoding.codes(data)) == (False, False)
