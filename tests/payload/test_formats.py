"""Scales of other formats than FP8 blocks: exponents, factors that are divided by, narrow factors, zero points."""

from __future__ import annotations

import numpy as np
import pytest

from loadmaster.checkpoint import Signature
from loadmaster.findings import Finding
from loadmaster.payload.roles import Role
from loadmaster.payload.tally import Tally, findings_of

F32 = np.float32


def found(values: object, dtype: str, role: Role) -> list[Finding]:
    array = np.asarray(values)
    tally = Tally()
    tally.look(array.view(np.uint8).reshape(-1), 0, dtype, role)
    return list(findings_of(tally, "t", Signature(dtype, array.shape), "f", role))


def test_an_exponent_of_255_is_nan_and_one_of_0_is_what_a_block_of_zeros_has() -> None:
    good = np.array([0, 118, 140], dtype=np.uint8)  # 2^-127, 2^-9, 2^13
    for dtype in ("U8", "F8_E8M0"):
        assert found(good, dtype, Role.EXPONENT) == []
        assert [f.code for f in found(np.array([118, 255], np.uint8), dtype, Role.EXPONENT)] == ["value-not-finite"]
        assert [f.severity for f in found(np.array([141], np.uint8), dtype, Role.EXPONENT)] == ["warning"]


def test_a_factor_that_is_divided_by_is_bounded_by_its_inverse() -> None:
    assert found(np.array([2688 / 1e-3], F32), "F32", Role.DIVISOR) == []
    assert [f.severity for f in found(np.array([1e-5], F32), "F32", Role.DIVISOR)] == ["warning"]


@pytest.mark.parametrize(("dtype", "severity"), [("F16", "warning"), ("F32", "error")])
def test_a_zero_that_may_be_underflow_is_a_warning(dtype: str, severity: str) -> None:
    kind = np.float16 if dtype == "F16" else F32
    assert [f.severity for f in found(np.array([0.5, 0.0], kind), dtype, Role.SCALE)] == [severity]


def test_parts_seen_in_any_order_come_to_the_same() -> None:
    values = np.array([[1, np.nan, 1], [np.inf, 1, np.nan]], F32)
    data = values.view(np.uint8).reshape(-1)
    whole, late = Tally(), Tally()
    late.look(data[12:], 12, "F32", Role.WEIGHT)
    whole.look(data[:12], 0, "F32", Role.WEIGHT)
    late.merge(whole)
    [finding] = findings_of(late, "t", Signature("F32", (2, 3)), "f", Role.WEIGHT)
    assert finding.message == "of 6 values F32: 2 NaN, first at [0, 1]; 1 infinite, first at [1, 0]"


def test_nothing_is_said_of_a_tensor_without_elements() -> None:
    assert found(np.empty((0, 4), F32), "F32", Role.WEIGHT) == []
