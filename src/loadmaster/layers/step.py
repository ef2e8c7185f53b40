"""What the layers of a stage need to know about a batch: prepared once on the host, used by every layer.

A layer computes all tokens of the batch together, and attends for each `Context` on its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loadmaster.layers.rotary import Rotary


@dataclass(frozen=True, slots=True)
class Context:
    """One request in a step: its tokens are rows ``start`` to ``stop`` of the batch, at positions from ``first``.

    After the step, ``length`` tokens of it are in the cache, in the slots of ``runs`` (half open, in the order of their
    positions). Pages that are adjacent in the cache make one run.
    """

    start: int
    stop: int
    first: int
    length: int
    runs: tuple[tuple[int, int], ...]

    @property
    def num_tokens(self) -> int:
        """Tokens computed in this step."""
        return self.stop - self.start

    def rows(self, rows_HSD: Tensor, first: int = 0) -> Tensor:
        """Return the cached rows of positions ``first`` to ``length``: a view if they are adjacent, else a copy."""
        skip, views = first, []
        for run_start, run_stop in self.runs:
            if skip < run_stop - run_start:
                views.append(rows_HSD[:, run_start + skip : run_stop])
                skip = 0
            else:
                skip -= run_stop - run_start
        return views[0] if len(views) == 1 else torch.cat(views, dim=1)

    def slots(self, device: torch.device) -> Tensor:
        """Return the slot of every position ``[length]``."""
        return torch.cat([torch.arange(start, stop, device=device) for start, stop in self.runs])


class Step:
    """T tokens of a batch: positions and slots as tensors, and the requests that they belong to.

    ``token_ids_T`` is used by the first stage and by a draft model. ``logit_rows_R`` are the rows whose logits the last
    stage returns.
    """

    def __init__(
        self,
        contexts: Sequence[Context],
        token_ids: Sequence[int],
        positions: Sequence[int],
        slots: Sequence[int],
        logit_rows: Sequence[int],
        device: torch.device | None = None,
    ) -> None:
        self.contexts = tuple(contexts)
        self.num_tokens = len(positions)
        self.max_length = max(c.length for c in contexts)
        host = torch.tensor([token_ids, positions, slots], dtype=torch.int64)
        self.token_ids_T, self.positions_T, self.slots_T = host.to(device, non_blocking=True).unbind()
        self.logit_rows_R = torch.tensor(logit_rows, dtype=torch.int64).to(device, non_blocking=True)
        self._angles: dict[tuple[Rotary, torch.dtype], tuple[Tensor, Tensor]] = {}
        self._masks: dict[tuple[int, int | None], Tensor] = {}

    @property
    def device(self) -> torch.device:
        """The device of the step's tensors."""
        return self.positions_T.device

    def angles(self, rotary: Rotary, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the cosines and sines of all tokens ``[T, dim / 2]``, computed once for all layers."""
        if (rotary, dtype) not in self._angles:
            self._angles[rotary, dtype] = rotary.at(self.positions_T, dtype)
        return self._angles[rotary, dtype]

    def causal_mask(self, context: Context, window: int | None = None) -> Tensor:
        """Return ``[tokens, length]``: which cached tokens each token of a context attends to (true), itself included.

        ``window``: only the last ``window`` tokens, itself included. Computed once for all layers.
        """
        key = (context.start, window)
        if key not in self._masks:
            positions_T = self.positions_T[context.start : context.stop]
            self._masks[key] = causal_mask(positions_T, context.length, window)
        return self._masks[key]


def causal_mask(positions_T: Tensor, num_cached: int, window: int | None = None) -> Tensor:
    """Return ``[T, S]``: which of ``num_cached`` tokens each token may attend to (true), itself included."""
    keys = torch.arange(num_cached, device=positions_T.device)
    mask = keys[None] <= positions_T[:, None]
    return mask if window is None else mask & (keys[None] > positions_T[:, None] - window)
