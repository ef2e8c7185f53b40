"""What the layers of a stage need to know about a batch: prepared once on the host, used by every layer.

All numbers of a step travel to the device in one copy. A CUDA graph reads them from a buffer that each step fills anew.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from loadmaster.kernels.paged_attention import PagedContexts
from loadmaster.layers.rotary import Rotary

Pages = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Context:
    """One request in a step: its tokens are rows ``start`` to ``stop`` of the batch, at positions from ``first``.

    After the step, ``length`` tokens of it are in the cache: those of positions ``i * P`` to ``(i + 1) * P - 1`` in the slots
    of ``pages[i]``, where P is ``page_size``.
    """

    start: int
    stop: int
    first: int
    length: int
    pages: Pages
    page_size: int

    @property
    def num_tokens(self) -> int:
        """Tokens computed in this step."""
        return self.stop - self.start

    @cached_property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """The slots as half-open runs, in the order of their positions. Pages that are adjacent in the cache make one run."""
        breaks = np.flatnonzero(np.diff(self.pages) != 1) + 1
        bounds = [0, *breaks.tolist(), len(self.pages)]
        runs = []
        for begin, end in pairwise(bounds):
            slot = int(self.pages[begin]) * self.page_size
            runs.append((slot, slot + min(end * self.page_size, self.length) - begin * self.page_size))
        return tuple(runs)

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
    stage returns. ``paged`` is what kernels need to find the pages.

    ``buffer``, of `buffer_size` elements, receives the numbers instead of new memory; ``table_width`` is then the number of
    pages a context for which it has room, and the step ``is_refilled``: its tensors change with the next one.
    """

    def __init__(
        self,
        contexts: Sequence[Context],
        token_ids: Sequence[int],
        positions: Sequence[int],
        slots: Sequence[int],
        logit_rows: Sequence[int],
        device: torch.device | None = None,
        *,
        buffer: Tensor | None = None,
        table_width: int | None = None,
    ) -> None:
        self.contexts = tuple(contexts)
        self.num_tokens = len(positions)
        self.is_refilled = buffer is not None
        self.max_length = max(c.length for c in contexts)
        width = max(len(c.pages) for c in contexts) if table_width is None else table_width
        host = self._packed((token_ids, positions, slots, logit_rows), width, pinned=_is_cuda(device))
        target = torch.empty_like(host, device=device, pin_memory=False) if buffer is None else buffer
        numbers = target.copy_(host, non_blocking=True)
        num_wide = 3 * self.num_tokens + len(logit_rows)
        wide, narrow = numbers[:num_wide], numbers[num_wide:].view(torch.int32)
        sizes = (self.num_tokens, self.num_tokens, self.num_tokens, len(logit_rows))
        parts: tuple[Tensor, ...] = wide.split(sizes)
        self.token_ids_T, self.positions_T, self.slots_T, self.logit_rows_R = parts
        count = len(self.contexts)
        self.paged = PagedContexts(
            query_starts=narrow[: count + 1],
            lengths=narrow[count + 1 : 2 * count + 1],
            page_table=narrow[2 * count + 1 : 2 * count + 1 + count * width].view(count, width),
            page_size=self.contexts[0].page_size,
            num_tokens=tuple(c.num_tokens for c in self.contexts),
            max_length=self.max_length if buffer is None else None,
        )
        self._angles: dict[tuple[Rotary, torch.dtype], tuple[Tensor, Tensor]] = {}
        self._masks: dict[tuple[int, int | None], Tensor] = {}

    @staticmethod
    def buffer_size(num_tokens: int, num_logits: int, num_contexts: int, table_width: int) -> int:
        """Return how many int64 a step takes on the device."""
        return 3 * num_tokens + num_logits + -(-(2 * num_contexts + 1 + num_contexts * table_width) // 2)

    def fresh(self) -> Step:
        """Return a step with the same numbers in the same memory, for which nothing is computed yet."""
        step = copy.copy(self)
        step._angles, step._masks = {}, {}
        return step

    @property
    def device(self) -> torch.device:
        """The device of the step's tensors."""
        device: torch.device = self.positions_T.device
        return device

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

    def _packed(self, wide: Sequence[Sequence[int]], width: int, *, pinned: bool) -> Tensor:
        """Return all numbers of the step: int64, then pairs of int32. Each number of ``wide`` is one int64."""
        num_tokens, count = self.num_tokens, len(self.contexts)
        host = torch.empty(
            self.buffer_size(num_tokens, len(wide[-1]), count, width), dtype=torch.int64, pin_memory=pinned
        )
        numbers = host.numpy()
        at = 0
        for values in wide:
            numbers[at : at + len(values)] = values
            at += len(values)
        narrow = numbers[at:].view(np.int32)
        narrow[0] = 0
        narrow[1 : count + 1] = [c.stop for c in self.contexts]
        narrow[count + 1 : 2 * count + 1] = [c.length for c in self.contexts]
        table = narrow[2 * count + 1 : 2 * count + 1 + count * width].reshape(count, width)
        for row, context in zip(table, self.contexts, strict=True):
            row[: len(context.pages)] = context.pages
            row[len(context.pages) :] = 0
        return host


def causal_mask(positions_T: Tensor, num_cached: int, window: int | None = None) -> Tensor:
    """Return ``[T, S]``: which of ``num_cached`` tokens each token may attend to (true), itself included."""
    keys = torch.arange(num_cached, device=positions_T.device)
    mask = keys[None] <= positions_T[:, None]
    return mask if window is None else mask & (keys[None] > positions_T[:, None] - window)


def _is_cuda(device: torch.device | None) -> bool:
    return device is not None and device.type == "cuda"
