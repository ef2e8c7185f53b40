"""Prints the boundaries of layers with what would cross each, and turns them into JSON objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from loadmaster.architectures.schema import Carried
from loadmaster.report.console import print_wide, unit_of
from loadmaster.sizing.cuts import Boundary


def cut_objects(cuts: Sequence[Boundary]) -> list[dict[str, Any]]:
    """Return cuts as objects; sizes are bytes, those that cross are a token's."""
    return [
        {
            "layer": c.layer,
            "crosses": dict(c.crosses),
            "shapes": {f.name: list(f.shape) for f in c.carries},
            "token_bytes": c.token_bytes,
            "bytes_before": c.bytes_before,
            "bytes_after": c.bytes_after,
            "is_made": c.is_made,
            "refused": c.refused,
        }
        for c in cuts
    ]


def _shape(field: Carried) -> str:
    """Return a tensor that crosses as its name and its shape for each token.

    >>> _shape(Carried("hidden_states", (4, 6144)))
    'hidden_states [4, 6144]'
    """
    return f"{field.name} {list(field.shape)}"


def print_cuts(console: Console, cuts: Sequence[Boundary]) -> None:
    """Print a line for each boundary; the plan's own cuts are marked."""
    unit, size = unit_of(max((c.bytes_before + c.bytes_after for c in cuts), default=0))
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for column in ("cut before layer", "bytes a token", f"before {unit}", f"after {unit}"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("crosses", no_wrap=True)
    for c in cuts:
        what = f"refused: {c.refused}" if c.refused else ", ".join(_shape(f) for f in c.carries)
        crosses = "-" if c.refused else f"{c.token_bytes:,}"
        number = f"{'* ' if c.is_made else ''}{c.layer}"
        table.add_row(number, crosses, f"{c.bytes_before / size:.2f}", f"{c.bytes_after / size:.2f}", what)
    print_wide(console, table)
    console.print(
        "*: a cut of this plan; before and after: parameters on each rank if it were the only cut", highlight=False
    )
