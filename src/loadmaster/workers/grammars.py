"""Which tokens may come next in answers that have to match a grammar, with llguidance.

A grammar is compiled once, in a thread, before the first of its requests begins, and kept until it is dropped. Each request has
a copy, which follows its answer token by token. All ranks of a stage do the same, and get the same: llguidance limits its
work by counting it, not by time.

An end token may come where the grammar is complete, and nothing else may follow it. Where the grammar allows no more text,
only end tokens may come.

Shapes: R rows of logits, V tokens of the vocabulary, W words of 32 bits, one bit a token, the lowest first.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from loadmaster.workers.draws import to_device
from loadmaster.workers.grammar_limits import brief, limits
from loadmaster.workers.messages import Vocabulary
from loadmaster.workers.structured_outputs import Grammar

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

Words = np.ndarray[Any, np.dtype[np.int32]]


class GrammarError(Exception):
    """An answer cannot go on under its grammar; says why."""


class Grammars:
    """Compiles grammars for a vocabulary of ``vocab_size`` tokens, once `learn` has told it their texts.

    ``end_token_ids`` are the model's end tokens.
    """

    def __init__(self, vocab_size: int, end_token_ids: Iterable[int] = ()) -> None:
        self._vocab_size = vocab_size
        self._end_token_ids = sorted(end_token_ids)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammar")
        self._tokenizer: LLTokenizer | None = None
        self._why = "the model has no tokenizer"
        self._compiled: dict[str, Future[LLMatcher]] = {}

    def learn(self, vocabulary: Vocabulary) -> None:
        """Take the tokenizer. One that llguidance cannot read is an error of the requests that need it. Takes a second or two."""
        from llguidance import LLTokenizer

        if not self._end_token_ids:
            self._why = "the model has no end token"
            return
        try:
            self._tokenizer = LLTokenizer(
                zlib.decompress(vocabulary.tokenizer).decode(),
                n_vocab=max(self._vocab_size, vocabulary.num_tokens),
                eos_token=self._end_token_ids,
            )
        except BaseException as error:  # a panic in Rust is no Exception
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            self._why = f"the model's tokenizer is not supported: {error}"

    def prepare(self, text: str, on_end: Callable[[str | None], object]) -> None:
        """Compile a grammar in a thread, which then calls ``on_end`` with None, or with the reason why it cannot be used."""
        self._compiled[text] = compiled = self._thread.submit(self._compile, text)
        compiled.add_done_callback(lambda ended: None if ended.cancelled() else on_end(_why_not(ended)))

    def drop(self, text: str) -> None:
        """Forget a grammar. If it is not compiled yet, it need not be."""
        self._compiled.pop(text).cancel()

    def begin(self, grammar: Grammar, ends: Sequence[int]) -> Answer:
        """Return the state of a new answer, which may end with the tokens ``ends``. Its grammar is compiled, see `prepare`."""
        compiled = self._compiled[grammar.text]
        assert compiled.done(), "the engine waits for it"
        return Answer(compiled.result().deep_copy(), grammar.after, ends, self._vocab_size)

    def _compile(self, text: str) -> LLMatcher:
        from llguidance import LLMatcher

        if self._tokenizer is None:
            raise GrammarError(f"structured_outputs are not possible: {self._why}")
        matcher = LLMatcher(self._tokenizer, text, log_level=0, limits=limits())
        if matcher.is_error():
            raise GrammarError(f"structured_outputs are refused: {brief(matcher.get_error())}")
        return matcher


def _why_not(compiled: Future[LLMatcher]) -> str | None:
    error = compiled.exception()
    if error is None or isinstance(error, GrammarError):
        return None if error is None else str(error)
    return f"structured_outputs cannot be used: {type(error).__name__}: {brief(str(error))}"


class Answer:
    """One request's answer under its grammar: the tokens so far, and which may come next."""

    def __init__(self, matcher: LLMatcher, after: Sequence[int], ends: Sequence[int], vocab_size: int) -> None:
        self._matcher = matcher
        self._after = frozenset(after)
        self._is_free = bool(after)
        self._is_over = False
        self._ends = frozenset(ends)
        self._num_words = -(-vocab_size // 32)
        self._only_ends = np.zeros(self._num_words, np.uint32)
        for token in ends:
            self._only_ends[token // 32] |= np.uint32(1 << token % 32)

    def accept(self, token_ids: Sequence[int]) -> None:
        """Append tokens, which the masks allowed.

        Raises:
            GrammarError: they are not allowed, or the grammar reaches a limit.
        """
        for token in token_ids:
            if not self._advance(token):
                if not self._is_over and self._matcher.is_error():
                    raise self._error()
                raise GrammarError(f"token {token} does not match structured_outputs")

    def masks(self, drafts: Sequence[int]) -> list[Words | None]:
        """Return which tokens may follow each prefix of ``drafts``, the empty one first: 1 + len(drafts) masks ``[W]``.

        None: all tokens may, or a draft before is not allowed. The answer is the same afterwards.

        Raises:
            GrammarError: the grammar reaches a limit.
        """
        masks = [self._mask()]
        before, num_consumed = (self._is_free, self._is_over), 0
        try:
            for draft in drafts:
                consumes = not (self._is_free or self._is_over or draft in self._ends)
                if not self._allows(masks[-1], draft) or not self._advance(draft):
                    break
                num_consumed += consumes
                masks.append(self._mask())
        finally:
            self._is_free, self._is_over = before
            if num_consumed:
                self._matcher.rollback(num_consumed)
        return masks + [None] * (1 + len(drafts) - len(masks))

    def num_allowed(self, drafts: Sequence[int]) -> int:
        """Return how many of ``drafts`` may follow, from the first on. The answer is the same afterwards."""
        if self._is_free:
            return len(drafts)
        if self._is_over:
            return 0
        return int(self._matcher.validate_tokens(list(drafts)))

    def _advance(self, token: int) -> bool:
        """Append a token. Return whether it was possible."""
        if self._is_free:
            self._is_free = token not in self._after
            return True
        if self._is_over or token in self._ends:
            self._is_over = True
            return token in self._ends
        return bool(self._matcher.try_consume_tokens([token]) == 1)

    def _mask(self) -> Words | None:
        if self._is_free:
            return None
        if self._is_over:
            return self._only_ends.view(np.int32)
        matcher = self._matcher
        is_complete = matcher.is_accepting()  # not to be asked after an error
        words = np.frombuffer(matcher.compute_bitmask(), np.uint32)[: self._num_words]
        if matcher.is_error():
            raise self._error()
        if matcher.is_stopped():
            words = self._only_ends
        elif is_complete:
            words = words | self._only_ends
        return words.view(np.int32)

    def _error(self) -> GrammarError:
        return GrammarError(f"the answer cannot go on under structured_outputs: {brief(self._matcher.get_error())}")

    @staticmethod
    def _allows(mask: Words | None, token: int) -> bool:
        return mask is None or bool(mask[token // 32] >> (token % 32) & 1)


def masked(logits_RV: Tensor, masks: Sequence[tuple[int, Words]]) -> Tensor:
    """Return a copy of the logits with -inf for the tokens that must not come: rows and their masks ``[W]``."""
    device, vocab_size = logits_RV.device, logits_RV.shape[-1]
    rows_M = to_device([row for row, _ in masks], torch.int64, device)
    words_MW = to_device(np.stack([words for _, words in masks]), torch.int32, device)
    bits_MWB = words_MW.unsqueeze(-1) >> torch.arange(32, dtype=torch.int32, device=device) & 1
    forbidden_MV = bits_MWB.flatten(1)[:, :vocab_size] == 0
    logits_MV = logits_RV.index_select(0, rows_M).masked_fill_(forbidden_MV, -torch.inf)
    return logits_RV.clone().index_copy_(0, rows_M, logits_MV)
