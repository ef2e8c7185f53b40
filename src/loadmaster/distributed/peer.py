"""The error of a rank whose neighbour ended. Imports no torch: a worker reports it even where torch cannot be loaded."""

from __future__ import annotations


class PeerLostError(Exception):
    """A neighbouring rank ended during a transfer. The cause is whatever ended that rank."""
