"""Which parsers a chat template asks for."""

from pathlib import Path

import pytest

from loadmaster.engine import AnswerText, Output, TextOptions, Tokenizer
from loadmaster.server.output_format import OutputFormat, format_of, output_format
from loadmaster.server.settings import Settings
from loadmaster.workers import SamplingParams

GLM = "{{ tools }}<tool_call>name<arg_key>k</arg_key></tool_call><think></think>"


@pytest.mark.parametrize(
    ("template", "tools", "reasoning"),
    [
        ("", None, None),
        ("{{ messages }} </think>", None, "deepseek_r1"),
        (GLM, "glm45", "glm45"),
        ('<tool_call>\\n{"name": <function-name>, "arguments": <args-json-object>}\\n</tool_call> </think>', "hermes", "qwen3"),
        ("<tool_call>\\n<function=example>\\n<parameter=a>\\n</tool_call>", "qwen3_coder", None),
        ('<minimax:tool_call><invoke name="a"></minimax:tool_call> </think>', "minimax_m2", "minimax_m2"),
        ("<｜tool▁calls▁begin｜>function<｜tool▁sep｜>f\\n```json\\n{}```", "deepseek_v3", None),
        ("<｜tool▁calls▁begin｜>f<｜tool▁sep｜>{} </think>", "deepseek_v31", "deepseek_r1"),
        ("[TOOL_CALLS] [THINK]", "mistral", "mistral"),
        ('<|python_tag|> {"name": function name, "parameters": dictionary}', "llama3_json", None),
    ],
)  # fmt: skip
def test_a_template_shows_the_format_of_what_the_model_writes(
    template: str, tools: str | None, reasoning: str | None
) -> None:
    assert format_of(template) == OutputFormat(tools, reasoning)


class WithTemplate(Tokenizer):
    chat_template = GLM  # type: ignore[assignment]


def test_settings_come_before_the_template() -> None:
    tokenizer = WithTemplate(Path("/nowhere"))
    assert output_format(tokenizer, Settings()) == OutputFormat("glm45", "glm45")
    assert output_format(tokenizer, Settings(tool_call_parser="none")) == OutputFormat(None, "glm45")
    assert output_format(tokenizer, Settings(reasoning_parser="qwen3")) == OutputFormat("glm45", "qwen3", True)


def test_special_tokens_that_a_parser_needs_have_text_and_others_have_none(model_path: Path) -> None:
    tokenizer = Tokenizer(model_path)
    keep = tokenizer.special_ids(["<|user|>", "a"])
    answer = AnswerText(tokenizer, SamplingParams(), TextOptions(keep=keep))
    pieces = answer.add(Output((97, 259, 260, 98, 257), (), (), "stop"))
    assert (keep, "".join(p.text for p in pieces)) == ({259}, "a<|user|>b")
