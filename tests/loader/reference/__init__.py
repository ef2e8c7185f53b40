"""Every parameter of a rank, computed another way: whole tensors through the safetensors package, cut with torch.

Nothing of the package under test is used but the coordinates of a rank, and the stages that a plan moved. Names, cuts and
fusions are written out by hand here, as an engine's loader would, family by family (`families`, `mixtures`), over tensors
that know how their format is cut (`weights`).
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from loadmaster.parallel import ParallelLayout
from loadmaster.plan import Proof
from tests.loader.reference.families import FAMILIES
from tests.loader.reference.loader import Loader
from tests.loader.reference.place import Place, stage_layers
from tests.loader.reference.stored import Arrays, differences, raw, read_all
from tests.loader.reference.weights import dequantise


def divided_as(layout: ParallelLayout, proof: Proof) -> ParallelLayout:
    """The layout with the stages of a plan, if layers that belong together moved one; what is legal is tested on its own."""
    if all(f.code != "layout-moved" for f in proof.findings):
        return layout
    return replace(layout, layer_partition=tuple(end - first for first, end in proof.plan.stages))


class Reference:
    """The parameters of one rank, which stands at (index, size) of each axis."""

    def __init__(
        self,
        path: Path,
        *,
        pp: tuple[int, int] = (0, 1),
        tp: tuple[int, int] = (0, 1),
        dp: tuple[int, int] = (0, 1),
        ep: bool = False,
        round_robin: bool = False,
        redundant: int = 0,
        partition: tuple[int, ...] | None = None,
        drafts: int = 0,
        stored: Arrays | None = None,
    ) -> None:
        config: dict[str, Any] = json.loads((path / "config.json").read_text())
        place = Place(pp, tp, dp, ep, round_robin, redundant, partition)
        loader = Loader(config, read_all(path) if stored is None else stored, place)
        FAMILIES[config["architectures"][0]](loader, drafts)
        self.params: Arrays = loader.params

    @classmethod
    def at(cls, path: Path, layout: ParallelLayout, rank: int, stored: Arrays | None = None) -> Reference:
        """The parameters of a rank of ``layout``; where it stands is the layout's word, and tested on its own."""
        at = layout.coordinate(rank)
        return cls(
            path,
            pp=(at.pp_rank, layout.pipeline_parallel_size),
            tp=(at.tp_rank, layout.tensor_parallel_size),
            dp=(at.dp_rank, layout.data_parallel_size),
            ep=layout.enable_expert_parallel,
            round_robin=layout.expert_placement == "round_robin",
            redundant=layout.num_redundant_experts,
            partition=layout.layer_partition,
            drafts=layout.num_draft_layers,
            stored=stored,
        )


__all__ = ["Arrays", "Reference", "dequantise", "differences", "divided_as", "raw", "read_all", "stage_layers"]
