"""A pipeline stage: some of a model's layers, with their inputs and outputs.

A stage passes on the hidden states, with the residual already added, and the other tensors that the schema names (top-k
indices where the next stage begins with a layer that shares them). The result has the same bits for every cut into stages.
Over several ranks a stage's outputs have the same bits on each of them; the logits are those of the whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from loadmaster.architectures.model import Model
from loadmaster.kernels.choice import uses_kernels
from loadmaster.layers.kv_cache import KVCache, page_bytes
from loadmaster.layers.norm import Norm
from loadmaster.layers.step import Step
from loadmaster.layers.vocab import Embedding, Head
from loadmaster.layers.weight import Params
from loadmaster.models.draft import Draft
from loadmaster.models.layer import Layer, State


class Stage:
    """Layers ``layers`` of a model, with the embedding on the first stage and norm, head and ``draft`` on the last."""

    def __init__(
        self,
        params: Params,
        layers: Sequence[Layer],
        *,
        first: bool,
        last: bool,
        carries_in: tuple[str, ...],
        carries_out: tuple[str, ...],
        model: Model,
        dtype: torch.dtype,
        draft: Draft | None = None,
    ) -> None:
        self.layers = layers
        self.draft = draft
        self.carries_in, self.carries_out = carries_in, carries_out
        self.dtype = dtype
        self.embed = Embedding(params, "embed_tokens.weight") if first else None
        self.embed_scale = torch.tensor(model.embed_scale, dtype=dtype, device=params.device)  # rounded, as published
        self.is_embed_plain = model.embed_scale == 1
        self.norm = Norm(model, params.tensor("norm.weight")) if last else None
        self.head = Head(params, "lm_head") if last else None
        self.logits_divisor = model.logits_divisor
        self.device = params.device
        self._is_whole = params.group is None
        self._remembered = {key: what for layer in layers for key, what in layer.remembers().items()}
        if draft is not None:
            self._remembered |= draft.remembers()

    @property
    def is_capturable(self) -> bool:
        """Whether a CUDA graph can repeat `forward`: kernels compute it, and no rank waits for another in it."""
        has_kernels = uses_kernels(self.device, self.dtype)
        return has_kernels and self._is_whole and all(layer.is_capturable for layer in self.layers)

    @property
    def vocab_size(self) -> int:
        """The number of logits of a row; 0 on all stages but the last."""
        return 0 if self.head is None else self.head.rows.total

    def page_bytes(self, page_size: int) -> int:
        """Return the bytes of one page of ``page_size`` tokens in the cache of this stage."""
        return page_bytes(self._remembered, page_size, self.dtype)

    def new_cache(self, num_pages: int, page_size: int) -> KVCache:
        """Return a cache of ``num_pages`` pages of ``page_size`` tokens each."""
        return KVCache(self._remembered, num_pages, page_size, self.dtype, self.device)

    @torch.inference_mode()
    def forward(self, inputs: State, step: Step, cache: KVCache) -> State:
        """Compute the T tokens of ``step``, and store what the layers remember in ``cache``.

        The first stage takes no inputs, the others what ``carries_in`` names, on any device; outputs are on the stage's.
        The last returns ``logits`` ``[R, V]`` of the step's ``logit_rows_R``, and with a draft model the ``hidden_states``
        ``[T, H]`` after the final norm; the others return what ``carries_out`` names.
        """
        if self.embed is not None:
            hidden_TH = self.embed(step.token_ids_T).to(self.dtype)
            state: State = {"hidden_states": hidden_TH if self.is_embed_plain else hidden_TH * self.embed_scale}
        else:
            state = {name: inputs[name].to(self.device) for name in self.carries_in}
        for layer in self.layers:
            state = layer(state, step, cache)
        if self.norm is None or self.head is None:
            return {name: state[name] for name in self.carries_out}
        hidden_TH = state["hidden_states"]
        if self.draft is None:
            return {"logits": self._logits(self.norm(hidden_TH[step.logit_rows_R]))}
        normed_TH = self.norm(hidden_TH)
        return {"logits": self._logits(normed_TH[step.logit_rows_R]), "hidden_states": normed_TH}

    def _logits(self, normed_RH: Tensor) -> Tensor:
        assert self.head is not None
        logits_RV = self.head(normed_RH)
        return logits_RV if self.logits_divisor == 1 else logits_RV / self.logits_divisor
