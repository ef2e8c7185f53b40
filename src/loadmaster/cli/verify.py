"""``loadmaster verify MODEL``: read every byte, and check what headers cannot show."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from loadmaster.cli.options import positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("model", metavar="MODEL", help="a folder, or a Hugging Face hub id")
    parser.add_argument("--revision", help="the hub revision: branch, tag or commit")
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="FILE",
        help="keep what was found in FILE, and read no file again that it has and that has not changed",
    )
    parser.add_argument("--no-hash", action="store_true", help="leave recorded SHA-256 unchecked")
    parser.add_argument(
        "--num-threads", type=positive, metavar="N", help="reading threads (default: all cores, twice them to 16)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")


def run(args: argparse.Namespace) -> int:
    """Read, show progress on standard error, and print what was found; exit 1 if something is wrong."""
    from loadmaster import payload
    from loadmaster.checkpoint import open_checkpoint, resolve_model
    from loadmaster.cli.progress import ByteProgress

    checkpoint = open_checkpoint(resolve_model(args.model, args.revision))
    with payload.Journal(args.resume) as journal:
        survey = payload.survey_payload(checkpoint, hashing=not args.no_hash, journal=journal)
        try:
            with ByteProgress(survey.total_bytes, "verifying") as progress:
                result = payload.verify_payload(
                    survey, journal=journal, num_threads=args.num_threads, on_progress=progress.advance
                )
        except KeyboardInterrupt:
            if args.resume:
                print(f"interrupted: the same command goes on from {args.resume}", file=sys.stderr)
            raise
    if args.json:
        from loadmaster.report.json import dumps
        from loadmaster.report.payload import verification_object

        print(dumps(verification_object(result)))
    else:
        from loadmaster.cli.streams import console
        from loadmaster.report.payload import print_verification

        print_verification(console(), result)
    return 0 if result.sound else 1
