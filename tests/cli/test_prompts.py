"""What a command line of `generate` says about prompts and sampling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loadmaster.cli.main import build_parser
from loadmaster.cli.prompts import read_prompts, sampling_params
from loadmaster.errors import UsageError
from loadmaster.workers import StructuredOutputs


def parsed(*args: object) -> Any:
    return build_parser().parse_args(["generate", "MODEL", *map(str, args)])


def test_a_file_has_a_prompt_on_each_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('"a\\nb"\n\n[1, 2]\n{"prompt": "c", "id": 3}\n{"prompt": [4]}\n')
    assert read_prompts(parsed("--prompts-file", file)) == ["a\nb", [1, 2], "c", [4]]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('"a"\nb', "line 2: not JSON"),
        ("[1.5]", "line 1: expected a string"),
        ("[true]", "line 1: expected a string"),
        ('{"text": "a"}', "line 1: expected a string"),
        ("\n", "has no prompts"),
    ],
)
def test_a_line_that_is_not_a_prompt_is_refused(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(text)
    with pytest.raises(UsageError, match=says):
        read_prompts(parsed("--prompts-file", file))


def test_what_cannot_be_generated_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    for args, says in (
        (["--prompts-file", tmp_path / "nothing.jsonl"], "nothing.jsonl"),
        (
            ["--prompt", "a", "--prompt-token-ids", "3"],
            "exactly one of --prompt, --prompt-token-ids and --prompts-file",
        ),
        (["--prompt", "a", "--logprobs", 1], "with --json only"),
    ):
        with pytest.raises(UsageError, match=says):
            read_prompts(parsed(*args))
    with pytest.raises(UsageError, match=r"min_p is 2\.0, expected 0 to 1"):
        sampling_params(parsed("--prompt", "a", "--min-p", 2))


def test_prompts_are_repeatable() -> None:
    assert read_prompts(parsed("--prompt", "a", "--prompt", "")) == ["a", ""]
    assert read_prompts(parsed("--prompt-token-ids", "1,2", "--prompt-token-ids", "3")) == [[1, 2], [3]]


def test_every_sampling_option_has_its_parameter() -> None:
    given: dict[str, Any] = {
        "max_tokens": 5, "min_tokens": 2, "temperature": 0.5, "top_p": 0.9, "top_k": 3, "min_p": 0.1, "seed": 7,
        "repetition_penalty": 1.1, "presence_penalty": 0.2, "frequency_penalty": 0.3, "logprobs": 1, "prompt_logprobs": 0,
    }  # fmt: skip
    options = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", value)]
    params = sampling_params(parsed(*options, "--stop-token-ids", "4,5", "--ignore-eos"))
    assert {name: getattr(params, name) for name in given} == given
    assert (params.stop_token_ids, params.ignore_eos) == ((4, 5), True)


def test_structured_outputs_are_an_object_with_the_names_of_vllm(capsys: pytest.CaptureFixture[str]) -> None:
    params = sampling_params(
        parsed("--structured-outputs", '{"json": {"type": "array"}, "disable_any_whitespace": true}')
    )
    assert params.structured_outputs == StructuredOutputs(json='{"type": "array"}', disable_any_whitespace=True)
    for text, says in (
        ('{"regexp": "a"}', "has 'regexp', which is none of its fields"),
        ('{"regex": "a", "after": 3}', "has 'after'"),
        ('{"regex": 3}', "regex"),
        ("{}", "structured_outputs is empty"),
    ):
        with pytest.raises(UsageError, match=says):
            sampling_params(parsed("--structured-outputs", text))
    for text, says in (("{", "not JSON"), ("[]", "not a JSON object")):
        with pytest.raises(SystemExit):
            parsed("--structured-outputs", text)
        assert says in capsys.readouterr().err
