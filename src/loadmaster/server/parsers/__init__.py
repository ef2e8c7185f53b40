"""Parsers that divide a model's output into reasoning, content and tool calls. Pure: text in, events out.

Each format has a file. The names are those of vLLM's ``--tool-call-parser`` and ``--reasoning-parser``.
"""

from __future__ import annotations

from typing import Final

from loadmaster.server.parsers.calls import CallParser, Properties
from loadmaster.server.parsers.deepseek import DeepSeekV3Parser, DeepSeekV31Parser
from loadmaster.server.parsers.dsml import DeepSeekV4Parser, DeepSeekV32Parser
from loadmaster.server.parsers.events import Arguments, CallBegun, Content, Event, Parsed, Parser, PlainText, Reasoning
from loadmaster.server.parsers.forced import NamedCallParser, RequiredCallsParser
from loadmaster.server.parsers.glm import GlmParser
from loadmaster.server.parsers.hermes import HermesParser
from loadmaster.server.parsers.llama import LlamaJsonParser
from loadmaster.server.parsers.minimax import MiniMaxM2Parser
from loadmaster.server.parsers.mistral import MistralParser
from loadmaster.server.parsers.qwen_coder import QwenCoderParser
from loadmaster.server.parsers.reasoning import FORMATS, Beginning, ReasoningFormat, ReasoningParser, beginning_of

TOOL_PARSERS: Final[dict[str, type[CallParser]]] = {
    "deepseek_v3": DeepSeekV3Parser,
    "deepseek_v31": DeepSeekV31Parser,
    "deepseek_v32": DeepSeekV32Parser,
    "deepseek_v4": DeepSeekV4Parser,
    "glm45": GlmParser,
    "glm47": GlmParser,
    "hermes": HermesParser,
    "llama3_json": LlamaJsonParser,
    "llama4_json": LlamaJsonParser,
    "minimax_m2": MiniMaxM2Parser,
    "mistral": MistralParser,
    "qwen3_coder": QwenCoderParser,
    "qwen3_json": HermesParser,
    "qwen3_xml": QwenCoderParser,
}
"""The parsers of tool calls, by vLLM's names."""

REASONING_FORMATS: Final[dict[str, ReasoningFormat]] = {**FORMATS, "glm47": FORMATS["glm45"]}
"""The formats of reasoning, by vLLM's names."""

__all__ = [
    "REASONING_FORMATS",
    "TOOL_PARSERS",
    "Arguments",
    "Beginning",
    "CallBegun",
    "CallParser",
    "Content",
    "Event",
    "NamedCallParser",
    "Parsed",
    "Parser",
    "PlainText",
    "Properties",
    "Reasoning",
    "ReasoningFormat",
    "ReasoningParser",
    "RequiredCallsParser",
    "beginning_of",
]
