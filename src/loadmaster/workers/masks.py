"""Which tokens a request may not generate next: end tokens before ``min_tokens``, and the last token of a bad word.

Masks and their order are vLLM's (``vllm/v1/sample/sampler.py``): they come before ``logit_bias``, which cannot undo them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from loadmaster.workers.sampling_params import SamplingParams

Ints = np.ndarray[Any, np.dtype[np.int64]]


class TokenMask:
    """What one request forbids, and the end of its answer so far: as many tokens as a bad word may continue.

    ``ends`` are the tokens that end an answer.
    """

    def __init__(self, params: SamplingParams, ends: Ints, answer: Sequence[int]) -> None:
        self._min_tokens, self._ends = params.min_tokens, ends
        self._words = params.bad_words_token_ids
        self._num_kept = max(map(len, self._words), default=1) - 1
        self._num_generated = 0
        self._last: tuple[int, ...] = ()
        self.accept(answer)

    def accept(self, token_ids: Sequence[int]) -> None:
        """Add tokens that were generated."""
        self._num_generated += len(token_ids)
        if self._num_kept:
            self._last = (*self._last, *token_ids)[-self._num_kept :]

    def after(self, drafts: Sequence[int]) -> Ints | None:
        """Return the tokens that may not follow ``drafts``, or None if there are none. A token may be in it twice."""
        too_early = self._num_generated + len(drafts) < self._min_tokens and len(self._ends) > 0
        forbidden = self._ends if too_early else None
        if not self._words:
            return forbidden
        before = (*self._last, *drafts)
        last = [word[-1] for word in self._words if len(word) == 1 or before[1 - len(word) :] == word[:-1]]
        if not last:
            return forbidden
        bad = np.array(last, np.int64)
        return bad if forbidden is None else np.concatenate((forbidden, bad))
