"""Which layers each pipeline stage holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from loadmaster.errors import LayoutError


def partition(num_layers: int, num_stages: int, explicit: tuple[int, ...] | None = None) -> tuple[tuple[int, int], ...]:
    """Return each stage's layers as half-open intervals.

    Without ``explicit`` layers are divided as vLLM's ``get_pp_indices`` does: evenly. Each layer that remains goes to
    another stage, backwards from the last but one: the last also holds the head.

    >>> [end - first for first, end in partition(78, 8)]
    [9, 10, 10, 10, 10, 10, 10, 9]
    >>> partition(4, 2, (1, 3))
    ((0, 1), (1, 4))

    Raises:
        LayoutError: more stages than layers, an empty stage, or a partition that does not sum to the layers.
    """
    if explicit is None:
        if num_stages > num_layers:
            raise LayoutError(
                f"{num_stages} pipeline stages for {num_layers} layers",
                hint=f"--pipeline-parallel-size can be at most {num_layers} for this model",
            )
        each, remainder = divmod(num_layers, num_stages)
        counts = [each] * num_stages
        for i in range(2, remainder + 2):
            counts[-i] += 1
    else:
        counts = list(explicit)
        if sum(counts) != num_layers:
            raise LayoutError(
                f"the layer partition {','.join(map(str, counts))} sums to {sum(counts)}, "
                f"and the model has {num_layers} layers",
                hint=f"the {num_stages} numbers of --layer-partition must sum to {num_layers}",
            )
        if min(counts) < 1:
            raise LayoutError(
                f"the layer partition {','.join(map(str, counts))} leaves a stage without layers",
                hint="every pipeline stage needs at least one layer",
            )
    ends = [sum(counts[: i + 1]) for i in range(len(counts))]
    return tuple(zip([0, *ends[:-1]], ends, strict=True))


class _Way(NamedTuple):
    """Some legal starts: what they cost, the first of them, and the way of the others; nothing at the end."""

    price: tuple[int, int]
    chosen: tuple[int, _Way] | tuple[()]


def nearest_starts(wanted: Sequence[int], legal: Sequence[int]) -> tuple[int, ...] | None:
    """Return the legal layers, ascending, that are nearest to the wanted first layers of all stages but the first.

    Nearest means: the fewest layers change their stage, each counted as often as it passes a stage; then the smallest sum of
    squares of what each start moves; then the later starts, since the last stage also holds the head. None: there are fewer
    legal starts than stages.

    >>> nearest_starts((10, 20, 30), (1, 2, 8, 14, 20)), nearest_starts((5,), (4, 6)), nearest_starts((5, 6), (6,))
    ((8, 14, 20), (6,), None)
    """
    starts = sorted(set(legal), reverse=True)
    # best[n]: of the wanted starts so far, beginning with the last, the cheapest way that uses only the first n legal ones
    best: list[_Way | None] = [_Way((0, 0), ())] * (len(starts) + 1)
    for want in reversed(wanted):
        after: list[_Way | None] = [None]
        for start, rest in zip(starts, best, strict=False):
            without, moved = after[-1], abs(start - want)
            price = None if rest is None else (rest.price[0] + moved, rest.price[1] + moved * moved)
            better = price is not None and (without is None or price < without.price)
            after.append(_Way(price, (start, rest)) if better and price and rest else without)
        best = after
    found, way = [], best[-1]
    while way is not None and way.chosen:
        start, way = way.chosen
        found.append(start)
    return None if best[-1] is None else tuple(found)


def stage_of(stages: Sequence[tuple[int, int]], layer: int) -> int:
    """Return the pipeline stage that holds a stored layer, given each stage's layers, half open; the last holds MTP layers.

    >>> stage_of([(0, 2), (2, 4)], 1), stage_of([(0, 2), (2, 4)], 4)
    (0, 1)
    """
    return next((i for i, (a, b) in enumerate(stages) if a <= layer < b), len(stages) - 1)
