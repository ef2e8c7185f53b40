"""Carries a plan out: reads a rank's bytes into its parameters, or receives tensors that are pushed.

It decides nothing about where anything goes: that is the plan.
"""

from loadmaster.loader.checksum import Manifest, checksums
from loadmaster.loader.cuda.load import load_ranks, make_ring, num_devices
from loadmaster.loader.load import load_rank
from loadmaster.loader.receiver import Receiver
from loadmaster.loader.report import LoadedRank, LoadReport

__all__ = [
    "LoadReport",
    "LoadedRank",
    "Manifest",
    "Receiver",
    "checksums",
    "load_rank",
    "load_ranks",
    "make_ring",
    "num_devices",
]
