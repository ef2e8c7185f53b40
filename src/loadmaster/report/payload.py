"""Shows the result of a verification: as the JSON object of ``loadmaster verify --json``, and as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.markup import escape

from loadmaster.findings import errors, gib
from loadmaster.payload import Verification
from loadmaster.payload.roles import SCALES, Roles
from loadmaster.report.json import checkpoint_object, finding_objects
from loadmaster.report.text import print_findings

SCOPE: Final = (
    "plan of one rank proven, values finite, scales plausible, tensors like their peers, copies alike, files as recorded; "
    "not checked: swapped tensors of the same shape, numerics"
)
"""What a verification checks, and what it does not."""

SHOWN: Final = 20
"""Most findings of one code that are printed; JSON has all."""

NAMED: Final = 5
"""Most unchecked tensors that are printed by name; JSON has all."""


def verification_object(result: Verification, manifest: Path | None = None) -> dict[str, Any]:
    """Return the object of a verification; sizes are bytes, times seconds. ``manifest`` is the file that was written, if any."""
    survey, roles = result.survey, result.survey.roles
    names = survey.checkpoint.table.names
    proof = roles.proof
    return {
        "sound": result.sound,
        "scope": SCOPE,
        "findings": finding_objects(result.findings),
        "checkpoint": checkpoint_object(survey.checkpoint),
        "plan": {
            "proven": proof is not None and proof.proven,
            "num_errors": None if proof is None else len(errors(proof.findings)),
            "unplanned": roles.unplanned,
        },
        "files": {"num_read": result.num_files - result.num_resumed, "num_resumed": result.num_resumed},
        "scales": {
            "checked": not roles.scales and not roles.encoded,
            "num_tensors": _num_scales(roles),
            "num_by_name": len(roles.named),
            "unchecked": [names[i] for i in roles.scales],
        },
        "encoded": {"num_tensors": roles.num_encoded, "unchecked": [names[i] for i in roles.encoded]},
        "copies": {"num_compared": len(roles.twins)},
        "sha256": {
            "num_recorded": result.num_recorded,
            "num_mismatched": result.num_mismatched,
            "num_unrecorded": result.num_unrecorded,
        },
        "against": _against(result),
        "manifest": None if manifest is None else str(manifest),
        "read_bytes": result.read_bytes,
        "seconds": round(result.seconds, 4),
        "bytes_per_s": round(result.read_bytes / result.seconds),
    }


def _against(result: Verification) -> dict[str, Any] | None:
    good = result.survey.against
    if good is None:
        return None
    return {
        "source": good.source,
        "num_tensors": len(good.tensors),
        "num_compared": len(good.tensors.keys() & result.digests.keys()),
    }


def _num_scales(roles: Roles) -> int:
    return int(np.isin(roles.column, SCALES).sum())


def print_verification(console: Console, result: Verification, manifest: Path | None = None) -> None:
    """Print what was read and checked, the findings, and the verdict."""
    survey = result.survey
    table = survey.checkpoint.table

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    say(
        f"[bold]{escape(str(survey.checkpoint.path))}[/]  {len(table):,} tensors in {len(survey.checkpoint.files)} "
        f"file(s), {gib(table.payload_bytes)}"
    )
    resumed = f"; {result.num_resumed} file(s) were read by an earlier run" if result.num_resumed else ""
    rate = result.read_bytes / result.seconds / 1e9
    say(f"read {gib(result.read_bytes)} in {result.seconds:.2f} s, {rate:.2f} GB/s{resumed}")
    for line in _checked(survey.roles, table.names):
        say(escape(line))
    if survey.hashing:
        matched = result.num_recorded - result.num_mismatched
        say(
            f"SHA-256: {matched} of {result.num_recorded} recorded file(s) match; "
            f"{result.num_unrecorded} shard(s) have no record"
        )
    else:
        say("SHA-256: not requested")
    if against := _against(result):
        say(
            f"compared with {escape(against['source'])}: {against['num_compared']:,} of its {against['num_tensors']:,} "
            "tensors"
        )
    if manifest is not None:
        say(f"manifest of {len(result.digests):,} tensors written to {escape(str(manifest))}")
    seen: Counter[str] = Counter()
    shown = []
    for finding in result.findings:
        seen[finding.code] += 1
        if seen[finding.code] <= SHOWN:
            shown.append(finding)
    print_findings(console, shown)
    for code, count in seen.items():
        if count > SHOWN:
            say(f"… and {count - SHOWN:,} more {code}: --json prints all")
    if result.sound:
        say("[bold green]sound[/]: plan of one rank, values, scales, peers, copies and records; numerics not checked")
    else:
        planned = "" if survey.roles.unplanned is None else "; planning failed"
        say(f"[bold red]not sound[/]: {len(errors(result.findings))} error(s){planned}")


def _checked(roles: Roles, names: Sequence[str]) -> list[str]:
    """Return lines on what was checked and what was not."""
    if roles.proof is None:
        plan = f"plan: planning failed: {roles.unplanned}"
    elif roles.proof.proven:
        plan = "plan: proven, on one rank"
    else:
        plan = f"plan: not proven, {len(errors(roles.proof.findings))} error(s)"
    by_name = f", {len(roles.named):,} of them recognised only by name" if roles.named else ""
    lines = [plan, f"scales: {_num_scales(roles):,} tensors{by_name}; copies: {len(roles.twins)} pair(s)"]
    for ids, what in (
        (roles.scales, "tensors named like scales"),
        (roles.encoded, f"of {roles.num_encoded:,} tensors in FP8 or packed"),
    ):
        if ids:
            more = ", …" if len(ids) > NAMED else ""
            lines.append(f"not checked: {len(ids):,} {what}: {', '.join(names[i] for i in ids[:NAMED])}{more}")
    return lines
