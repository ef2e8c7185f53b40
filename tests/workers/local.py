"""Stages of a real model in this process: carries out batches as worker processes would, one after another."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any, cast

import torch

from loadmaster.architectures.registry import read_model
from loadmaster.architectures.targets import NATIVE_DECODED
from loadmaster.checkpoint import open_checkpoint
from loadmaster.distributed.group import PipelineGroup
from loadmaster.engine.pages import PagePool
from loadmaster.engine.scheduler import Scheduler
from loadmaster.loader import load_rank
from loadmaster.models import Stage, build_stage
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.workers.batch import Batch, Done
from loadmaster.workers.messages import Allocate
from loadmaster.workers.runner import StageRunner


def drafting_stages(path: Path, partition: tuple[int, ...], num_drafts: int = 1) -> list[Stage]:
    """Load a checkpoint into stages of as many layers as ``partition`` gives, with MTP layers, decoded into float32."""
    layout = ParallelLayout(len(partition), layer_partition=partition, num_draft_layers=num_drafts)
    plan = prove(build_plan(open_checkpoint(path), layout, dtype="F32", target=NATIVE_DECODED)).require_proven()
    return [
        build_stage(
            read_model(plan.config),
            plan.rank(rank).specs,
            load_rank(plan, rank).tensors,
            layers=range(*plan.rank(rank).layers),
            first=rank == 0,
            last=rank == len(partition) - 1,
            dtype=torch.float32,
            num_drafts=len(plan.rank(rank).draft_layers),
        )
        for rank in range(len(partition))
    ]


class _Group:
    """Hands the tensors of one stage to the next."""

    def __init__(self, stage: int, num_stages: int, passed: dict[int, dict[str, torch.Tensor]]) -> None:
        self.stage, self.num_stages = stage, num_stages
        self._passed = passed

    def send_next(self, tensors: dict[str, torch.Tensor], names: tuple[str, ...]) -> None:
        self._passed[self.stage + 1] = {name: tensors[name] for name in names}

    def receive_previous(self, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
        return self._passed.pop(self.stage)


class LocalWorkers:
    """Stands in for `tests.engine.simulation.Workers`."""

    def __init__(self, stages: list[Stage], num_pages: int, page_size: int, num_speculative_tokens: int = 0) -> None:
        passed: dict[int, dict[str, torch.Tensor]] = {}
        self.queue: deque[Batch] = deque()
        self.runners = [
            StageRunner(
                cast("Any", stage),
                cast("PipelineGroup", _Group(rank, len(stages), passed)),
                Allocate(num_pages, page_size, (), num_speculative_tokens),
            )
            for rank, stage in enumerate(stages)
        ]

    def send(self, batch: Batch) -> None:
        self.queue.append(batch)

    def next(self) -> Done:
        batch = self.queue.popleft()
        with torch.inference_mode():
            done = [runner.run(batch) for runner in self.runners][-1]
        assert done is not None
        return done


def scheduler(
    num_pages: int, page_size: int, num_draft_layers: int = 0, num_speculative_tokens: int = 0, **options: Any
) -> Scheduler:
    """Return a scheduler as the engine makes it."""
    return Scheduler(
        PagePool(num_pages, page_size),
        num_draft_layers=num_draft_layers,
        num_draft_slots=num_speculative_tokens - 1 if num_draft_layers == 1 else 0,
        **options,
    )
