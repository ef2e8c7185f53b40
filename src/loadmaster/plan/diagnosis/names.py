"""Names: which stored tensor a missing one may be, how a checkpoint was renamed, and which modules are missing whole."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property

import numpy as np
import numpy.typing as npt

from loadmaster.checkpoint import TensorTable

COMPARISONS = 24
"""The most names compared with all candidates, for one checkpoint: each takes milliseconds."""
CANDIDATES = 500
SEARCHED = 200_000
"""The most strays searched for a renamed tensor; a checkpoint with more is of another model."""


@dataclass(frozen=True, slots=True)
class Rename:
    """A run of a name's parts (between dots) replaced by another, counted from the front or from the back."""

    old: tuple[str, ...]
    new: tuple[str, ...]
    front: int
    back: int

    def apply(self, name: str) -> Iterator[str]:
        """Yield what ``name`` becomes, counted from either end; nothing where its parts differ there."""
        parts = name.split(".")
        for at in dict.fromkeys((self.front, len(parts) - self.back - len(self.old))):
            if 0 <= at <= len(parts) and tuple(parts[at : at + len(self.old)]) == self.old:
                yield ".".join([*parts[:at], *self.new, *parts[at + len(self.old) :]])


def rename(old: str, new: str) -> Rename:
    """Return the smallest renaming that turns ``old`` into ``new``.

    >>> rename("model.layers.0.q.weight", "language_model.model.layers.0.q.weight").new
    ('language_model',)
    """
    a, b = old.split("."), new.split(".")
    front = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    a, b = a[front:], b[front:]
    back = next(
        (i for i, (x, y) in enumerate(zip(reversed(a), reversed(b), strict=False)) if x != y), min(len(a), len(b))
    )
    return Rename(tuple(a[: len(a) - back]), tuple(b[: len(b) - back]), front, back)


class Names:
    """The names of a checkpoint, to search for the one nearest to a missing name. ``strays`` are those that nothing needs."""

    def __init__(self, table: TensorTable, unused: npt.NDArray[np.int64]) -> None:
        self.table = table
        self.strays: dict[str, int] = dict(zip(table.names.take(unused), unused.tolist(), strict=True))
        self._renames: list[Rename] = []
        self._searched = len(self.strays) <= SEARCHED
        self._left = 2 * COMPARISONS if self._searched else 0
        self._by_numbers: dict[tuple[str, ...], list[str]] = {}

    @cached_property
    def _by_shape(self) -> dict[tuple[tuple[int, ...], tuple[str, ...]], list[str]]:
        """Strays by their shape and the numbers in their names; it still lists those removed since."""
        by_shape: dict[tuple[tuple[int, ...], tuple[str, ...]], list[str]] = defaultdict(list)
        for name, i in self.strays.items():
            by_shape[self._shape(i), numbers(name)].append(name)
        return by_shape

    def _shape(self, i: int) -> tuple[int, ...]:
        return self.table.signatures[int(self.table.signature[i])].shape

    def take(self, name: str, shape: tuple[int, ...]) -> tuple[int, Rename] | None:
        """Return the stray (its id) that a missing tensor of ``shape`` was renamed to, and how; remove it from the strays."""
        if not self.strays or not self._searched:
            return None
        for known in self._renames:
            for new in known.apply(name):
                if new in self.strays and self._shape(self.strays[new]) == shape:
                    return self.strays.pop(new), known
        candidates = [n for n in self._by_shape.get((shape, numbers(name)), ()) if n in self.strays]
        new_name = self._closest(name, candidates)
        if new_name is None:
            return None
        renaming = rename(name, new_name)
        self._renames.insert(0, renaming)
        return self.strays.pop(new_name), renaming

    def follow(self, how: Rename, renamed: Collection[str], suffixes: Collection[str], *, all_alike: bool) -> list[int]:
        """Remove the strays that were renamed together with ``renamed``, and return their ids.

        These are the components (scales) of their modules; if ``all_alike``, also every stray that ``how`` could have renamed.
        """
        modules = {n.rpartition(".")[0] for n in renamed}
        back = Rename(how.new, how.old, how.front, how.back)
        along = [
            n
            for n in self.strays
            if (n.rpartition(".")[2] in suffixes and n.rpartition(".")[0] in modules)
            or (all_alike and how.new and any(back.apply(n)))
        ]
        return [self.strays.pop(n) for n in along]

    def nearest(self, name: str) -> str | None:
        """Return the stored name most like a missing one; strays come before others."""
        if not self._by_numbers:
            every: dict[tuple[str, ...], list[str]] = defaultdict(list)
            for stored in self.table.names if self._left > 0 else ():
                every[numbers(stored)].append(stored)
            self._by_numbers = every
        alike = self._by_numbers.get(numbers(name), [])
        return self._closest(name, [n for n in alike if n in self.strays]) or self._closest(name, alike)

    def _closest(self, name: str, candidates: list[str]) -> str | None:
        if not candidates or self._left <= 0:
            return None
        self._left -= 1
        close = get_close_matches(name, candidates[:CANDIDATES], 1, 0.6)
        return close[0] if close else None


def numbers(name: str) -> tuple[str, ...]:
    """Return the numbers in a name: its layer, its expert. A renaming keeps them.

    >>> numbers("model.layers.3.mlp.experts.7.up_proj.weight")
    ('3', '7')
    """
    return tuple(part for part in name.split(".") if part.isdecimal())


def ancestors(path: str) -> Iterator[str]:
    """Yield the modules that hold a tensor, the outermost first.

    >>> list(ancestors("self_attn.q_proj.weight"))
    ['self_attn', 'self_attn.q_proj']
    """
    at = path.find(".")
    while at >= 0:
        yield path[:at]
        at = path.find(".", at + 1)


def whole_modules(affected: Collection[str], totals: Mapping[str, int]) -> dict[str, str]:
    """Return for each affected tensor the outermost module of at least two tensors that is affected whole, if any.

    ``totals`` is the number of tensors in each module.
    """
    counts = Counter(module for name in affected for module in ancestors(name))
    whole = {module for module, count in counts.items() if count >= 2 and count == totals.get(module)}
    modules = ((name, next((m for m in ancestors(name) if m in whole), None)) for name in affected)
    return {name: module for name, module in modules if module is not None}


def layer_of(name: str) -> int | None:
    """Return the first number in a stored name."""
    match = re.search(r"\.(\d+)\.", name)
    return int(match[1]) if match else None
