"""``loadmaster verify MODEL``: read every byte, and check what the headers cannot show."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from loadmaster.cli.options import add_download_dir_argument, add_json_argument, add_source_arguments, positive
from loadmaster.cli.planning import add_download_argument, open_downloaded
from loadmaster.errors import UsageError

if TYPE_CHECKING:
    from loadmaster.payload import Manifest, Records


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_source_arguments(parser, "a folder, or a Hugging Face hub id")
    add_download_argument(parser)
    add_download_dir_argument(parser)
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="FILE",
        help="keep results in FILE; skip files that it already has and that have not changed",
    )
    parser.add_argument("--no-hash", action="store_true", help="do not check recorded SHA-256 hashes")
    parser.add_argument(
        "--against",
        type=Path,
        metavar="PATH",
        help="compare with a known-good copy: its manifest, a list of the SHA-256 of its files, or its folder",
    )
    parser.add_argument(
        "--write-manifest",
        type=Path,
        metavar="FILE",
        help="write the SHA-256 of each tensor to FILE, for a later --against",
    )
    parser.add_argument(
        "--num-threads",
        type=positive,
        metavar="N",
        help="reading threads (default: the cores; if fewer than 16, twice as many, to 16)",
    )
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Read, show progress on standard error, and print the findings; exit 1 if the checkpoint is not sound."""
    from loadmaster import payload
    from loadmaster.cli.progress import ByteProgress

    if args.write_manifest:
        payload.check_writable(args.write_manifest)
    checkpoint = open_downloaded(args, download=args.download)
    against = _known_good(args, checkpoint.path) if args.against else None
    digesting = args.write_manifest is not None
    with payload.Journal(args.resume) as journal:
        survey = payload.survey_payload(
            checkpoint, hashing=not args.no_hash, journal=journal, digesting=digesting, against=against
        )
        try:
            with ByteProgress(survey.total_bytes, "verifying") as progress:
                result = payload.verify_payload(
                    survey, journal=journal, num_threads=args.num_threads, on_progress=progress.advance
                )
        except KeyboardInterrupt:
            if args.resume:
                print(f"interrupted: run the same command to continue from {args.resume}", file=sys.stderr)
            raise
    if args.write_manifest:
        payload.write_manifest(args.write_manifest, result.manifest)
    if args.json:
        from loadmaster.report.json import dumps
        from loadmaster.report.payload import verification_object

        print(dumps(verification_object(result, args.write_manifest)))
    else:
        from loadmaster.cli.streams import console
        from loadmaster.report.payload import print_verification

        print_verification(console(), result, args.write_manifest)
    return 0 if result.sound else 1


def _known_good(args: argparse.Namespace, folder: Path) -> Manifest | Records:
    """Return the manifest or hashes that ``--against`` names; a folder is read to make one.

    Raises:
        UsageError: there is no such path, or it cannot be read.
    """
    from loadmaster import payload
    from loadmaster.checkpoint import open_checkpoint
    from loadmaster.cli.progress import ByteProgress

    path: Path = args.against
    if path.is_dir():
        survey = payload.survey_payload(open_checkpoint(path), hashing=False, digesting=True)
        with ByteProgress(survey.total_bytes, "reading the known-good copy") as progress:
            result = payload.verify_payload(survey, num_threads=args.num_threads, on_progress=progress.advance)
        return replace(result.manifest, source=str(path))
    if not path.is_file():
        raise UsageError(f"--against {path}: no such file or folder")
    try:
        return payload.read_manifest(path) if payload.is_manifest(path) else payload.read_sums(path, folder)
    except OSError as error:
        raise UsageError(f"--against {path}: {error.strerror or error}") from error
