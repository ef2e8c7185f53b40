"""What is looked up in a checkpoint: the stored tensors of a kind of layer, from a schema and a spelling.

An item is usually one logical tensor, or several that a checkpoint packs into one (`Packed`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

from loadmaster.architectures.schema import Schema, Tensor
from loadmaster.architectures.spelling import Packed, Spelling
from loadmaster.errors import ConfigError
from loadmaster.formats import Component, Format
from loadmaster.limits import ELEMENTS, TENSORS


@dataclass(frozen=True, slots=True)
class Item:
    """One stored tensor of a layer, or with `members` one for each expert, or one for each slice of rows.

    ``key`` names it (the logical name, joined by ``+`` where it holds several), ``name`` is its stored name with
    ``{layer}``, and ``{expert}`` or ``{slice}``, ``parts`` are the logical tensors in it, in order along their out dim.
    ``origin`` is the layer that its names call 0. With ``groups``, the parts alternate: the first group of rows of each, then
    the second …; ``apart``: each group is encoded as a tensor by itself. ``flat``, ``pairs`` and ``numbers_each`` are those of
    `Packed`.
    """

    key: str
    name: str
    parts: tuple[Tensor, ...]
    stacked: bool = False
    transposed: bool = False
    origin: int = 0
    groups: int = 1
    apart: bool = False
    flat: bool = False
    pairs: bool = False
    numbers_each: bool = False

    @property
    def first(self) -> Tensor:
        """The first logical tensor; all parts have its formats."""
        return self.parts[0]

    @property
    def members(self) -> int:
        """Number of stored tensors in each layer: one for each expert or each slice, 0 for a single tensor."""
        return 0 if self.stacked else self.first.experts or self.first.slices

    @property
    def by_expert(self) -> bool:
        """Whether each expert has a separate stored tensor."""
        return not self.stacked and self.first.experts > 0

    def formats(self, claimed: Sequence[Format]) -> Sequence[Format]:
        """Return the quantised formats that it may be in: its own, or those that the config claims.

        What is no weight of a linear layer may be in those that are `Format.everywhere`. A run of numbers is one weight. A flat
        stack is not quantised in any.
        """
        if self.flat:
            return ()
        first = self.first
        if first.quantised and first.formats is not None:
            return first.formats
        allowed = claimed if first.quantised else [f for f in claimed if f.everywhere and len(first.shape) == 2]
        in_parts = self.stacked or self.apart or first.slices
        return [f for f in allowed if not f.is_run] if in_parts else allowed

    def stored_in(self, format_: Format) -> Format:
        """Return a format as this is stored in it: with a dim for the experts where they are stacked."""
        if not self.stacked:
            return format_
        return format_.stacked(len(self.parts) if self.numbers_each else 1)

    @property
    def shape(self) -> tuple[int, ...]:
        """The logical shape of what is stored: all parts, with the experts as first dim where they are stacked.

        >>> Item("a_log", "A_log", (Tensor("a_log", (96,), spare=32),)).shape
        (128,)
        """
        rows = sum(t.shape[0] + t.spare for t in self.parts)
        lead = (self.first.experts,) if self.stacked else ()
        return (*lead, rows, *self.first.shape[1:])

    @property
    def spare_elements(self) -> int:
        """Elements at the end of the stored tensor that the model does not have (`Tensor.spare`)."""
        return self.first.spare * prod(self.first.shape[1:])

    def is_cut(self, part: str) -> bool:
        """Return whether the stored tensor holds more than this part."""
        return self.rows(part) != (0, self.shape[1 if self.stacked else 0])

    @property
    def plain_shape(self) -> tuple[int, ...]:
        """The stored shape of a plain weight: its dims, or where the stack is flat, the first two joined.

        >>> Item("down", "w2", (Tensor("down", (8, 6), experts=4),), stacked=True, transposed=True, flat=True).plain_shape
        (24, 8)
        """
        dims = self.plain_dims
        return (dims[0] * dims[1], *dims[2:]) if self.flat else dims

    @property
    def plain_dims(self) -> tuple[int, ...]:
        """The dims of a stored plain weight: those of its logical shape, the last two exchanged where it is transposed."""
        shape = self.tensor_shape
        return (*shape[:-2], shape[-1], shape[-2]) if self.is_transposed else shape

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        """The logical shape of one stored tensor: `shape`, or that of a slice.

        >>> Item("table", "table.{slice}", (Tensor("table", (96, 8), slices=4),)).tensor_shape
        (24, 8)
        """
        return (self.shape[0] // (self.first.slices or 1), *self.shape[1:])

    @property
    def is_transposed(self) -> bool:
        """Whether plain weights are stored (in, out); vectors never are."""
        return self.transposed and len(self.first.shape) == 2

    @property
    def group(self) -> tuple[int, ...]:
        """The logical shape of one group of rows, the same share of every part."""
        return (self.shape[0] // self.groups, *self.shape[1:])

    def component_shape(self, component: Component) -> tuple[int, ...]:
        """Return the stored shape of a component of its format; groups that are encoded apart follow one another."""
        if not self.apart or component.is_scalar:
            return component.shape(self.tensor_shape)
        of_group = zip(component.shape(self.group), component.grains, strict=True)
        return tuple(n * self.groups if grain.dim == 0 else n for n, grain in of_group)

    def component_dims(self, component: Component) -> tuple[int, ...]:
        """Return the stored shape of a component with a dim for each of its grains, where these are stored joined."""
        return self.component_shape(component) if component.joined is None else component.dims(self.shape)

    def rows(self, part: str) -> tuple[int, int]:
        """Return the rows, half open, that a part takes along the out dim; where there are groups, within each of them."""
        at = 0
        for tensor in self.parts:
            rows = tensor.shape[0] // self.groups
            if tensor.name == part:
                return at, at + rows
            at += rows + tensor.spare
        raise KeyError(part)

    def runs(self, part: str) -> tuple[tuple[int, int], ...]:
        """Return all rows, half open, that a part takes along the out dim, one run for each group."""
        start, stop = self.rows(part)
        step = self.group[0]
        return tuple((g * step + start, g * step + stop) for g in range(self.groups))

    def stored_name(self, suffix: str, layer: int, member: int | None = None) -> str:
        """Return the checkpoint's name of a component: its suffix replaces ``weight``, or follows the name.

        Of a tensor in slices, a component without ``member`` holds for all of them.

        >>> table = Item("table", "table.shard_{slice}.weight", (Tensor("table", (96, 8), slices=4),))
        >>> table.stored_name("weight", 0, 3), table.stored_name("weight_scale", 0)
        ('table.shard_3.weight', 'table.weight_scale')
        """
        return self._numbered(self.named(suffix), member, layer - self.origin)

    def path(self, member: int | None = None) -> str:
        """Return its name within its layer; the whole name where it doesn't say the layer (``mtp.fc.weight``)."""
        _, numbered, inner = self.name.partition("{layer}.")
        return self._numbered(inner if numbered else self.name, member, "*")

    def _numbered(self, name: str, member: int | None, layer: int | str) -> str:
        """Return a name with its numbers; of a tensor in slices, without the part that says the slice where none is given."""
        if self.first.slices and member is None:
            name = ".".join(part for part in name.split(".") if "{slice}" not in part)
        return name.format(layer=layer, expert=member, slice=member)

    def layer_name(self, layer: int) -> str:
        """Return what stands before its `path`: the name of its layer, or nothing."""
        before, numbered, _ = self.name.partition("{layer}.")
        return f"{before}{layer - self.origin}." if numbered else ""

    def named(self, suffix: str) -> str:
        """Return a component's name with ``{layer}``, and ``{expert}`` or ``{slice}``."""
        return with_suffix(self.name, suffix)

    def around_member(self, suffix: str, layer: int) -> tuple[str, str]:
        """Return the parts of `stored_name` before and after the number of the expert, or of the slice.

        >>> from loadmaster.architectures.schema import Tensor
        >>> Item("up", "layers.{layer}.experts.{expert}.up.weight", (Tensor("up", (4, 8)),)).around_member("weight", 3)
        ('layers.3.experts.', '.up.weight')
        """
        before, _, after = self.name.partition("{slice}" if self.first.slices else "{expert}")
        after = with_suffix(after, suffix)
        return before.format(layer=layer - self.origin), after.format(layer=layer - self.origin)


