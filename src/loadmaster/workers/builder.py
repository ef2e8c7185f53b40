"""From a plan to a stage that computes, in the worker's process.

A builder is named ``module:name`` and made from a plan's JSON, so that a worker can be given another one (tests do).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from loadmaster.errors import UnsupportedError

TORCH_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}


class Stage(Protocol):
    """What the worker runs; `loadmaster.models.stage.Stage` is the real one.

    ``carries_in`` and ``carries_out`` name what comes from the stage before and goes to the one after, beside the token
    ids that the first is given and the logits that the last returns.
    """

    @property
    def carries_in(self) -> tuple[str, ...]:
        """Names of the tensors taken from the stage before."""

    @property
    def carries_out(self) -> tuple[str, ...]:
        """Names of the tensors handed to the next stage."""

    def new_cache(self, max_tokens: int) -> Any:
        """Return an empty cache of ``max_tokens`` positions."""

    def forward(
        self, inputs: dict[str, torch.Tensor], positions_T: torch.Tensor, cache: Any
    ) -> dict[str, torch.Tensor]:
        """Compute the tokens at ``positions_T``, and leave what later ones need of them in ``cache``."""


class PlanBuilder:
    """Reads the plan, proves it again, loads a rank, builds its stage."""

    def __init__(self, plan: bytes) -> None:
        from loadmaster.plan import Plan, prove

        self._plan = prove(Plan.from_json(plan)).require_proven()

    @property
    def hash(self) -> str:
        """What all ranks must agree on before the first byte is read."""
        return self._plan.hash

    def build(self, rank: int, device: str, on_progress: Callable[[int], None]) -> Stage:
        """Load ``rank`` and return its stage; ``on_progress`` is told of bytes, from any thread.

        ``device`` is ``cpu`` or ``cuda``; of several GPUs, ranks take theirs in turns.

        Raises:
            LoadError: reading failed.
            UnsupportedError: the family can be planned and loaded, but not run.
        """
        from loadmaster.architectures.registry import read_model
        from loadmaster.loader import load_rank, num_devices
        from loadmaster.models.build import build_stage

        plan, derived = self._plan, self._plan.rank(rank)
        dtype = TORCH_DTYPES.get(plan.dtype)
        if dtype is None:
            raise UnsupportedError(f"computing in {plan.dtype} is not supported", hint="try --dtype bfloat16")
        at = f"cuda:{rank % max(num_devices(), 1)}" if device == "cuda" else device
        loaded = load_rank(plan, rank, device=at, on_progress=on_progress)
        stage: Stage = build_stage(
            read_model(plan.config),
            derived.specs,
            loaded.tensors,
            layers=range(*derived.layers),
            first=derived.pp_rank == 0,
            last=derived.pp_rank == plan.layout.pipeline_parallel_size - 1,
            dtype=dtype,
        )
        return stage
