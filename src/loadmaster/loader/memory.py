"""The memory of one rank's parameters: a single arena, and each parameter a view of it."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Final

import torch

from loadmaster.plan import ParamSpec

TORCH: Final[dict[str, torch.dtype]] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
"""torch's dtypes by their safetensors names."""

ALIGNMENT: Final = 256
"""Each parameter begins at a multiple of this many bytes, as CUDA's own allocations do."""


class Arena:
    """One anonymous mapping that holds all parameters of a rank, in huge pages where the system gives them.

    One mapping instead of thousands: page faults cost as much as the copy itself otherwise. ``tensors`` are views by
    name, aliases included; ``buffers`` the same memory as writable bytes, aliases left out.
    """

    def __init__(self, specs: Sequence[ParamSpec]) -> None:
        owners = [s for s in specs if s.alias is None]
        offsets, size = {}, 0
        for spec in owners:
            offsets[spec.name] = size
            size += -(-spec.num_bytes // ALIGNMENT) * ALIGNMENT
        self._memory = mmap.mmap(-1, max(size, 1), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if size >= 2**22:
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        self.tensors: dict[str, torch.Tensor] = {}
        self.buffers: dict[str, memoryview] = {}
        view = memoryview(self._memory)
        for spec in owners:
            start, length = offsets[spec.name], spec.num_bytes
            self.buffers[spec.name] = view[start : start + length]
            flat = torch.frombuffer(self._memory, dtype=torch.uint8, count=length, offset=start)
            self.tensors[spec.name] = flat.view(TORCH[spec.dtype]).view(spec.shape)
        for spec in specs:
            if spec.alias is not None:
                self.tensors[spec.name] = self.tensors[spec.alias]
