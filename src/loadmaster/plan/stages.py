"""The layers of each stage: as asked for, or evenly; never divided where no stage can begin.

A partition that was asked for is refused if one of its stages cannot begin where it would. The even one moves to the nearest
boundaries that are possible, and the layout then names the partition that was made of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from loadmaster.architectures.cuts import legal_starts, obstacle
from loadmaster.architectures.schema import Schema
from loadmaster.architectures.target import Target
from loadmaster.architectures.targets import engine_of
from loadmaster.errors import LayoutError
from loadmaster.findings import Finding, ranges
from loadmaster.parallel import ParallelLayout, nearest_starts, partition


@dataclass(frozen=True, slots=True)
class DividedLayers:
    """``stages`` are the layers of each stage, half open. ``layout`` names them if they are not those that would be usual;
    ``findings`` then says so.
    """

    layout: ParallelLayout
    stages: tuple[tuple[int, int], ...]
    findings: tuple[Finding, ...] = ()


def divide_layers(schema: Schema, target: Target, layout: ParallelLayout) -> DividedLayers:
    """Return the layers of each stage of a layout.

    Raises:
        LayoutError: there are more stages than layers can begin, or a stage cannot begin where the layout says
            (``layout-cut``); the hint has the legal boundaries and the nearest partition.
    """
    num_layers, num_stages = len(schema.layers), layout.pipeline_parallel_size
    stages = partition(num_layers, num_stages, layout.layer_partition)
    wanted = [first for first, _ in stages[1:]]
    refused = [(first, why) for first in wanted if (why := obstacle(schema, target, first))]
    if not refused:
        return DividedLayers(layout, stages)
    legal = legal_starts(schema, target)
    first, why = refused[0]
    more = f" (likewise layers {ranges(n for n, _ in refused[1:])})" if len(refused) > 1 else ""
    nearest = nearest_starts(wanted, legal)
    possible = f"stages can begin at layers {ranges((0, *legal))}"
    if nearest is None:
        raise LayoutError(
            f"{num_stages} pipeline stages, and the layers can be divided over {len(legal) + 1} at most: {why}{more}",
            hint=f"-pp {len(legal) + 1} at most: {possible}",
            code="layout-cut",
        )
    counts = counts_of(nearest, num_layers)
    option = ",".join(map(str, counts))
    if layout.layer_partition is not None:
        raise LayoutError(
            f"no stage can begin at layer {first}: {why}{more}",
            hint=f"nearest: --layer-partition {option}; {possible}",
            code="layout-cut",
        )
    of_vllm = engine_of(target.name) == "vllm"
    moved = Finding(
        "layout-moved",
        "warning" if of_vllm else "note",
        f"evenly divided, a stage would begin at layer {first}: {why}{more}; the layers are divided {option} instead",
        hint=f"set VLLM_PP_LAYER_PARTITION={option}, or vLLM divides evenly; `loadmaster serve --engine vllm` sets it"
        if of_vllm
        else f"--layer-partition {option} asks for the same",
    )
    made = replace(layout, layer_partition=counts)
    return DividedLayers(made, partition(num_layers, num_stages, counts), (moved,))


def counts_of(starts: Sequence[int], num_layers: int) -> tuple[int, ...]:
    """Return the number of layers of each stage, from the first layers of all stages but the first.

    >>> counts_of((8, 14, 20), 40)
    (8, 6, 6, 20)
    """
    return tuple(end - first for first, end in zip((0, *starts), (*starts, num_layers), strict=True))
