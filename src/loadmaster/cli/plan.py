"""``loadmaster plan MODEL``: plan and prove."""

from __future__ import annotations

import argparse
import time

from loadmaster.cli.options import add_capacity_arguments, add_model_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_model_arguments(parser)
    add_capacity_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print the proof; exit 1 if there is none."""
    from loadmaster.cli.planning import prove_arguments

    begin = time.perf_counter()
    proof = prove_arguments(args)
    elapsed_s = time.perf_counter() - begin
    if args.json:
        from loadmaster.report.json import dumps, proof_object

        print(dumps(proof_object(proof, elapsed_s)))
    else:
        from rich.console import Console

        from loadmaster.report.text import print_proof

        print_proof(Console(), proof, elapsed_s)
    return 0 if proof.proven else 1
