"""The causes of an audit's findings and changes, as reading the engine's code showed them: one data file a version.

A new version needs a new ``ENGINE-VERSION.toml`` next to this module, and no code. ``notes_of`` names the version whose notes
hold for it too, after its own: the code at their places is the same, or was read again (``read_again``). ``more`` has globs of
further cases that such a note explains, by its title.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class ChangeNote:
    """One change since another version: globs on the names of cases, and the verdicts before and after that it explains.

    ``risk`` says whom the change may surprise; the rest is as in a `Note`.
    """

    title: str
    cases: tuple[str, ...]
    before: tuple[Verdict, ...]
    after: tuple[Verdict, ...]
    cause: str
    where: tuple[str, ...]
    risk: str
    test: str

    def fits(self, name: str, before: Verdict, after: Verdict) -> bool:
        """Whether a case with these verdicts is one of the change's."""
        return before in self.before and after in self.after and any(fnmatchcase(name, glob) for glob in self.cases)


def read_notes(stem: str, version: str) -> tuple[Note, ...]:
    """Return the notes on an engine, from ``stem.toml``; none if there is no such file or it is about another version.

    >>> read_notes("vllm-0.32", "0.32.0")[1].title
    "The indexer's `wk` is dequantised with a block size guessed from the shapes"
    >>> read_notes("vllm-0.32", "0.32.1"), read_notes("vllm-0.99", "0.99.0")
    ((), ())
    """
    values = _values(stem)
    if values.get("read_in") != version:
        return ()
    own = tuple(map(_note, values.get("note", ())))
    if (other := values.get("notes_of")) is None:
        return own
    more = further_cases(stem)
    inherited = read_notes(other, _values(other)["read_in"])
    return own + tuple(replace(note, cases=(*note.cases, *more.get(note.title, ()))) for note in inherited)


def read_changes(stem: str, before: str, after: str) -> tuple[ChangeNote, ...]:
    """Return the notes on what changed in a version (``after``) since another; none if nobody compared these two.

    >>> read_changes("vllm-0.33", "0.31.0", "0.33.0")
    ()
    """
    values = _values(stem)
    if (values.get("read_in"), values.get("since")) != (after, before):
        return ()
    return tuple(map(_change, values.get("change", ())))


def read_again(stem: str) -> tuple[str, ...]:
    """Return the places whose code is not that of the version in ``notes_of``, and was read again."""
    return tuple(_values(stem).get("read_again", ()))


def further_cases(stem: str) -> dict[str, tuple[str, ...]]:
    """Return the globs of ``more``, by the title of the note that explains them."""
    return {title: tuple(globs) for title, globs in _values(stem).get("more", {}).items()}


def noted_places() -> tuple[str, ...]:
    """Return the places that the notes on any version name."""
    files = (f.name for f in resources.files(__name__).iterdir() if f.name.endswith(".toml"))
    noted = (
        n for f in sorted(files) for key in ("note", "change") for n in _values(f.removesuffix(".toml")).get(key, ())
    )
    return tuple(place for note in noted for place in note["where"])


def _values(stem: str) -> dict[str, Any]:
    file = resources.files(__name__) / f"{stem}.toml"
    return tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _note(values: dict[str, Any]) -> Note:
    lists = {"cases": tuple(values["cases"]), "where": tuple(values["where"])}
    return Note(**{**values, **lists, "verdict": Verdict(values["verdict"])})


def _change(values: dict[str, Any]) -> ChangeNote:
    lists = {"cases": tuple(values["cases"]), "where": tuple(values["where"])}
    verdicts = {key: tuple(Verdict(v) for v in values[key]) for key in ("before", "after")}
    return ChangeNote(**{**values, **lists, **verdicts})
