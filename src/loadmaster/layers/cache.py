"""The cache of one request on one stage: for each layer and kind of value, one row for each token."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from loadmaster.errors import RunError


class Cache:
    """Preallocated rows ``[max_tokens, …]`` by (layer, kind). ``length`` tokens are in it.

    Rows are written at the positions of a call; a call may begin at or before ``length`` (later rows are
    overwritten), never past it.
    """

    def __init__(
        self,
        widths: Mapping[tuple[int, str], tuple[int, ...]],
        max_tokens: int,
        dtype: torch.dtype,
        device: torch.device | None = None,
    ) -> None:
        self.max_tokens = max_tokens
        self.length = 0
        self._rows = {
            key: torch.empty((max_tokens, *width), dtype=dtype, device=device) for key, width in widths.items()
        }

    def begin(self, positions_T: Tensor) -> tuple[int, int]:
        """Return the first position of a call and the tokens in the cache after it.

        Raises:
            RunError: the call leaves a gap, or does not fit.
        """
        start, stop = int(positions_T[0]), int(positions_T[-1]) + 1
        if start > self.length or stop - start != len(positions_T):
            raise RunError(f"positions {start} to {stop - 1} do not continue a cache of {self.length} token(s)")
        if stop > self.max_tokens:
            raise RunError(f"{stop} tokens do not fit a cache of {self.max_tokens}")
        return start, stop

    def update(self, layer: int, kind: str, start: int, rows: Tensor) -> Tensor:
        """Write rows ``[T, …]`` from position ``start`` on; return all rows up to their end ``[S, …]``."""
        buffer = self._rows[layer, kind]
        buffer[start : start + len(rows)] = rows
        return buffer[: start + len(rows)]
