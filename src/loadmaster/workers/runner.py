"""Runs the steps of one stage in its worker, and holds the state of the current request: its KV cache and its sampler."""

from __future__ import annotations

from typing import Any, assert_never

import torch

from loadmaster.distributed.group import PipelineGroup
from loadmaster.host_memory import is_out_of_memory
from loadmaster.workers.builder import Stage
from loadmaster.workers.messages import Begin, Begun, End, Refused, Step, Stepped
from loadmaster.workers.sampler import Sampler


class StageRunner:
    """Carries out the engine's messages on one stage, in order. One request at a time."""

    def __init__(self, stage: Stage, group: PipelineGroup) -> None:
        self._stage = stage
        self._group = group
        self._is_last = group.rank == group.world_size - 1
        self._cache: Any = None
        self._sampler: Sampler | None = None

    def run(self, message: Begin | Step | End) -> Begun | Refused | Stepped | None:
        """Carry out one message and return the reply, if it has one. Only the last stage replies to a `Step`."""
        match message:
            case Begin():
                return self._begin(message)
            case Step():
                return self._step(message)
            case End():
                self._cache = self._sampler = None
                return None
            case _:
                assert_never(message)

    def _begin(self, begin: Begin) -> Begun | Refused:
        try:
            self._cache = self._stage.new_cache(begin.num_positions)
        except (MemoryError, RuntimeError) as error:
            if not (is_out_of_memory(error) or "out of memory" in str(error)):
                raise
            return Refused(begin.request, str(error).partition("\n")[0])
        self._sampler = Sampler(begin.params)
        return Begun(begin.request)

    def _step(self, step: Step) -> Stepped | None:
        outputs = self._forward(step)
        if not self._is_last:
            return None
        assert self._sampler is not None, "a step before its request"
        token = self._sampler.sample(outputs["logits"]) if step.sample else None
        return Stepped(step.request, token)

    def _forward(self, step: Step) -> dict[str, torch.Tensor]:
        if self._group.rank == 0:
            inputs = {"token_ids": torch.tensor(step.token_ids, dtype=torch.int64)}
        else:
            inputs = self._group.receive_previous(tuple(self._stage.carries_in))
        positions_T = torch.arange(step.first, step.first + step.num_tokens)
        outputs = self._stage.forward(inputs, positions_T, self._cache)
        if not self._is_last:
            self._group.send_next(outputs, tuple(self._stage.carries_out))
        return outputs
