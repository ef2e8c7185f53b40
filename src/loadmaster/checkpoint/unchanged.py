"""Whether a file is still the one whose header was read: loaders check it before the first byte and after the last."""

from __future__ import annotations

from loadmaster.checkpoint.columns import ShardFile
from loadmaster.checkpoint.store import Store


def change_of(store: Store, file: ShardFile) -> str | None:
    """Return in what a file is not as it was when its header was read, as the end of a sentence; None if it is.

    Raises:
        OSError: it cannot be looked at.
    """
    size, _ = found = store.stamp(file.name)
    same = found == (file.size, file.mtime_ns)
    return None if same else f"{file.size:,} bytes then, {size:,} bytes now"
