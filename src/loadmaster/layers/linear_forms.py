"""Copies of a weight that a CPU multiplies faster: chosen by measurement when a stage is built, where memory allows.

Decoding reads every weight once a step, so its speed is the memory's. MKL's product of a row-major weight reaches that for
a single token only in part, and for a few tokens it packs the weight anew each time. Two other forms do better, depending
on the shape: columns (the transpose) for one or two tokens, and oneDNN's packed form for more. Small weights stay as they
are: they are in the caches, and their products have the same bits on every host.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

MIN_BYTES = 1 << 20
"""Smaller weights are not copied."""

FEW_TOKENS = 2
"""Up to this many tokens, columns are used."""

GAIN = 0.9
"""A form is used if it takes at most this share of the time of the weight as it is."""

PACKED_FOR = 16
"""The number of tokens for which oneDNN arranges the packed form, and at which it is measured."""


@dataclass(frozen=True)
class Forms:
    """The copies of one weight ``[out, in]``: ``columns`` ``[in, out]``, ``packed`` as oneDNN arranges it; None: not made."""

    rows: Tensor
    columns: Tensor | None = None
    packed: Tensor | None = None

    def multiply(self, x_TI: Tensor, bias: Tensor | None) -> Tensor:
        """Return ``x @ weight.T + bias`` ``[T, out]``."""
        if len(x_TI) <= FEW_TOKENS and self.columns is not None:
            return x_TI @ self.columns if bias is None else torch.addmm(bias, x_TI, self.columns)
        if len(x_TI) > FEW_TOKENS and self.packed is not None:
            return _packed_product(x_TI, self.packed, bias)
        return F.linear(x_TI, self.rows, bias)


class Tuner:
    """Decides which forms to make, once for each shape, and how much memory they may take."""

    def __init__(self, num_bytes: int) -> None:
        self._num_bytes = num_bytes
        self._chosen: dict[tuple[int, ...], tuple[bool, bool]] = {}

    def prepare(self, weight: Tensor) -> Forms | None:
        """Return the forms of a weight ``[out, in]``, or None if it is best used as it is."""
        size = weight.numel() * weight.itemsize
        if weight.dtype != torch.float32 or weight.device.type != "cpu" or weight.dim() != 2 or size < MIN_BYTES:
            return None
        if 2 * size > self._num_bytes or not torch.backends.mkldnn.is_available():
            return None
        shape = tuple(weight.shape)
        if shape not in self._chosen:
            self._chosen[shape] = _is_faster(weight)
        use_columns, use_packed = self._chosen[shape]
        self._num_bytes -= size * (use_columns + use_packed)
        return Forms(weight, _columns(weight) if use_columns else None, _pack(weight) if use_packed else None)


def _is_faster(weight: Tensor) -> tuple[bool, bool]:
    """Return whether columns are faster than the weight as it is, and whether the packed form is. Makes both to measure them."""
    columns, packed = _columns(weight), _pack(weight)
    one, some = torch.ones(1, weight.shape[1]), torch.ones(PACKED_FOR, weight.shape[1])
    rows_one, rows_some = _seconds(lambda: F.linear(one, weight)), _seconds(lambda: F.linear(some, weight))
    return (
        _seconds(lambda: one @ columns) < GAIN * rows_one,
        _seconds(lambda: _packed_product(some, packed, None)) < GAIN * rows_some,
    )


def _seconds(work: Callable[[], Tensor]) -> float:
    """Return the time of the fastest of five runs."""
    best = float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - begin)
    return best


def _columns(weight: Tensor) -> Tensor:
    return weight.t().contiguous()


def _pack(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_FOR)
    return packed


def _packed_product(x_TI: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x_TI, packed, bias, "none", [], "")
    return product
