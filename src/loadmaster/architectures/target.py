"""What an engine makes of a family: its parameters, how it holds quantised formats, what it pads and passes on. Only values.

A family brings the parameters of this package's own runtime (`Family.native`); `targets/` describes other engines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from loadmaster.architectures.schema import Param, Placement, Schema, Tensor


@dataclass(frozen=True, slots=True)
class Held:
    """How an engine holds a component of a quantised format that is stored in ``dtype`` under a name that ends in ``suffix``.

    ``named`` is the ending of the parameter's name, and ``held`` what the engine calls the same bits, where they differ.
    ``flat``: the engine has one dim where blocks and the words of each are stored as two. ``bare``: it has one number for each
    expert as ``[experts]``, and not as ``[experts, 1]``.

    >>> Held("scale", "F8_E8M0", named="weight_scale", held="U8").param
    ('weight_scale', 'U8')
    """

    suffix: str
    dtype: str
    named: str | None = None
    held: str | None = None
    flat: bool = False
    bare: bool = False

    @property
    def param(self) -> tuple[str, str]:
        """The ending of the parameter's name, and its dtype."""
        return self.named or self.suffix, self.held or self.dtype


@dataclass(frozen=True, slots=True)
class Target:
    """The engine whose parameters a plan fills: this package's own, or another one.

    ``layer`` and ``draft`` are the names of the blocks of decoder layers and of MTP layers, with their stored number
    (``layer``), or counted from 0 (``{}``). Where an MTP layer contains a block, ``{draft}`` is the name of the whole
    layer, in the form of a decoder layer's name. An engine without ``draft`` is not described with MTP layers. Where they are a
    model of their own in the engine, ``draft_names`` are its names of parameters: (beginning in the layer, beginning in that
    model, with the ``{number}`` of the draft or the stored one of the ``{layer}``); the first that matches, and what matches none
    has the planned name. ``formats`` are the quantised formats whose parameters are described, each with its components, the
    values first (None: all formats, held as they are stored).

    ``fixed``: the formats of the engine's parameters do not follow the checkpoint. Plain weights are always in the model's
    dtype (``dtypes`` gives the one used instead of the config's), vocabularies are always padded, and a quantised
    parameter must be quantised in every part.

    ``sends`` are the names of what the engine passes from stage to stage (None: all that the schema names): no stage can
    begin where something else is needed. What the schema does not name has the shape of the hidden states (``residual``).

    ``within`` is the prefix of the language model's parameters in a model around it, which has others beside them. ``computed``
    are parameters that the engine computes from what is planned for them: their shapes and formats are those of the plan, their
    values are not. ``placements`` are those of logical tensors that the engine places otherwise than the family.

    ``ungrouped``: rows that are packed by group (`Packed.by_group`) stay as they are stored, and are cut as if they were not.

    ``has_tables``: the engine can read tables (`Tensor.table`) in the memory of the host; others have all on the device.
    """

    name: str
    params: tuple[Param, ...]
    layer: str = "layers.{layer}"
    draft: str | None = "mtp.{}"
    draft_names: tuple[tuple[str, str], ...] = ()
    formats: Mapping[str, tuple[Held, ...]] | None = None
    fixed: bool = False
    dtypes: Mapping[str, str] = field(default_factory=dict)
    sends: tuple[str, ...] | None = None
    within: str = ""
    computed: tuple[str, ...] = ()
    placements: Mapping[str, Placement | None] = field(default_factory=dict)
    ungrouped: bool = False
    has_tables: bool = False

    def block(self, layer: int, num_layers: int) -> str:
        """Return the name of the block of a stored layer."""
        if layer < num_layers:
            return self.layer.format(layer=layer)
        assert self.draft is not None
        return self.draft.format(layer - num_layers, layer=layer)

    def named(self, param: str, layer: int, num_layers: int) -> str:
        """Return the name of a parameter of a stored layer."""
        return param.replace("{block}", self.block(layer, num_layers)).replace(
            "{draft}", self.layer.format(layer=layer)
        )

    def adapted(self, schema: Schema) -> Schema:
        """Return a family's schema as this target places it."""
        if not self.fixed and self.has_tables:
            return schema

        def placed(t: Tensor) -> Tensor:
            t = replace(t, placement=self.placements.get(t.name, t.placement))
            t = replace(t, groups=1) if self.ungrouped else t
            p = t.placement
            if t.table is not None and not self.has_tables:
                t = replace(t, table=None)
            is_vocabulary = p is not None and p.pad is not None and not t.experts
            return replace(t, placement=replace(p, always=True)) if p and is_vocabulary and self.fixed else t

        kinds = {kind: tuple(map(placed, tensors)) for kind, tensors in schema.kinds.items()}
        return replace(schema, top=tuple(map(placed, schema.top)), kinds=kinds)
