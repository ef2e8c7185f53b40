"""Residual streams (hyper-connections): several hidden states for each token, which every part of a layer mixes.

``hc_mult`` says how many there are. What mixes them has a matrix (``fn``), an offset (``base``) and factors (``scale``): how much
of each stream a part reads, how much of its output each stream gets, and how the streams are mixed. Before a head, one hidden
state is made of all. The number formats are a family's own.

Sources: ``deepseek_v4``, ``glm5_next`` and ``hy_v4`` of transformers.
"""

from __future__ import annotations

from loadmaster.architectures.config import Config
from loadmaster.architectures.schema import Carried

NAMES = ("fn", "base", "scale")


def num_streams(c: Config) -> int:
    """Return how many streams there are."""
    return c.size("hc_mult", 4)


def carried(c: Config) -> Carried:
    """Return the hidden states that cross a cut: all streams."""
    return Carried("hidden_states", (num_streams(c), c.size("hidden_size")))


def mix_shapes(c: Config) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what mixes the streams before and after a part of a layer, by name."""
    streams = num_streams(c)
    mixes = streams * (2 + streams)
    return {"fn": (mixes, streams * c.size("hidden_size")), "base": (mixes,), "scale": (3,)}


def head_shapes(c: Config) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what makes one hidden state of all streams, by name."""
    streams = num_streams(c)
    return {"fn": (streams, streams * c.size("hidden_size")), "base": (streams,), "scale": (1,)}
