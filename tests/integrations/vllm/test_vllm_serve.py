"""Servers of vLLM on the CPU with this load format, started as users do, asked by OpenAI's client."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from loadmaster.synth import PRESETS, write_tiny
from tests.integrations.vllm.test_vllm_runs import PLAIN_MLA

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

START_S = 900
VLLM = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve"]
OURS = [sys.executable, "-m", "loadmaster", "serve"]
BOTH = ["--dtype", "bfloat16", "--max-model-len", "128", "--served-model-name", "m"]
ENGINE = ["--max-num-seqs", "4", "--seed", "0"]
"""What is vLLM's alone, in every run."""


@contextmanager
def server(command: list[str], log: Path, workers: int = 1) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Start a server and wait until it answers; what it printed is in ``log``."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    at = command.index("--") if "--" in command else len(command)
    environment = os.environ | {
        "VLLM_LOGGING_LEVEL": "INFO",  # whatever the tests around have set
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "|".join(map(str, range(workers))),
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command[:at], "--port", str(port), *command[at:]], env=environment, stdout=output, stderr=output
        )
    try:
        url, until = f"http://127.0.0.1:{port}", time.monotonic() + START_S
        while not _answers(url):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.5)
        yield process, url
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)  # it ends its workers
            try:
                process.wait(300)
            except subprocess.TimeoutExpired:
                process.kill()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=300).status_code == 200
    except httpx.HTTPError:
        return False


def answers(command: list[str], log: Path, workers: int = 1) -> tuple[list[Any], int]:
    """Return what a server says to prompts and to a chat, and its exit code after SIGTERM."""
    import openai

    with server(command, log, workers) as (process, url):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=600)
        said: list[Any] = [[m.id for m in client.models.list()]]
        for prompt in ([3, 4, 5], [7, 8, 9, 10]):
            done = client.completions.create(
                model="m", prompt=prompt, max_tokens=16, temperature=0, extra_body={"return_token_ids": True}
            )
            said.append((done.choices[0].text, done.choices[0].model_extra["token_ids"]))
        chunks = client.completions.create(model="m", prompt="Hello", max_tokens=4, temperature=0, stream=True)
        said.append("".join(c.choices[0].text for c in chunks if c.choices))
        process.send_signal(signal.SIGTERM)
        return said, process.wait(300)


@pytest.mark.parametrize(
    ("preset", "overrides", "layout", "own", "workers", "handed_over"),
    [
        ("qwen3", {"head_dim": 32}, [], ["--enforce-eager"], 1, True),
        ("qwen3", {"head_dim": 32}, ["-tp", "2"], ["--enforce-eager"], 2, True),
        ("qwen3", {"head_dim": 32}, ["-pp", "2"], [], 2, False),  # vLLM's stages on a CPU need compilation
        ("deepseek-v3", PLAIN_MLA, [], ["--enforce-eager"], 1, False),
    ],
    ids=["handed-over", "handed-over-tp2", "pp2", "mla"],
)
def test_a_server_answers_with_the_same_tokens_as_with_vllms_own_format(
    preset: str,
    overrides: dict[str, Any],
    layout: list[str],
    own: list[str],
    workers: int,
    handed_over: bool,
    tmp_path: Path,
) -> None:
    write_tiny(PRESETS[preset], tmp_path / "model", overrides=overrides)
    shared = [str(tmp_path / "model"), *layout, *BOTH]
    theirs = answers([*VLLM, *shared, *ENGINE, *own], tmp_path / "theirs.log", workers)
    if handed_over:
        command = [*OURS, *shared, "--engine", "vllm", "--", *ENGINE, *own]
    else:
        command = [*VLLM, *shared, *ENGINE, *own, "--load-format", "loadmaster"]
    assert answers(command, tmp_path / "ours.log", workers) == theirs
    said = (tmp_path / "ours.log").read_text()
    assert said.count(f"tp 0 of {2 if '-tp' in layout else 1}: ") == (2 if "-pp" in layout else 1)  # a line a rank
    assert (said.count("engine: vllm (--engine vllm; vLLM 0.") == 1) == handed_over
    assert "read in" not in (tmp_path / "theirs.log").read_text()
