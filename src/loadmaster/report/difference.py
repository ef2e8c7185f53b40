"""Shows differences between checkpoints and between layouts, as text and as JSON values."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from loadmaster.checkpoint import Checkpoint
from loadmaster.checkpoint.difference import CheckpointDifference, ConfigChange, TensorGroup
from loadmaster.errors import clip
from loadmaster.findings import gib, ranges
from loadmaster.plan.difference import LayoutDifference, RankChange
from loadmaster.report.console import form_of, print_wide, say, unit_of
from loadmaster.report.json import checkpoint_object, finding_objects
from loadmaster.report.text import layout_text, print_findings

MOST = 60
"""Up to this many groups, moves or keys are printed. JSON has all."""
MOST_MOVES = 8

_SIGN = {"gained": "[green]+[/]", "lost": "[red]-[/]"}
_CHANGED = "[yellow]~[/]"
_COLUMNS = ("needs", "keeps", "from its host", "from other hosts", "from storage", "drops")


# Checkpoints ----------------------------------------------------------------------------------------------------------


def print_checkpoint_difference(
    console: Console, before: Checkpoint, after: Checkpoint, difference: CheckpointDifference
) -> None:
    """Print what differs: tensors in groups, moves between shards, config keys, findings; then the verdict."""
    for which, checkpoint in (("before", before), ("after", after)):
        table = checkpoint.table
        holds = f"{len(table):,} tensors in {len(checkpoint.files)} file(s), {gib(table.payload_bytes)}"
        say(console, f"{which:7s} {checkpoint.origin}  {holds}")
    for group in difference.tensors[:MOST]:
        sign = _SIGN.get(group.change, _CHANGED)
        console.print(f"{sign} {group.change}  ", end="", highlight=False)
        say(console, _group(group))
    _more(console, len(difference.tensors) - MOST, "groups of tensors")
    if difference.moves:
        count, size = sum(m.num_tensors for m in difference.moves), sum(m.num_bytes for m in difference.moves)
        console.print("[yellow]>[/] moved  ", end="", highlight=False)
        say(console, f"{count:,} tensors, {gib(size)}, to another shard")
        for move in difference.moves[:MOST_MOVES]:
            say(console, f"    {move.before} → {move.after}  × {move.num_tensors:,}, {gib(move.num_bytes)}")
        _more(console, len(difference.moves) - MOST_MOVES, "pairs of shards")
    for change in difference.config[:MOST]:
        sign = _SIGN["gained"] if change.before is None else _SIGN["lost"] if change.after is None else _CHANGED
        console.print(f"{sign} config  ", end="", highlight=False)
        say(console, _config(change))
    _more(console, len(difference.config) - MOST, "config keys")
    for sign, findings in (("lost", difference.findings_lost), ("gained", difference.findings_gained)):
        if findings:
            console.print(
                f"{_SIGN[sign]} findings {'only before' if sign == 'lost' else 'only after'}", highlight=False
            )
            print_findings(console, findings)
    if difference.is_equal:
        say(
            console,
            "equal: the same tensors in the same shards, the same config and findings; payload bytes not compared",
        )
    else:
        say(console, f"different: {_summary(difference)}; payload bytes not compared")


def checkpoint_difference_object(
    before: Checkpoint, after: Checkpoint, difference: CheckpointDifference
) -> dict[str, Any]:
    """Return a difference of checkpoints as JSON values."""
    return {
        "equal": difference.is_equal,
        "before": {"origin": before.origin.as_json(), "digest": before.digest, **checkpoint_object(before)},
        "after": {"origin": after.origin.as_json(), "digest": after.digest, **checkpoint_object(after)},
        "tensors": [
            {
                "change": group.change,
                "pattern": group.pattern,
                "first": group.first,
                "num_tensors": group.num_tensors,
                "before": None if group.before is None else asdict(group.before),
                "after": None if group.after is None else asdict(group.after),
                "before_bytes": group.before_bytes,
                "after_bytes": group.after_bytes,
            }
            for group in difference.tensors
        ],
        "moves": [
            {"before": m.before, "after": m.after, "num_tensors": m.num_tensors, "bytes": m.num_bytes}
            for m in difference.moves
        ],
        "config": [asdict(change) for change in difference.config],
        "findings_lost": finding_objects(difference.findings_lost),
        "findings_gained": finding_objects(difference.findings_gained),
    }


def _group(group: TensorGroup) -> str:
    was, now = form_of(group.before), form_of(group.after)
    forms = f"{was} → {now}" if was and now else was or now
    size = abs(group.after_bytes - group.before_bytes)
    sized = f"{gib(group.before_bytes)} → {gib(group.after_bytes)}" if was and now else gib(size)
    return f"{group.pattern}  {forms}  × {group.num_tensors:,}, {sized}"


def _config(change: ConfigChange) -> str:
    if change.before is not None and change.after is not None:
        return f"{change.key}: {clip(change.before, 80)} → {clip(change.after, 80)}"
    return f"{change.key}: {clip(change.before or change.after or '', 80)}"


def _summary(difference: CheckpointDifference) -> str:
    counts: dict[str, int] = defaultdict(int)
    for group in difference.tensors:
        counts[group.change] += group.num_tensors
    if difference.moves:
        counts["moved to another shard"] = sum(m.num_tensors for m in difference.moves)
    texts = [f"{count:,} tensors {change}" for change, count in counts.items()]
    if difference.config:
        texts.append(f"{len(difference.config)} config keys")
    if num := len(difference.findings_lost) + len(difference.findings_gained):
        texts.append(f"{num} findings")
    return ", ".join(texts)


# Layouts --------------------------------------------------------------------------------------------------------------


def print_layout_difference(console: Console, difference: LayoutDifference) -> None:
    """Print what each rank keeps and newly needs, the totals, and the verdict."""
    hosts = f", {difference.ranks_per_host} ranks a host" if difference.ranks_per_host else ""
    say(console, f"before  {layout_text(difference.before)}")
    say(console, f"after   {layout_text(difference.after)}{hosts}")
    unit, size = unit_of(max((max(r.needed_bytes, r.dropped_bytes) for r in difference.ranks), default=0))
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    shown = [c for c in _COLUMNS if c != "from other hosts" or difference.ranks_per_host]
    table.add_column("rank", justify="right", no_wrap=True)
    titles = {} if difference.ranks_per_host else {"from its host": "from other ranks"}
    for column in (f"resident {unit}", *shown):
        table.add_column(titles.get(column, column), justify="right", no_wrap=True)
    for ranks, figures in _lines(difference.ranks, size):
        table.add_row(ranges(ranks), *(figures[c] for c in ("resident", *shown)))
    print_wide(console, table)
    new, needed = difference.new_bytes, sum(r.needed_bytes for r in difference.ranks)
    if difference.is_equal:
        say(console, "equal: every rank needs exactly the stored bytes that it has")
        return
    host, remote = (sum(b) for b in zip(*((r.host_bytes, r.remote_bytes) for r in difference.ranks), strict=True))
    across = f" ({gib(host)} of them within a host)" if difference.ranks_per_host else ""
    say(
        console,
        f"different: of {gib(needed)} of stored tensors that ranks need, they have {gib(needed - new)}; "
        f"{gib(host + remote)} can come from other ranks{across}, {gib(new - host - remote)} only from storage",
    )


def layout_difference_object(difference: LayoutDifference) -> dict[str, Any]:
    """Return a difference of layouts as JSON values; all sizes are bytes."""
    return {
        "equal": difference.is_equal,
        "before": difference.before.as_json(),
        "after": difference.after.as_json(),
        "ranks_per_host": difference.ranks_per_host,
        "new_bytes": difference.new_bytes,
        "ranks": [asdict(r) | {"new_bytes": r.new_bytes} for r in difference.ranks],
    }


def _lines(ranks: Iterable[RankChange], size: int) -> list[tuple[list[int], dict[str, str]]]:
    """Return the lines of the table: ranks whose figures look the same share one."""
    alike: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for r in ranks:
        values = (r.needed_bytes, r.kept_bytes, r.host_bytes, r.remote_bytes, r.storage_bytes, r.dropped_bytes)
        resident = f"{r.resident_before / size:.2f} → {r.resident_bytes / size:.2f}"
        alike[resident, *(f"{value / size:.2f}" for value in values)].append(r.rank)
    return [(found, dict(zip(("resident", *_COLUMNS), key, strict=True))) for key, found in alike.items()]


def _more(console: Console, count: int, what: str) -> None:
    if count > 0:
        say(console, f"  … and {count:,} more {what}; --json has all")
