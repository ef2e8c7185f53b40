"""What stages and the layers of all families share: the state that goes from layer to layer, and a layer's interface."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from loadmaster.layers.kv_cache import CacheKey, KVCache, Remembered
from loadmaster.layers.step import Step

State = dict[str, Tensor]
"""What goes from layer to layer and from stage to stage: ``hidden_states`` ``[T, H]``, and in some models ``topk_indices``
``[T, K]``, the positions that sparse attention selected (-1 for none)."""


class Layer(Protocol):
    """One decoder layer of any family."""

    @property
    def is_capturable(self) -> bool:
        """Whether, on a GPU, a CUDA graph can repeat the layer: it never waits for the device, and reads only tensors."""

    def remembers(self) -> dict[CacheKey, Remembered]:
        """Return what the cache stores of each token."""

    def __call__(self, state: State, step: Step, cache: KVCache) -> State:
        """Return the state after the layer."""
