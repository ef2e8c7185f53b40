"""Batches: windows of the texts and of the conversations, some with a span that comes twice.

Where a span is repeated, a model that finds its first occurrence can copy it, however far back that is. A model of this size
needs more training than this run for it: demo/glm/README.md has the figure (``recall_perplexity``).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from tools.trained.config import END, SPECIAL
from tools.trained.text import Texts

CONVERSATIONS, REPEATED = 0.2, 0.3
"""Shares of the windows that are conversations, and that have a repeated span."""

SPAN = (64, 512)
"""Tokens of a repeated span: least, most."""


@dataclass(frozen=True)
class Data:
    """Token ids, each one-dimensional: ``text``, ``conversations``, and the texts held out, one by one."""

    text: Tensor
    conversations: Tensor
    held_out: tuple[Tensor, ...]

    @classmethod
    def of(cls, texts: Texts, tokenizer: Tokenizer) -> Data:
        """Return the texts as tokens, with an end after each document."""
        end = SPECIAL.index(END)
        documents = [[*e.ids, end] for e in tokenizer.encode_batch(texts.documents)]
        conversations = [e.ids for e in tokenizer.encode_batch(texts.conversations)]
        held_out = tuple(torch.tensor(e.ids) for e in tokenizer.encode_batch(texts.held_out))
        return cls(_joined(documents), _joined(conversations), held_out)

    def save(self, path: Path) -> None:
        """Write the tokens to a file, so that they need not be made again."""
        torch.save([t.short() for t in (self.text, self.conversations, *self.held_out)], path)

    @classmethod
    def load(cls, path: Path) -> Data:
        """Return what `save` wrote."""
        text, conversations, *held_out = (t.long() for t in torch.load(path))
        return cls(text, conversations, tuple(held_out))

    def windows(self, num_windows: int, num_tokens: int, generator: torch.Generator) -> Tensor:
        """Return ``[num_windows, num_tokens]`` token ids, drawn at random."""
        rows = []
        for _ in range(num_windows):
            talks = _uniform(generator) < CONVERSATIONS
            row = _window(self.conversations if talks else self.text, num_tokens, generator)
            rows.append(repeat_span(row, generator) if _uniform(generator) < REPEATED else row)
        return torch.stack(rows)


def repeat_span(row: Tensor, generator: torch.Generator) -> Tensor:
    """Return a copy of ``row`` in which a span from somewhere is written again somewhere later."""
    length = _between(SPAN[0], min(SPAN[1], len(row) // 3), generator)
    first = _between(0, len(row) - 2 * length, generator)
    second = _between(first + length, len(row) - length, generator)
    row = row.clone()
    row[second : second + length] = row[first : first + length]
    return row


def _window(tokens: Tensor, length: int, generator: torch.Generator) -> Tensor:
    start = _between(0, len(tokens) - length, generator)
    return tokens[start : start + length]


def _joined(pieces: list[list[int]]) -> Tensor:
    return torch.tensor([token for piece in pieces for token in piece])


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))


def _between(least: int, most: int, generator: torch.Generator) -> int:
    return int(torch.randint(least, most + 1, (), generator=generator))
