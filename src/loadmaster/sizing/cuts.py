"""Cuts between stages: for every boundary of layers what would cross it, and which cuts are refused.

The native engine sends the hidden states, with the residual added, in the dtype that it computes in, and the other tensors that
the schema names (`Schema.carries`): top-k indices as 8-byte integers, at most ``index_topk`` a token. vLLM 0.32 sends hidden
states and residual as two tensors and nothing else (``make_empty_intermediate_tensors`` of its models), so it cannot begin a
stage with a layer that shares a selection.
"""

from __future__ import annotations

from dataclasses import dataclass

from loadmaster.architectures.schema import Schema
from loadmaster.architectures.targets import Engine
from loadmaster.dtypes import num_bytes
from loadmaster.plan import Plan
from loadmaster.sizing.weights import Weights, WeightSizes

INDEX_BYTES = 8
"""An index of a selected token, as the native engine sends it (int64)."""


@dataclass(frozen=True, slots=True)
class Boundary:
    """The boundary before ``layer``. ``crosses`` are the tensors that pass it where it is cut, with their bytes a token.

    ``bytes_before`` and ``bytes_after`` are the parameters of both sides on each rank if this were the only cut.
    ``refused`` says why a stage cannot begin here; None: it can. ``is_made``: the plan has it.
    """

    layer: int
    crosses: tuple[tuple[str, int], ...]
    bytes_before: int
    bytes_after: int
    is_made: bool
    refused: str | None = None

    @property
    def token_bytes(self) -> int:
        """Bytes of one token that cross."""
        return sum(size for _, size in self.crosses)


def crossing(plan: Plan, layer: int, engine: Engine) -> tuple[tuple[str, int], ...]:
    """Return what crosses a cut before ``layer``: tensors and their bytes a token, on each rank."""
    size = num_bytes(plan.dtype, 1)
    hidden = plan.schema.hidden_size * size
    if engine == "vllm":
        return (("hidden_states", hidden), ("residual", hidden))
    topk = plan.family.describe(plan.config).optional_size("index_topk") or 0
    sizes = {"hidden_states": hidden, "topk_indices": topk * INDEX_BYTES}
    return tuple((name, sizes[name]) for name in plan.schema.carried_into(layer))


def refusal(schema: Schema, layer: int, engine: Engine) -> str | None:
    """Return why no stage can begin at ``layer``; None: one can."""
    if layer == 0:
        return "the first stage would have no layer"
    if layer == len(schema.layers):
        return "the last stage would have no layer: norm, head and MTP layers stay with the last one"
    carried = [name for name in schema.carried_into(layer) if name != "hidden_states"]
    if engine == "vllm" and carried:
        return (
            f"the layer needs {', '.join(carried)} of an earlier one, and vLLM passes hidden states and residual only"
        )
    return None


def list_boundaries(plan: Plan, engine: Engine) -> tuple[Boundary, ...]:
    """Return all boundaries, those before the first and after the last layer included."""
    weights: Weights = WeightSizes(plan).at(plan.layout)
    made = {first for first, _ in plan.stages[1:]}
    num_layers = len(plan.schema.layers)
    boundaries = []
    for layer in range(num_layers + 1):
        refused = refusal(plan.schema, layer, engine)
        inside = 0 < layer < num_layers
        boundaries.append(
            Boundary(
                layer,
                crossing(plan, layer, engine) if inside else (),
                weights.stage(0, layer) if inside else 0 if layer == 0 else weights.only + weights.up_to[-1],
                weights.stage(layer, num_layers) if inside else 0 if layer else weights.only + weights.up_to[-1],
                layer in made,
                refused,
            )
        )
    return tuple(boundaries)
