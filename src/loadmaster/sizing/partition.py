"""Dividing layers over stages so that none has much more than its share: exact, by dynamic programming over boundaries.

A stage has a share of the memory (its parameters, and the KV cache of the requests that were asked for) and one of the
computation (products with weights, for one token). Each is divided by the fair share: of equal devices the mean, of unequal ones
by their memory. The load of a stage is the larger of the two, and the partition is the one whose largest load is least. Of
those with equal loads it is the one whose cuts carry the fewest bytes, then the one with the more even loads. Boundaries at which
no stage can begin are never used; nor, where devices are given and another partition fits, are stages that do not fit.

Assumptions: a token's attention costs what its projections cost; every expert's products are counted once for each expert that a
token chooses; embedding look-ups cost nothing, and the head and MTP layers are computed for every token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loadmaster.architectures.schema import Schema, Tensor
from loadmaster.errors import LayoutError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Costs:
    """What stages are divided by. ``memory`` and ``compute`` are those of each decoder layer, in any unit; ``…_beside`` what the
    first and the last stage have besides. ``carried`` are the bytes a token that cross a cut before each layer; ``cuttable``: a
    stage may begin there. ``room``: the most memory of each stage, as far as it is known.
    """

    memory: tuple[float, ...]
    compute: tuple[float, ...]
    memory_beside: tuple[float, float]
    compute_beside: tuple[float, float]
    carried: tuple[float, ...]
    cuttable: tuple[bool, ...]
    room: tuple[float, ...] = ()

    def loads(self, counts: Sequence[int]) -> tuple[float, ...]:
        """Return the load of each stage: the larger of its shares of memory and computation, 1 is fair."""
        table = _Table(self, len(counts))
        ends = np.cumsum(counts)
        return tuple(
            float(table.load(n)[end - count, end]) for n, (count, end) in enumerate(zip(counts, ends, strict=True))
        )


class _Table:
    """Loads of all runs of layers ``[first, end]`` for each stage; infinite where the run is no stage."""

    def __init__(self, costs: Costs, num_stages: int) -> None:
        self.costs, self.num_stages = costs, num_stages
        self.num_layers = len(costs.memory)
        self._memory = _runs(costs.memory)
        self._compute = _runs(costs.compute)
        first, end = np.indices(self._memory.shape)
        self._is_run = (first < end) & np.array([True, *costs.cuttable[1:], False])[:, None]
        self._total = sum(costs.memory) + sum(costs.memory_beside)
        self._work = sum(costs.compute) + sum(costs.compute_beside)
        self._is_even = len(set(costs.room)) <= 1

    def load(self, stage: int, *, fits: bool = False) -> Floats:
        """Return the loads of one stage. With ``fits``, runs that exceed its room are infinite."""
        c, last = self.costs, self.num_stages - 1
        memory = self._memory + (c.memory_beside[0] if stage == 0 else 0) + (c.memory_beside[1] if stage == last else 0)
        compute = (
            self._compute + (c.compute_beside[0] if stage == 0 else 0) + (c.compute_beside[1] if stage == last else 0)
        )
        share = 1 / self.num_stages if self._is_even else c.room[stage] / sum(c.room)
        load = np.maximum(memory / max(self._total * share, 1e-30), compute / max(self._work * share, 1e-30))
        is_stage = self._is_run & (memory <= c.room[stage]) if fits and c.room else self._is_run
        return np.where(is_stage, load, np.inf)


def _runs(values: Sequence[float]) -> Floats:
    """Return the sum of each run of values, ``[first, end]``."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    runs: Floats = sums[None, :] - sums[:, None]
    return runs


def balanced(costs: Costs, num_stages: int) -> tuple[int, ...]:
    """Return the number of layers of each stage, as the module says.

    Raises:
        LayoutError: there are not as many stages, or no boundaries for them.
    """
    num_layers = len(costs.memory)
    table = _Table(costs, num_stages)
    for fits in (True, False):
        loads = [table.load(stage, fits=fits) for stage in range(num_stages)]
        least = _least(loads, num_layers)
        if np.isfinite(least):
            return _cheapest(loads, least, costs.carried, num_layers)
    raise LayoutError(
        f"{num_layers} layers cannot be divided over {num_stages} stages",
        hint=f"a stage may begin at {sum(costs.cuttable[1:])} boundaries of this model",
        code="layout-stages",
    )


def _least(loads: Sequence[Floats], num_layers: int) -> float:
    """Return the least possible largest load."""
    best = np.full(num_layers + 1, np.inf)
    best[0] = 0.0
    for load in loads:
        best = np.maximum(best[:, None], load).min(axis=0)
    return float(best[num_layers])


def _cheapest(loads: Sequence[Floats], most: float, carried: Sequence[float], num_layers: int) -> tuple[int, ...]:
    """Return the partition of loads up to ``most`` whose cuts carry least; of those the one with the least sum of squares."""
    crossing = np.array([0.0, *carried[1:], 0.0])[:, None]
    best = np.full(num_layers + 1, np.inf)
    best[0] = 0.0
    came: list[npt.NDArray[np.intp]] = []
    for load in loads:
        allowed = load <= most * (1 + 1e-12)
        squares = np.where(allowed, load, 0.0) ** 2 / (
            2 * len(loads) * max(most, 1e-30) ** 2
        )  # all together half a byte
        price = np.where(allowed, crossing + squares, np.inf)
        total = best[:, None] + price
        came.append(total.argmin(axis=0))
        best = total.min(axis=0)
    assert np.isfinite(best[num_layers])
    ends = [num_layers]
    for choices in reversed(came):
        ends.append(int(choices[ends[-1]]))
    return tuple(int(b - a) for a, b in zip(ends[::-1], ends[-2::-1], strict=False))


def layer_compute(tensors: Sequence[Tensor], choices: int) -> int:
    """Return the multiplications of a layer's weights for one token, of which ``choices`` experts are computed.

    >>> from loadmaster.architectures.schema import linear
    >>> layer_compute([linear("mlp.up", 8, 4), linear("moe.up", 2, 4, experts=16)], 2)
    48
    """
    sizes = ((t.shape[0] * t.shape[1], choices if t.experts else 1) for t in tensors if len(t.shape) == 2)
    return sum(size * times for size, times in sizes)


def head_compute(schema: Schema) -> int:
    """Return the multiplications of the head for one token; a tied head is the embedding."""
    top = {t.name: t.shape[0] * t.shape[1] for t in schema.top if len(t.shape) == 2}
    return top.get("head", top.get("embed", 0))
