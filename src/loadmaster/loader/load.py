"""Loading one rank, into host memory (`loadmaster.loader.host`) or onto a GPU (`loadmaster.loader.cuda`).

The files are checked against the plan before the first byte and after the last. Nothing is returned unless every byte was
loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from typing import Literal, overload

import torch

from loadmaster.arguments import expect, expect_int
from loadmaster.checkpoint import LocalStore, Store
from loadmaster.host_memory import no_memory_is_a_load_error
from loadmaster.loader.cuda.load import load_ranks
from loadmaster.loader.host import load_on_host
from loadmaster.loader.options import check_options, torch_device
from loadmaster.loader.report import LoadedRank
from loadmaster.plan import Plan, ProvenPlan, admit


@overload
def load_rank(
    plan: ProvenPlan,
    rank: int,
    *,
    device: str | torch.device = ...,
    tensors: Mapping[str, torch.Tensor] | None = ...,
    store: Store | None = ...,
    on_progress: Callable[[int], None] | None = ...,
    num_readers: int | None = ...,
    staging_bytes: int | None = ...,
) -> LoadedRank: ...


@overload
def load_rank(
    plan: Plan,
    rank: int,
    *,
    device: str | torch.device = ...,
    tensors: Mapping[str, torch.Tensor] | None = ...,
    store: Store | None = ...,
    on_progress: Callable[[int], None] | None = ...,
    num_readers: int | None = ...,
    staging_bytes: int | None = ...,
    allow_unproven: Literal[True],
) -> LoadedRank: ...


@no_memory_is_a_load_error()
def load_rank(
    plan: Plan,
    rank: int,
    *,
    device: str | torch.device = "cpu",
    tensors: Mapping[str, torch.Tensor] | None = None,
    store: Store | None = None,
    on_progress: Callable[[int], None] | None = None,
    num_readers: int | None = None,
    staging_bytes: int | None = None,
    allow_unproven: bool = False,
) -> LoadedRank:
    """Load one rank's parameters into host memory, or onto a GPU (see `load_ranks`).

    ``tensors`` gives existing memory to load into, on ``device``: only the parameters that it names are loaded.
    ``on_progress`` is called, from any reader, with bytes of the plan that are done; the calls sum to the rank's
    ``needed_bytes``. ``num_readers`` defaults to twice the cores, at most 16; ``staging_bytes`` to 256 MiB.

    ``plan`` is a `ProvenPlan`. ``allow_unproven`` loads what any other plan describes, on purpose: parameters that its
    findings name may be missing.

    Raises:
        PlanError: the plan was not proven; carries its findings. Nothing was read.
        ArgumentError: the layout has no such rank, or an argument has the wrong type.
        LoadError: a file changed, is shorter than planned, or could not be read; names file, tensor and rank.
            Or the host has too little memory, which is checked before anything is read.
    """
    plan = admit(plan, allow_unproven=allow_unproven)
    expect_int("rank", rank, 0, plan.num_ranks - 1)
    check_options(num_readers, staging_bytes, on_progress, store)
    if torch_device(device).type != "cpu":
        loaded = load_ranks(
            plan,
            {rank: device},
            tensors=None if tensors is None else {rank: tensors},
            store=store,
            on_progress=on_progress,
            num_readers=num_readers,
            staging_bytes=staging_bytes,
            allow_unproven=True,  # it was admitted above
        )
        return loaded[rank]
    if tensors is not None:
        expect("tensors", tensors, Mapping, "a mapping of names to tensors")
    with ExitStack() as stack:
        source = store or stack.enter_context(closing(LocalStore(plan.model_path)))
        rank_plan = plan.rank(rank) if tensors is None else plan.rank(rank).only(tensors.keys())
        return load_on_host(plan, rank_plan, tensors, source, on_progress, num_readers, staging_bytes)
