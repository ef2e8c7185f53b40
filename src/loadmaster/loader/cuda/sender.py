"""Issues the copies of each window that was read: from its slot to the addresses that the plan gives.

Thousands of windows go through here every second, in Python, so all that can be computed ahead is in lists and columns.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from loadmaster.loader.cuda.driver import Driver
from loadmaster.loader.cuda.lane import Lane, Slot
from loadmaster.loader.cuda.windows import Windows

BATCH: Final = 5
"""As many copies of a window go to the driver in one call; fewer are quicker one by one."""


class Sender:
    """Issues the copies of windows. ``most`` is the largest number of copies in one call."""

    def __init__(self, windows: Windows, driver: Driver) -> None:
        self._windows, self._driver = windows, driver
        w, c = windows, windows.copies
        self.most = int(np.diff(w.first).max(initial=1))
        self._low, self._to, self._width, self._height = (x.tolist() for x in (c.low, c.to, c.width, c.height))
        self._device_of, self._origin = c.device.tolist(), w.origin.tolist()
        self._columns = (c.to.ctypes.data, c.width.ctypes.data)
        only = (np.diff(w.calls) == 1) & (np.diff(w.first)[w.calls[:-1]] == 1) if len(w) else np.empty(0, np.bool_)
        self._single = [
            (self._to[w.first[k]], self._width[w.first[k]], w.device[k])
            if o and self._height[w.first[k]] == 1
            else None
            for k, o in zip(w.calls, only.tolist(), strict=False)
        ]

    def send(self, lane: Lane, slot: Slot, i: int, address: int) -> None:
        """Make the copies of window ``i``, whose first byte lies at an address of the slot."""
        w = self._windows
        if (only := self._single[i]) is not None:
            to, width, device = only
            self._driver.to_device(to, address, width, slot.streams[device])
            slot.copied(device)
            return
        for call in range(w.calls[i], w.calls[i + 1]):
            self._issue(lane, slot, call, address - w.low[i])

    def _issue(self, lane: Lane, slot: Slot, call: int, shift: int) -> None:
        """Make the copies of a call; ``shift`` turns a byte of the file into an address."""
        w, driver = self._windows, self._driver
        first, stop, device = w.first[call], w.first[call + 1], w.device[call]
        low, to, width = self._low, self._to, self._width
        stream = slot.streams[device]
        if w.is_peer[call]:  # what is sent on has left the slot before: it is on the same stream, after
            for i in range(first, stop):
                origin = self._origin[i]
                driver.between(to[i], to[origin], width[i], slot.streams[self._device_of[origin]])
            return
        if self._height[first] > 1:
            c = w.copies
            source, pitches = low[first] + shift, (int(c.to_pitch[first]), int(c.from_pitch[first]))
            driver.box(to[first], pitches[0], source, pitches[1], width[first], self._height[first], stream)
        elif stop - first >= BATCH and driver.has_batches:
            np.add(w.copies.low[first:stop], shift, out=lane.sources[: stop - first])
            at = 8 * first
            driver.batch(self._columns[0] + at, lane.sources_address, self._columns[1] + at, stop - first, stream)
        else:
            for i in range(first, stop):
                driver.to_device(to[i], low[i] + shift, width[i], stream)
        slot.copied(device)
