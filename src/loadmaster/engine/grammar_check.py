"""Checks structured outputs before a request begins: in a process with limits, so that a hostile schema harms no other request.

`loadmaster.engine.grammar_process` compiles them there as a worker will. What does not compile within the limits, or allows
no answer, is refused.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any, Final

from loadmaster.engine.child import Child, receive, send
from loadmaster.errors import RequestError, RunError
from loadmaster.workers.structured_outputs import Grammar, StructuredOutputs

CPU_S: Final = 2
"""Seconds of a CPU that a check may take. A schema with 2,000 properties takes a third of a second."""

MEMORY_BYTES: Final = 512 * 2**20
"""How much memory a check may take."""

ANSWER_WITHIN_S: Final = 120.0
"""How long the process may take to answer: on a busy machine, and the first time it has to start."""

MAX_KEPT: Final = 256
"""How many results are kept for later requests."""


WHAT: Final = "checks structured outputs"


class GrammarCheck:
    """Checks structured outputs, one at a time. Starts its process for the first, and again if it has ended.

    Usable from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards everything but ``_is_closed``
        self._child: Child | None = None
        self._kept: OrderedDict[StructuredOutputs, Grammar | str] = OrderedDict()
        self._is_closed = False

    def compiled(self, wanted: StructuredOutputs) -> Grammar:
        """Return the grammar of ``wanted``. Blocks for as long as it takes to check it, if that was not done before.

        Raises:
            RequestError: it is not valid, not supported, allows no answer, or exceeds the limits.
            RunError: the process cannot be started or reached, or `close` was called.
        """
        with self._lock:
            result = self._kept.pop(wanted, None)
            if result is None:
                result = self._check(wanted)
            self._kept[wanted] = result
            if len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        if isinstance(result, str):
            raise RequestError(f"structured_outputs {result}")
        return result

    def close(self) -> None:
        """End the process. A check that is going on fails. May be called again."""
        self._is_closed = True
        if (child := self._child) is not None:
            child.kill()  # which ends the wait of the thread that holds the lock
        with self._lock:
            self._end()

    def _check(self, wanted: StructuredOutputs) -> Grammar | str:
        answer = self._ask(
            {
                "kind": wanted.kind,
                "value": getattr(wanted, wanted.kind),
                "disable_any_whitespace": wanted.disable_any_whitespace,
                "disable_additional_properties": wanted.disable_additional_properties,
                "whitespace_pattern": wanted.whitespace_pattern,
            }
        )
        if "grammar" in answer:
            return Grammar(answer["grammar"], tuple(wanted.after))
        why: str = answer["refused"]
        return f"cannot be used: {why}"

    def _ask(self, question: dict[str, Any]) -> Any:
        if self._child is not None and self._child.has_ended:
            self._end()
        if self._child is None:
            self._child = Child("loadmaster.engine.grammar_process", WHAT, ANSWER_WITHIN_S)
            if self._is_closed:  # `close` may not have seen it
                self._child.kill()
        try:
            send(self._child.pipe, question)
            return receive(self._child.pipe)
        except OSError as error:
            self._end()
            if self._is_closed:
                raise RunError("the server is shutting down") from error
            raise RunError(f"the process that {WHAT} has ended: {error}") from error

    def _end(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None
