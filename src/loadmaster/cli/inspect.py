"""``loadmaster inspect MODEL``: show the contents of a checkpoint."""

from __future__ import annotations

import argparse

from loadmaster.cli.options import ANYWHERE, add_json_argument, add_source_arguments
from loadmaster.cli.planning import open_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_source_arguments(parser, ANYWHERE)
    parser.add_argument("--match", metavar="TEXT", help="list the tensors whose names contain TEXT")
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Print the checkpoint; exit 1 if its files are defective."""
    from loadmaster.findings import errors

    checkpoint = open_model(args)
    names = [n for n in checkpoint.table.names if args.match in n] if args.match else None
    if args.json:
        from loadmaster.report.json import dumps, inspection_object

        print(dumps(inspection_object(checkpoint, names)))
    else:
        from loadmaster.cli.streams import console
        from loadmaster.report.text import print_checkpoint

        print_checkpoint(console(), checkpoint, names)
    return 1 if errors(checkpoint.findings) else 0
