"""What vLLM's own parsers make of the models' outputs in tests/server/parsers/outputs.py, written to vllm.json beside it.

Run it from the repository's root in an environment that has vLLM 0.32 (the CPU build will do)::

    PYTHONPATH=. python tools/parser_goldens.py

Each output is parsed whole, by the same steps as vLLM's server takes for a response that is not streamed.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tests.server.parsers.outputs import REASONING_OUTPUTS, TOOL_OUTPUTS, TOOLS

FILE = Path(__file__).parent.parent / "tests" / "server" / "parsers" / "vllm.json"

MARKERS = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<minimax:tool_call>",
    "</minimax:tool_call>",
    "[THINK]",
    "[/THINK]",
    "[TOOL_CALLS]",
    "<|python_tag|>",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁sep｜>",
]


class CharacterTokenizer:
    """A tokenizer whose tokens are the markers, and single characters."""

    chat_template = None
    all_special_tokens: tuple[str, ...] = ()
    all_special_ids: tuple[int, ...] = ()

    def __init__(self, *more: str) -> None:
        self._names = {1_200_000 + i: text for i, text in enumerate([*MARKERS, *more])}
        self._ids = {text: i for i, text in self._names.items()}
        self._pattern = re.compile("|".join(map(re.escape, self._ids)) + "|.", re.DOTALL)

    def get_vocab(self) -> dict[str, int]:
        """Return the markers' ids."""
        return self._ids

    def encode(self, text: str, **_: Any) -> list[int]:
        """Return the token ids of a text."""
        return [self._ids.get(part) or ord(part) for part in self._pattern.findall(text)]

    def decode(self, ids: Any, **_: Any) -> str:
        """Return the text of token ids."""
        return "".join(self._names.get(i) or chr(i) for i in ([ids] if isinstance(ids, int) else ids))


def calls_of(name: str, text: str) -> dict[str, Any]:
    """Return the content and the calls that vLLM's tool parser ``name`` finds."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.tool_parsers import ToolParserManager

    request = ChatCompletionRequest(model="m", messages=[{"role": "user", "content": "x"}], tools=TOOLS)
    tokenizer = CharacterTokenizer(*(["[ARGS]"] if name.endswith("11") else []))
    parser = ToolParserManager.get_tool_parser(name.partition(" ")[0])(tokenizer, request.tools)
    found = parser.extract_tool_calls(text, request)
    calls = [[c.function.name, c.function.arguments] for c in found.tool_calls]
    return {"content": found.content or "", "calls": calls}


def reasoning_of(name: str, text: str) -> dict[str, Any]:
    """Return the reasoning and the content that vLLM's reasoning parser ``name`` finds."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.reasoning import ReasoningParserManager

    request = ChatCompletionRequest(model="m", messages=[{"role": "user", "content": "x"}])
    parser = ReasoningParserManager.get_reasoning_parser(name)(CharacterTokenizer())
    reasoning, content = parser.extract_reasoning(text, request)
    return {"reasoning": reasoning or "", "content": content or ""}


def main() -> None:
    """Write the file."""
    made = {
        "tools": {p: {n: calls_of(p, text) for n, text in texts.items()} for p, texts in TOOL_OUTPUTS.items()},
        "reasoning": {
            p: {n: reasoning_of(p, text) for n, text in texts.items()} for p, texts in REASONING_OUTPUTS.items()
        },
    }
    FILE.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
