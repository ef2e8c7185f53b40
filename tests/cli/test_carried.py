"""Options of vLLM on a command line: ignored with a note, refused by name, passed on; and unknown options."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import pytest

from loadmaster.cli.main import _commands, build_parser, main
from loadmaster.errors import UsageError
from loadmaster.integrations.vllm.carried import carry_over, forwarded, note, refuse
from loadmaster.integrations.vllm.serve_options import (
    _EVERY,
    ANSWERS,
    FILES,
    HOSTS,
    OPTIONS,
    PLAN,
    SERVER,
    SHORT,
    TUNING,
)
from tests.conftest import Tiny

COMMANDS = _commands(build_parser())
PLANNING = ("plan", "load", "generate", "serve")


def left(*argv: str) -> list[str]:
    return carry_over(argv, COMMANDS)[0]


def noted(*argv: str) -> str | None:
    return note(carry_over(argv, COMMANDS)[1], argv[0])


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (["plan", "--kv-offloading-size", "0.9", "MODEL"], ["plan", "MODEL"]),
        (["plan", "--kv_offloading_size=0.9", "MODEL"], ["plan", "MODEL"]),
        (["plan", "--trust-remote-code", "MODEL"], ["plan", "MODEL"]),
        (["plan", "--no-enable-prefix-caching", "MODEL"], ["plan", "MODEL"]),
        (["plan", "--disable-prefix-caching", "MODEL"], ["plan", "MODEL"]),
        (["serve", "--disable-prefix-caching", "MODEL"], ["serve", "--no-enable-prefix-caching", "MODEL"]),
        (["plan", "--disable-expert-parallel", "MODEL"], ["plan", "--no-enable-expert-parallel", "MODEL"]),
        (["plan", "--disable-lora", "--enable-sliding-window", "MODEL"], ["plan", "MODEL"]),
        (["plan", "--seed", "-1", "MODEL"], ["plan", "MODEL"]),
        (["plan", "-O3", "MODEL", "-O", "2"], ["plan", "MODEL"]),
        (["plan", "--compilation-config.mode", "3", "MODEL"], ["plan", "MODEL"]),
        (["plan", "--cudagraph-capture-sizes", "1", "2", "4", "-tp", "2", "MODEL"], ["plan", "-tp", "2", "MODEL"]),
        (["plan", "MODEL", "--tensor_parallel_size", "2"], ["plan", "MODEL", "--tensor-parallel-size", "2"]),
        (["plan", "--layer_partition=1,2", "MODEL"], ["plan", "--layer-partition=1,2", "MODEL"]),
        (["plan", "-tp", "2", "--model", "MODEL"], ["plan", "MODEL", "-tp", "2"]),
        (["plan", "--tensor-parallel", "2", "MODEL"], ["plan", "--tensor-parallel", "2", "MODEL"]),
        (["inspect", "-tp", "8", "--quantization", "fp8", "MODEL"], ["inspect", "MODEL"]),
        (["inspect", "MODEL", "--", "--seed"], ["inspect", "MODEL", "--", "--seed"]),
        (
            ["serve", "--served-model-name", "a", "b", "--max-num-seqs", "8", "MODEL"],
            ["serve", "--max-num-seqs", "8", "MODEL", "--served-model-name", "a", "b"],
        ),
    ],
)
def test_options_of_vllm_are_taken_out_with_their_values_and_no_more(given: list[str], read: list[str]) -> None:
    assert left(*given) == read


def test_what_is_ignored_is_said_in_one_line_and_json_stays_one_object(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [
        "plan",
        str(tiny("qwen3")),
        "-ep",
        "--seed",
        "9",
        "--scheduling_policy=fcfs",
        "--api-key",
        "k",
    ]
    assert main([*line, "--load-format", "auto", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["layout"]["enable_expert_parallel"] is True
    assert said.err == (
        "loadmaster plan: ignored: --seed, --scheduling-policy (how vLLM runs); "
        "--api-key (what vLLM's server offers); --load-format (no change)\n"
    )


@pytest.mark.parametrize("command", PLANNING)
@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--quantization", "fp8"], "--quantization fp8: weights are loaded as the checkpoint stores them"),
        (["-q", "awq"], "--quantization awq: "),
        (["--hf_overrides", '{"num_hidden_layers": 2}'], "own config.json"),
        (["--hf-overrides.num_hidden_layers", "2"], "own config.json"),
        (["--cpu-offload-gb", "8"], "--cpu-offload-gb 8: all parameters of a rank are planned in its device's memory"),
        (["--load-format", "fastsafetensors"], "--load-format fastsafetensors: only safetensors are read"),
        (["-dcp", "2"], "--decode-context-parallel-size 2: context parallelism is not supported"),
        (["-pcp=4"], "--prefill-context-parallel-size 4: context"),
        (["--enable-lora"], "--enable-lora: adapters are not supported"),
        (["--enable-eplb"], "vLLM then moves experts between ranks"),
        (["--spec-method", "mtp"], "--spec-method mtp: "),
    ],
)
def test_what_would_change_the_plan_is_refused_by_name_with_what_to_do(
    command: str, given: list[str], says: str
) -> None:
    with pytest.raises(UsageError) as caught:
        left(command, "MODEL", *given)
    assert says in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    "given",
    [
        ["--load-format", "safetensors"],
        ["-dcp", "1"],
        ["--cpu-offload-gb", "0"],
        ["--no-enable-lora"],
        ["--runner=auto"],
    ],
)
def test_a_value_that_changes_nothing_is_not_refused(given: list[str]) -> None:
    assert left("plan", "MODEL", *given) == ["plan", "MODEL"]
    assert str(noted("plan", "MODEL", *given)).endswith("(no change)")


def test_a_plan_covers_all_hosts_and_what_runs_here_does_not() -> None:
    assert noted("plan", "MODEL", "--nnodes", "2") == (
        "loadmaster plan: ignored: --nnodes (which host and device runs which rank)"
    )
    with pytest.raises(UsageError, match="--nnodes 2: all ranks run on this host"):
        left("load", "MODEL", "--nnodes", "2")
    with pytest.raises(UsageError, match="--tokenizer x: the native engine has no such option"):
        left("generate", "MODEL", "--tokenizer", "x")


def test_serve_hands_on_what_concerns_vllm_and_the_engine_here_refuses_what_it_does_not_offer() -> None:
    line = [
        "serve",
        "MODEL",
        "--max_num_active_seqs",
        "8",
        "--uds=key",
        "-cc.mode",
        "3",
        "--no-async-scheduling",
    ]
    read, carried = carry_over([*line, "--load-format", "auto"], COMMANDS)
    assert read == ["serve", "MODEL"]
    assert forwarded(carried) == [
        *(
            "--max-num-active-seqs",
            "8",
            "--uds",
            "key",
            "--compilation-config.mode",
            "3",
            "--no-async-scheduling",
        ),
    ]
    with pytest.raises(UsageError, match="--uds key: the native server does not support it"):
        for given in carried:
            refuse(given, "serve")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--tensor-paralel-size", "2"], "no option --tensor-paralel-size; did you mean --tensor-parallel-size?"),
        (["--gpu-memory-utilisation", "2"], "did you mean --gpu-memory-utilization"),
        (["-pp2"], "no option -pp2; did you mean -pp?"),
        (["--zzz"], "no option --zzz; `loadmaster plan --help` lists them"),
        (["--seed"], "--seed has no value"),
        (["--seed", "--json"], "--seed has no value"),
        (["--gpu-memory-utilization", "92"], "92 is not a share of the device's memory, such as 0.92"),
        (["--speculative-config.method", "mtp"], "--speculative-config cannot be given key by key"),
        (["-pp", "two"], "'two' is not a whole number"),
        (["-tp", "0"], "0 is not at least 1"),
        (["--params", "x"], "'x' is not a whole number"),
        (["--device-memory", "80"], "'80' has no unit: 80GiB?"),
        (["--device-memory", "80B"], "'80B' is less than 1MiB: 80GiB?"),
        (["--device-memory", "80g"], "'80g' is not a size: 80GiB?"),
        (["--device-memory", "much"], "'much' is not a size: write a number and a unit, such as 8GiB"),
        (["--waive", "x.*"], "'x.*' has no reason"),
    ],
)
def test_a_slip_is_answered_in_plain_words(given: Sequence[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code: object = main(["plan", "MODEL", *given])
    except SystemExit as stopped:
        code = stopped.code
    said = capsys.readouterr()
    assert (code, said.out) == (2, "")
    assert says in said.err
    assert said.err.startswith("loadmaster plan: error: ")
    assert len(said.err.splitlines()) <= 3


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["load", "MODEL", "--staging", "8"], "'8' has no unit: 8MiB?"),
        (["load", "MODEL", "--rank", "one"], "'one' is not a whole number"),
        (["generate", "MODEL", "--temperature", "hot"], "'hot' is not a number"),
        (["generate", "MODEL", "--max-model-len", "long"], "'long' is not a number of tokens such as 4096 or 32k"),
        (["generate", "MODEL", "--max-num-seqs", "0"], "0 is not at least 1"),
        (["generate", "MODEL", "--kv-cache-memory-bytes", "4g"], "'4g' is not a size: 4GiB?"),
        (["serve", "MODEL", "--shutdown-timeout", "nan"], "'nan' is not a number of seconds"),
        (["serve", "MODEL", "--max-model-len", "auto"], "leave it out for the model's own length"),
        (["synth", "qwen3", "out", "--tiny", "--sed", "7"], "no option --sed; did you mean --seed"),
    ],
)
def test_other_commands_answer_alike(argv: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code: object = main(argv)
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    assert says in capsys.readouterr().err


def test_the_table_has_each_option_once_and_a_reason_and_remedy_for_each_that_is_refused() -> None:
    assert len(_EVERY) == len(OPTIONS) > 300
    assert set(SHORT.values()) <= OPTIONS.keys()
    for option in _EVERY:
        assert re.fullmatch(r"--[a-z0-9-]+", option.name)
        assert (option.concern in (PLAN, FILES)) == (option.reason is not None) == (option.remedy is not None)
    for concern in (SERVER, ANSWERS, HOSTS):
        assert concern.reason
    assert not TUNING.refused_by
