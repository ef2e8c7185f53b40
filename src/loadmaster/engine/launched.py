"""Under a launcher (torchrun) each process has one rank: rank 0 has the engine too, the others `run_rank`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.metadata import version

from loadmaster.engine.support import launch_of, refuse_options, refuse_plan, require_device
from loadmaster.errors import ArgumentError
from loadmaster.host_memory import require_memory
from loadmaster.plan import ProvenPlan, admit
from loadmaster.workers.crew import DEFAULT_BUILDER, Run
from loadmaster.workers.launch import Launch
from loadmaster.workers.member import run_member


def run_rank(plan: ProvenPlan, *, builder: str = DEFAULT_BUILDER, device: str = "cpu") -> None:
    """Load and compute this process's rank, for the engine on rank 0, and return when that is closed.

    For the processes that a launcher has started for the ranks other than 0. Each makes the same plan from its own host's
    files, and reads only what its rank needs. SIGTERM and SIGINT, if this is the main thread, ask the engine to end.

    Raises:
        ArgumentError: no launcher has started this process, or it is rank 0; or an argument is not valid.
        ConfigError: the launcher's variables are not valid, or there are not as many processes as ranks.
        UnsupportedError: the plan cannot be run.
        LoadError: rank 0 cannot be reached, or refuses this rank; or the host has not enough memory.
        RunError: the engine has failed, or was lost.
    """
    if builder == DEFAULT_BUILDER:
        admit(plan)
    require_device(device)
    launch = launch_of(plan.layout, os.environ)
    if launch is None or launch.rank == 0:
        raise ArgumentError(
            "run_rank is for the ranks other than 0 of a launcher (RANK, WORLD_SIZE, MASTER_ADDR)",
            hint="use Engine on rank 0, and without a launcher",
        )
    refuse_options(None, plan.layout.data_parallel_size)
    if builder == DEFAULT_BUILDER:
        refuse_plan(plan)
        require_memory_of(plan, device, launch)
    run_member(run_of(plan, builder, device, launch), launch)


def run_of(plan: ProvenPlan, builder: str, device: str, launch: Launch | None) -> Run:
    """Return what the workers of all ranks have in common."""
    layout = plan.layout
    agreed = (
        {"version of loadmaster": version("loadmaster"), "device": device, "plan": plan.hash}
        if launch is not None
        else {}
    )
    return Run(
        plan.to_json(),
        layout.pipeline_parallel_size,
        layout.tensor_parallel_size,
        builder,
        device,
        agreed,
    )


def require_runnable(plan: ProvenPlan, device: str) -> Sequence[int]:
    """Check what can be checked before weights are downloaded, and return the ranks that this host computes.

    Raises:
        UnsupportedError: the plan cannot be run.
        ConfigError: the launcher's variables are not valid, or there are not as many processes as ranks.
        LoadError: the weights of this host's ranks do not fit its memory.
    """
    launch = launch_of(plan.layout, os.environ)
    refuse_plan(plan)
    require_memory_of(plan, device, launch)
    return range(plan.num_ranks) if launch is None else launch.ranks_here()


def require_memory_of(plan: ProvenPlan, device: str, launch: Launch | None) -> None:
    """Check that the weights of this host's ranks fit its memory, if they are computed there.

    Raises:
        LoadError: they do not.
    """
    if device != "cpu":
        return
    ranks = range(plan.num_ranks) if launch is None else launch.ranks_here()
    resident = sum(plan.rank(rank).num_bytes for rank in ranks)
    hint = "use GPUs (--device cuda), or free memory"
    require_memory(resident, f"the {len(ranks)} rank(s) of the model take", hint=hint)
