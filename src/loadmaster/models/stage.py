"""A pipeline stage: some of a model's layers, with their inputs and outputs.

A stage passes on the hidden states, with the residual already added, and the other tensors that the schema names (top-k
indices where the next stage begins with a layer that shares them). The result has the same bits for every cut.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from loadmaster.layers.cache import Cache
from loadmaster.layers.norm import rms_norm
from loadmaster.layers.weight import Params, linear
from loadmaster.models.layer import Layer, State


class Stage:
    """Layers ``layers`` of a model, with the embedding on the first stage and norm and head on the last."""

    def __init__(
        self,
        params: Params,
        layers: Sequence[Layer],
        *,
        first: bool,
        last: bool,
        carries_in: tuple[str, ...],
        carries_out: tuple[str, ...],
        norm_eps: float,
        dtype: torch.dtype,
    ) -> None:
        self.layers = layers
        self.carries_in, self.carries_out = carries_in, carries_out
        self.dtype = dtype
        self.eps = norm_eps
        self.embed = params.tensor("embed_tokens.weight") if first else None
        self.norm = params.tensor("norm.weight") if last else None
        self.head = params.weight("lm_head.weight") if last else None
        self.device = params.device

    def new_cache(self, max_tokens: int) -> Cache:
        """Return an empty cache for one request of at most ``max_tokens`` tokens, prompt included."""
        widths = {key: width for layer in self.layers for key, width in layer.widths().items()}
        return Cache(widths, max_tokens, self.dtype, self.device)

    @torch.inference_mode()
    def forward(self, inputs: State, positions_T: Tensor, cache: Cache, *, all_logits: bool = False) -> State:
        """Run the stage on T tokens of one request at consecutive positions.

        Inputs may be on any device; outputs are on the stage's. The first stage takes ``token_ids`` ``[T]``, the others
        what ``carries_in`` names. The last returns ``logits``
        ``[1, V]`` of the last token, or ``[T, V]`` with ``all_logits``; the others what ``carries_out`` names.

        Raises:
            RunError: the tokens do not fit the cache, or do not continue it.
        """
        _, stop = cache.begin(positions_T)
        inputs = {name: tensor.to(self.device) for name, tensor in inputs.items()}
        positions_T = positions_T.to(self.device)
        if self.embed is not None:
            state: State = {"hidden_states": F.embedding(inputs["token_ids"], self.embed).to(self.dtype)}
        else:
            state = {name: inputs[name] for name in self.carries_in}
        for layer in self.layers:
            state = layer(state, positions_T, cache)
        cache.length = stop
        if self.norm is None or self.head is None:
            return {name: state[name] for name in self.carries_out}
        hidden_TH = state["hidden_states"] if all_logits else state["hidden_states"][-1:]
        return {"logits": linear(rms_norm(hidden_TH, self.norm, self.eps), self.head)}
