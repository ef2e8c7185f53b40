"""The result of loading a rank: its parameters, and a report."""

from __future__ import annotations

import hashlib
import resource
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from loadmaster.plan import ParamSpec


@dataclass(frozen=True)
class LoadReport:
    """How a rank was loaded. ``direct_bytes`` went straight to their final address, ``staged_bytes`` through staging.

    Onto a device all bytes pass through staging, which is page-locked; ``direct_bytes`` are then those that are copied
    from there to their final address. ``io`` says how files are read, and why. ``phases`` are seconds: ``allocate``, ``prepare``
    (deciding what is read together), ``pin`` (the rest of the page-locking) and ``load`` of the wall clock, which add
    up to ``seconds``; and of ``load`` what its threads spend on waiting for ``read``s, on waiting for copies from
    their slots (``wait``), on issuing copies (``issue``), and on operations (``operate``). ``peak_device_bytes`` is the most
    that torch had allocated on the device, ``peak_host_bytes`` the most resident memory, in this process so far.
    """

    rank: int
    needed_bytes: int
    fetched_bytes: int
    resident_bytes: int
    direct_bytes: int
    staged_bytes: int
    staging_bytes: int
    num_readers: int
    num_reads: int
    seconds: float
    device: str = "cpu"
    io: str = "buffered"
    phases: Mapping[str, float] = field(default_factory=dict)
    peak_device_bytes: int = 0
    peak_host_bytes: int = field(default_factory=lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)

    @property
    def bytes_per_s(self) -> float:
        """Needed bytes over wall time."""
        return self.needed_bytes / self.seconds if self.seconds else 0.0

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {**{k: getattr(self, k) for k in self.__dataclass_fields__}, "bytes_per_s": self.bytes_per_s}


@dataclass(frozen=True)
class LoadedRank:
    """A rank's parameters, complete: name → tensor, as the plan's ``specs`` say."""

    specs: tuple[ParamSpec, ...]
    tensors: dict[str, torch.Tensor] = field(repr=False)
    report: LoadReport

    def digest(self) -> dict[str, dict[str, Any]]:
        """Return shape, dtype and SHA-256 of every parameter's bytes."""
        return {
            s.name: {"shape": list(s.shape), "dtype": s.dtype, "sha256": _sha256(self.tensors[s.name])}
            for s in self.specs
        }


def _sha256(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.reshape(-1).view(torch.uint8).cpu().numpy().data).hexdigest()
