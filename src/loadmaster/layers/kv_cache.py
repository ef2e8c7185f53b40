"""The KV cache of one stage: for each layer and kind of value, pages of rows that all requests share.

The memory is allocated once. Which pages belong to which request is decided by the engine (`loadmaster.engine.pages`) and
reaches the layers as slots: slot ``page * P + offset`` holds one token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Remembered:
    """What a layer stores of each token: ``num_heads`` rows of ``width`` elements."""

    num_heads: int
    width: int


CacheKey = tuple[int, str]
"""A layer's number and the kind of value, such as ``key``."""


class KVCache:
    """Rows ``[heads, num_pages * page_size, width]`` by layer and kind.

    Heads are the outer dim: a request whose pages are adjacent has, for each head, one contiguous block of rows.
    """

    def __init__(
        self,
        remembered: Mapping[CacheKey, Remembered],
        num_pages: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device | None = None,
    ) -> None:
        self.num_pages, self.page_size = num_pages, page_size
        self._rows = {
            key: torch.empty((r.num_heads, num_pages * page_size, r.width), dtype=dtype, device=device)
            for key, r in remembered.items()
        }

    def rows(self, layer: int, kind: str) -> Tensor:
        """Return all rows ``[heads, slots, width]``."""
        return self._rows[layer, kind]

    def write(self, layer: int, kind: str, slots_T: Tensor, rows_THD: Tensor) -> Tensor:
        """Write one row a token to its slot, and return all rows ``[heads, slots, width]``."""
        rows_HSD = self._rows[layer, kind]
        rows_HSD.index_copy_(1, slots_T, rows_THD.transpose(0, 1))
        return rows_HSD


def page_bytes(remembered: Mapping[CacheKey, Remembered], page_size: int, dtype: torch.dtype) -> int:
    """Return the bytes of one page of all layers."""
    return sum(prod((r.num_heads, r.width)) for r in remembered.values()) * page_size * dtype.itemsize
