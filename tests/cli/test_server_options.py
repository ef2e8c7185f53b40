"""The options of access and limits: what they become, what is refused, and that keys are shown nowhere."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loadmaster.cli.main import build_parser, main
from loadmaster.cli.server_options import api_keys, server_settings, vllm_arguments
from loadmaster.errors import UsageError
from loadmaster.server.settings import Cors, Settings


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOADMASTER_API_KEY", "VLLM_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def args(*given: str) -> argparse.Namespace:
    return build_parser().parse_args(["serve", "m", *given])


def test_without_options_the_settings_are_the_defaults() -> None:
    assert server_settings(args(), shutdown_timeout_s=5.0) == Settings()


def test_options_become_settings() -> None:
    given = args(
        *(
            "--allowed-origins",
            '["*"]',
            "--allow-credentials",
            "--allowed-hosts",
            '["a", "*.b"]',
            "--root-path",
            "/llm/",
        ),
        *("--max-queue", "9", "--request-timeout", "1.5", "--client-timeout", "7", "--max-request-bytes", "2MiB"),
        *("--h11-max-incomplete-event-size", "4096", "--h11-max-header-count", "20", "--api-key", "one", "two"),
    )
    assert server_settings(given, shutdown_timeout_s=2.0) == Settings(
        api_keys=("one", "two"),
        shutdown_timeout_s=2.0,
        cors=Cors(("*",), credentials=True),
        allowed_hosts=("a", "*.b"),
        root_path="/llm",
        max_body_bytes=2 * 2**20,
        max_head_bytes=4096,
        max_headers=20,
        max_queue=9,
        request_timeout_s=1.5,
        client_timeout_s=7.0,
    )


def test_keys_come_from_options_and_a_file_otherwise_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys"
    file.write_text("from-file\n\nanother\n")
    monkeypatch.setenv("VLLM_API_KEY", "as-vllm")
    assert api_keys(args()) == ["as-vllm"]
    monkeypatch.setenv("LOADMASTER_API_KEY", "as-here")
    assert api_keys(args()) == ["as-here"]
    assert api_keys(args("--api-key-file", str(file))) == ["from-file", "another"]
    assert api_keys(args("--api-key", "x", "--api-key-file", str(file))) == ["x", "from-file", "another"]
    assert server_settings(args(), shutdown_timeout_s=1).api_keys == ("as-here",)
    assert "LOADMASTER_API_KEY" not in os.environ, "workers inherit the environment"


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "cannot read --api-key-file"), ("\n \n", "has no key"), ("ok\nsecret word\n", "line 2: an API key has")],
)
def test_a_file_of_keys_is_refused_without_showing_one(content: str | None, says: str, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UsageError, match=says) as error:
        api_keys(args("--api-key-file", str(file)))
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--allowed-methods", '["GET"]'], "need --allowed-origins"),
        (["--ssl-keyfile", "key.pem"], "need --ssl-certfile"),
        (["--api-key", "secrét"], "--api-key, number 1: an API key has"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(given: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=says) as error:
        server_settings(args(*given), shutdown_timeout_s=1)
    assert "secr" not in str(error.value)


@pytest.mark.parametrize(
    "given",
    [
        ["--allowed-origins", "*"],
        ["--allowed-hosts", '[""]'],
        ["--root-path", "llm"],
        ["--root-path", "/a/../b c"],
        ["--max-queue", "0"],
        ["--request-timeout", "0"],
        ["--client-timeout", "nan"],
        ["--max-request-bytes", "16 miles"],
        ["--ssl-cert-reqs", "3"],
    ],
)
def test_values_that_are_not_valid_are_a_usage_error(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", "m", *given])
    assert ended.value.code == 2
    assert given[0] in capsys.readouterr().err


def test_a_missing_certificate_is_refused_before_the_model_is_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "no-such-model", "--engine", "native", "--ssl-certfile", "/nowhere/cert.pem"]) == 3
    errors = capsys.readouterr().err
    assert "--ssl-certfile /nowhere/cert.pem: no such file" in errors
    assert "no-such-model" not in errors


def test_vllm_gets_the_options_that_it_has_and_no_key_of_a_file_on_its_command_line(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("secret\n")
    given = ["--allowed-origins", '["https://a"]', "--allow-credentials", "--ssl-certfile", "c", "--root-path", "/x"]
    words, environment = vllm_arguments(args(*given, "--api-key-file", str(file)))
    assert words == [
        *("--allowed-origins", '["https://a"]', "--ssl-certfile", "c", "--root-path", "/x", "--allow-credentials")
    ]
    assert environment == {"VLLM_API_KEY": "secret"}
    assert vllm_arguments(args("--api-key", "a", "b")) == (["--api-key", "a", "b"], {})
    file.write_text("secret\nsecond\n")
    for refused in (["--api-key-file", str(file)], ["--max-queue", "3"], ["--allowed-hosts", '["a"]']):
        with pytest.raises(UsageError, match=refused[0]):
            vllm_arguments(args(*refused))


HIDES = """
import sys
from pathlib import Path
from loadmaster.cli.server_options import hide
hide(["s3cret", "0ther"])
print(Path("/proc/self/cmdline").read_bytes().replace(b"\\0", b" ").decode())
print(sys.argv[1:])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_keys_vanish_from_the_command_line_that_others_see() -> None:
    words: Any = ["--api-key", "s3cret", "0ther", "--api-key=s3cret", "--served-model-name", "s3cret-not"]
    done = subprocess.run([sys.executable, "-c", HIDES, *words], capture_output=True, text=True, timeout=200)
    shown, own = done.stdout.rstrip().rsplit("\n", 1)
    assert shown.endswith("--api-key ****** ***** --api-key=****** --served-model-name s3cret-not "), done
    assert own == str(words)
