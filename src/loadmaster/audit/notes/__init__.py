"""The causes of an audit's findings, as reading the engine's code showed them: one data file a version.

A new version needs a new ``ENGINE-VERSION.toml`` next to this module, and no code.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import resources
from typing import Any

from loadmaster.audit.verdict import Verdict


@dataclass(frozen=True)
class Note:
    """One finding: globs on the names of cases, and the verdict that it explains. A case belongs to the first note it fits.

    ``where`` are the places in the engine that decide it, in addition to those that the cases show themselves; ``test`` is
    the test that would have found it.
    """

    title: str
    cases: tuple[str, ...]
    verdict: Verdict
    cause: str
    where: tuple[str, ...]
    affected: str
    test: str

    def fits(self, name: str, verdict: str) -> bool:
        """Whether a case with this verdict is one of the finding's."""
        return verdict == self.verdict.value and any(fnmatchcase(name, glob) for glob in self.cases)


def read_notes(stem: str, version: str) -> tuple[Note, ...]:
    """Return the notes on an engine, from ``stem.toml``; none if there is no such file or it is about another version.

    >>> read_notes("vllm-0.32", "0.32.0")[1].title
    "The indexer's `wk` is dequantised with a block size guessed from the shapes"
    >>> read_notes("vllm-0.32", "0.32.1"), read_notes("vllm-0.99", "0.99.0")
    ((), ())
    """
    file = resources.files(__name__) / f"{stem}.toml"
    if not file.is_file():
        return ()
    values = tomllib.loads(file.read_text(encoding="utf-8"))
    return tuple(map(_note, values["note"])) if values["read_in"] == version else ()


def _note(values: dict[str, Any]) -> Note:
    lists = {"cases": tuple(values["cases"]), "where": tuple(values["where"])}
    return Note(**{**values, **lists, "verdict": Verdict(values["verdict"])})
