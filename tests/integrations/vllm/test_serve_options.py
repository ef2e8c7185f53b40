"""The options that are known of ``vllm serve`` are those of the installed vLLM, each with as many values."""

from __future__ import annotations

from argparse import Action
from importlib import import_module
from typing import Any

import pytest

from loadmaster.architectures.targets import VLLM, target_of_vllm
from loadmaster.integrations.vllm.carried import _negation
from loadmaster.integrations.vllm.serve_options import OPTIONS, SHORT, SINCE

PARSERS = {
    "vllm-0.32": "vllm.entrypoints.launchers.cli_args",
    "vllm-0.33": "vllm.entrypoints.common.cli_args",
}
"""Where each version makes the parser of ``vllm serve``."""


def test_what_a_version_added_is_in_the_table_and_the_version_is_described() -> None:
    assert {f"vllm-{version}" for version in SINCE} < VLLM.keys() == PARSERS.keys()
    assert frozenset().union(*SINCE.values()) < OPTIONS.keys()


@pytest.fixture(scope="module")
def actions() -> dict[str, Action]:
    """The installed vLLM's options by every name."""
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser: Any = import_module(PARSERS[target()]).make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))
    found: dict[str, Action] = parser._option_string_actions  # with the hidden ones
    return found


def target() -> str:
    import vllm

    found = target_of_vllm(vllm.__version__)
    assert found is not None
    return found


@pytest.mark.vllm
def test_the_table_has_the_options_of_the_installed_vllm(actions: dict[str, Action]) -> None:
    newer = {name for version, names in SINCE.items() if f"vllm-{version}" > target() for name in names}
    positive = {n: a for n, a in actions.items() if n.startswith("--") and not n.startswith("--no-") and not negated(n)}
    assert positive.keys() - {"--help", "--model", "--revision"} == OPTIONS.keys() - newer
    values = {0: 0, None: 1, "*": "+"}
    taken = {name: values.get(action.nargs, action.nargs) for name, action in positive.items()}
    assert {name: taken[name] for name in OPTIONS.keys() - newer if taken[name] != OPTIONS[name].values} == {}


def negated(name: str) -> bool:
    return _negation(name) != name


@pytest.mark.vllm
def test_short_names_and_negations_mean_the_same(actions: dict[str, Action]) -> None:
    short = SHORT.keys() - {"-O"}  # which vLLM rewrites before it parses: -O3
    assert {n: actions[n].dest for n in short} == {n: actions[SHORT[n]].dest for n in short}
    assert {n for n in actions if not n.startswith("--")} - short == {"-h"}
    for name in actions:
        if negated(name):  # it is passed on as --no-…
            assert actions[_negation(name)] is actions[name]
