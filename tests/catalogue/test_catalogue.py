"""The catalogue says what the program says: every code is in use, every example is really found, the order is the rule."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

import loadmaster
from loadmaster.catalogue import CATALOGUE, SECTIONS, ranked
from loadmaster.findings import Finding, joined
from tests.catalogue.examples import summaries

SOURCE = Path(loadmaster.__file__).parent
MADE_HERE = [code for section, entries in SECTIONS.items() if section != "Payload" for code in entries]
"""Codes that need no payload; those of the payload are tested where it is read."""


def trees() -> Iterator[ast.Module]:
    for path in SOURCE.rglob("*.py"):
        if "catalogue" not in path.relative_to(SOURCE).parts:
            yield ast.parse(path.read_text(encoding="utf-8"))


def texts(node: ast.AST) -> Iterator[str]:
    """Yield the string constants of an expression that is given as a code: itself, or either arm of a condition."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from texts(node.body)
        yield from texts(node.orelse)


def codes_given() -> Iterator[str]:
    """Yield what is given as a code: to a `Finding`, as ``code=``, or as an error's ``code``."""
    for tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                if name in ("Finding", "_Fault") and node.args:
                    yield from texts(node.args[0])
                if name in ("Finding", "_Fault", "_refuse") or name.endswith("Error"):
                    yield from (t for k in node.keywords if k.arg == "code" for t in texts(k.value))
            if isinstance(node, ast.Assign) and any(getattr(t, "id", "") == "code" for t in node.targets):
                yield from texts(node.value)


def test_every_code_that_a_finding_is_given_is_in_the_catalogue() -> None:
    given = set(codes_given())
    assert len(given) > 30
    assert given <= CATALOGUE.keys()


def test_every_code_of_the_catalogue_is_in_use() -> None:
    constants = {n.value for tree in trees() for n in ast.walk(tree) if isinstance(n, ast.Constant)}
    assert set(CATALOGUE) <= constants


def test_no_code_stands_in_two_sections() -> None:
    assert sum(map(len, SECTIONS.values())) == len(CATALOGUE)


@pytest.mark.parametrize("code", CATALOGUE)
def test_every_entry_says_what_it_means_how_it_comes_about_and_what_to_do(code: str) -> None:
    entry = CATALOGUE[code]
    for text in (entry.meaning, entry.cause, entry.remedy):
        assert text
        assert not text.endswith(".")  # the page adds it


@pytest.mark.parametrize("code", MADE_HERE)
def test_every_example_is_what_a_damaged_checkpoint_gets(code: str, tmp_path: Path) -> None:
    assert CATALOGUE[code].example in summaries(code, tmp_path / "glm")


def test_findings_are_ranked_by_severity_then_in_the_order_of_the_catalogue() -> None:
    every = [Finding(code, severity, "") for severity in ("note", "warning", "error") for code in reversed(CATALOGUE)]
    order = ranked(every)
    assert [f.code for f in order[: len(CATALOGUE)]] == list(CATALOGUE)
    assert [f.severity for f in order] == [s for s in ("error", "warning", "note") for _ in CATALOGUE]
    codes = ["shard-missing", "config-invalid", "layer-missing", "tensor-missing", "scale-missing", "memory-capacity"]
    for a, b in pairwise(codes):
        assert ranked([Finding(b, "error", ""), Finding(a, "error", "")])[0].code == a


def test_alike_findings_stay_in_the_order_in_which_they_were_found() -> None:
    found = [Finding("tensor-missing", "error", "", tensor=f"layers.{i}") for i in (3, 1, 2)]
    assert list(ranked(found)) == found


def test_up_to_four_alike_findings_are_told_apart_and_more_are_one_that_counts_them_and_joins_their_ranks() -> None:
    found = [Finding("shard-missing", "error", "gone", file=f"{i}", ranks=(i % 3,)) for i in range(6)]
    assert joined(found[:4]) == found[:4]
    (one,) = joined(found)
    assert one.message == "gone (and 5 more like it: 1, 2, 3, …)"
    assert (one.file, one.ranks) == ("0", (0, 1, 2))
