"""What a parameter of the running model is: name, shape, number format, the grid of its scales, and how it is divided.

Allocation and the model's modules know a parameter only by these values: modules declare no shapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from loadmaster.dtypes import DTYPES
from loadmaster.errors import UnsupportedError


@dataclass(frozen=True, slots=True)
class Grid:
    """The grid of scales over one run of rows of a weight (out × in, however it is packed).

    A fused weight has one grid per part, because a ragged part ends inside a block. ``rows`` are the weight's rows and
    ``scale_rows`` those of the scale parameter, both half open. ``block`` is how many rows and columns share a factor (all
    of them where there is one for the tensor), and ``phase`` how many rows and columns of the blocks held come before the
    weight's first element: zero unless a cut of the layout fell inside a block, or all scales are held because the groups
    are not in the order of the inputs. Element ``(i, j)`` of the weight, ``rows[0] <= i < rows[1]``, is scaled by (the
    scale's dims in the order out, in)

        scale[scale_rows[0] + (i - rows[0] + phase[0]) // block[0], (j + phase[1]) // block[1]]

    ``first`` is where the scales held begin in those of the whole stored tensor. A stored ``g_idx`` counts the groups of
    the whole tensor; with one, the last index is ``g_idx[j] - first[1]``
    (where parts are fused, each has its own run of ``g_idx``).
    """

    rows: tuple[int, int]
    scale_rows: tuple[int, int]
    block: tuple[int, int]
    phase: tuple[int, int] = (0, 0)
    first: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows (out dim) of a logical tensor that a rank holds: ``count`` of them from ``first``, of ``total`` rows.

    ``num_shares`` is how many ranks of a stage hold different rows: 1 where every rank holds all, and fewer than ranks where
    several hold the same (key and value heads). Rows from ``total`` on are padding (a vocabulary that does not divide):
    their weights are zeros.
    """

    first: int
    count: int
    total: int
    num_shares: int = 1


@dataclass(frozen=True, slots=True)
class Division:
    """How a weight, a bias or a norm is divided over the ranks of a stage: all that layers need to compute in parallel.

    ``parts`` are the rows of each fused part; in a stack of experts, those of one expert. ``is_partial``: the ranks of a
    stage must add up what is computed with the parameter, because it is cut along its in dim, or because it is a stack of
    which each rank has other experts. ``experts`` gives for each slot of a stack the expert that the rank computes in it: -1
    where another slot computes the same one (redundant experts).
    """

    parts: tuple[Rows, ...] = ()
    is_partial: bool = False
    experts: tuple[int, ...] = ()

    @property
    def is_divided(self) -> bool:
        """Whether any two ranks of a stage have different elements."""
        return self.is_partial or any(part.num_shares > 1 for part in self.parts)


@dataclass(frozen=True, slots=True)
class ParamSpec:
    """One parameter on one rank.

    ``dtype`` is a name of `loadmaster.dtypes`. A quantised weight gives the name of its ``format`` and of the parameters
    that hold its other ``components``, of which one is its ``scale``, with ``grids``, in row order; leading dims (experts)
    share them. ``alias`` names the parameter of the same rank whose memory this one
    shares (tied embeddings); an alias is never read or written on its own. ``division`` is given for every parameter but
    the other components of a quantised weight. ``host``: it is in the memory of the host, whatever the rank's device is.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: str | None = None
    grids: tuple[Grid, ...] = ()
    alias: str | None = None
    format: str | None = None
    components: tuple[str, ...] = ()
    division: Division = Division()
    host: bool = False

    @property
    def num_bytes(self) -> int:
        """Bytes of the parameter."""
        return prod(self.shape) * itemsize(self.dtype)


def itemsize(dtype: str) -> int:
    """Return the bytes of one element.

    Raises:
        UnsupportedError: a format narrower than a byte.
    """
    bits = DTYPES[dtype].bits
    if bits % 8:
        raise UnsupportedError(f"cutting tensors of {dtype}, {bits} bits wide, is not supported yet")
    return bits // 8
