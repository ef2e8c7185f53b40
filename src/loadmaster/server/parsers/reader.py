"""Reads text that arrives in parts, by programs that read as if all of it were there.

A program is a generator. It yields when it needs more text, and is resumed when there is more or when the text has ended.
Every character is looked at a bounded number of times, so the time is linear in the length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from functools import lru_cache
from typing import TypeVar

from loadmaster.server.parsers.events import Event

T = TypeVar("T")
Program = Generator[None, None, T]

SPACE = " \t\r\n"
_STRUCTURE = re.compile(r'["{}\[\]]')
_IN_STRING = re.compile(r'["\\]')
_END_OF_SCALAR = re.compile(r'[\s,:"{}\[\]<]')
_NOT_SPACE = re.compile(r"[^ \t\r\n]")

MAX_DEPTH = 512
"""Arguments that are nested deeper are treated as malformed: JSON libraries cannot read them either."""


class Reader:
    """Runs one program, `_parse`, over text that arrives in parts. Subclasses implement it."""

    def __init__(self) -> None:
        self._text = ""
        self._at = 0  # the text before it is consumed
        self._ended = False
        self._consumed: list[str] | None = None  # kept while it may become content
        self._events: list[Event] = []
        self._program = self._parse()
        self._is_over = False

    def add(self, text: str) -> list[Event]:
        """Add a part of the output; return what is certain after it."""
        self._text = self._text[self._at :] + text
        self._at = 0
        return self._resume()

    def finish(self) -> list[Event]:
        """Return what was held back. Call it once, after the last `add`."""
        self._ended = True
        return self._resume()

    def _parse(self) -> Program[None]:
        """Read all of the text."""
        raise NotImplementedError

    def _resume(self) -> list[Event]:
        if not self._is_over:
            self._is_over = next(self._program, self) is self
        events, self._events = self._events, []
        return events

    def _advance(self, end: int) -> str:
        """Consume the text before ``end``, and return it."""
        text = self._text[self._at : end]
        self._at = end
        if self._consumed is not None:
            self._consumed.append(text)
        return text

    def _take(self, *markers: str) -> Program[tuple[str, str | None]]:
        """Return text before the next of ``markers``, and the marker if it follows; both are consumed.

        Waits for either. ``("", None)``: the text has ended. No marker may begin with another.
        """
        pattern = _pattern(markers)
        while True:
            if (found := pattern.search(self._text, self._at)) is not None:
                text = self._advance(found.start())
                return text, self._advance(found.end())
            end = len(self._text) if self._ended else _certain(self._text, self._at, markers)
            if end > self._at or self._ended:
                return self._advance(end), None
            yield

    def _take_until(self, *markers: str) -> Program[tuple[str, str | None]]:
        """Return all text before the next of ``markers``, and the marker; None if the text ended before one."""
        parts = []
        while True:
            text, marker = yield from self._take(*markers)
            parts.append(text)
            if marker is not None or not text:
                return "".join(parts), marker

    def _peek(self) -> Program[str]:
        """Return the next character without consuming it; it is empty if the text has ended."""
        while self._at == len(self._text) and not self._ended:
            yield
        return self._text[self._at : self._at + 1]

    def _skip_space(self) -> Program[str]:
        """Consume white space. Return the next character without consuming it; it is empty if the text has ended."""
        while True:
            found = _NOT_SPACE.search(self._text, self._at)
            self._advance(len(self._text) if found is None else found.start())
            if found is not None or self._ended:
                return self._text[self._at : self._at + 1]
            yield

    def _starts_with(self, marker: str) -> Program[bool]:
        """Return whether ``marker`` is next, and consume it if so."""
        while not self._ended and len(self._text) - self._at < len(marker):
            if not marker.startswith(self._text[self._at :]):
                return False
            yield
        if not self._text.startswith(marker, self._at):
            return False
        self._advance(self._at + len(marker))
        return True

    def _json(self, pass_on: Callable[[str], None]) -> Program[bool]:
        """Consume a JSON value and pass its text on in parts. Return whether it is complete.

        Strings and brackets are followed, which is what finding its end takes; the rest is not checked.
        """
        first = yield from self._peek()
        if first not in ('"', "{", "["):
            return (yield from self._scalar(pass_on))
        closers: list[str] = []
        in_string = False
        while True:
            if not (yield from self._peek()):
                return False
            found = (_IN_STRING if in_string else _STRUCTURE).search(self._text, self._at)
            if found is None:
                pass_on(self._advance(len(self._text)))
                continue
            pass_on(self._advance(found.end()))
            character = found.group()
            if character == "\\":
                if not (yield from self._peek()):
                    return False
                pass_on(self._advance(self._at + 1))
            elif character == '"':
                in_string = not in_string
            elif character in "{[":
                if len(closers) == MAX_DEPTH:
                    return False
                closers.append("}" if character == "{" else "]")
            elif closers.pop() != character:
                return False
            if not closers and not in_string:
                return True

    def _scalar(self, pass_on: Callable[[str], None]) -> Program[bool]:
        is_empty = True
        while True:
            if not (yield from self._peek()):
                return False
            found = _END_OF_SCALAR.search(self._text, self._at)
            end = len(self._text) if found is None else found.start()
            if end > self._at:
                is_empty = False
                pass_on(self._advance(end))
            if found is not None:
                return not is_empty


@lru_cache(maxsize=256)
def _pattern(markers: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, markers)))


def _certain(text: str, at: int, markers: tuple[str, ...]) -> int:
    """Return where the text ends that cannot be part of a marker whose rest has yet to arrive."""
    for start in range(max(at, len(text) - max(map(len, markers)) + 1), len(text)):
        if any(m.startswith(text[start:]) for m in markers):
            return start
    return len(text)
