"""The MTP layers of a model as a draft model: they propose the tokens after the next one.

An MTP layer takes, at position p, the model's hidden states there and the token at p + 1, and predicts the token at p + 2:

    h' = eh_proj([enorm(embed(token)), hnorm(h)]);  h'' = shared_head.norm(block(h'));  logits = head(h'')

Sources: DeepSeek-V3 (arXiv 2412.19437, section 2.2); ``MtpModel`` of transformers (``modeling_layers.py``); SGLang's
``deepseek_nextn.py``; vLLM's ``deepseek_mtp.py`` with pull requests 45895 and 47448. All of them take the model's hidden
states **after its final norm**, and pass those **after shared_head.norm** to the next layer or the next run of the same one.
vLLM also replaces the embedding at position 0 by zeros; the others, and this module, do not.

What runs when, and over which positions, is in `loadmaster.workers.drafter`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from loadmaster.architectures.model import Model
from loadmaster.layers.kv_cache import CacheKey, KVCache, Remembered
from loadmaster.layers.linear import Linear
from loadmaster.layers.norm import Norm
from loadmaster.layers.step import Step
from loadmaster.layers.vocab import Embedding, Head
from loadmaster.layers.weight import Params
from loadmaster.models.layer import Layer, State


class DraftLayer:
    """One MTP layer. ``block`` is its decoder layer; ``repeated`` is the same one when it is run again for a later token.

    They differ only where the model selects tokens once for all runs: ``repeated`` then takes the selection as given.
    """

    def __init__(
        self, model: Model, params: Params, prefix: str, block: Layer, repeated: Layer, dtype: torch.dtype
    ) -> None:
        self.block, self.repeated = block, repeated
        self.dtype = dtype
        self.embed = Embedding(params, f"{prefix}.embed_tokens.weight")
        self.enorm = Norm(model, params.tensor(f"{prefix}.enorm.weight"))
        self.hnorm = Norm(model, params.tensor(f"{prefix}.hnorm.weight"))
        self.eh_proj = Linear.of(params, f"{prefix}.eh_proj")
        self.norm = Norm(model, params.tensor(f"{prefix}.shared_head.norm.weight"))
        self.head = Head(params, f"{prefix}.shared_head.head")

    def __call__(self, state: State, token_ids_T: Tensor, step: Step, cache: KVCache, *, again: bool = False) -> State:
        """Return the state after the layer, its hidden states normed, and store what the block remembers in ``cache``.

        ``state`` has the ``hidden_states`` ``[T, H]`` of each position, from the model, the previous layer, or the last run
        of this one (``again``). ``token_ids_T`` are the tokens that follow.
        """
        embedded_TH = self.embed(token_ids_T).to(self.dtype)
        joined_T2H = torch.cat([self.enorm(embedded_TH), self.hnorm(state["hidden_states"])], dim=-1)
        block = self.repeated if again else self.block
        after = block({**state, "hidden_states": self.eh_proj(joined_T2H)}, step, cache)
        return {**after, "hidden_states": self.norm(after["hidden_states"])}

    def propose(self, hidden_RH: Tensor) -> Tensor:
        """Return the likeliest token ``[R]`` for each of the layer's normed hidden states."""
        return self.head(hidden_RH).argmax(dim=-1)


class Draft:
    """The MTP layers that a plan has on its last stage."""

    def __init__(self, layers: Sequence[DraftLayer]) -> None:
        self.layers = layers

    def remembers(self) -> dict[CacheKey, Remembered]:
        """Return what the cache stores of each token, in the same pages as the model's layers."""
        return {key: what for layer in self.layers for key, what in layer.block.remembers().items()}


def extended_selection(state: State, positions_R: Tensor) -> State:
    """Return the state with each row's own position added to the tokens that were selected for it, if any were.

    A layer that takes its selection from an earlier run would not see the tokens since.
    """
    if "topk_indices" not in state:
        return state
    return {**state, "topk_indices": torch.cat([state["topk_indices"], positions_R[:, None]], dim=1)}
