"""``loadmaster explain MODEL NAME``: what a parameter is computed from, or who reads a stored tensor."""

from __future__ import annotations

import argparse

from loadmaster.cli.options import add_engine_argument, add_model_arguments
from loadmaster.cli.planning import plan_arguments, target_of
from loadmaster.errors import ArgumentError, UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_model_arguments(parser)
    parser.add_argument(
        "name", metavar="NAME", help="a parameter of the running model, or a stored tensor: the exact name"
    )
    add_engine_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Print the explanation. What is wrong with the plan as a whole is for ``plan`` to say: it does not change the exit code.

    Raises:
        UsageError: there is no such name.
    """
    from loadmaster.plan.explanation import explain

    plan = plan_arguments(args, target=target_of(args.engine))
    try:
        explanation = explain(plan, args.name)
    except ArgumentError as error:
        raise UsageError(f"{error.message}; {error.hint}") from error
    if args.json:
        from loadmaster.report.explanation import explanation_object
        from loadmaster.report.json import dumps

        print(dumps(explanation_object(explanation)))
    else:
        from loadmaster.cli.streams import console
        from loadmaster.report.explanation import print_explanation

        print_explanation(console(), explanation)
    return 0