def with_suffix(name: str, suffix: str) -> str:
    """Return the name of a component: its suffix replaces ``weight``, or follows a name without it.

    >>> [with_suffix(name, "weight_scale") for name in ("q_proj.weight", "w13_weight", "experts.down_proj")]
    ['q_proj.weight_scale', 'w13_weight_scale', 'experts.down_proj_weight_scale']
    """
    stem = name.removesuffix("weight")
    if suffix == "weight":
        return name
    return stem + suffix if stem != name or suffix.startswith("_") else f"{name}_{suffix}"


def items(tensors: Iterable[Tensor], spelling: Spelling, origin: int = 0) -> tuple[Item, ...]:
    """Return the stored items that hold ``tensors``, in the schema's order. ``origin`` is the layer that names call 0.

    >>> from loadmaster.architectures.spelling import packed
    >>> q, k = Tensor("q", (4, 8)), Tensor("k", (2, 8))
    >>> [(i.key, i.shape, i.rows("k")) for i in items([q, k], packed("layers.{layer}.qk.weight", "q", "k"))]
    [('q+k', (6, 8), (4, 6))]
    """
    return tuple(_items({t.name: t for t in tensors}, spelling, origin))


def layer_items(schema: Schema, layer: int, spelling: Spelling, drafts: Spelling | None = None) -> tuple[Item, ...]:
    """Return the stored items of a layer, MTP layers included; ``drafts`` is the spelling of these, where they have one."""
    num_layers = len(schema.layers)
    tensors = schema.kinds[(*schema.layers, *schema.drafts)[layer]]
    return items(tensors, spelling) if drafts is None or layer < num_layers else items(tensors, drafts, num_layers)


