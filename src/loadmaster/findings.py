"""A finding: one reason why a checkpoint, a configuration and a layout do not fit together.

Findings are data. Every package that checks something returns them; this module raises and prints nothing. What each code means
and what to do is in `loadmaster.catalogue`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One defect, reported once, at its cause.

    ``ranks`` are those whose parameters have the defect (empty: all, or none in particular). ``tensor`` is a name in
    the checkpoint (ending in ``.*`` for a whole module), ``param`` a name in the running model,
    ``file`` a file's name. ``message`` says what was expected and what was found, ``hint`` what to do.
    """

    code: str
    severity: Severity
    message: str
    tensor: str | None = None
    param: str | None = None
    file: str | None = None
    hint: str | None = None
    ranks: tuple[int, ...] = ()

    @property
    def summary(self) -> str:
        """What it is about and what is wrong, in one line.

        >>> Finding("file-empty", "error", "it has no bytes", file="config.json").summary
        'config.json: it has no bytes'
        """
        subject = self.tensor or self.param or self.file
        return f"{subject}: {self.message}" if subject else self.message

    def as_json(self) -> dict[str, Any]:
        """Return the finding as JSON values, every field present."""
        return asdict(self) | {"ranks": list(self.ranks)}


def errors(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Return the findings that prevent a proof."""
    return tuple(f for f in findings if f.severity == "error")


def joined(alike: Sequence[Finding], most: int = 4, *, count: int | None = None) -> list[Finding]:
    """Return up to ``most`` similar findings unchanged; join more into one, with their count and all their ranks.

    ``count`` is how many there are, where only the first ``most`` + 1 of them are given.
    """
    count = len(alike) if count is None else count
    if count <= most:
        return list(alike)
    first = alike[0]
    names = ", ".join(f.tensor or f.param or f.file or "" for f in alike[1:4])
    names += ", …" if count > 4 else ""
    ranks = tuple(sorted({r for f in alike for r in f.ranks}))
    return [replace(first, message=f"{first.message} (and {count - 1:,} more like it: {names})", ranks=ranks)]


def ranges(numbers: Iterable[int]) -> str:
    """Return numbers (of ranks, layers, experts) in order, with runs joined.

    >>> ranges((5, 0, 1, 2))
    '0-2, 5'
    """
    runs: list[list[int]] = []
    for n in sorted(set(numbers)):
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)


def gib(num_bytes: int) -> str:
    """Return bytes as GiB, or MiB and KiB where small.

    >>> gib(3 * 2**30), gib(5 * 2**20), gib(100)
    ('3.00 GiB', '5.0 MiB', '0.1 KiB')
    """
    if num_bytes >= 2**30:
        return f"{num_bytes / 2**30:.2f} GiB"
    return f"{num_bytes / 2**20:.1f} MiB" if num_bytes >= 2**20 else f"{num_bytes / 2**10:.1f} KiB"
