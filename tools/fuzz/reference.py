"""What the independent reference of the loader's tests says that a rank loads."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from loadmaster.parallel import ParallelLayout
from tests.loader.reference import Reference
from tests.loader.reference.families import FAMILIES


def reference(folder: Path, layout: ParallelLayout, rank: int) -> dict[str, torch.Tensor] | None:
    """Return a rank's parameters; None where the reference does not know the architecture."""
    config = json.loads((folder / "config.json").read_text())
    if config["architectures"][0] not in FAMILIES:
        return None
    at = layout.coordinate(rank)
    made: dict[str, torch.Tensor] = Reference(
        folder,
        pp=(at.pp_rank, layout.pipeline_parallel_size),
        tp=(at.tp_rank, layout.tensor_parallel_size),
        dp=(at.dp_rank, layout.data_parallel_size),
        ep=layout.enable_expert_parallel,
        round_robin=layout.expert_placement == "round_robin",
        redundant=layout.num_redundant_experts,
        partition=layout.layer_partition,
        mtp=layout.num_draft_layers > 0,
    ).params
    return made
