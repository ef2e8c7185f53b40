"""One defect in a copy of a sound checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import torch

from loadmaster.testing.damaged import DamagedCheckpoint

Change = Callable[[torch.Tensor], torch.Tensor]


def damaged_copy(sound: Path, folder: Path, pattern: str, change: Change | None) -> Path:
    """Copy a checkpoint into ``folder``, and there change the tensors that match ``pattern``; None drops them."""
    damaged = DamagedCheckpoint(Path(copytree(sound, folder)))
    if change is None:
        damaged.drop(pattern)
    else:
        damaged.change(pattern, change)
    return damaged.path
