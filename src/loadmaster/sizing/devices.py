"""Devices, and the memory of each that no model can use. Every constant has its source.

Sizes of devices are those that nvidia-smi shows; bandwidths are those of NVIDIA's data sheets.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from loadmaster.errors import ConfigError

GIB: Final = 2**30
_MIB: Final = 2**20


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU: its memory as nvidia-smi shows it, and the bandwidth of that memory in bytes a second."""

    name: str
    memory_bytes: int
    bytes_per_s: float


DEVICES: Final[dict[str, Device]] = {
    d.name: d
    for d in (
        Device("T4", 15360 * _MIB, 0.32e12),
        Device("L4", 23034 * _MIB, 0.30e12),
        Device("A10G", 23028 * _MIB, 0.60e12),
        Device("RTX4090", 24564 * _MIB, 1.01e12),
        Device("RTX5090", 32607 * _MIB, 1.79e12),
        Device("A100-40GB", 40960 * _MIB, 1.56e12),
        Device("L40S", 46068 * _MIB, 0.86e12),
        Device("A100", 81920 * _MIB, 2.04e12),
        Device("H100", 81559 * _MIB, 3.35e12),
        Device("H20", 97871 * _MIB, 4.0e12),
        Device("H200", 143771 * _MIB, 4.8e12),
        Device("B200", 183359 * _MIB, 8.0e12),
    )
}
"""Known devices by name; A100 and H100 are those with 80 GB (SXM)."""

DRIVER_BYTES: Final = int(0.55 * GIB)
"""What the driver keeps: nvidia-smi shows 79.65 GiB for an H100, CUDA 79.11 to 79.22 (vllm-project/vllm, issue 27508 and pull
request 10511)."""

CONTEXT_BYTES: Final = int(0.7 * GIB)
"""A process's CUDA context with torch's kernels and the workspaces of cuBLAS: 723 MiB for one element in a report of
discuss.pytorch.org (t/73021)."""

COMMUNICATION_BYTES: Final = int(0.7 * GIB)
"""NCCL's buffers, where ranks communicate through it: 544 MiB for two and 688 MiB for more A100s over NVLink (NVIDIA/nccl,
issue 964)."""

GRAPH_BYTES: Final = {"native": int(0.25 * GIB), "vllm": int(1.76 * GIB)}
"""Private memory of CUDA graphs, and for vLLM what kernels and libraries keep while it profiles, which it counts as used: 0.94
and 0.82 GiB for 12 to 36 layers on an H200 (`benchmarks/memory_vllm.py`). Of the native engine's graphs an assumption."""


def known_device(text: str) -> tuple[int, Device]:
    """Return how many devices ``text`` asks for, and of which kind.

    >>> known_device("8xH200")[1].name, known_device("H100x8")[0]
    ('H200', 8)

    Raises:
        ConfigError: no such device is known.
    """
    parts = re.fullmatch(r"(?:(\d+)x)?([A-Za-z0-9-]+?)(?:x(\d+))?", text)
    names = {name.lower(): device for name, device in DEVICES.items()}
    device = names.get(parts[2].lower()) if parts else None
    if device is None or parts is None:
        raise ConfigError(
            f"--devices {text}: no such device is known",
            hint=f"known: {', '.join(DEVICES)}; or a number of devices, with --device-memory",
        )
    return int(parts[1] or parts[3] or 1), device
