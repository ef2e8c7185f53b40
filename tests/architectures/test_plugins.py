"""Families of other packages: found when they are needed, and whatever is wrong with them is said by name."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadmaster.architectures.config import Config
from loadmaster.architectures.plugins import find_plugin
from loadmaster.architectures.registry import FAMILIES, find_family, known
from loadmaster.errors import ConfigError, FamilyError
from tests.architectures.packages import install

RIGHT = """
from dataclasses import replace
from loadmaster.architectures import Param, Tensor, blocks
from loadmaster.architectures.llama import FAMILY as LLAMA

FAMILY = replace(LLAMA, name="{name}", architectures=("{architecture}",), runs=False)
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path that packages are installed in; what was imported from it is forgotten."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]
    importlib.invalidate_caches()


def right(name: str, architecture: str, more: str = "") -> str:
    return RIGHT.format(name=name, architecture=architecture) + more


def test_a_family_of_another_package_is_found_by_its_architecture(site: Path) -> None:
    install(site, "acme", right("acme", "AcmeForCausalLM"), "acme:FAMILY")
    several = (
        right("rock", "RockForCausalLM") + "BOTH = [FAMILY, replace(FAMILY, name='road', architectures=('Road',))]"
    )
    install(site, "rocks", several, "rocks:BOTH")
    assert find_family({"architectures": ["AcmeForCausalLM"]}).name == "acme"
    assert find_family({"architectures": ["RockForCausalLM"]}).name == "rock"
    assert find_family({"architectures": ["Road"]}).name == "road"
    with pytest.raises(ConfigError, match="'Nobody' is not known"):
        find_family({"architectures": ["Nobody"]})


def test_installed_packages_are_not_asked_about_families_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise AssertionError("the installed packages were read")

    monkeypatch.setattr(importlib.metadata, "entry_points", refuse)
    for family in FAMILIES:
        for name in family.architectures:
            assert find_family({"architectures": [name]}) is family


@pytest.mark.parametrize(
    ("source", "value", "says"),
    [
        ("import nothing_of_this_name", "acme:FAMILY", "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("FAMILY = (", "acme:FAMILY", "SyntaxError"),
        ("raise SystemExit(3)", "acme:FAMILY", "SystemExit: 3"),
        ("", "acme:FAMILY", "AttributeError"),
        ("FAMILY = 'llama'", "acme:FAMILY", "it is 'llama', expected a Family or a sequence of them"),
        ("FAMILY = []", "acme:FAMILY", r"it is \[\], expected a Family"),
        (right("acme", "LlamaForCausalLM"), "acme:FAMILY", "LlamaForCausalLM is already described by loadmaster"),
        (
            right("acme", "AcmeForCausalLM", "FAMILY = replace(FAMILY, runs=True)"),
            "acme:FAMILY",
            "the family acme has runs=True",
        ),
    ],
)
def test_a_broken_package_is_named_where_it_might_be_the_one(source: str, value: str, says: str, site: Path) -> None:
    install(site, "acme", source, value, version="1.2")
    with pytest.raises(FamilyError, match=says) as caught:
        find_family({"architectures": ["AcmeForCausalLM"]})
    assert f"acme 1.2 (entry point family = {value})" in caught.value.message
    assert caught.value.code == "plugin-broken"


def test_a_broken_package_is_in_nobody_s_way(site: Path) -> None:
    install(site, "broken", "import nothing_of_this_name", "broken:FAMILY")
    install(site, "acme", right("acme", "AcmeForCausalLM"), "acme:FAMILY")
    assert find_family({"architectures": ["AcmeForCausalLM"]}).name == "acme"


def test_two_packages_with_one_architecture_are_both_named(site: Path) -> None:
    for name in ("acme", "rock"):
        install(site, name, right(name, "AcmeForCausalLM"), f"{name}:FAMILY")
    with pytest.raises(FamilyError, match=r"described by acme 1.0 .* and rock 1.0"):
        find_family({"architectures": ["AcmeForCausalLM"]})


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("def schema(c): return c.values['depth']\n", "fails on this config.json: KeyError: 'depth'"),
        ("def schema(c): return None\n", "is wrong: schema: it returns NoneType"),
        (
            "def schema(c):\n"
            "    made = LLAMA.schema(c)\n"
            "    return replace(made, top=(*made.top, Tensor('gain', (8,))))\n",
            r"is wrong: spelling: gain \(the model itself\) has no stored name \(and 2 more\)",
        ),
    ],
)
def test_wrong_tables_of_a_package_are_an_error_that_names_it(more: str, says: str, site: Path) -> None:
    source = right("acme", "AcmeForCausalLM", more + "FAMILY = replace(FAMILY, schema=schema)\n")
    install(site, "acme", source, "acme:FAMILY")
    family = find_plugin("AcmeForCausalLM", known())
    assert family is not None
    config = {"architectures": ["AcmeForCausalLM"], "hidden_size": 64, "num_attention_heads": 4}
    config |= {"intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 320}
    with pytest.raises(FamilyError, match=says) as caught:
        family.schema(Config(config))
    assert "acme 1.0" in caught.value.message


def test_a_config_that_a_package_refuses_is_the_config_s_fault(site: Path) -> None:
    install(site, "acme", right("acme", "AcmeForCausalLM"), "acme:FAMILY")
    family = find_plugin("AcmeForCausalLM")
    assert family is not None
    with pytest.raises(ConfigError, match="no 'hidden_size'"):
        family.schema(Config({"architectures": ["AcmeForCausalLM"]}))
