"""CUDA graphs of steps in which every request computes one token: launched as a whole, since the host is slower than the GPU.

A graph repeats its kernels on the same memory. So each number of requests, rounded up to one of `SIZES`, has its own buffer of
a step's numbers, which the next step fills anew; rows that are left over compute a token of nobody, in a page of nobody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from loadmaster.layers.step import Context, Step
from loadmaster.workers.builder import Stage

SIZES = (1, 2, 4, 8, *range(16, 64, 8), *range(64, 128, 16), *range(128, 257, 32))
"""Numbers of requests that graphs are made for. Larger batches run without: the GPU is busy longer than the host."""

MIN_TABLE_WIDTH = 64
"""Pages a request, at first. A longer request makes the tables wider, and the graphs anew."""


@dataclass(slots=True)
class _Captured:
    """A graph, and the memory that it reads and writes; no graph before the first step of this size."""

    buffer: Tensor
    graph: torch.cuda.CUDAGraph | None = None
    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)


class DecodeGraphs:
    """The graphs of one stage, over a cache in which ``padding_page`` belongs to no request."""

    def __init__(self, stage: Stage, cache: Any, padding_page: int, page_size: int) -> None:
        self._stage, self._cache = stage, cache
        self._padding_slot = padding_page * page_size
        self._padding_pages = np.array([padding_page], np.int32)
        self._page_size = page_size
        self._table_width = MIN_TABLE_WIDTH
        self._captured: dict[int, _Captured] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def step(
        self,
        contexts: Sequence[Context],
        token_ids: Sequence[int],
        positions: Sequence[int],
        slots: Sequence[int],
        logit_rows: Sequence[int],
    ) -> Step | None:
        """Return a step for `forward`, padded; None if it has more than a token a request, or too many requests."""
        count = len(contexts)
        if count > SIZES[-1] or len(token_ids) != count or len(logit_rows) != count:
            return None
        size = next(size for size in SIZES if size >= count)
        width = max(len(c.pages) for c in contexts)
        if width > self._table_width:
            self._table_width = 1 << (width - 1).bit_length()
            self._captured.clear()
            self._pool = torch.cuda.graph_pool_handle()  # torch cannot use a pool again whose graphs are gone
        if size not in self._captured:
            length = Step.buffer_size(size, size, size, self._table_width)
            self._captured[size] = _Captured(torch.empty(length, dtype=torch.int64, device=self._stage.device))
        padding = range(count, size)
        return Step(
            [*contexts, *(Context(row, row + 1, 0, 1, self._padding_pages, self._page_size) for row in padding)],
            [*token_ids, *(0 for _ in padding)],
            [*positions, *(0 for _ in padding)],
            [*slots, *(self._padding_slot for _ in padding)],
            range(size),
            self._stage.device,
            buffer=self._captured[size].buffer,
            table_width=self._table_width,
        )

    def forward(self, inputs: Mapping[str, Tensor], step: Step, num_tokens: int) -> dict[str, Tensor]:
        """Compute a step that `step` returned, and return the outputs of its first ``num_tokens`` rows.

        They are valid until the next step. The first step of each size is computed twice, to compile its kernels and to make
        its graph.
        """
        captured = self._captured[step.num_tokens]
        for name, rows in inputs.items():
            shape = (step.num_tokens, *rows.shape[1:])
            if name not in captured.inputs or captured.inputs[name].shape != shape:
                captured.graph = None
                captured.inputs[name] = torch.zeros(shape, dtype=rows.dtype, device=self._stage.device)
            captured.inputs[name][:num_tokens].copy_(rows, non_blocking=True)
        if captured.graph is None:
            self._capture(captured, step)
        assert captured.graph is not None
        captured.graph.replay()
        return {name: rows[:num_tokens] for name, rows in captured.outputs.items()}

    def _capture(self, captured: _Captured, step: Step) -> None:
        self._stage.forward(captured.inputs, step, self._cache)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            captured.outputs = self._stage.forward(captured.inputs, step.fresh(), self._cache)
        captured.graph = graph
