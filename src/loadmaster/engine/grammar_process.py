"""The process that checks structured outputs: ``python -m loadmaster.engine.grammar_process FD``, started by `GrammarCheck`.

FD is a socket. For each question on it this process forks a child, which compiles the grammar within limits of CPU time
and memory, and answers:

    {"kind": …, "value": …, "disable_any_whitespace": BOOL, …}      {"grammar": TEXT} or {"refused": WHY}

If the child ends without an answer, this process gives one. Compiling does not depend on the model: a vocabulary of single
bytes is enough. This process has one thread, imports no torch, and ends when FD is closed.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
from collections.abc import Mapping
from typing import Any, Final

from loadmaster.engine.child import confine, ignore_signals, receive, send
from loadmaster.engine.grammar_check import CPU_S, MEMORY_BYTES

EXCEEDED: Final = f"it needs more than {CPU_S} s or {MEMORY_BYTES // 2**20} MiB to be compiled"


def main(fd: int) -> None:
    """Answer questions until ``fd`` is closed."""
    ignore_signals()
    import llguidance  # noqa: F401  (here, so that no child has to import it)

    with socket.socket(fileno=fd) as pipe:
        while True:
            try:
                question = receive(pipe)
            except OSError:
                return
            if (child := os.fork()) == 0:
                try:
                    confine(MEMORY_BYTES)
                    signal.setitimer(signal.ITIMER_PROF, CPU_S)  # SIGPROF ends the child
                    answer = _answer(question)
                    signal.setitimer(signal.ITIMER_PROF, 0)
                    send(pipe, answer)
                    os._exit(0)
                finally:
                    os._exit(1)
            _, status = os.waitpid(child, 0)
            if status != 0:
                send(pipe, {"refused": EXCEEDED})


def _answer(question: Mapping[str, Any]) -> dict[str, str]:
    """Compile a grammar, and compute its first mask."""
    from llguidance import LLMatcher, LLTokenizer
    from llguidance._tokenizer import TokenizerWrapper

    from loadmaster.workers.grammar_limits import brief, limits

    try:
        grammar = _grammar(question)
    except ValueError as error:
        return {"refused": brief(str(error))}
    matcher = LLMatcher(LLTokenizer(TokenizerWrapper(_Bytes())), grammar, log_level=0, limits=limits())
    if matcher.is_error():
        return {"refused": brief(matcher.get_error())}
    matcher.compute_bitmask()
    if matcher.is_error():
        return {"refused": f"no answer matches it ({brief(matcher.get_error())})"}
    return {"grammar": grammar}


def _grammar(question: Mapping[str, Any]) -> str:
    """Return structured outputs in llguidance's format.

    Raises:
        ValueError: they are not valid.
    """
    from llguidance import LLMatcher, grammar_from

    kind, value = question["kind"], question["value"]
    if kind == "regex":
        return LLMatcher.grammar_from_regex(ascii_classes(value))
    if kind == "choice":
        return LLMatcher.grammar_from_lark("start: " + " | ".join(json.dumps(choice) for choice in value))
    if kind == "grammar":
        return grammar_from("gbnf" if "::=" in value else "lark", value)
    schema = {"type": "object"} if kind == "json_object" else json.loads(value)
    if question["disable_additional_properties"]:
        close_objects(schema)
    if (pattern := question["whitespace_pattern"]) is not None:
        return LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults={"whitespace_pattern": pattern})
    flexible = not question["disable_any_whitespace"]
    return LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults={"whitespace_flexible": flexible})


CLASSES: Final = {"d": "[0-9]", "D": "[^0-9]", "w": "[0-9A-Za-z_]", "W": "[^0-9A-Za-z_]"}


def ascii_classes(regex: str) -> str:
    r"""Return an expression whose digits and letters are those of ASCII, as in vLLM; llguidance's are those of Unicode.

    >>> ascii_classes(r"\d+[\w.]\\d")
    '[0-9]+[[0-9A-Za-z_].]\\\\d'
    """
    return re.sub(r"\\(.)", lambda escape: CLASSES.get(escape[1], escape[0]), regex, flags=re.DOTALL)


MAPS: Final = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies")
"""Keywords of JSON schema whose value has a schema for each name."""


def close_objects(schema: Any) -> None:
    """Let the objects that a schema describes have no other properties than those it names, unless it says otherwise.

    >>> schema = {"properties": {"a": {"properties": {}}}, "enum": [{"properties": 1}]}
    >>> close_objects(schema)
    >>> schema["properties"], schema["additionalProperties"], schema["enum"]
    ({'a': {'properties': {}, 'additionalProperties': False}}, False, [{'properties': 1}])
    """
    if isinstance(schema, list):
        for part in schema:
            close_objects(part)
    if not isinstance(schema, dict):
        return
    for keyword, value in schema.items():
        if keyword in MAPS and isinstance(value, dict):
            for part in value.values():
                close_objects(part)
        elif keyword not in ("enum", "const", "default", "examples", "required"):
            close_objects(value)
    if isinstance(schema.get("properties"), dict) or isinstance(schema.get("patternProperties"), dict):
        schema.setdefault("additionalProperties", False)


class _Bytes:
    """A vocabulary of all bytes and an end token."""

    eos_token_id = 256
    bos_token_id = None
    tokens = (*(bytes([byte]) for byte in range(256)), b"")
    special_token_ids = (256,)

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


if __name__ == "__main__":
    main(int(sys.argv[1]))
