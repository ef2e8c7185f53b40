"""Cuts between stages: for every boundary of layers what would cross it, and which cuts are refused.

What crosses, and why a cut is refused, is decided in `loadmaster.architectures.cuts`; here it is counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from loadmaster.architectures.cuts import crossing as carried
from loadmaster.architectures.cuts import obstacle
from loadmaster.architectures.schema import Carried
from loadmaster.plan import Plan
from loadmaster.sizing.weights import Weights, WeightSizes


@dataclass(frozen=True, slots=True)
class Boundary:
    """The boundary before ``layer``. ``carries`` are the tensors that pass it where it is cut, ``crosses`` their bytes a token.

    ``bytes_before`` and ``bytes_after`` are the parameters of both sides on each rank if this were the only cut.
    ``refused`` says why a stage cannot begin here; None: it can. ``is_made``: the plan has it.
    """

    layer: int
    carries: tuple[Carried, ...]
    crosses: tuple[tuple[str, int], ...]
    bytes_before: int
    bytes_after: int
    is_made: bool
    refused: str | None = None

    @property
    def token_bytes(self) -> int:
        """Bytes of one token that cross."""
        return sum(size for _, size in self.crosses)


def crossing(plan: Plan, layer: int) -> tuple[tuple[str, int], ...]:
    """Return what crosses a cut before ``layer``: tensors and their bytes a token, on each rank."""
    return tuple((f.name, f.token_bytes(plan.dtype)) for f in carried(plan.schema, plan.target, layer))


def list_boundaries(plan: Plan) -> tuple[Boundary, ...]:
    """Return all boundaries on the plan's engine, those before the first and after the last layer included."""
    weights: Weights = WeightSizes(plan).at(plan.layout)
    made = {first for first, _ in plan.stages[1:]}
    num_layers = len(plan.schema.layers)
    boundaries = []
    for layer in range(num_layers + 1):
        inside = 0 < layer < num_layers
        carries = carried(plan.schema, plan.target, layer) if inside else ()
        boundaries.append(
            Boundary(
                layer,
                carries,
                crossing(plan, layer) if inside else (),
                weights.stage(0, layer) if inside else 0 if layer == 0 else weights.only + weights.up_to[-1],
                weights.stage(layer, num_layers) if inside else 0 if layer else weights.only + weights.up_to[-1],
                layer in made,
                obstacle(plan.schema, plan.target, layer),
            )
        )
    return tuple(boundaries)
