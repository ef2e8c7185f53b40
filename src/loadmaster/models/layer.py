"""What stages and the layers of all families share: the state that goes from layer to layer, and a layer's interface."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from loadmaster.layers.cache import Cache

State = dict[str, Tensor]
"""What goes from layer to layer and from stage to stage: ``hidden_states`` ``[T, H]``, sometimes ``topk_indices`` ``[T, K]``."""


class Layer(Protocol):
    """One decoder layer of any family."""

    def widths(self) -> dict[tuple[int, str], tuple[int, ...]]:
        """Return the shapes that the cache stores for each token."""

    def __call__(self, state: State, positions_T: Tensor, cache: Cache) -> State:
        """Return the state after the layer."""
