"""Classes of layers: layers of one kind that meet the same signatures in the headers. The unit of proof."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from loadmaster.architectures.algebra import Leaf
from loadmaster.architectures.items import Item
from loadmaster.architectures.target import Held
from loadmaster.dtypes import num_bytes
from loadmaster.plan.forms import StoredForm

Ids = npt.NDArray[np.int32]
"""Numbers of stored tensors in the checkpoint's table; -1 for one that is not there."""

TOP = -1
"""Stands for the model itself (embedding, norm, head) where a layer's number is asked for."""


@dataclass(frozen=True)
class LayerClass:
    """Layers of one kind that meet the same signatures. ``layers`` are stored numbers (`TOP` for the model itself).

    ``items`` are what is stored. ``forms`` gives by an item's key the form of each sound one, one an expert where
    experts differ. ``ids`` gives for each leaf (``key/suffix``) the stored ids: ``[layers]``, with
    experts or slices ``[layers, n]``.
    """

    kind: str
    layers: tuple[int, ...]
    items: tuple[Item, ...]
    forms: Mapping[str, tuple[StoredForm, ...]]
    ids: Mapping[str, Ids]
    draft: bool = False

    def held_as(self, formats: Mapping[str, Sequence[Held]]) -> LayerClass:
        """Return the class as an engine sees it, which has two stored dims as one in some of its ``formats``."""
        known = {f: f.held_as(formats) for forms in self.forms.values() for f in forms}
        if all(f is held for f, held in known.items()):
            return self
        return replace(self, forms={key: tuple(known[f] for f in forms) for key, forms in self.forms.items()})

    def ids_of(self, leaf: Leaf) -> Ids:
        """Return the stored ids of a leaf: ``[layers]`` or ``[layers, experts]``."""
        ids = self.ids[leaf.name]
        return ids if leaf.slice is None else ids[:, leaf.slice]

    def gathered(self, leaves: tuple[Leaf, ...], rows: tuple[int, ...], members: tuple[int, ...] | None) -> Ids:
        """Return the stored ids of leaves, ``[n, leaves]``, over some layers, or over ``members`` (experts) of each.

        ``rows`` are places in ``layers``. Ranks that hold the same share one array.
        """
        key = leaves, rows, members
        if (found := self._gathered.get(key)) is None:
            which = np.array(rows) if members is None else np.ix_(rows, members)
            columns = [self.ids_of(leaf)[which].reshape(-1, 1) for leaf in leaves]
            count = len(rows) * (1 if members is None else len(members))
            found = np.concatenate([np.empty((count, 0), dtype=np.int32), *columns], axis=1)
            found.flags.writeable = False
            self._gathered[key] = found
        return found

    @cached_property
    def _gathered(self) -> dict[tuple[object, ...], Ids]:
        return {}

    def spare(self) -> Iterator[tuple[int, Ids]]:
        """Yield for items whose stored tensors end with rows that the model does not have: these rows' bytes, and the ids."""
        for item in self.items:
            if item.spare_elements and item.key in self.forms:
                num = num_bytes(self.forms[item.key][0].dtype, item.spare_elements)
                yield num, self.ids[f"{item.key}/weight"]

    @cached_property
    def item_of(self) -> Mapping[str, Item]:
        """Logical name -> the item that holds it."""
        return {t.name: item for item in self.items for t in item.parts}
