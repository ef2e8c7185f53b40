"""Capacity: whether another division of the layers over the same stages would fit the memory of each device."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from loadmaster.architectures.cuts import legal_starts
from loadmaster.plan.model import PlannedModel


def fitting_partition(plan: PlannedModel, resident_bytes: Sequence[int], capacity: int) -> tuple[int, ...] | None:
    """Return how many layers each stage could hold so that all ranks fit ``capacity`` bytes; None: no partition does that.

    ``resident_bytes`` are those of each rank under the plan's own partition. What a stage holds in addition to its layers
    (embeddings, head, MTP layers) stays where it is. Each stage takes as many layers as it can, ends where the next one can
    begin, and leaves enough for the stages after it: if that does not fit, nothing does.
    """
    num_layers, num_stages = len(plan.schema.layers), len(plan.stages)
    stage_slots = range(plan.layout.stage_size)
    block = {key: sum(c.device_bytes for c in composed) for key, composed in plan.composed.items()}
    of_layer = np.array(
        [[block[plan.class_of[n][0], s] for s in stage_slots] for n in range(num_layers)], dtype=np.int64
    )
    room = np.full((num_stages, len(stage_slots)), capacity, dtype=np.int64)
    for rank, resident in enumerate(resident_bytes):
        at = plan.layout.coordinate(rank)
        first, end = plan.stages[at.pp_rank]
        room[at.pp_rank, at.stage_slot] -= resident - int(of_layer[first:end, at.stage_slot].sum())
    ends = (*legal_starts(plan.schema, plan.target), num_layers)
    starts = [0]
    for stage in range(num_stages):
        possible = ends[: len(ends) - (num_stages - 1 - stage)]
        held = np.cumsum(of_layer[starts[-1] :], axis=0)
        fitting = [end for end in possible if end > starts[-1] and (held[end - starts[-1] - 1] <= room[stage]).all()]
        if not fitting:
            return None
        starts.append(fitting[-1])
    return tuple(b - a for a, b in pairwise(starts)) if starts[-1] == num_layers else None
