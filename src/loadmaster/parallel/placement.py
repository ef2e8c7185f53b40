"""How one dim of a tensor is divided over the ranks of an axis."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

from loadmaster.errors import LayoutError


@dataclass(frozen=True, slots=True)
class Cut:
    """One coordinate's part of a dim, half open, and over how many coordinates each element is repeated."""

    start: int
    stop: int
    replicas: int = 1


def cut(size: int, unit: int, count: int, index: int, *, repeat: bool = False, sections: tuple[int, ...] = ()) -> Cut:
    """Return coordinate ``index``'s part of a dim of ``size`` elements, divided over ``count`` in whole units.

    ``u = size / unit`` units over ``c = count`` coordinates: where ``c`` divides ``u`` each holds ``u / c``. With
    ``repeat`` (key/value heads), where ``u`` divides ``c`` coordinate ``i`` holds unit ``i // (c / u)``, and each unit is
    held ``c / u`` times. ``sections`` are units of different sizes, which add up to ``size``.

    >>> cut(1024, 128, 2, 1), cut(256, 128, 4, 3, repeat=True)
    (Cut(start=512, stop=1024, replicas=1), Cut(start=128, stop=256, replicas=2))
    >>> cut(24, 1, 2, 1, sections=(5, 7, 11, 1))
    Cut(start=12, stop=24, replicas=1)

    Raises:
        LayoutError: neither divides the other; the hint names the legal sizes.
    """
    if sections:
        part = cut(len(sections), 1, count, index, repeat=repeat)
        return Cut(sum(sections[: part.start]), sum(sections[: part.stop]), part.replicas)
    units, rest = divmod(size, unit)
    if rest:
        raise LayoutError(f"{size} elements are no multiple of the unit {unit}")
    if units % count == 0:
        each = units // count * unit
        return Cut(index * each, (index + 1) * each)
    if repeat and count % units == 0:
        replicas = count // units
        start = index // replicas * unit
        return Cut(start, start + unit, replicas)
    raise LayoutError(
        f"{units} units of {unit} cannot be divided over {count} ranks",
        hint=f"legal sizes here: {', '.join(map(str, legal_counts(units)))}"
        + (f", or a multiple of {units}" if repeat else ""),
    )


def deal(number: int, count: int, index: int) -> tuple[int, int]:
    """Return the run, half open, that ``index`` of ``count`` gets of ``number`` things; any remainder goes to the first.

    >>> [deal(10, 4, index) for index in range(4)]
    [(0, 3), (3, 6), (6, 8), (8, 10)]
    """
    each, rest = divmod(number, count)
    start = index * each + min(index, rest)
    return start, start + each + (index < rest)


def legal_counts(units: int) -> tuple[int, ...]:
    """Return the numbers of coordinates over which ``units`` divide evenly.

    >>> legal_counts(12)
    (1, 2, 3, 4, 6, 12)
    """
    small = [c for c in range(1, isqrt(units) + 1) if units % c == 0]
    return tuple(dict.fromkeys((*small, *(units // c for c in reversed(small)))))
