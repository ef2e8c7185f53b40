"""Changes the logits of tokens that a request has seen or names: masks, ``logit_bias``, and the penalties.

Few tokens of the vocabulary change, so what a request has seen is kept as token ids with counts, and only those logits
are read and written. Order and formulas are vLLM's (``vllm/v1/sample/sampler.py``, ``vllm/model_executor/layers/utils.py``):
tokens that are not in ``allowed_token_ids``, or forbidden (`TokenMask`), are masked, biases are added, then

    repetition   x / penalty if x > 0 else x * penalty     for tokens in the prompt or the answer
    frequency    x - penalty * count                       of the token in the answer
    presence     x - penalty                               for tokens in the answer

Shapes: R rows, V tokens of the vocabulary, E logits that change.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from loadmaster.workers.draws import to_device
from loadmaster.workers.masks import Ints
from loadmaster.workers.sampling_params import SamplingParams

Floats = np.ndarray[Any, np.dtype[np.float32]]


class TokenCounts:
    """The tokens that one request has seen, and how often each is in its answer: 0 if it is in the prompt alone."""

    def __init__(self, prompt: Sequence[int], answer: Sequence[int]) -> None:
        seen = np.unique(np.array((*prompt, *answer), np.int64))
        self._slots = {token: slot for slot, token in enumerate(seen.tolist())}
        self._token_ids: Ints = seen
        self._counts: Floats = np.zeros(len(seen), np.float32)
        self._size = len(seen)
        self.add(answer)

    def add(self, answer: Iterable[int]) -> None:
        """Count tokens that were generated."""
        for token in answer:
            slot = self._slots.setdefault(token, self._size)
            if slot == self._size:
                self._append(token)
            self._counts[slot] += 1

    def after(self, drafts: Sequence[int]) -> tuple[Ints, Floats]:
        """Return the token ids and their counts as they will be once ``drafts`` are in the answer. Do not change them."""
        if not drafts:
            return self._token_ids[: self._size], self._counts[: self._size]
        counts = self._counts[: self._size].copy()
        unseen: dict[int, int] = {}
        for token in drafts:
            if (slot := self._slots.get(token)) is not None:
                counts[slot] += 1
            else:
                unseen[token] = unseen.get(token, 0) + 1
        return (
            np.concatenate((self._token_ids[: self._size], np.array([*unseen], np.int64))),
            np.concatenate((counts, np.array([*unseen.values()], np.float32))),
        )

    def _append(self, token: int) -> None:
        if self._size == len(self._token_ids):
            room = max(self._size, 64)
            self._token_ids = np.concatenate((self._token_ids, np.zeros(room, np.int64)))
            self._counts = np.concatenate((self._counts, np.zeros(room, np.float32)))
        self._token_ids[self._size] = token
        self._counts[self._size] = 0
        self._size += 1


@dataclass(frozen=True, slots=True)
class Change:
    """What changes the logits of one row: parameters, tokens that may not come, and what its request has seen.

    ``allowed``: the only tokens that may come, or None for all.
    """

    row: int
    params: SamplingParams
    masked: Ints | None
    seen: tuple[Ints, Floats] | None
    allowed: Ints | None = None


def has_penalties(params: SamplingParams) -> bool:
    """Return whether logits depend on the tokens that the request has seen."""
    return params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0


def changed(logits_RV: Tensor, changes: Sequence[Change]) -> Tensor:
    """Return a copy of the float32 logits with ``changes``; rows without one are equal."""
    logits_RV = logits_RV.clone()
    device = logits_RV.device
    if allowed := [(c.row, c.allowed) for c in changes if c.allowed is not None]:
        places = _places(allowed, device)
        kept_E = logits_RV[places]
        logits_RV.index_fill_(0, to_device([row for row, _ in allowed], torch.int64, device), -torch.inf)
        logits_RV.index_put_(places, kept_E)
    if masked := [(c.row, c.masked) for c in changes if c.masked is not None]:
        logits_RV.index_put_(_places(masked, device), logits_RV.new_full((), -torch.inf))
    if biased := [c for c in changes if c.params.biases]:
        tokens = [(c.row, np.array([token for token, _ in c.params.biases], np.int64)) for c in biased]
        biases_E = to_device([bias for c in biased for _, bias in c.params.biases], torch.float32, device)
        places = _places(tokens, device)
        logits_RV.index_put_(places, logits_RV[places] + biases_E)
    if penalised := [(c, c.seen) for c in changes if c.seen is not None]:
        places = _places([(c.row, token_ids) for c, (token_ids, _) in penalised], device)
        counts_E = to_device(np.concatenate([counts for _, (_, counts) in penalised]), torch.float32, device)
        lengths = [len(token_ids) for _, (token_ids, _) in penalised]
        penalties = [
            (c.params.repetition_penalty, c.params.frequency_penalty, c.params.presence_penalty) for c, _ in penalised
        ]
        penalties_3E = to_device(
            np.repeat(np.array(penalties, np.float32), lengths, axis=0).T.copy(), torch.float32, device
        )
        logits_RV.index_put_(places, _penalised(logits_RV[places], counts_E, *penalties_3E))
    return logits_RV


def _penalised(
    logits_E: Tensor, counts_E: Tensor, repetition_E: Tensor, frequency_E: Tensor, presence_E: Tensor
) -> Tensor:
    logits_E = torch.where(logits_E > 0, logits_E / repetition_E, logits_E * repetition_E)
    return logits_E.sub_(frequency_E * counts_E).sub_(presence_E * (counts_E > 0))


def _places(tokens: Sequence[tuple[int, Ints]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the rows and the token ids of logits, for indexing."""
    rows = np.repeat(np.array([row for row, _ in tokens], np.int64), [len(ids) for _, ids in tokens])
    ids = np.concatenate([ids for _, ids in tokens])
    rows_E, ids_E = to_device(np.stack((rows, ids)), torch.int64, device)
    return rows_E, ids_E
