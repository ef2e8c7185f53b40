"""What one rank reads of each stored tensor: a filter to put in front of any loader of safetensors files."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from loadmaster.arguments import expect
from loadmaster.checkpoint.partial import Span, merged
from loadmaster.plan.plan import Plan


@dataclass(frozen=True, slots=True)
class NeededTensor:
    """A stored tensor that a rank reads something of.

    Its first byte is at ``start`` in ``shard``, and it has ``num_bytes``. ``ranges`` are the bytes of the shard that are read of
    it (first byte, byte after the last), in order, touching ones joined; of columns that are cut, the whole span.
    """

    name: str
    shard: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    num_bytes: int
    ranges: tuple[Span, ...]

    @property
    def fetched_bytes(self) -> int:
        """Bytes of the ranges."""
        return sum(end - start for start, end in self.ranges)

    @property
    def is_whole(self) -> bool:
        """Whether all of it is read."""
        return self.fetched_bytes == self.num_bytes

    @property
    def rows(self) -> tuple[int, int]:
        """The rows of the first dim (first, one after the last) in which the ranges lie; of a scalar (0, 1)."""
        row_bytes = self.num_bytes // (self.shape[0] if self.shape else 1)
        first, last = self.ranges[0][0] - self.start, self.ranges[-1][1] - self.start
        return first // row_bytes, -(-last // row_bytes)


def needed(plan: Plan, rank: int) -> dict[str, NeededTensor]:
    """Return the stored tensors that a rank reads something of, by name, in the order of shards and offsets.

    It knows what the layout divides: layers and MTP layers of other stages, experts of other ranks (with redundant experts),
    rows that tensor parallelism cuts, scales and packed values beside them. What is not in it no parameter of the rank is made
    of.

    Raises:
        ArgumentError: an argument has the wrong type, or the layout has no such rank.
    """
    expect("plan", plan, Plan, "a plan, as build_plan returns")
    table = plan.checkpoint.table
    spans: dict[int, list[Span]] = defaultdict(list)
    for group in plan.rank(rank).groups:
        for view, run in enumerate(group.runs):
            starts = group.starts(table, view).tolist()
            for number, start in zip(group.tensors[:, view].tolist(), starts, strict=True):
                spans[number].append((start, start + run.span))
    shards = [file.name for file in plan.checkpoint.files]
    made = {}
    for number in sorted(spans):  # ids are in the order of shards and offsets
        signature = table.signatures[table.signature[number]]
        made[table.names[number]] = NeededTensor(
            table.names[number],
            shards[table.file[number]],
            signature.dtype,
            signature.shape,
            int(table.start[number]),
            int(table.nbytes[number]),
            merged(spans[number]),
        )
    return made
