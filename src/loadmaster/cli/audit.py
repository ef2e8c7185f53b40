"""``loadmaster audit ENGINE``: test an engine's own loaders with sound and defective checkpoints."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("engine", choices=["vllm"], help="the engine to test; it must be installed")
    parser.add_argument(
        "--cases", default="*", metavar="GLOB", help="run the cases whose names match, such as 'qwen3/*' (default: all)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="write the report to DIR as Markdown, HTML and JSON (default: print only)",
    )
    parser.add_argument("--list", action="store_true", help="list the cases without running them")
    parser.add_argument(
        "--against",
        metavar="PYTHON",
        help="run the same cases with the engine of another Python, which has Loadmaster too, or read an earlier run's .json; "
        "report what changed from there to here (with --out: as Markdown and HTML)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the cases, print each verdict when it is known, and report."""
    from loadmaster.audit.cases import find_cases
    from loadmaster.errors import UsageError

    cases = find_cases(args.cases)
    if not cases:
        raise UsageError(f"--cases {args.cases!r} matches no case; --list lists them")
    if args.list:
        for case in cases:
            print(f"{case.name:48}  {case.damage.what if case.damage else 'sound'}")
        return 0

    from loadmaster.audit.against import recorded_by
    from loadmaster.audit.changes import paired, short, write_changes
    from loadmaster.audit.report import summary, write_reports
    from loadmaster.audit.run import prepare, record, run_cases

    versions = prepare()
    before = None if args.against is None else recorded_by(args.against, args.cases)
    results = []
    for result in run_cases(cases):
        results.append(result.as_json())
        print(f"{result.verdict.value:28}  {result.case.name:48}  {result.judgement.evidence}", flush=True)
    recorded, paths = record(versions, results, () if before is None else before.places), list[Path]()
    print(summary(results))
    if args.out is not None:
        paths += write_reports(args.out, recorded)
    if before is not None:
        changes, _ = paired(before, recorded)
        for change in changes:
            if change.direction not in ("same", "one"):
                old, new = (v.value for v in change.verdicts)
                print(f"{change.direction:8}{change.after['name']:48}  {old} -> {new}")
        print(f"since {before.version}: {short(changes)}")
        paths += write_changes(args.out, before, recorded) if args.out is not None else ()
    for path in paths:
        print(path)
    return 0
