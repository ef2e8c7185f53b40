"""Where a rank stands, and which layers, rows, heads and experts are its own: plain arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm

Part = tuple[int, int]
"""First element and end."""


def stage_layers(num_layers: int, pp: int, stage: int, partition: tuple[int, ...] | None = None) -> range:
    """A stage's layers: what remains goes one each to the stages before the last, backwards."""
    counts = list(partition or [num_layers // pp] * pp)
    for i in range(2, num_layers - sum(counts) + 2):
        counts[-i] += 1
    return range(sum(counts[:stage]), sum(counts[: stage + 1]))


@dataclass(frozen=True)
class Place:
    """(index, size) of each axis, and how experts are divided."""

    pp: tuple[int, int] = (0, 1)
    tp: tuple[int, int] = (0, 1)
    dp: tuple[int, int] = (0, 1)
    ep: bool = False
    round_robin: bool = False
    redundant: int = 0
    partition: tuple[int, ...] | None = None

    @property
    def among_experts(self) -> tuple[int, int]:
        """The rank and the number of ranks that hold a layer's experts together: all of the stage."""
        return self.dp[0] * self.tp[1] + self.tp[0], self.dp[1] * self.tp[1]

    def share(self, size: int) -> Part:
        """An even part of attention and dense layers: data-parallel ranks hold the same."""
        return _share(size, *self.tp)

    def expert_share(self, size: int) -> Part:
        """The slice of every expert, where experts are not dealt out whole."""
        return (0, size) if self.ep else _share(size, *self.among_experts)

    def expert_run(self, size: int, block: int) -> tuple[int, int, int]:
        """The slice of every expert in whole blocks, as vLLM rounds it up: start, end, and the length that all ranks have."""
        index, ranks = (0, 1) if self.ep else self.among_experts
        each = -(-(size // block) // ranks) * block
        return min(index * each, size), min((index + 1) * each, size), each

    def heads(self, size: int, head: int) -> Part:
        """Key or value rows: where there are fewer heads than ranks, neighbours hold the same one."""
        num_heads, ranks = size // head, self.tp[1]
        if num_heads >= ranks:
            return self.share(size)
        which = self.tp[0] // (ranks // num_heads)
        return which * head, (which + 1) * head

    def vocabulary(self, size: int) -> tuple[int, int]:
        """First row and number of rows of an embedding; some may lie beyond its end, and are zeros."""
        index, ranks = self.tp
        padded = size
        while size % ranks and padded % lcm(64, ranks):
            padded += 1
        return index * (padded // ranks), padded // ranks

    def experts(self, num_experts: int) -> list[int]:
        """The experts that this rank holds, in the order of its slots."""
        if not self.ep:
            return list(range(num_experts))
        slots = [i % num_experts for i in range(num_experts + self.redundant)]
        index, ranks = self.among_experts
        if self.round_robin:
            return slots[index::ranks]
        each, more = divmod(len(slots), ranks)  # vLLM's determine_expert_map: the remainder goes to the first ranks
        first = index * each + min(index, more)
        return slots[first : first + each + (1 if index < more else 0)]


def _share(size: int, index: int, ranks: int) -> Part:
    each, rest = divmod(size, ranks)
    assert not rest, f"{size} over {ranks}"
    return index * each, (index + 1) * each
