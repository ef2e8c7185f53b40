"""Real stage processes behind the command line: four answer as transformers does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.test_plan import run
from tests.conftest import Tiny
from tests.models.reference import greedy, transformers_model
from tests.models.test_forward import PROMPT


def test_greedy_tokens_of_four_stages_are_those_of_transformers(tiny: Tiny, tmp_path: Path) -> None:
    path = tiny("glm-5.2-fp8")
    expected = greedy(transformers_model(path, tmp_path), PROMPT, 16)
    ids = ",".join(map(str, PROMPT))
    # layers 3, 4, 5 and 7 share the selection of an earlier one: these stages begin before, on and after such layers;
    # tests/models/test_forward.py has every other number of stages, in one process
    args = ("--prompt-token-ids", ids, "--max-tokens", 16, "--ignore-eos", "--dtype", "float32", "--json")
    done = run("generate", path, "-pp", 4, "--layer-partition", "2,3,1,2", *args)
    answer = json.loads(done.stdout)
    assert answer["token_ids"] == expected
    assert sorted(answer) == ["finish_reason", "prompt_token_ids", "text", "timings", "token_ids"]
    assert answer["finish_reason"] == "length"


def test_the_same_seed_gives_the_same_sampled_tokens(tiny: Tiny) -> None:
    args = ("--prompt", "Hello", "--temperature", 0.8, "--ignore-eos", "--max-tokens", 32, "--json", "--seed", 7)
    first, second = (json.loads(run("generate", tiny("llama"), *args).stdout)["token_ids"] for _ in range(2))
    assert first == second  # of another seed: tests/workers/test_sampler.py
    assert len(first) == 32


@pytest.mark.parametrize(
    ("args", "status", "says"),
    [
        (["--prompt-token-ids", "3,4", "--prompt", "Hello"], 2, "prompt"),
        ([], 2, "prompt"),
        (["--prompt-token-ids", "3,x"], 2, "prompt-token-ids"),
        (["--prompt-token-ids", "3,4", "-tp", "2"], 1, "tensor-parallel"),
        (["--prompt-token-ids", "3,4", "-pp", "99"], 1, "99 pipeline stages"),
        (["--prompt-token-ids", ",".join(["3"] * 600)], 1, "512"),
        (["--prompt-token-ids", "3,99999"], 1, "99999"),
    ],
)
def test_what_cannot_be_generated_is_refused(args: list[str], status: int, says: str, tiny: Tiny) -> None:
    done = run("generate", tiny("llama"), *args)
    assert done.returncode == status, (done.stdout, done.stderr)
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_plan_that_is_not_proven_is_not_run(tiny_copy: Tiny) -> None:
    path = tiny_copy("qwen3")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "hidden_size": 256}))
    for command in (["generate", "--prompt", "Hello"], ["serve"]):
        done = run(command[0], path, *command[1:], "--json")
        assert done.returncode == 1
        if command[0] == "generate":
            assert json.loads(done.stdout)["findings"][0]["code"] == "shape-mismatch"
