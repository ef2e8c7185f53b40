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

    from loadmaster.audit.report import summary, write_reports
    from loadmaster.audit.run import prepare, run_cases

    versions = prepare()
    results = []
    for result in run_cases(cases):
        results.append(result.as_json())
        print(f"{result.verdict.value:28}  {result.case.name:48}  {result.judgement.evidence}", flush=True)
    print(summary(results))
    if args.out is not None:
        for path in write_reports(args.out, versions, results):
            print(path)
    return 0