def _items(tensors: dict[str, Tensor], spelling: Spelling, origin: int) -> Iterator[Item]:
    for tensor in tensors.values():
        spelled = spelling[tensor.name]
        if isinstance(spelled, Packed):
            if tensor.name == spelled.parts[0]:
                parts = tuple(tensors[p] for p in spelled.parts)
                key, groups = "+".join(spelled.parts), tensor.groups if spelled.by_group else 1
                counted = origin + spelled.first
                yield Item(
                    key,
                    spelled.name,
                    parts,
                    stacked=spelled.stacked,
                    transposed=spelled.transposed,
                    origin=counted,
                    groups=groups,
                    apart=spelled.apart and groups > 1,
                    flat=spelled.flat,
                    pairs=spelled.pairs,
                    numbers_each=spelled.numbers_each,
                )
        else:
            yield Item(tensor.name, spelled, (tensor,), origin=origin)


def check_size(schema: Schema, spelling: Spelling, drafts: Spelling | None = None) -> None:
    """Check that the config's tensors have elements, and are within the limits on their number and size.

    Raises:
        ConfigError: a tensor has none, or a limit is exceeded; names it.
    """
    every = (t for tensors in (schema.top, *schema.kinds.values()) for t in tensors)
    if empty := next((t for t in every if min(t.shape, default=1) < 1), None):
        raise ConfigError(
            f"config.json describes {empty.name} without elements: {list(empty.shape)}",
            hint="its sizes do not fit together, such as more heads than hidden elements",
        )
    counts = Counter((*schema.layers, *schema.drafts))
    first = {kind: layer for layer, kind in reversed([*enumerate((*schema.layers, *schema.drafts))])}
    of_kinds = ((n, layer_items(schema, first[kind], spelling, drafts)) for kind, n in counts.items())
    groups = [(1, items(schema.top, spelling)), *of_kinds]
    num_tensors = sum(n * (i.members or 1) for n, stored in groups for i in stored)
    if num_tensors > TENSORS.value:
        raise ConfigError(f"config.json describes {TENSORS.exceeded(num_tensors)}", hint=TENSORS.hint)
    num_elements = sum(n * prod(i.plain_shape) * (i.members or 1) for n, stored in groups for i in stored)
    if num_elements > ELEMENTS.value:
        raise ConfigError(f"config.json describes {ELEMENTS.exceeded(num_elements)}", hint=ELEMENTS.hint)
