"""The planned model: every class of layers, composed for every slot of a stage. What each rank is derived from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from loadmaster.architectures.schema import Param, Schema
from loadmaster.architectures.target import Target
from loadmaster.arguments import expect, expect_int
from loadmaster.checkpoint import TensorTable
from loadmaster.parallel import ParallelLayout, stage_of
from loadmaster.plan.binding import Binding
from loadmaster.plan.classes import LayerClass
from loadmaster.plan.composition import Numerics, PlannedParam, UnplacedParam, compose


@dataclass(frozen=True, eq=False)
class PlannedModel:
    """A target's parameters over a layout.

    ``classes`` are the classes of layers and wanted drafts, ``top_class`` that of the model itself (embedding, norm, head).
    ``stages`` are the layers, half open, of each pipeline stage. ``composed`` gives the parameters of a class (by its
    number) in a stage slot, ``top`` by stage slot and name those of the model itself.
    """

    layout: ParallelLayout
    target: Target = field(repr=False)
    schema: Schema = field(repr=False)
    stages: tuple[tuple[int, int], ...]
    table: TensorTable = field(repr=False)
    top_class: LayerClass = field(repr=False)
    classes: tuple[LayerClass, ...] = field(repr=False)
    composed: Mapping[tuple[int, int], tuple[PlannedParam, ...]] = field(repr=False)
    top: Mapping[int, Mapping[str, tuple[PlannedParam, ...]]] = field(repr=False)

    @property
    def all_classes(self) -> tuple[LayerClass, ...]:
        """The model's own class, then those of its layers and wanted drafts."""
        return (self.top_class, *self.classes)

    @property
    def num_ranks(self) -> int:
        """Ranks in all."""
        return self.layout.num_ranks

    @cached_property
    def class_of(self) -> Mapping[int, tuple[int, int]]:
        """Stored layer -> its class, and its row there."""
        return {
            layer: (number, row) for number, bound in enumerate(self.classes) for row, layer in enumerate(bound.layers)
        }

    def block(self, layer: int) -> str:
        """Return what the target calls the block of a stored layer: ``layers.7``, or ``mtp.0`` for the first MTP layer.

        Raises:
            ArgumentError: the plan has no such layer.
        """
        return self.target.block(self._layer(layer), len(self.schema.layers))

    def named(self, param: str, layer: int) -> str:
        """Return what the target calls a parameter of a stored layer.

        Raises:
            ArgumentError: the plan has no such layer.
        """
        return self.target.named(expect("param", param, str, "a name"), self._layer(layer), len(self.schema.layers))

    def stage_of(self, layer: int) -> int:
        """Return the pipeline stage of a stored layer number; MTP layers live on the last.

        Raises:
            ArgumentError: the plan has no such layer.
        """
        return stage_of(self.stages, self._layer(layer))

    def _layer(self, layer: int) -> int:
        return expect_int("layer", layer, 0, len(self.schema.blocks(self.layout.num_draft_layers)) - 1)


def compose_model(
    target: Target, binding: Binding, layout: ParallelLayout, numerics: Numerics
) -> tuple[dict[tuple[int, int], tuple[PlannedParam, ...]], dict[int, dict[str, tuple[PlannedParam, ...]]]]:
    """Compose every class, and the model's own parameters, for every stage slot.

    Stage slots that agree in the axes a parameter is divided over share what is composed for it.
    """
    axes_of_slots = [layout.axes(slot) for slot in range(layout.stage_size)]

    def wholes(params: Sequence[Param], bound: LayerClass) -> list[UnplacedParam]:
        composed_params = (compose(p, bound, numerics, layout) for p in params)
        return [w for w in composed_params if w is not None]

    def at_slots(w: UnplacedParam) -> list[tuple[PlannedParam, ...]]:
        known: dict[tuple[tuple[int, int], ...], tuple[PlannedParam, ...]] = {}
        keys = [tuple(at[axis] for axis in w.axes) for at in axes_of_slots]
        for key, at in zip(keys, axes_of_slots, strict=True):
            if key not in known:
                known[key] = tuple(w.at(at))
        return [known[key] for key in keys]

    in_blocks = [p for p in target.params if p.stage is None]
    composed = {}
    for number, bound in enumerate(binding.classes):
        by_param = [at_slots(w) for w in wholes(in_blocks, bound)]
        for stage_slot in range(layout.stage_size):
            composed[number, stage_slot] = tuple(c for by_slot in by_param for c in by_slot[stage_slot])
    unplaced = wholes([p for p in target.params if p.stage is not None], binding.top)
    top_params = {w.param.name: at_slots(w) for w in unplaced}
    top = {s: {name: by_slot[s] for name, by_slot in top_params.items()} for s in range(layout.stage_size)}
    return composed, top
