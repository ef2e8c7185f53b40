"""`generate` and `serve` on the ranks other than 0 of a launcher: only the rank's part of the model, for the engine on rank 0."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loadmaster.workers.launch import Launch


def run_member(args: argparse.Namespace, launch: Launch) -> int:
    """Plan, load the rank that the launcher says, and compute it until the engine on rank 0 ends."""
    from loadmaster.cli.planning import run_plan
    from loadmaster.engine import refuse_options, require_run_extra, run_rank
    from loadmaster.engine.launched import require_runnable

    require_run_extra()
    refuse_options(args.speculative_config, args.data_parallel_size)
    plan = run_plan(args, lambda plan: require_runnable(plan, args.device or "cpu")).plan
    print(
        f"loadmaster {args.command}: rank {launch.rank} of {launch.num_ranks}, for rank 0 at {launch.rendezvous}",
        file=sys.stderr,
        flush=True,
    )
    run_rank(plan, device=args.device or "cpu")
    return 0
