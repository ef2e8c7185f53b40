"""Divides reasoning from the answer: ``<think>…</think>`` (DeepSeek, Qwen, GLM, MiniMax) and ``[THINK]…[/THINK]`` (Mistral)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from loadmaster.server.parsers.events import Event, Parser, PlainText
from loadmaster.server.parsers.events import Reasoning as ReasoningEvent
from loadmaster.server.parsers.reader import Program, Reader


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """How a model marks its reasoning.

    ``calls``: markers that end it too, since a tool call begins. ``begins_with``: the model may leave the first marker out,
    and its output then begins with reasoning. ``strips_end``: white space at its end is dropped.
    """

    start: str = "<think>"
    end: str = "</think>"
    calls: tuple[str, ...] = ()
    begins_with: bool = True
    strips_end: bool = False

    @property
    def markers(self) -> tuple[str, ...]:
        """The texts that a tokenizer must not leave out."""
        return (self.start, self.end, *self.calls)


FORMATS: Final = {
    "deepseek_r1": ReasoningFormat(),
    "deepseek_v3": ReasoningFormat(begins_with=False),
    "glm45": ReasoningFormat(calls=("<tool_call>",), strips_end=True),
    "minimax_m2": ReasoningFormat(calls=("<minimax:tool_call>",), strips_end=True),
    "mistral": ReasoningFormat("[THINK]", "[/THINK]", ("[TOOL_CALLS]",), begins_with=False, strips_end=True),
    "qwen3": ReasoningFormat(calls=("<tool_call>",)),
}
"""The formats, by the names of vLLM's parsers."""

Beginning = Literal["reasoning", "content", "either"]
"""What an output begins with. Either: it begins with reasoning if it begins with the marker."""


def beginning_of(prompt: str, reasoning: ReasoningFormat, *, otherwise: Beginning) -> Beginning:
    """Return what the output after a rendered prompt begins with.

    Templates end a prompt with an open ``<think>``, or with a closed one to turn reasoning off; if they do neither it is
    ``otherwise``.

    >>> [beginning_of(p, FORMATS["qwen3"], otherwise="either") for p in ("<think>\\n", "<think></think>\\n", "</think>hi")]
    ['reasoning', 'content', 'either']
    """
    prompt = prompt.rstrip()
    if prompt.endswith(reasoning.start):
        return "reasoning"
    return "content" if prompt.endswith(reasoning.end) else otherwise


class ReasoningParser(Reader):
    """Reports the reasoning, and gives what follows to the parser ``then``, with the marker of a tool call that ends it.

    An output that is cut off before the end of the reasoning is reasoning only. Markers after its end are content.
    """

    def __init__(self, reasoning: ReasoningFormat, then: Parser | None = None, beginning: Beginning = "either") -> None:
        super().__init__()
        self._format, self._then, self._beginning = reasoning, then or PlainText(), beginning
        self._space: list[str] = []

    def finish(self) -> list[Event]:
        """Return what was held back, here and in the parser of the rest."""
        return [*super().finish(), *self._then.finish()]

    def _parse(self) -> Program[None]:
        if self._beginning != "content":
            yield from self._reasoning()
        while (yield from self._peek()):
            self._events += self._then.add(self._advance(len(self._text)))

    def _reasoning(self) -> Program[None]:
        self._consumed = []
        yield from self._skip_space()
        space, self._consumed = "".join(self._consumed), None
        if not (yield from self._starts_with(self._format.start)):
            if self._beginning == "either":
                self._events += self._then.add(space)
                return
            self._report(space)
        while True:
            text, marker = yield from self._take(self._format.end, *self._format.calls)
            self._report(text)
            if marker in self._format.calls:
                self._events += self._then.add(marker or "")
            if marker is not None or not text:
                return

    def _report(self, text: str) -> None:
        """Report reasoning. White space that may be its end is held back if it is to be dropped."""
        if self._format.strips_end:
            body = text.rstrip()
            rest = text[len(body) :]
            text = "".join((*self._space, body)) if body else ""
            self._space = [rest] if body else [*self._space, rest]
        if text:
            self._events.append(ReasoningEvent(text))
