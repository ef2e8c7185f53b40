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
    made: dict[str, torch.Tensor] = Reference.at(folder, layout, rank).params
    return made
