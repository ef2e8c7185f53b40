"""``loadmaster plan MODEL``: plan and prove."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from loadmaster.cli.needed import add_needed_arguments, asked_rank, listed, needed_object, print_needed
from loadmaster.cli.options import add_capacity_arguments, add_engine_argument, add_model_arguments, require_rank, whole
from loadmaster.cli.plan_files import add_file_arguments, with_lock, write_findings, write_page
from loadmaster.cli.planning import prove_arguments, target_of
from loadmaster.cli.sizing import Sizes, add_cut_arguments, add_memory_arguments
from loadmaster.errors import InputError

if TYPE_CHECKING:
    from loadmaster.plan import ParamSpec, Proof


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_model_arguments(parser)
    add_engine_argument(parser)
    parser.add_argument("--params", type=whole, metavar="RANK", help="also list the parameters of this rank")
    add_capacity_arguments(parser)
    add_file_arguments(parser)
    add_memory_arguments(parser)
    add_cut_arguments(parser)
    add_needed_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print the proof; exit 1 if the plan is not proven."""
    from loadmaster.report.json import findings_of

    begin, rank = time.perf_counter(), asked_rank(args)
    try:
        sizes = Sizes(args, with_lock(args, prove_arguments(args, target=target_of(args.engine))))
    except InputError as error:
        write_findings(args, findings_of(error), time.perf_counter() - begin, planned=False)
        raise
    proof = sizes.proof
    elapsed_s = time.perf_counter() - begin
    write_findings(args, proof.findings, elapsed_s, planned=True)
    write_page(args, proof, sizes.memory)
    params = _params(proof, args.params)
    found = {} if rank is None else listed(proof, rank)
    if rank is not None and not args.json:
        print_needed(found)
    elif args.json:
        from loadmaster.report.json import dumps, proof_object

        more = {} if rank is None else {"needed": needed_object(found, rank)}
        print(dumps(proof_object(proof, elapsed_s, params) | sizes.objects() | more))
    else:
        from loadmaster.cli.streams import console
        from loadmaster.report.text import print_proof

        print_proof(console(), proof, elapsed_s, params, sizes.print)
    return 0 if proof.proven else 1


def _params(proof: Proof, rank: int | None) -> Sequence[ParamSpec]:
    """Return the parameters of the requested rank.

    Raises:
        UsageError: there is no such rank.
    """
    if rank is None:
        return ()
    require_rank("--params", rank, proof.plan.num_ranks)
    return proof.plan.rank(rank).specs
