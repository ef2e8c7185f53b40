"""Real stage processes behind the command line: four answer as transformers does."""

from __future__ import annotations

import json
import re
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
    assert {"finish_reason", "prompt_token_ids", "text", "timings", "token_ids"} <= answer.keys()
    assert answer["finish_reason"] == "length"
    timings, statistics = answer["timings"], answer["statistics"]
    assert {"plan_s", "load_s", "queue_s", "prefill_s", "decode_s", "token_s", "tokens_per_s"} == timings.keys()
    assert all(value >= 0 for value in timings.values())
    assert [stage["num_tokens"] for stage in statistics["stages"]] == [len(PROMPT) + 16 - 1] * 4
    for stage in statistics["stages"]:
        assert stage["busy_share"] + stage["input_share"] + stage["engine_share"] == pytest.approx(1)
    cache = statistics["kv_cache"]
    assert cache["num_tokens"] == cache["num_pages"] * cache["block_size"]
    assert cache["most_used_pages"] == -(-(len(PROMPT) + 15) // 16)
    assert (statistics["prompt_tokens"], statistics["output_tokens"]) == (len(PROMPT), 16)


@pytest.mark.slow
def test_answers_that_are_computed_together_are_those_of_each_alone(tiny: Tiny, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('"Hello"\n\n[72, 101]\n{"prompt": "Hello", "id": 3}\n')
    sampling = ("--temperature", 0.8, "--ignore-eos", "--max-tokens", 8, "--json")
    engine = ("--max-num-seqs", 3, "--block-size", 4, "--kv-cache-memory-bytes", "1MiB", "--max-model-len", 32)
    scores = ("--logprobs", 2, "--prompt-logprobs", 0)
    done = run("generate", tiny("llama"), "--prompts-file", prompts, "-n", 2, *sampling, *engine, *scores, "--seed", 7)
    result = json.loads(done.stdout)
    answers = result["answers"]
    assert [(a["prompt"], a["index"]) for a in answers] == [(i, j) for i in range(3) for j in range(2)]
    assert answers[0]["token_ids"] == answers[4]["token_ids"] != answers[1]["token_ids"]
    for answer in answers:
        assert len(answer["token_ids"]) == 8
        assert [s["token_id"] for s in answer["logprobs"]] == answer["token_ids"]
        assert all(len(s["top"]) == 2 and s["logprob"] <= s["top"][0]["logprob"] <= 0 for s in answer["logprobs"])
        first, *others = answer["prompt_logprobs"]
        assert first is None
        assert [s["token_id"] for s in others] == answer["prompt_token_ids"][1:]
    alone = json.loads(run("generate", tiny("llama"), "--prompt-token-ids", "72,101", *sampling, "--seed", 8).stdout)
    assert alone["token_ids"] == answers[3]["token_ids"]


def test_answers_match_structured_outputs(tiny: Tiny) -> None:
    wanted = json.dumps({"regex": "(yes|no), [a-c]{3}"})
    done = run("generate", tiny("llama"), "--prompt", "Hello", "--structured-outputs", wanted, "--json")
    answer = json.loads(done.stdout)
    assert re.fullmatch("(yes|no), [a-c]{3}", answer["text"])
    assert answer["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("args", "status", "says"),
    [
        (["--prompt-token-ids", "3,4", "--prompt", "Hello"], 2, "prompt"),
        ([], 2, "prompt"),
        (
            ["--prompt-token-ids", "3", "--kv-cache-memory-bytes", "1MiB", "--block-size", "65536"],
            1,
            "--kv-cache-memory-bytes",
        ),
        (["--prompt-token-ids", "3,x"], 2, "prompt-token-ids"),
        (["--prompt-token-ids", "3,4", "-dp", "2"], 1, "data-parallel"),
        (["--prompt-token-ids", "3,4", "-pp", "99"], 1, "99 pipeline stages"),
        (["--prompt-token-ids", ",".join(["3"] * 600)], 1, "512"),
        (["--prompt-token-ids", "3,99999"], 1, "99999"),
        (["--prompt-token-ids", "3", "--structured-outputs", '{"regex": "("}'], 1, "structured_outputs cannot be used"),
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
