"""What the independent reference of the loader's tests says that a rank loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from loadmaster.parallel import ParallelLayout
from tests.loader.reference import Reference, read_all
from tests.loader.reference.families import FAMILIES
from tools.fuzz.state import sizes_said


def reference(folder: Path, layout: ParallelLayout, rank: int, *, tied: bool = False) -> dict[str, torch.Tensor] | None:
    """Return a rank's parameters; None where the reference does not know the architecture, names, or size of blocks or groups.

    ``tied``: the head is the embedding, and one that is stored is not read. The reference takes it wherever it lies.
    """
    config = json.loads((folder / "config.json").read_text())
    named = config.get("architectures") or [None]  # without a name, model_type says what it is
    if named[0] not in FAMILIES or not all(map(_knows, sizes_said(config))):
        return None
    if named[0] == "MistralForCausalLM" and "tok_embeddings.weight" in read_all(folder):
        return None  # in names of its own
    stored = None
    if tied:
        stored = read_all(folder)
        embedding = next(t for n, t in stored.items() if n.endswith("embed_tokens.weight") and ".layers." not in n)
        stored |= {n: embedding for n in stored if n.endswith("lm_head.weight")}
    made: dict[str, torch.Tensor] = Reference.at(folder, layout, rank, stored).params
    return made


def _knows(size: Any) -> bool:
    """Return whether the reference cuts blocks or groups of this size: 128 × 128, and powers of 2."""
    return size in (None, [128, 128], -1, False, "group", "weight") or (
        isinstance(size, int) and size > 0 and size & (size - 1) == 0
    )
