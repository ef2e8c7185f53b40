"""What llguidance may spend on a grammar, in a worker and in the process that checks grammars. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from llguidance import LLParserLimits

MAX_LEXER_STATES: Final = 20_000
"""States of a grammar's automaton: each takes 1 to 2 kB, and they are made as answers need them."""


def limits() -> LLParserLimits:
    """Return how much work and memory a grammar may take. Other limits are llguidance's: a mask takes up to about 20 ms."""
    from llguidance import LLParserLimits

    return LLParserLimits(max_lexer_states=MAX_LEXER_STATES, verbose_errors=False)


def brief(message: str) -> str:
    """Return llguidance's message in one line, without the place in the text that it shows.

    >>> brief("at 1(8): invalid regex: parse error:\\n  (a\\n  ^\\nerror: unclosed group\\n 1 | start: ")
    'at 1(8): invalid regex: parse error: unclosed group'
    """
    lines = message.strip().splitlines() or [""]
    reasons = [line.removeprefix("error:") for line in lines[1:] if line.startswith("error:")]
    return "".join([lines[0], *reasons])[:500]
