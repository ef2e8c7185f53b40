"""Stages one after another in this process, over pages given out at random, for several requests at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

import torch

from loadmaster.architectures.registry import read_model
from loadmaster.checkpoint import open_checkpoint
from loadmaster.layers.step import Context, Step
from loadmaster.loader import load_rank
from loadmaster.models import Stage, build_stage
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.workers.page_table import PageTable


def stages(path: Path, partition: tuple[int, ...]) -> list[Stage]:
    """Load a checkpoint into stages of as many layers as ``partition`` gives, computed in float32."""
    layout = ParallelLayout(len(partition), layer_partition=partition)
    plan = prove(build_plan(open_checkpoint(path), layout, dtype="F32")).require_proven()
    built = []
    for rank in range(len(partition)):
        rank_plan = plan.rank(rank)
        built.append(
            build_stage(
                read_model(plan.config),
                rank_plan.specs,
                load_rank(plan, rank).tensors,
                layers=range(*rank_plan.layers),
                first=rank == 0,
                last=rank == len(partition) - 1,
                dtype=torch.float32,
            )
        )
        assert built[-1].carries_in == rank_plan.carries
    return built


class Pipeline:
    """Runs stages. ``scattered``: the pages of a request are not adjacent. ``sent`` is what each stage gave of the last batch."""

    def __init__(self, built: list[Stage], num_pages: int = 32, page_size: int = 4, *, scattered: bool = False) -> None:
        self.stages = built
        self.caches = [s.new_cache(num_pages, page_size) for s in built]
        self.page_size = page_size
        self.sent: list[dict[str, torch.Tensor]] = []
        self.free = list(range(num_pages))
        if scattered:
            Random(0).shuffle(self.free)
        self.tables: dict[int, PageTable] = {}
        self.lengths: dict[int, int] = {}

    def batch(self, tokens: Mapping[int, Sequence[int]], *, all_logits: bool = False) -> dict[int, torch.Tensor]:
        """Compute the next tokens of several requests together; return each one's logits, of its last token or of all."""
        contexts: list[Context] = []
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        rows: list[int] = []
        for request, chunk in tokens.items():
            table = self.tables.setdefault(request, PageTable(self.page_size))
            first = self.lengths.get(request, 0)
            stop = self.lengths[request] = first + len(chunk)
            while len(table.pages) * self.page_size < stop:
                table.add([self.free.pop(0)])
            start = len(token_ids)
            token_ids += chunk
            positions += range(first, stop)
            slots += table.slots(first, stop)
            contexts.append(table.context(start, len(token_ids), first, stop))
            rows += range(start if all_logits else len(token_ids) - 1, len(token_ids))
        step = Step(contexts, token_ids, positions, slots, rows)
        state: dict[str, torch.Tensor] = {}
        self.sent.clear()
        for stage, cache in zip(self.stages, self.caches, strict=True):
            state = stage.forward(state, step, cache)
            self.sent.append(state)
        parts = state["logits"].split([c.num_tokens if all_logits else 1 for c in contexts])
        return dict(zip(tokens, parts, strict=True))

    def preempt(self, request: int) -> None:
        """Give up a request's pages, which the next ones to be given out are; it must be computed anew."""
        self.free[:0] = self.tables.pop(request).pages.tolist()
        del self.lengths[request]

    def preempted(self, tokens: Sequence[int]) -> torch.Tensor:
        """Return the logits of ``tokens``, computed in parts beside another request, which takes their pages halfway."""
        count, half = len(tokens), len(tokens) // 2
        self.batch({0: tokens[: half - 2], 1: tokens[:half]})
        self.batch({0: tokens[half - 2 : half], 1: tokens[half : half + 1]})
        self.preempt(0)
        self.batch({1: tokens[half + 1 :]})
        parts = [self.batch({1: tokens[:1], 0: tokens[:half]}, all_logits=True)[0]]
        parts += [self.batch({0: tokens[i : i + 1], 1: tokens[:1]}, all_logits=True)[0] for i in range(half, count)]
        return torch.cat(parts)

    def step(self, tokens: Sequence[int], *, all_logits: bool = False) -> torch.Tensor:
        """Compute the next tokens of one request."""
        return self.batch({0: tokens}, all_logits=all_logits)[0]

    def greedy(self, prompt: list[int], num_tokens: int) -> list[int]:
        """Return the likeliest continuation of a prompt."""
        tokens = [int(self.step(prompt)[-1].argmax())]
        while len(tokens) < num_tokens:
            tokens.append(int(self.step(tokens[-1:])[-1].argmax()))
        return tokens
