"""Which pages of the KV cache hold the tokens of one request."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from loadmaster.layers.step import Context, Pages


class PageTable:
    """The pages of one request, in the order of its positions."""

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self._pages = np.empty(16, np.int32)
        self._num_pages = 0

    @property
    def pages(self) -> Pages:
        """The pages so far."""
        return self._pages[: self._num_pages]

    def add(self, pages: Sequence[int]) -> None:
        """Add pages at the end."""
        if not pages:
            return
        needed = self._num_pages + len(pages)
        if needed > len(self._pages):  # contexts of earlier steps keep the old array
            self._pages = np.concatenate([self.pages, np.empty(2 * needed - self._num_pages, np.int32)])
        self._pages[self._num_pages : needed] = pages
        self._num_pages = needed

    def slots(self, first: int, stop: int) -> list[int]:
        """Return the slots of positions ``first`` to ``stop``."""
        size = self.page_size
        if stop - first == 1:
            return [int(self.pages[first // size]) * size + first % size]
        positions = np.arange(first, stop)
        slots: list[int] = (self.pages[positions // size].astype(np.int64) * size + positions % size).tolist()
        return slots

    def context(self, start: int, stop: int, first: int, length: int) -> Context:
        """Return the request's part of a step; see `Context`."""
        return Context(start, stop, first, length, self.pages[: -(-length // self.page_size)], self.page_size)
