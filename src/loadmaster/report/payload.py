"""What reading a payload came to: as the JSON object of ``loadmaster verify --json``, and as text."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.markup import escape

from loadmaster.findings import gib
from loadmaster.payload import Verification
from loadmaster.payload.roles import SCALES
from loadmaster.report.json import checkpoint_object
from loadmaster.report.text import print_findings

SCOPE: Final = (
    "values finite, scales plausible, copies alike, files as recorded; placement not proven, numerics not checked"
)
"""What a verification says, and what it does not."""

SHOWN: Final = 20
"""Findings of one code that are printed; JSON has all."""


def verification_object(result: Verification) -> dict[str, Any]:
    """Return the one object of a verification; sizes are bytes, times seconds."""
    return {
        "sound": result.sound,
        "scope": SCOPE,
        "findings": [f.as_json() for f in result.findings],
        "checkpoint": checkpoint_object(result.survey.checkpoint),
        "files": {"num_read": result.num_files - result.num_resumed, "num_resumed": result.num_resumed},
        "scales": {"checked": result.survey.roles.planned, "num_tensors": _num_scales(result)},
        "copies": {"num_compared": len(result.survey.roles.twins)},
        "sha256": {
            "num_recorded": result.num_recorded,
            "num_mismatched": result.num_mismatched,
            "num_unrecorded": result.num_unrecorded,
        },
        "read_bytes": result.read_bytes,
        "seconds": round(result.seconds, 4),
        "bytes_per_s": round(result.read_bytes / result.seconds),
    }


def _num_scales(result: Verification) -> int:
    return int(np.isin(result.survey.roles.column, SCALES).sum())


def print_verification(console: Console, result: Verification) -> None:
    """Print what was read and checked, the findings, and the verdict."""
    survey = result.survey
    table = survey.checkpoint.table

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    say(
        f"[bold]{escape(str(survey.checkpoint.path))}[/]  {len(table):,} tensors in {len(survey.checkpoint.files)} "
        f"file(s), {gib(table.payload_bytes)}"
    )
    resumed = f"; {result.num_resumed} file(s) were read before" if result.num_resumed else ""
    rate = result.read_bytes / result.seconds / 1e9
    say(f"read {gib(result.read_bytes)} in {result.seconds:.2f} s, {rate:.2f} GB/s{resumed}")
    if survey.roles.planned:
        say(f"scales: {_num_scales(result):,} tensors; copies: {len(survey.roles.twins)} pair(s)")
    else:
        say("scales: not checked, since the config cannot be planned")
    if survey.hashing:
        matched = result.num_recorded - result.num_mismatched
        say(
            f"SHA-256: {matched} of {result.num_recorded} recorded file(s) have theirs; "
            f"{result.num_unrecorded} shard(s) have no record"
        )
    else:
        say("SHA-256: not asked for")
    seen: Counter[str] = Counter()
    shown = []
    for finding in result.findings:
        seen[finding.code] += 1
        if seen[finding.code] <= SHOWN:
            shown.append(finding)
    print_findings(console, shown)
    for code, count in seen.items():
        if count > SHOWN:
            say(f"… and {count - SHOWN:,} more of {code}: --json prints all")
    if result.sound:
        say("[bold green]sound[/]: values, scales, copies and records; placement is proven by `loadmaster plan`")
    else:
        say(f"[bold red]not sound[/]: {sum(f.severity == 'error' for f in result.findings)} error(s)")
