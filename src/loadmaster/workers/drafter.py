"""Runs the draft model on the last stage: which positions, with which tokens, into which slots of the cache.

After each batch, every position whose next token has become known is run through the MTP layers, prompts included, so their
cache is complete: a draft's attention sees the whole request. What was computed from drafts that were rejected is computed
again before it is read.

**One MTP layer** is run over the new positions, which gives the first draft, and then once for each further draft, at the
next position, with its own hidden states and its own last token. **Several** are run one after another over the same
positions, each with tokens one place later, and give one draft each. The last positions of all but the first are computed
from drafts, so they are run again with the next batch; the drafter keeps the model's hidden states for that.

Nothing waits for the device before the drafts are copied to the host, once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from loadmaster.layers.step import Context, Step
from loadmaster.models.draft import Draft, DraftLayer, extended_selection
from loadmaster.models.layer import State
from loadmaster.workers.batch import Sampled, Span, Start
from loadmaster.workers.page_table import PageTable


class _Request:
    """All tokens of a request, the most it may have (None: not known here), and the hidden states of its last positions."""

    def __init__(self, start: Start) -> None:
        self.token_ids = list(start.token_ids)
        limit = start.params.max_tokens
        self.max_length = None if limit is None else start.num_prompt + limit
        self.tail_TH: Tensor | None = None


@dataclass(slots=True)
class _Work:
    """Positions ``first`` to ``stop`` of a request; ``rows`` are their rows in the hidden states that the next layer takes.

    ``samples``: the tokens are the last that exist, so up to ``num_drafts`` drafts follow. Else more of the prompt follows.
    """

    request: _Request
    table: PageTable
    first: int
    stop: int
    rows: list[int]
    samples: bool
    num_drafts: int = 0
    drafts: list[int] = field(default_factory=list)

    def stop_in(self, layer: int) -> int:
        """Return where a layer stops. It takes tokens ``layer + 1`` after each position: those that follow a part of a
        prompt may not exist yet, and the positions come with the next part then."""
        return self.stop if self.samples else min(self.stop, len(self.request.token_ids) - 1 - layer)


Proposals = list[tuple[Sequence[_Work], Tensor]]
"""Works, and the next draft of each ``[R]``."""


class Drafter:
    """Proposes up to ``num_tokens`` drafts after each request's last token. ``tables`` are the runner's page tables.

    A draft model of several layers has at least ``num_tokens``.
    """

    def __init__(self, draft: Draft, cache: Any, tables: Mapping[int, PageTable], num_tokens: int) -> None:
        self._layers: Sequence[DraftLayer] = draft.layers[:num_tokens]
        self._cache = cache
        self._tables = tables
        self._num_tokens = num_tokens
        self._requests: dict[int, _Request] = {}

    def begin(self, request: int, start: Start) -> None:
        """Learn about a request, also when it starts again after a preemption."""
        self._requests[request] = _Request(start)

    def forget(self, request: int) -> None:
        """Forget a request that has ended; nothing happens if it is not known."""
        self._requests.pop(request, None)

    @torch.inference_mode()
    def propose(self, spans: Sequence[Span], sampled: Sequence[Sampled], hidden_TH: Tensor) -> list[Sampled]:
        """Return ``sampled`` with the drafts that follow its tokens.

        ``hidden_TH`` are the model's hidden states, after its final norm, of all tokens of ``spans``.
        """
        results = {s.request: s for s in sampled}
        works: dict[int, _Work] = {}
        row = 0
        for span in spans:
            result = results.get(span.request)
            if result is None or result.error is None:
                works[span.request] = self._work(span, () if result is None else result.token_ids, row)
            row += len(span.token_ids)
        if works:
            self._run(list(works.values()), hidden_TH)
        return [replace(s, drafts=tuple(works[s.request].drafts)) if s.request in works else s for s in sampled]

    def _work(self, span: Span, token_ids: Sequence[int], row: int) -> _Work:
        request, table = self._requests[span.request], self._tables[span.request]
        if not span.num_logits:
            return _Work(
                request, table, span.first, span.stop, list(range(row, row + len(span.token_ids))), samples=False
            )
        request.token_ids += token_ids
        length = len(request.token_ids)
        stop = length - 1
        wanted = self._num_tokens
        if request.max_length is not None:  # the model adds one token to the drafts
            wanted = min(wanted, request.max_length - length - 1)
        if len(self._layers) == 1:  # each draft but the first needs a slot
            wanted = min(wanted, len(table.pages) * table.page_size - stop + 1)
        rows = list(range(row, row + stop - span.first))
        return _Work(request, table, span.first, stop, rows, samples=True, num_drafts=wanted)

    def _run(self, works: Sequence[_Work], hidden_TH: Tensor) -> None:
        """Run all layers over the works, and give each work its drafts."""
        if len(self._layers) > 1:
            hidden_TH = self._with_tails(works, hidden_TH)
        proposals: Proposals = []
        for i, layer in enumerate(self._layers):
            works = [w for w in works if w.stop_in(i) > w.first]
            if not works:
                break
            rows_T = _indices([r for w in works for r in w.rows[: w.stop_in(i) - w.first]], hidden_TH.device)
            state: State = {"hidden_states": hidden_TH.index_select(0, rows_T)}
            step = self._step(works, i, hidden_TH.device)
            state = layer(state, _filled(step, works, i, proposals), step, self._cache)
            hidden_TH = state["hidden_states"]
            sampling = [w for w in works if w.samples]
            if sampling:
                last_R = _indices([w.rows[-1] for w in sampling], hidden_TH.device)
                proposals.append((sampling, layer.propose(hidden_TH.index_select(0, last_R))))
        if len(self._layers) == 1 and proposals:
            proposals += self._repeat(self._layers[0], *proposals[0], _selected(state, last_R))
        if proposals:
            tokens = iter(torch.cat([tokens_R for _, tokens_R in proposals]).tolist())
            for proposed, _ in proposals:
                for work in proposed:
                    work.drafts.append(next(tokens))
        for work in works:
            del work.drafts[max(work.num_drafts, 0) :]

    def _with_tails(self, works: Sequence[_Work], hidden_TH: Tensor) -> Tensor:
        """Let each work begin at the positions that layers compute again. Return the hidden states with theirs added."""
        parts = [hidden_TH]
        num_rows = len(hidden_TH)
        for work in works:
            tail_TH = work.request.tail_TH
            if tail_TH is not None:
                work.rows = [*range(num_rows, num_rows + len(tail_TH)), *work.rows]
                work.first -= len(tail_TH)
                num_rows += len(tail_TH)
                parts.append(tail_TH)
        hidden_TH = torch.cat(parts)
        for work in works:
            rows_T = _indices(work.rows[1 - len(self._layers) :], hidden_TH.device)
            work.request.tail_TH = hidden_TH.index_select(0, rows_T)
        return hidden_TH

    def _step(self, works: Sequence[_Work], layer: int, device: torch.device) -> Step:
        """Return the step of a layer, with 0 for tokens that are drafts. The works' rows become those of the step."""
        contexts: list[Context] = []
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        for work in works:
            first, stop, known = work.first, work.stop_in(layer), work.request.token_ids
            start = len(positions)
            positions += range(first, stop)
            slots += work.table.slots(first, stop)
            token_ids += known[first + 1 + layer : stop + 1 + layer]
            token_ids += [0] * (len(positions) - len(token_ids))
            contexts.append(work.table.context(start, len(positions), first, stop))
            work.rows = list(range(start, len(positions)))
        return Step(contexts, token_ids, positions, slots, (), device)

    def _repeat(self, layer: DraftLayer, works: Sequence[_Work], tokens_R: Tensor, state: State) -> Proposals:
        """Run the only layer again for each further draft, at one position of each work that wants one."""
        proposals: Proposals = []
        for j in range(1, self._num_tokens):
            going_on = [r for r, w in enumerate(works) if w.num_drafts > j]
            if not going_on:
                break
            if len(going_on) < len(works):
                index_R = _indices(going_on, tokens_R.device)
                works = [works[r] for r in going_on]
                state, tokens_R = _selected(state, index_R), tokens_R.index_select(0, index_R)
            positions = [w.stop - 1 + j for w in works]
            step = Step(
                [w.table.context(r, r + 1, p, p + 1) for r, (w, p) in enumerate(zip(works, positions, strict=True))],
                [0] * len(works),
                positions,
                [slot for w, p in zip(works, positions, strict=True) for slot in w.table.slots(p, p + 1)],
                (),
                tokens_R.device,
            )
            state = layer(extended_selection(state, step.positions_T), tokens_R, step, self._cache, again=True)
            tokens_R = layer.propose(state["hidden_states"])
            proposals.append((works, tokens_R))
        return proposals


def _filled(step: Step, works: Sequence[_Work], layer: int, proposals: Proposals) -> Tensor:
    """Return the step's tokens; those that do not exist yet are the drafts of the layers before ``layer``."""
    token_ids_T = step.token_ids_T
    for j, (proposed, tokens_R) in enumerate(proposals):
        back = layer - j  # draft j is the token of the position that is this far before the stop
        places = [(w.rows[-back], r) for r, w in enumerate(proposed) if len(w.rows) >= back]
        if places:
            rows_T, from_T = (_indices(x, token_ids_T.device) for x in zip(*places, strict=True))
            token_ids_T = token_ids_T.index_copy(0, rows_T, tokens_R.index_select(0, from_T))
    return token_ids_T


def _selected(state: State, rows_R: Tensor) -> State:
    return {name: rows_TX.index_select(0, rows_R) for name, rows_TX in state.items()}


def _indices(rows: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64).to(device, non_blocking=True)
