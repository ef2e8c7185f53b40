"""Files of a checkpoint that are read whole, such as its config and its index: the protocol `SmallFiles`."""

from __future__ import annotations

from typing import Protocol

from loadmaster.limits import Limit


class UnreadableError(Exception):
    """A small file that cannot be read; the message is the reason, which follows "cannot be read:"."""


class SmallFiles(Protocol):
    """Files that are read whole."""

    def read(self, name: str, limit: Limit) -> bytes:
        """Return the content of a small file of at most ``limit`` bytes.

        Raises:
            UnreadableError: it cannot be read.
            LimitError: it has more bytes.
        """
