"""What a parser of a model's output reports, and the interface of parsers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Content:
    """A part of the answer's text."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A part of the model's reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegun:
    """Tool call ``index``, from 0, begins: the model calls the function ``name``."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """A part of the arguments of tool call ``index``. All parts, joined, are JSON if the model wrote valid JSON."""

    index: int
    text: str


Event = Content | Reasoning | CallBegun | Arguments


class Parser(Protocol):
    """Divides a model's output, which arrives in parts. It is pure, and raises nothing whatever the model writes.

    The events of all parts, joined (`Parsed`), do not depend on where the output was cut.
    """

    def add(self, text: str) -> list[Event]:
        """Add a part of the output; return what is certain after it."""

    def finish(self) -> list[Event]:
        """Return what was held back. Call it once, after the last `add`."""


class PlainText:
    """The parser of models whose output is content only."""

    def add(self, text: str) -> list[Event]:
        """Return the text as content."""
        return [Content(text)] if text else []

    def finish(self) -> list[Event]:
        """Return nothing, since nothing is held back."""
        return []


@dataclass
class Parsed:
    """The joined events of an output. ``calls`` are the names and arguments of tool calls.

    >>> Parsed.of([Content("a"), CallBegun(0, "f"), Arguments(0, "{"), Content("b"), Arguments(0, "}")])
    Parsed(content='ab', reasoning='', calls=[['f', '{}']])
    """

    content: str = ""
    reasoning: str = ""
    calls: list[list[str]] = field(default_factory=list)

    @classmethod
    def of(cls, events: Iterable[Event]) -> Parsed:
        """Join events."""
        content: list[str] = []
        reasoning: list[str] = []
        calls: list[tuple[str, list[str]]] = []
        for event in events:
            match event:
                case Content(text):
                    content.append(text)
                case Reasoning(text):
                    reasoning.append(text)
                case CallBegun(_, name):
                    calls.append((name, []))
                case Arguments(index, text):
                    calls[index][1].append(text)
        return cls("".join(content), "".join(reasoning), [[name, "".join(parts)] for name, parts in calls])
