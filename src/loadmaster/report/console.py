"""How reports print: plain lines, tables as wide as they are, sizes in one unit, tensors by dtype and shape."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from loadmaster.checkpoint import Signature


def say(console: Console, text: str) -> None:
    """Print a line as it is: nothing in it is markup, and the terminal breaks it."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def print_wide(console: Console, table: Table) -> None:
    """Print a table completely, even if it is wider than the terminal."""
    width = console.width
    console.width = max(width, table.__rich_measure__(console, console.options.update(width=500)).maximum)
    console.print(table)
    console.width = width


def unit_of(num_bytes: int) -> tuple[str, int]:
    """Return the unit for the sizes in a table, and its bytes."""
    return ("GiB", 2**30) if num_bytes >= 2**30 else ("MiB", 2**20)


def form_of(signature: Signature | None) -> str:
    """Return dtype and shape, such as ``BF16 [160, 6144]``; nothing for None."""
    return "" if signature is None else f"{signature.dtype} {list(signature.shape)}"
