"""The memory of one rank's parameters, on the host or on a device: one arena, and each parameter a view of it.

Existing memory, such as another engine's parameters, can be used instead of an arena.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch

from loadmaster.arguments import expect
from loadmaster.errors import ArgumentError, LoadError
from loadmaster.host_memory import no_memory_is_a_load_error, require_memory
from loadmaster.plan import ParamSpec
from loadmaster.torch_dtypes import TORCH

ALIGNMENT: Final = 256
"""Each parameter begins at a multiple of this many bytes, as CUDA's own allocations do."""

MORE_RANKS: Final = (
    "divide the model over more ranks (-pp, -tp) and load one on each host (--rank), load onto GPUs (--device cuda), "
    "or free memory"
)
"""What to do where the host has too little memory."""


def _places(specs: Sequence[ParamSpec]) -> tuple[dict[str, int], int]:
    """Return where each parameter begins, aliases left out, and the bytes of all."""
    offsets, size = {}, 0
    for spec in specs:
        if spec.alias is None:
            offsets[spec.name] = size
            size += -(-spec.num_bytes // ALIGNMENT) * ALIGNMENT
    return offsets, max(size, 1)


class Arena:
    """One anonymous mapping that holds all parameters of a rank, in huge pages where the system has them.

    One mapping instead of thousands: page faults cost as much as the copy itself otherwise. ``tensors`` are views by
    name, aliases included; ``buffers`` the same memory as writable bytes, aliases left out. Where tensors are ``given``
    (each as its spec says, see `misfit`), nothing is allocated. ``staging_bytes`` are needed in addition.

    Raises:
        LoadError: the host has too little memory; nothing is allocated then.
    """

    def __init__(
        self,
        specs: Sequence[ParamSpec],
        given: Mapping[str, torch.Tensor] | None = None,
        *,
        rank: int = 0,
        staging_bytes: int = 0,
    ) -> None:
        if given is not None:
            self.tensors = _given(specs, given)
            self.buffers = {s.name: _bytes_of(self.tensors[s.name]) for s in specs if s.alias is None}
            return
        offsets, size = _places(specs)
        require_memory(size + staging_bytes, f"rank {rank}: its parameters and staging take", hint=MORE_RANKS)
        with no_memory_is_a_load_error():
            self._memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if size >= 2**22:
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        whole = torch.frombuffer(self._memory, dtype=torch.uint8)
        self.tensors = _views(specs, offsets, whole)
        view = memoryview(self._memory)
        self.buffers = {s.name: view[offsets[s.name] : offsets[s.name] + s.num_bytes] for s in specs if s.alias is None}


class DeviceArena:
    """One allocation on a device that holds all parameters of a rank. ``tensors`` are views by name, aliases included.

    Where tensors are ``given``, nothing is allocated.

    Raises:
        LoadError: the device has too little memory; nothing is allocated then.
    """

    def __init__(
        self,
        specs: Sequence[ParamSpec],
        device: torch.device,
        rank: int,
        given: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self.tensors = self._allocated(specs, device, rank) if given is None else _given(specs, given)
        self.addresses = [self.tensors[s.name].data_ptr() for s in specs]

    def _allocated(self, specs: Sequence[ParamSpec], device: torch.device, rank: int) -> dict[str, torch.Tensor]:
        offsets, size = _places(specs)
        free = torch.cuda.mem_get_info(device)[0]
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        refused = LoadError(
            f"rank {rank}: its parameters take {size:,} bytes, and {device} has {free:,} free",
            hint="divide the model over more ranks, or free the device; nothing was read",
        )
        if size > free:
            raise refused
        try:
            whole = torch.empty(size, dtype=torch.uint8, device=device)
        except torch.OutOfMemoryError as error:
            raise refused from error
        return _views(specs, offsets, whole)


def misfit(spec: ParamSpec, tensor: torch.Tensor) -> str | None:
    """Return why a parameter's bytes cannot be written to ``tensor``, as the end of a sentence; None if they can.

    >>> misfit(ParamSpec("norm.weight", (8,), "F32"), torch.empty(4))
    'is [4] here and [8] in the plan'
    """
    if tuple(tensor.shape) != spec.shape:
        return f"is {list(tensor.shape)} here and {list(spec.shape)} in the plan"
    if tensor.dtype != TORCH.get(spec.dtype):
        return f"is {str(tensor.dtype).removeprefix('torch.')} here and {spec.dtype} in the plan"
    if tensor.layout != torch.strided or not tensor.is_contiguous():
        return "is not contiguous here"
    return None


def _given(specs: Sequence[ParamSpec], given: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    tensors = {s.name: expect(f"tensors[{s.name!r}]", given[s.name], torch.Tensor, "a tensor").detach() for s in specs}
    for spec in specs:
        if why := misfit(spec, tensors[spec.name]):
            raise ArgumentError(f"tensors[{spec.name!r}] {why}")
    return tensors


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    array: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)


def _views(specs: Sequence[ParamSpec], offsets: dict[str, int], whole: torch.Tensor) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for spec in specs:
        if spec.alias is None:
            flat = whole[offsets[spec.name] : offsets[spec.name] + spec.num_bytes]
            tensors[spec.name] = flat.view(TORCH[spec.dtype]).view(spec.shape)
    for spec in specs:
        if spec.alias is not None:
            tensors[spec.name] = tensors[spec.alias]
    return tensors
