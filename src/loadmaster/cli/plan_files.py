"""The files of ``loadmaster plan``: the lock that it checks or writes, and its findings as SARIF and JUnit XML."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from loadmaster.errors import UsageError

if TYPE_CHECKING:
    from loadmaster.findings import Finding
    from loadmaster.plan import Proof
    from loadmaster.sizing import Memory

LOCK_NAME = "loadmaster.lock"


def add_file_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a file."""
    files = parser.add_argument_group("files")
    files.add_argument(
        "--write-lock",
        nargs="?",
        const=LOCK_NAME,
        metavar="FILE",
        help=f"if the plan is proven, write what it was made from into FILE (default: {LOCK_NAME})",
    )
    files.add_argument(
        "--locked",
        nargs="?",
        const=LOCK_NAME,
        metavar="FILE",
        help=f"fail where shards, config, options or the plan differ from the lock in FILE (default: {LOCK_NAME})",
    )
    files.add_argument("--html", metavar="FILE", help="write the plan as one HTML file to look at")
    files.add_argument("--sarif", metavar="FILE", help="write the findings as SARIF 2.1.0, for code scanning")
    files.add_argument("--junit", metavar="FILE", help="write the findings as JUnit XML, for CI servers")


def with_lock(args: argparse.Namespace, proof: Proof) -> Proof:
    """Return the proof with what ``--locked`` finds, and write the lock that ``--write-lock`` asks for.

    Raises:
        UsageError: both are given.
        PlanError: the file is not a lock.
    """
    if args.locked is not None and args.write_lock is not None:
        raise UsageError("--locked and --write-lock: give one of them")
    if args.locked is None and args.write_lock is None:
        return proof
    from loadmaster import __version__
    from loadmaster.catalogue import ranked
    from loadmaster.errors import PlanError
    from loadmaster.plan.lock import Lock, check_lock, lock_of

    today = lock_of(proof.plan, __version__)
    if args.locked is not None:
        try:
            text = Path(args.locked).read_bytes()
        except FileNotFoundError as error:
            hint = "write it with `loadmaster plan … --write-lock`"
            raise PlanError(f"{args.locked} does not exist", hint=hint, code="lock-invalid") from error
        return replace(proof, findings=ranked((*proof.findings, *check_lock(Lock.from_json(text), today))))
    if proof.proven:
        Path(args.write_lock).write_text(today.to_json(), encoding="utf-8")
    return proof


def write_findings(args: argparse.Namespace, findings: Sequence[Finding], elapsed_s: float, *, planned: bool) -> None:
    """Write the findings as ``--sarif`` and ``--junit`` ask for. ``planned``: there is a plan, and its laws were checked."""
    if args.sarif is not None:
        from loadmaster import __version__
        from loadmaster.report.json import dumps
        from loadmaster.report.sarif import sarif_object

        Path(args.sarif).write_text(dumps(sarif_object(findings, __version__)) + "\n", encoding="utf-8")
    if args.junit is not None:
        from loadmaster.report.junit import junit_xml

        xml = junit_xml(findings, f"loadmaster plan {args.model}", elapsed_s, _unchecked(args, planned=planned))
        Path(args.junit).write_text(xml, encoding="utf-8")


def _unchecked(args: argparse.Namespace, *, planned: bool) -> dict[str, str]:
    """Return the sections of the catalogue that this command did not check, and why."""
    from loadmaster.catalogue import SECTIONS

    if not planned:
        return dict.fromkeys(SECTIONS, "nothing could be planned")
    of_values = {"Payload": "a plan reads headers alone; loadmaster verify reads the values"}
    return of_values if args.locked is not None else of_values | {"Lock": "--locked was not given"}


def write_page(args: argparse.Namespace, proof: Proof, memory: Memory | None) -> None:
    """Write the plan as ``--html`` asks for, with the memory of the ranks if it was counted."""
    if args.html is not None:
        from loadmaster import __version__
        from loadmaster.report.html import plan_html

        Path(args.html).write_text(plan_html(proof, __version__, args.device_memory, memory), encoding="utf-8")
