"""Which slots of the KV cache hold the tokens of one request."""

from __future__ import annotations

from collections.abc import Iterable

from loadmaster.layers.step import Context


class PageTable:
    """The pages of one request, in the order of its positions. Adjacent pages are kept as one run of slots."""

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self.pages: list[int] = []
        self._runs: list[tuple[int, int]] = []  # first slot, and number of slots

    def add(self, pages: Iterable[int]) -> None:
        """Add pages at the end."""
        size = self.page_size
        for page in pages:
            self.pages.append(page)
            if self._runs and sum(self._runs[-1]) == page * size:
                self._runs[-1] = self._runs[-1][0], self._runs[-1][1] + size
            else:
                self._runs.append((page * size, size))

    def slots(self, first: int, stop: int) -> list[int]:
        """Return the slots of positions ``first`` to ``stop``."""
        size = self.page_size
        return [self.pages[p // size] * size + p % size for p in range(first, stop)]

    def runs(self, length: int) -> tuple[tuple[int, int], ...]:
        """Return the slots of the first ``length`` positions, as half-open runs."""
        runs = []
        for start, count in self._runs:
            if length <= 0:
                break
            runs.append((start, start + min(count, length)))
            length -= count
        return tuple(runs)

    def context(self, start: int, stop: int, first: int, length: int) -> Context:
        """Return the request's part of a step; see `Context`."""
        return Context(start, stop, first, length, self.runs(length))
