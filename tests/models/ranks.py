"""The ranks of a layout as threads of this process: those of one stage over real sockets, stages one after another."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from loadmaster.architectures.registry import read_model
from loadmaster.checkpoint import open_checkpoint
from loadmaster.distributed.mesh import Mesh
from loadmaster.distributed.tensor import HostGroup
from loadmaster.loader import load_rank
from loadmaster.models import Stage, build_stage
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import ProvenPlan, build_plan, prove
from tests.models.pipeline import Pipeline


@contextlib.contextmanager
def meshes(size: int) -> Iterator[list[Mesh]]:
    """Yield the ends of a full mesh, by slot."""
    sockets: list[list[socket.socket | None]] = [[None] * size for _ in range(size)]
    for i in range(size):
        for j in range(i):
            sockets[i][j], sockets[j][i] = socket.socketpair()
    try:
        yield [Mesh(slot, sockets[slot]) for slot in range(size)]
    finally:
        for row in sockets:
            for end in row:
                if end is not None:
                    end.close()


def together(size: int, run: Callable[[int], Any]) -> list[Any]:
    """Return what ``run`` returns for each slot; all run at the same time."""
    with ThreadPoolExecutor(size) as threads:
        return [future.result(60) for future in [threads.submit(run, slot) for slot in range(size)]]


class Ranks:
    """Tensor-parallel ranks, each with all of its stages."""

    def __init__(self, plan: ProvenPlan, groups: Sequence[HostGroup | None]) -> None:
        self.plan, self.groups = plan, groups
        self.stages = [self._stages(slot) for slot in range(len(groups))]

    def _stages(self, slot: int) -> list[Stage]:
        built = []
        num_stages, size = self.plan.layout.pipeline_parallel_size, len(self.groups)
        for stage in range(num_stages):
            derived = self.plan.rank(stage * size + slot)
            assert (derived.pp_rank, derived.tp_rank) == (stage, slot)
            built.append(
                build_stage(
                    read_model(self.plan.config),
                    derived.specs,
                    load_rank(self.plan, derived.rank).tensors,
                    layers=range(*derived.layers),
                    first=stage == 0,
                    last=stage == num_stages - 1,
                    dtype=torch.float32,
                    group=self.groups[slot],
                )
            )
        return built

    def logits(self, prompt: Sequence[int]) -> list[torch.Tensor]:
        """Return each rank's logits of all tokens of a prompt."""
        return together(len(self.groups), lambda slot: Pipeline(self.stages[slot]).step(prompt, all_logits=True))

    def greedy(self, prompt: list[int], num_tokens: int) -> list[list[int]]:
        """Return each rank's likeliest continuation of a prompt."""
        return together(len(self.groups), lambda slot: Pipeline(self.stages[slot]).greedy(prompt, num_tokens))


@contextlib.contextmanager
def ranks(path: Path, size: int, *, num_stages: int = 1, **layout: Any) -> Iterator[Ranks]:
    """Load a checkpoint for ``size`` tensor-parallel ranks in each stage, computed in float32."""
    parallel = ParallelLayout(num_stages, size, **layout)
    plan = prove(build_plan(open_checkpoint(path), parallel, dtype="F32")).require_proven()
    with meshes(size) as ends:
        yield Ranks(plan, [HostGroup(mesh) if size > 1 else None for mesh in ends])
