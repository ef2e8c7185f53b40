"""Which bytes are read together, and where each part of them goes: copies as columns, cut into windows of a slot's size.

A window is a range of one file that is read into one slot of page-locked memory; its parts then go from there to their
addresses, of any rank. Thousands of copies are a few numpy columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from loadmaster.checkpoint import TensorTable
from loadmaster.plan import RankPlan
from loadmaster.plan.moves import MoveGroup

I64 = npt.NDArray[np.int64]

LONG_RUN: Final = 2**16
"""Runs of at least this many bytes are copied one by one; shorter ones of a box together."""

CLOSE: Final = 2**12
"""Copies at most this many bytes apart are read together."""


@dataclass(frozen=True)
class Copies:
    """Copies of bytes as columns, one a row: ``height`` runs of ``width`` bytes each.

    They begin at byte ``low`` of ``file``, ``from_pitch`` apart, and go to the address ``to`` and every ``to_pitch`` after
    it, on a device (a number that the caller gives). ``base`` is where the first run's row of the stored tensor begins:
    copies with the same are read together. ``tensor`` is the stored tensor's id.
    """

    file: I64
    low: I64
    to: I64
    width: I64
    height: I64
    from_pitch: I64
    to_pitch: I64
    base: I64
    device: I64
    tensor: I64

    @property
    def high(self) -> I64:
        """Where in the file the last run of each ends."""
        return np.asarray(self.low + (self.height - 1) * self.from_pitch + self.width)

    def __len__(self) -> int:
        return len(self.low)

    def rows(self, index: Any) -> Copies:
        """Return some rows: a mask, or numbers."""
        return Copies(*(getattr(self, f.name)[index] for f in fields(self)))


def joined(parts: Sequence[Copies]) -> Copies:
    """Return all rows of several."""
    empty = np.empty(0, dtype=np.int64)
    return Copies(*(np.concatenate([empty, *(getattr(p, f.name) for p in parts)]) for f in fields(Copies)))


def copies_of(derived: RankPlan, addresses: I64, device: int, table: TensorTable) -> tuple[Copies, list[MoveGroup]]:
    """Return what a rank copies byte for byte, and the groups for which something is computed on the way.

    ``addresses`` ``[params]`` are those of the rank's parameters.
    """
    copies: list[Copies] = []
    others: list[MoveGroup] = []
    for group in derived.groups:
        if group.is_fill:
            continue
        rows = _copies(derived, group, addresses, device, table)
        if rows is None:
            others.append(group)
        else:
            copies.append(rows)
    return joined(copies), others


def _copies(derived: RankPlan, group: MoveGroup, addresses: I64, device: int, table: TensorTable) -> Copies | None:
    if not group.is_copy:
        return None
    source, (to, begins) = group.runs[0], derived.destination(group)
    num_bytes, counts = source.num_bytes, {source.counts, to.counts} - {()}
    if len(counts) > 1 or any(len(c) > 1 for c in counts):
        return None  # more than one stride: rare enough to be gathered on the device
    height = next(iter(counts))[0] if counts else 1
    width = num_bytes // height
    from_pitch = source.strides[0] if source.counts else width
    to_pitch = to.strides[0] if to.counts else width
    number = len(group.params)
    tensor = group.tensors[:, 0].astype(np.int64)
    start = table.start[tensor]
    every = np.ones(number, dtype=np.int64)
    return Copies(
        file=table.file[tensor].astype(np.int64),
        low=start + source.offset,
        to=addresses[group.params] + begins,
        width=every * width,
        height=every * height,
        from_pitch=every * from_pitch,
        to_pitch=every * to_pitch,
        base=start + source.offset // max(from_pitch, 1) * from_pitch,
        device=every * device,
        tensor=tensor,
    )


@dataclass(frozen=True)
class Windows:
    """Windows in file order (for several devices: each device's file order, by turns), and the copies in that order.

    Window ``w`` reads bytes ``low[w]`` to ``high[w]`` of ``file[w]``, and issues the calls ``calls[w]`` to
    ``calls[w + 1]``. Call ``c`` is for the copies ``first[c]`` to ``first[c + 1]``: all to one device, and all single runs
    from the window, or a single box from it, or (``peer``) from the device that copy ``origin`` went to.
    """

    copies: Copies
    file: list[int]
    low: list[int]
    high: list[int]
    needed: list[int]
    calls: list[int]
    first: list[int]
    device: list[int]
    is_peer: list[bool]
    origin: I64

    def __len__(self) -> int:
        return len(self.low)


def windows(copies: Copies, slot_bytes: int) -> Windows:
    """Cut copies into windows of at most ``slot_bytes``; no byte is read for two of them.

    Copies of the same bytes to several devices are made once from the host, by turns to each device, and from there to
    the others.
    """
    parts, is_box, window = _group(_cut(copies.rows((copies.width > 0) & (copies.height > 0)), slot_bytes), slot_bytes)
    starts = np.flatnonzero(np.diff(window, prepend=-1))
    reduce = (lambda column, how: how.reduceat(column, starts)) if len(starts) else lambda column, how: starts
    file = parts.file[starts]
    low, high = reduce(parts.low, np.minimum), reduce(parts.high, np.maximum)
    needed = reduce(parts.width * parts.height, np.add)
    in_order = _alternate(np.lexsort((low, file)), reduce(1 << parts.device, np.bitwise_or), needed)
    rank = np.empty_like(in_order)
    rank[in_order] = np.arange(len(in_order))
    calls = _calls(parts, is_box, rank[window])
    return Windows(
        copies=calls.parts,
        file=file[in_order].tolist(),
        low=low[in_order].tolist(),
        high=high[in_order].tolist(),
        needed=needed[in_order].tolist(),
        calls=np.searchsorted(calls.window, np.arange(len(in_order) + 1)).tolist(),
        first=[*calls.first.tolist(), len(parts)],
        device=calls.parts.device[calls.first].tolist(),
        is_peer=calls.is_peer.tolist(),
        origin=calls.origin,
    )


def _group(parts: Copies, slot_bytes: int) -> tuple[Copies, npt.NDArray[np.bool_], I64]:
    """Return copies in the order of their windows, whether each is a box, and the number of its window."""
    is_box = parts.height > 1
    key = np.where(is_box, parts.base, parts.low // slot_bytes)
    order = np.lexsort((parts.device, parts.low, key, is_box, parts.file))
    parts, is_box, key = parts.rows(order), is_box[order], key[order]
    reach = np.maximum.accumulate(parts.high + (parts.file << 48)) - (parts.file << 48)
    begins = np.ones(len(parts), dtype=np.bool_)
    begins[1:] = (
        (parts.file[1:] != parts.file[:-1])
        | (is_box[1:] != is_box[:-1])
        | (key[1:] != key[:-1])
        | (~is_box[1:] & (parts.low[1:] > reach[:-1] + CLOSE))
    )
    return parts, is_box, np.cumsum(begins) - 1


@dataclass(frozen=True)
class _Calls:
    """Copies in the order of their calls; of each call its first copy, its window, and whether it copies between devices."""

    parts: Copies
    origin: I64
    first: I64
    window: I64
    is_peer: npt.NDArray[np.bool_]


def _calls(parts: Copies, is_box: npt.NDArray[np.bool_], window: I64) -> _Calls:
    """Put the copies of each window together into calls to the driver."""
    origin, is_peer = _fan_out(parts, window)
    order = np.lexsort((parts.low, is_box, parts.device, is_peer, window))
    position = np.empty_like(order)
    position[order] = np.arange(len(order))
    parts, window, is_box, is_peer = parts.rows(order), window[order], is_box[order], is_peer[order]
    call = np.ones(len(parts), dtype=np.bool_)
    call[1:] = (
        (window[1:] != window[:-1])
        | (parts.device[1:] != parts.device[:-1])
        | (is_peer[1:] != is_peer[:-1])
        | is_box[1:]
        | is_box[:-1]
    )
    first = np.flatnonzero(call)
    return _Calls(parts, position[origin[order]], first, window[first], is_peer[first])


def _alternate(in_order: I64, devices: I64, num_bytes: I64) -> I64:
    """Keep the order of windows for the same devices (a set of bits); let those for different devices take turns.

    A stage's windows come before the next one's in the files: in that order, one link would be used at a time.
    """
    progress = np.empty(len(in_order))
    for bits in set(devices.tolist()):
        alike = in_order[devices[in_order] == bits]
        done = np.cumsum(num_bytes[alike])
        progress[alike] = done / done[-1]
    return in_order[np.argsort(progress[in_order], kind="stable")]


def _cut(copies: Copies, slot_bytes: int) -> Copies:
    """Cut boxes into as many rows as fit a slot, and single runs at multiples of the slot's size in the file."""
    is_box = (copies.height > 1) & (copies.width < LONG_RUN)
    boxes, others = copies.rows(is_box), copies.rows(~is_box)

    at_once = np.maximum(slot_bytes // np.maximum(boxes.from_pitch, 1), 1)
    boxes, number, (at_once,) = _repeat(boxes, -(-boxes.height // at_once), at_once)
    down = number * at_once
    boxes = replace(
        boxes,
        low=boxes.low + down * boxes.from_pitch,
        to=boxes.to + down * boxes.to_pitch,
        height=np.minimum(boxes.height - down, at_once),
        base=np.where(boxes.from_pitch > slot_bytes, boxes.low, boxes.base) + down * boxes.from_pitch,
    )
    runs, number, _ = _repeat(joined([others, boxes.rows(boxes.height == 1)]), None)
    runs = replace(
        runs,
        low=runs.low + number * runs.from_pitch,
        to=runs.to + number * runs.to_pitch,
        height=np.ones_like(runs.height),
    )
    cells = (runs.low + runs.width - 1) // slot_bytes - runs.low // slot_bytes + 1
    runs, number, _ = _repeat(runs, cells)
    cell = runs.low // slot_bytes + number
    low = np.maximum(runs.low, cell * slot_bytes)
    end = np.minimum(runs.low + runs.width, (cell + 1) * slot_bytes)
    runs = replace(runs, low=low, to=runs.to + low - runs.low, width=end - low)
    return joined([runs, boxes.rows(boxes.height > 1)])


def _repeat(copies: Copies, times: I64 | None, *columns: I64) -> tuple[Copies, I64, list[I64]]:
    """Repeat each row (as often as it has runs, by default), and columns alike; say of each which repetition it is."""
    times = copies.height if times is None else times
    index = np.repeat(np.arange(len(copies)), times)
    number = np.arange(len(index)) - np.repeat(np.cumsum(times) - times, times)
    return copies.rows(index), number, [c[index] for c in columns]


def _fan_out(parts: Copies, window: I64) -> tuple[I64, npt.NDArray[np.bool_]]:
    """Return for each copy the one that takes the same bytes from the host (itself, mostly), and whether it is another."""
    same = np.zeros(len(parts), dtype=np.bool_)
    same[1:] = (
        (window[1:] == window[:-1])
        & (parts.low[1:] == parts.low[:-1])
        & (parts.width[1:] == parts.width[:-1])
        & (parts.height[1:] == 1)
        & (parts.height[:-1] == 1)
        & (parts.device[1:] != parts.device[:-1])
    )
    starts = np.flatnonzero(~same)
    sizes = np.diff(np.append(starts, len(parts)))
    turn = starts + window[starts] % np.maximum(sizes, 1) if len(starts) else starts
    origin = np.repeat(turn, sizes)
    return origin, origin != np.arange(len(parts))
