"""Who holds what: the layout, ranks and their coordinates, layers to stages, and how one dim is divided.

Pure arithmetic on sizes. Nothing here reads a file or knows a model.
"""

from loadmaster.parallel.layout import Coordinate, ParallelLayout
from loadmaster.parallel.placement import Cut, cut, deal, legal_counts
from loadmaster.parallel.stages import nearest_starts, partition, stage_of

__all__ = [
    "Coordinate",
    "Cut",
    "ParallelLayout",
    "cut",
    "deal",
    "legal_counts",
    "nearest_starts",
    "partition",
    "stage_of",
]
