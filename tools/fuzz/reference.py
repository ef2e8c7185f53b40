"""What the independent reference of the loader's tests says that a rank loads."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from loadmaster.parallel import ParallelLayout
from tests.loader.reference import Reference, read_all
from tests.loader.reference.families import FAMILIES
from tools.fuzz.state import blocks_said


def reference(folder: Path, layout: ParallelLayout, rank: int, *, tied: bool = False) -> dict[str, torch.Tensor] | None:
    """Return a rank's parameters; None where the reference does not know the architecture or the size of blocks.

    ``tied``: the head is the embedding, and one that is stored is not read. The reference takes it wherever it lies.
    """
    config = json.loads((folder / "config.json").read_text())
    if config["architectures"][0] not in FAMILIES or set(blocks_said(config)) - {"[128, 128]"}:
        return None
    stored = None
    if tied:
        stored = read_all(folder)
        embedding = next(t for n, t in stored.items() if n.endswith("embed_tokens.weight") and ".layers." not in n)
        stored |= {n: embedding for n in stored if n.endswith("lm_head.weight")}
    made: dict[str, torch.Tensor] = Reference.at(folder, layout, rank, stored).params
    return made
