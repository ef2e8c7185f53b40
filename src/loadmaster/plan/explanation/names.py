"""The names that a plan knows: which stages hold a parameter, and which names are nearest to one that is not there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from difflib import get_close_matches

from loadmaster.plan.diagnosis.names import numbers
from loadmaster.plan.plan import Plan

NEAREST = 3
"""The most names that a hint lists."""
COMPARED = 500
"""The most names compared letter by letter: each takes some milliseconds."""


def param_names(plan: Plan) -> Iterator[tuple[int, str]]:
    """Yield (stage, name) of every parameter, in layer order; the ranks of a stage hold parameters of the same names."""
    for stage in range(len(plan.stages)):
        for spec in plan.rank(plan.layout.stage_ranks(stage)[0]).specs:
            yield stage, spec.name


def nearest(plan: Plan, name: str) -> list[str]:
    """Return up to `NEAREST` names of parameters and stored tensors that are most like ``name``, parameters first.

    Names that contain it come first, then those with the same numbers (layer, expert), then the rest, of which names that
    differ only in their numbers count once.
    """
    every = list(dict.fromkeys([*(n for _, n in param_names(plan)), *plan.table.names]))
    if name and (containing := [n for n in every if name in n]):
        return containing[:NEAREST]
    alike = [n for n in every if numbers(n) == numbers(name)]
    return _close(name, alike) or _close(name, _representatives(every))


def _close(name: str, candidates: Sequence[str]) -> list[str]:
    return get_close_matches(name, candidates[:COMPARED], NEAREST, 0.6)


def _representatives(names: Sequence[str]) -> list[str]:
    """Return the first of the names that differ only in their numbers."""
    by_words: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for n in names:
        by_words[tuple(part for part in n.split(".") if not part.isdecimal())].append(n)
    return [alike[0] for alike in by_words.values()]
