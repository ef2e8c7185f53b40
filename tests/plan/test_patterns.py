"""Patterns of modules in a config: they mean what they always meant, and no pattern takes long."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadmaster.architectures.config import Config
from loadmaster.errors import ConfigError, UnsupportedError
from loadmaster.plan.claims import Claims, read_claims
from loadmaster.plan.patterns import Glob, read_pattern

MODULE = "model.layers.17.self_attn.q_proj"


@contextmanager
def computing(seconds: float) -> Iterator[None]:
    """Fail after so much processor time, however busy the machine is."""

    def stop(*_: object) -> None:
        raise AssertionError(f"more than {seconds} seconds of computing")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def claims(*ignored: str) -> Claims:
    quantization = {"quant_method": "fp8", "modules_to_not_convert": list(ignored)}
    return read_claims(Config({"quantization_config": quantization}), "BF16")


@pytest.mark.parametrize(
    "bomb", ["re:(.*)*(.*)*(.*)*!$", "re:(m|mo|o|.|[a-z])*!$", "re:" + "(a?){20}" * 10 + "!", "*" + "e*l*" * 100 + "!"]
)
def test_no_pattern_takes_long(bomb: str) -> None:
    with computing(10):
        assert not claims(bomb).ignores(f"{MODULE}.{'el' * 100}.weight")


PATTERNS = [
    r".*self_attn.*",
    r".*\.layers\.\d+\.mlp\..*",
    "lm_head",
    r"model\.layers\.1[0-9]\.",
    r".*q_proj\Z",
    "(?:a|b)",
]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("module", [MODULE, "lm_head", "model.layers.3.mlp.gate", "b"])
def test_a_regular_expression_means_what_it_means_to_compressed_tensors(pattern: str, module: str) -> None:
    assert read_pattern(f"re:{pattern}").matches(module) == (re.match(pattern, module) is not None)


@given(st.text("ab.*", max_size=8), st.text("ab.", max_size=10))
def test_a_glob_means_a_module_or_one_above_it(text: str, module: str) -> None:
    pieces = ".*".join(re.escape(piece) for piece in text.split("*"))
    wanted = re.fullmatch(pieces + r"(\..*)?", module) is not None
    if "*" in text:
        assert Glob(text).matches(module) == wanted
        if text.index("*") == len(text) - 1:
            assert claims(text).ignores(f"{module}.weight") == wanted


@pytest.mark.parametrize("pattern", [r"re:(.*)\1", "re:(?!.*experts).*", "re:.*(?<=a)b"])
def test_what_re2_does_not_have_is_refused_by_name(pattern: str) -> None:
    with pytest.raises(UnsupportedError, match="cannot be matched") as raised:
        claims(pattern)
    assert "look-around and back-references" in (raised.value.hint or "")


@pytest.mark.parametrize("pattern", ["re:(", "re:[", "re:a{99}{99}{99}{99}"])
def test_a_broken_or_enormous_expression_is_the_configs_fault(pattern: str) -> None:
    with pytest.raises(ConfigError, match="broken"):
        claims(pattern)


@pytest.mark.parametrize(
    "ignored", [["re:a" + "a" * 600], [f"re:{i}" for i in range(501)], [f"*{i}*" for i in range(501)], ["a"] * 100_001]
)
def test_patterns_have_limits(ignored: list[str]) -> None:
    with pytest.raises(ConfigError, match="and the limit is"):
        claims(*ignored)


def test_names_that_end_in_a_star_are_as_many_as_modules() -> None:
    with computing(10):
        many = claims(*(f"model.layers.{i}.*" for i in range(50_000)))
        assert many.ignores(f"{MODULE}.weight")
        assert not any(many.ignores(f"module.layers.{i}.weight") for i in range(1000))
