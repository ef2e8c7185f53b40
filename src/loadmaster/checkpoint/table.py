"""All tensors of a checkpoint in a table of columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
import numpy.typing as npt

from loadmaster.checkpoint.names import Names
from loadmaster.dtypes import num_bytes


@dataclass(frozen=True, slots=True)
class Signature:
    """A tensor's dtype and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of a tensor of this dtype and shape.

        Raises:
            ValueError: sub-byte elements that do not fill whole bytes.
        """
        return num_bytes(self.dtype, prod(self.shape))


FILE_BITS = 48
"""A file has fewer than 2^48 bytes."""
OFFSET = 2**FILE_BITS - 1
"""The bits of a `TensorTable.position` that are the offset in the file."""


@dataclass(frozen=True)
class TensorTable:
    """Columns over all tensors. ``names`` are in file order (by file, then offset): a tensor's id is its position there.

    ``file`` numbers the checkpoint's files; ``start`` is the absolute offset in the file of the tensor's first byte,
    header included; ``nbytes`` its length; ``signature`` an index into ``signatures``.
    """

    names: Names
    file: npt.NDArray[np.int32]
    start: npt.NDArray[np.int64]
    nbytes: npt.NDArray[np.int64]
    signature: npt.NDArray[np.int32]
    signatures: tuple[Signature, ...]

    @property
    def ids(self) -> Mapping[str, int]:
        """Name → id of all tensors, as a dict; ``names.find`` is faster for a few of them, or for many at once."""
        return self.names.ids

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def position(self) -> npt.NDArray[np.int64]:
        """Where each tensor begins in all files, as one number: its file's, then `FILE_BITS` bits of the offset in it."""
        return (self.file.astype(np.int64) << FILE_BITS) + self.start

    @property
    def payload_bytes(self) -> int:
        """Bytes of all tensors."""
        return int(self.nbytes.sum())
