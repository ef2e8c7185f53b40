"""Page-locked host memory: a device copies from it at the speed of its link, without a copy by the driver before."""

from __future__ import annotations

from typing import Final

import torch

from loadmaster.errors import LoadError

_PORTABLE: Final = 1  # cudaHostRegisterPortable: page-locked for every device


def page_lock(address: int, num_bytes: int) -> None:
    """Page-lock memory of this process; its pages should exist already, because this makes them on one thread.

    Raises:
        LoadError: it cannot be page-locked.
    """
    if status := int(torch.cuda.cudart().cudaHostRegister(address, num_bytes, _PORTABLE)):
        raise LoadError(
            f"{num_bytes:,} bytes of host memory cannot be page-locked (CUDA error {status})",
            hint="`ulimit -l` may be too low; fewer --num-readers or less --staging take less",
        )


def page_unlock(address: int) -> None:
    """Unlock memory before it is freed. No copy may be under way."""
    torch.cuda.cudart().cudaHostUnregister(address)
