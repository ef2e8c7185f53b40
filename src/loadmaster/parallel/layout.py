"""The parallel layout and the coordinates of its ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from loadmaster.errors import LayoutError


@dataclass(frozen=True, slots=True)
class Coordinate:
    """Where a rank stands: pipeline stage, tensor-parallel rank, expert-parallel rank (0 where experts are not divided)."""

    rank: int
    pp_rank: int
    tp_rank: int
    ep_rank: int


@dataclass(frozen=True, slots=True)
class ParallelLayout:
    """Pipeline × tensor parallelism, with vLLM's names and numbering: ``rank = pp_rank * tp_size + tp_rank``.

    With ``enable_expert_parallel`` whole experts are divided over the tensor-parallel ranks of a stage (expert parallel
    size = tensor parallel size, never an axis of its own); without it every rank holds a slice of every expert.
    ``layer_partition`` gives the number of layers of each stage; without it they are divided evenly.
    ``num_draft_layers`` MTP layers are loaded on the last stage.

    Raises:
        LayoutError: a size below one, or a partition whose length is not the number of stages.
    """

    pipeline_parallel_size: int = 1
    tensor_parallel_size: int = 1
    enable_expert_parallel: bool = False
    layer_partition: tuple[int, ...] | None = None
    num_draft_layers: int = 0

    def __post_init__(self) -> None:
        for name in ("pipeline_parallel_size", "tensor_parallel_size"):
            if getattr(self, name) < 1:
                raise LayoutError(f"{name} is {getattr(self, name)}, expected at least 1")
        parts = self.layer_partition
        if parts is not None and len(parts) != self.pipeline_parallel_size:
            raise LayoutError(
                f"the layer partition {','.join(map(str, parts))} has {len(parts)} stages, "
                f"expected pipeline_parallel_size = {self.pipeline_parallel_size}",
                hint="give one number of layers for each pipeline stage",
            )

    @property
    def num_ranks(self) -> int:
        """Ranks in all: pipeline size × tensor size."""
        return self.pipeline_parallel_size * self.tensor_parallel_size

    def coordinate(self, rank: int) -> Coordinate:
        """Return where ``rank`` stands.

        >>> ParallelLayout(2, 4, enable_expert_parallel=True).coordinate(6)
        Coordinate(rank=6, pp_rank=1, tp_rank=2, ep_rank=2)
        """
        pp_rank, tp_rank = divmod(rank, self.tensor_parallel_size)
        return Coordinate(rank, pp_rank, tp_rank, tp_rank if self.enable_expert_parallel else 0)

    def stage_ranks(self, pp_rank: int) -> tuple[int, ...]:
        """Return the ranks of a pipeline stage, in tensor-parallel order."""
        first = pp_rank * self.tensor_parallel_size
        return tuple(range(first, first + self.tensor_parallel_size))

    def as_json(self) -> dict[str, Any]:
        """Return the layout as JSON values under its own field names."""
        return {
            "pipeline_parallel_size": self.pipeline_parallel_size,
            "tensor_parallel_size": self.tensor_parallel_size,
            "enable_expert_parallel": self.enable_expert_parallel,
            "layer_partition": list(self.layer_partition) if self.layer_partition is not None else None,
            "num_draft_layers": self.num_draft_layers,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ParallelLayout:
        """Return the layout that `as_json` gave."""
        parts = value["layer_partition"]
        return cls(**{**value, "layer_partition": tuple(parts) if parts is not None else None})
