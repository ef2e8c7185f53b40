"""Carries out batches on one rank: receives, computes, sends, and on the last stage samples.

All ranks of the last stage sample, from the same logits and so the same tokens; the first of them answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from loadmaster.distributed.group import PipelineGroup
from loadmaster.layers.step import Context, Step
from loadmaster.workers.batch import Batch, Done, Sampled, Span
from loadmaster.workers.builder import Stage
from loadmaster.workers.decode_graphs import DecodeGraphs
from loadmaster.workers.drafter import Drafter
from loadmaster.workers.messages import Allocate, Drop, Place, Prepare, Prepared, Usage, Vocabulary
from loadmaster.workers.page_table import PageTable
from loadmaster.workers.pulse import Phase, Pulse
from loadmaster.workers.sampler import Sampler


class StageRunner:
    """Holds what one stage knows of its requests, their page tables, and its KV cache.

    A last stage with a draft model proposes ``allocate.num_speculative_tokens`` after each token.
    """

    def __init__(
        self,
        stage: Stage,
        group: PipelineGroup,
        allocate: Allocate,
        place: Place | None = None,
        pulse: Pulse | None = None,
    ) -> None:
        self._stage = stage
        self._group = group
        self._place = place or Place(group.stage, group.num_stages)
        self._is_last = self._place.is_last
        self._pulse = pulse
        self._page_size = allocate.page_size
        if stage.device.type == "cuda":
            torch.cuda.set_device(stage.device)  # Triton and graphs use the thread's device, not that of their tensors
        has_graphs = stage.device.type == "cuda" and stage.is_capturable
        self._cache: Any = stage.new_cache(allocate.num_pages + has_graphs, allocate.page_size)
        self._graphs = DecodeGraphs(stage, self._cache, allocate.num_pages, allocate.page_size) if has_graphs else None
        self._tables: dict[int, PageTable] = {}
        self._scored: set[int] = set()  # requests that want the logprobs of their prompt
        self._sampler = Sampler(stage.vocab_size, allocate.end_token_ids)
        self._drafter: Drafter | None = None
        if allocate.num_speculative_tokens and stage.draft is not None:
            self._drafter = Drafter(stage.draft, self._cache, self._tables, allocate.num_speculative_tokens)
        self._busy_s = self._input_s = self._engine_s = 0.0
        self._num_batches = self._num_tokens = 0

    def run(self, batch: Batch, waited_s: float = 0.0) -> Done | None:
        """Compute one batch. Return its results on the last stage's first rank. ``waited_s``: the wait for the batch."""
        begin = time.perf_counter()
        self._forget(batch.finished)
        step = self._step(batch)
        inputs: dict[str, torch.Tensor] = {}
        input_s = 0.0
        if self._place.stage > 0:
            prepared = time.perf_counter()
            self._tell(Phase.RECEIVING, batch)
            inputs = self._group.receive_previous(tuple(self._stage.carries_in))
            input_s = time.perf_counter() - prepared
        self._tell(Phase.COMPUTING, batch)
        num_tokens = sum(len(span.token_ids) for span in batch.spans)
        if self._graphs is not None and step.is_refilled:
            outputs = self._graphs.forward(inputs, step, num_tokens)
        else:
            outputs = self._stage.forward(inputs, step, self._cache)
        done = None
        if self._is_last:
            sampled = self._sample(batch, outputs["logits"])
            if self._drafter is not None:
                sampled = self._drafter.propose(batch.spans, sampled, outputs["hidden_states"])
                sampled = self._sampler.without_wrong_drafts(sampled)
            done = Done(batch.number, tuple(sampled))
        else:
            self._group.send_next(outputs, tuple(self._stage.carries_out))
        self._tell(Phase.IDLE, batch)
        self._busy_s += time.perf_counter() - begin - input_s
        self._input_s += input_s
        self._engine_s += waited_s
        self._num_batches += 1
        self._num_tokens += num_tokens
        return done if self._place.slot == 0 else None

    def learn(self, vocabulary: Vocabulary) -> None:
        """Take the texts of the tokens, which structured outputs need. Only the last stage does something with them."""
        if self._is_last:
            self._sampler.grammars.learn(vocabulary)

    def prepare(self, message: Prepare, answer: Callable[[Prepared], object]) -> None:
        """Compile a grammar in a thread, which passes the answer to ``answer``. For the last stage."""
        number = message.number
        self._sampler.grammars.prepare(message.grammar, lambda error: answer(Prepared(number, error)))

    def drop(self, message: Drop) -> None:
        """Forget a grammar that no request needs. For the last stage."""
        self._sampler.grammars.drop(message.grammar)

    def usage(self) -> Usage:
        """Return how the rank has spent its time so far."""
        at = self._place
        return Usage(
            at.rank, at.stage, self._busy_s, self._input_s, self._engine_s, self._num_batches, self._num_tokens
        )

    def _tell(self, phase: Phase, batch: Batch) -> None:
        if self._pulse is not None:
            self._pulse.set(self._place.rank, phase, batch.number)

    def _forget(self, requests: tuple[int, ...]) -> None:
        for request in requests:
            self._tables.pop(request, None)
            self._scored.discard(request)
            self._sampler.forget(request)
            if self._drafter is not None:
                self._drafter.forget(request)

    def _step(self, batch: Batch) -> Step:
        contexts: list[Context] = []
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        logit_rows: list[int] = []
        for span in batch.spans:
            if span.start is not None:
                self._begin(span)
            table = self._tables[span.request]
            table.add(span.new_pages)
            row = len(token_ids)
            token_ids += span.token_ids
            positions += range(span.first, span.stop)
            slots += table.slots(span.first, span.stop)
            contexts.append(table.context(row, len(token_ids), span.first, span.stop))
            logit_rows += range(len(token_ids) - self._num_rows(span), len(token_ids))
        numbers = contexts, token_ids, positions, slots, logit_rows
        if self._graphs is not None and (step := self._graphs.step(*numbers)) is not None:
            return step
        return Step(*numbers, self._stage.device)

    def _begin(self, span: Span) -> None:
        assert span.start is not None
        self._tables[span.request] = PageTable(self._page_size)
        if span.start.params.prompt_logprobs is not None:
            self._scored.add(span.request)
        if self._is_last:
            self._sampler.begin(span.request, span.start)
        if self._drafter is not None:
            self._drafter.begin(span.request, span.start)

    def _sample(self, batch: Batch, logits_RV: torch.Tensor) -> list[Sampled]:
        if not any(span.request in self._scored for span in batch.spans):
            return self._sampler.sample(logits_RV, batch.spans)
        scores: dict[int, Sampled] = {}
        rows = []
        for span, logits in zip(batch.spans, logits_RV.split([self._num_rows(s) for s in batch.spans]), strict=True):
            if span.request in self._scored:
                scores[span.request] = self._sampler.prompt_logprobs(logits, span)
            rows.append(logits[len(logits) - span.num_logits :])
        sampled = self._sampler.sample(torch.cat(rows), batch.spans)
        return [_with_scores(s, scores.pop(s.request, None)) for s in sampled] + list(scores.values())

    def _num_rows(self, span: Span) -> int:
        """Return how many rows of logits a span needs: those of its whole prompt if their logprobs are wanted."""
        return len(span.token_ids) if span.request in self._scored else span.num_logits


def _with_scores(sampled: Sampled, scores: Sampled | None) -> Sampled:
    if scores is None or sampled.error is not None:
        return sampled
    return replace(sampled, prompt_logprobs=scores.prompt_logprobs, error=scores.error)
