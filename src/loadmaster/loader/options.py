"""Checks of the loader's arguments, before anything is allocated."""

from __future__ import annotations

from collections.abc import Callable

import torch

from loadmaster.arguments import expect_function, expect_int, shown
from loadmaster.checkpoint import Store
from loadmaster.errors import ArgumentError

MAX_READERS = 1024
"""Reading threads, at most: more only wait for each other."""


def torch_device(device: object) -> torch.device:
    """Return a torch device, given one or its name.

    Raises:
        ArgumentError: there is no such device, or the loader does not support it.
    """
    hint = "use cpu, cuda, or cuda:0, cuda:1, …"
    try:
        made: torch.device = torch.device(device)  # type: ignore[call-overload]
    except (RuntimeError, TypeError, ValueError) as error:
        raise ArgumentError(f"device is {shown(device)}, which is not the name of a device", hint=hint) from error
    if made.type not in ("cpu", "cuda"):
        raise ArgumentError(f"loading onto {made} is not supported", hint=hint)
    return made


def check_options(
    num_readers: int | None,
    staging_bytes: int | None,
    on_progress: Callable[[int], None] | None,
    store: Store | None,
) -> None:
    """Check the options that loading onto hosts and devices share.

    Raises:
        ArgumentError: one of them is invalid; names it.
    """
    if num_readers is not None:
        expect_int("num_readers", num_readers, 1, MAX_READERS)
    if staging_bytes is not None:
        expect_int("staging_bytes", staging_bytes, 1)
    if store is not None and not all(callable(getattr(store, name, None)) for name in ("stamp", "readinto")):
        raise ArgumentError(f"store is {shown(store)}, expected a Store, which has stamp and readinto")
    expect_function("on_progress", on_progress, "a number of bytes")
