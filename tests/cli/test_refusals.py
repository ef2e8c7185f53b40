"""What `generate` and `serve` refuse by name, before a byte is loaded: the checkpoints here are of full size, and empty."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loadmaster.synth import PRESETS, write_full_size
from tests.cli.test_plan import run
from tests.conftest import Tiny

COMMANDS = {"generate": ["--prompt", "Hello"], "serve": ["--port", "0"]}


@pytest.fixture(scope="module")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    def path(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        write_full_size(PRESETS[name], folder)
        return folder

    return path


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("model", "says"),
    [
        (
            "qwen3-next",
            ["Qwen3NextForCausalLM is of the family qwen3_next", "use a family that runs: deepseek, llama, qwen_moe"],
        ),
        (
            "llama-awq",
            [
                "layers.0.self_attn.qkv_proj.qweight and 127 more parameters",
                "computing with weights stored as awq is not supported yet",
                "--weights decoded",
                "a format that runs as stored: plain, fp8_block",
            ],
        ),
    ],
)
def test_a_family_or_a_format_that_does_not_run_is_refused_by_name(
    command: str, model: str, says: list[str], full_size: Tiny
) -> None:
    # Where memory allows, a CPU decodes the weights by default, and then every format runs.
    done = run(command, full_size(model), "-pp", 2, "--weights", "stored", *COMMANDS[command])
    assert done.returncode == 1
    assert done.stdout == ""
    text = " ".join(done.stderr.split())
    assert "UnsupportedError" in text
    assert all(part in text for part in says), text
    assert "loading" not in text


@pytest.mark.parametrize("command", COMMANDS)
def test_data_parallel_ranks_are_refused_by_name(command: str, tiny: Tiny) -> None:
    done = run(command, tiny("llama"), "-dp", 2, *COMMANDS[command])
    assert done.returncode == 1
    assert "--data-parallel-size 2" in done.stderr
    assert "use --pipeline-parallel-size and --tensor-parallel-size" in " ".join(done.stderr.split())


def test_a_refusal_is_one_object_with_the_finding_unsupported(tiny: Tiny) -> None:
    done = run("generate", tiny("qwen3-next"), "--prompt", "Hello", "--json")
    assert [f["code"] for f in json.loads(done.stdout)["findings"]] == ["unsupported"]


@pytest.mark.parametrize("port", ["99999", "65536", "-1", "8000.0", "x", "0x10"])
def test_a_port_that_is_none_is_a_usage_error_before_anything_is_read(port: str) -> None:
    done = run("serve", "/no/such/model", "--port", port)
    assert done.returncode == 2
    assert f"argument --port: '{port}' is not a port, expected 0 to 65535" in done.stderr


@pytest.mark.parametrize("host", ["nosuch.invalid", "192.0.2.1"])
def test_an_address_that_cannot_be_had_is_an_error_before_anything_is_read(host: str) -> None:
    done = run("serve", "/no/such/model", "--engine", "native", "--host", host, "--port", "0")
    assert done.returncode == 3
    assert f"RunError: cannot listen on {host} port 0" in done.stderr
