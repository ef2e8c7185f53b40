"""The last check of a load: every parameter of the rank exists, and every byte of it was written.

The proof says that a plan fills each parameter exactly once. This compares what was done with the plan, so that a bug of the
loader cannot return memory that was never written.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from math import prod

import numpy as np
import torch

from loadmaster.errors import LoadError
from loadmaster.plan import RankPlan
from loadmaster.plan.specs import itemsize


class Completeness:
    """Counts the bytes that are loaded for some ranks, from any thread. Call `check` before any rank is returned."""

    def __init__(self, derived: Mapping[int, RankPlan], on_progress: Callable[[int], None] | None = None) -> None:
        self._derived = derived
        self._on_progress = on_progress
        self._lock = threading.Lock()
        self._done_bytes = 0

    def advance(self, num_bytes: int) -> None:
        """Count bytes of the plan that are done, and report them as progress."""
        with self._lock:
            self._done_bytes += num_bytes
        if self._on_progress is not None:
            self._on_progress(num_bytes)

    def check(self, tensors: Mapping[int, Mapping[str, torch.Tensor]]) -> None:
        """Compare what was done, and the parameters of each rank, with the plan.

        Raises:
            LoadError: a parameter is missing or has another size, or bytes were not written. A bug of this package.
        """
        needed = sum(d.needed_bytes for d in self._derived.values())
        if self._done_bytes != needed:
            self._refuse(f"{self._done_bytes:,} of {needed:,} bytes of the plan were done")
        for rank, derived in self._derived.items():
            written = _written(derived)
            for number, spec in enumerate(derived.specs):
                tensor = tensors[rank].get(spec.name)
                if tensor is None:
                    self._refuse(f"rank {rank}: {spec.name} does not exist")
                elif tensor.numel() * tensor.element_size() != spec.num_bytes:
                    self._refuse(f"rank {rank}: {spec.name} has {tensor.nbytes:,} bytes, expected {spec.num_bytes:,}")
                elif spec.alias is None and written[number] != spec.num_bytes:
                    self._refuse(
                        f"rank {rank}: {int(written[number]):,} of {spec.num_bytes:,} bytes of {spec.name} are written"
                    )

    def _refuse(self, what: str) -> None:
        raise LoadError(
            f"loading is incomplete: {what}", hint="this is a bug of loadmaster; no part of the model was loaded"
        )


def _written(derived: RankPlan) -> np.ndarray:
    """Return how many bytes of each parameter the rank's groups write."""
    written = np.zeros(derived.num_params, dtype=np.int64)
    for group in derived.groups:
        width = itemsize(derived.specs[group.params[0]].dtype) if len(group.params) else 0
        np.add.at(written, group.params, width * prod(stop - start for start, stop in group.box))
    return written
