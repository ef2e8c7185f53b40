"""Loads a rank of a plan and builds its stage, in the worker's process.

A builder is named ``module:name`` and constructed from a plan's JSON, so that tests can replace it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from loadmaster.distributed.tensor import TensorGroup
from loadmaster.errors import UnsupportedError
from loadmaster.host_memory import free_bytes
from loadmaster.layers.step import Step
from loadmaster.models.draft import Draft
from loadmaster.torch_dtypes import TORCH

SPARE = 0.25
"""The share of the free host memory that faster copies of weights may take, all ranks together."""

COMPUTED = ("F32", "BF16", "F16", "F64")
"""Dtypes that layers compute in."""


class Stage(Protocol):
    """A stage that a worker can run; `loadmaster.models.stage.Stage` is the real one.

    The first stage takes no inputs and the last returns ``logits``, and ``hidden_states`` if it has a draft model. All other
    inputs and outputs are tensors that pass from one stage to the next.
    """

    @property
    def carries_in(self) -> tuple[str, ...]:
        """Names of the tensors received from the previous stage."""

    @property
    def carries_out(self) -> tuple[str, ...]:
        """Names of the tensors sent to the next stage."""

    @property
    def draft(self) -> Draft | None:
        """The draft model of the last stage, if it has one."""

    @property
    def device(self) -> torch.device:
        """Where the stage computes."""

    @property
    def is_capturable(self) -> bool:
        """Whether `forward` waits for nothing and reads nothing but tensors, so that a CUDA graph can repeat it."""

    @property
    def vocab_size(self) -> int:
        """The number of logits of a row; 0 on all stages but the last."""

    def page_bytes(self, page_size: int) -> int:
        """Return the bytes of one page of the KV cache."""

    def new_cache(self, num_pages: int, page_size: int) -> Any:
        """Return a KV cache of ``num_pages`` pages of ``page_size`` tokens."""

    def forward(self, inputs: dict[str, torch.Tensor], step: Step, cache: Any) -> dict[str, torch.Tensor]:
        """Compute the tokens of ``step``, and store their keys and values in ``cache``."""


class PlanBuilder:
    """Reads a plan, proves it again, loads a rank and builds its stage."""

    def __init__(self, plan: bytes) -> None:
        from loadmaster.plan import Plan, prove

        self._plan = prove(Plan.from_json(plan)).require_proven()

    @property
    def hash(self) -> str:
        """The plan's hash; it must be the same on all ranks before the first tensor is read."""
        return self._plan.hash

    def build(
        self, rank: int, device: str, on_progress: Callable[[int], None], group: TensorGroup | None = None
    ) -> Stage:
        """Load ``rank`` and return its stage; ``on_progress`` is called with numbers of bytes loaded, from any thread.

        ``device`` is ``cpu``, or a GPU such as ``cuda:1``. ``group``: the ranks of the stage, where there are several.

        Raises:
            LoadError: reading failed.
            UnsupportedError: the model can be planned and loaded, but not run.
        """
        from loadmaster.architectures.registry import read_model
        from loadmaster.loader import load_rank
        from loadmaster.models.build import build_stage

        plan, rank_plan = self._plan, self._plan.rank(rank)
        if plan.dtype not in COMPUTED:
            raise UnsupportedError(
                f"--dtype: computing in {plan.dtype} is not supported yet", hint="use --dtype bfloat16"
            )
        loaded = load_rank(plan, rank, device=device, on_progress=on_progress)
        stage: Stage = build_stage(
            read_model(plan.config),
            rank_plan.specs,
            loaded.tensors,
            layers=range(*rank_plan.layers),
            first=rank_plan.pp_rank == 0,
            last=rank_plan.pp_rank == plan.layout.pipeline_parallel_size - 1,
            dtype=TORCH[plan.dtype],
            spare_bytes=spare_bytes(plan.num_ranks) if device == "cpu" else 0,
            num_drafts=len(rank_plan.draft_layers),
            group=group,
        )
        return stage


def spare_bytes(num_ranks: int) -> int:
    """Return the host memory that one rank may use for faster copies of its weights."""
    return int((free_bytes() or 0) * SPARE) // num_ranks
