"""The report of what changed between two versions of an engine: the same cases, their verdicts before and after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loadmaster.audit.notes import ChangeNote, read_changes, read_notes
from loadmaster.audit.page import Block, Heading, Items, Table, Text, code, html, markdown
from loadmaster.audit.places import GONE
from loadmaster.audit.recorded import Recorded, Row
from loadmaster.audit.report import groups
from loadmaster.audit.verdict import Verdict

UNREAD: Final = "not looked into"
WRONG: Final = (Verdict.SILENT, Verdict.WARNED, Verdict.HANG, Verdict.CRASH)

SCOPE: Final = (
    "Both versions were given the same tiny checkpoints, sound ones and ones with a single defect, on the same ranks. A case "
    "has changed if its verdict has. How cases are made and judged is in the report of each version."
)
IMPORTANCE: Final = (
    ("high", "a wrong model is loaded, or the process hangs or crashes, in one of the two versions"),
    ("medium", "one of the two ends in an unclear error"),
    ("low", "the others: when a clear error comes"),
)


@dataclass(frozen=True)
class Change:
    """A case before and after."""

    before: Row
    after: Row

    @property
    def verdicts(self) -> tuple[Verdict, Verdict]:
        """The verdicts on the engine's own loader."""
        return Verdict(self.before["verdict"]), Verdict(self.after["verdict"])

    @property
    def direction(self) -> str:
        """``worse``, ``better``, ``same``, or ``one`` if only one version could be judged.

        For a sound checkpoint or a harmless defect, loading right is the best verdict, and for a defect too: order by harm.
        """
        before, after = self.verdicts
        if before is after:
            return "same"
        if Verdict.NOT_RUN in (before, after):
            return "one"
        return "worse" if after.harm < before.harm else "better"

    @property
    def importance(self) -> str:
        """How much the change matters to users: see `IMPORTANCE`."""
        if any(v in WRONG for v in self.verdicts):
            return "high"
        return "medium" if Verdict.UNCLEAR in self.verdicts else "low"


Group = tuple[ChangeNote | None, list[Change]]


def paired(before: Recorded, after: Recorded) -> tuple[list[Change], list[str]]:
    """Return the cases that both have, in the order of ``after``, and the names of the others."""
    old, new = ({row["name"]: row for row in recorded.rows} for recorded in (before, after))
    return [Change(old[n], new[n]) for n in new if n in old], [n for n in (*old, *new) if n not in old or n not in new]


def grouped(changes: Sequence[Change], notes: Sequence[ChangeNote]) -> list[Group]:
    """Return changed cases by their note, or by both verdicts and the kind of defect; the most important first."""
    found: dict[object, Group] = {}
    for change in changes:
        name, verdicts = change.after["name"], change.verdicts
        note = next((n for n in notes if n.fits(name, *verdicts)), None)
        found.setdefault(note or (*verdicts, change.after["kind"]), (note, []))[1].append(change)
    order = [name for name, _ in IMPORTANCE]
    return sorted(found.values(), key=lambda g: (min(order.index(c.importance) for c in g[1]), -len(g[1])))


def title_of(before: Recorded, after: Recorded) -> str:
    """Return the report's title."""
    return f"vLLM {before.version} to {after.version}: what changed in its loaders"


def write_changes(out: Path, before: Recorded, after: Recorded) -> tuple[Path, ...]:
    """Write ``vllm-BEFORE-to-AFTER.md`` and ``.html``, and return their paths."""
    out.mkdir(parents=True, exist_ok=True)
    stem, blocks = f"{before.stem}-to-{after.stem.removeprefix('vllm-')}", list(change_report(before, after))
    texts = {"md": markdown(blocks), "html": html(title_of(before, after), blocks)}
    for suffix, text in texts.items():
        (out / f"{stem}.{suffix}").write_text(text, encoding="utf-8")
    return tuple(out / f"{stem}.{suffix}" for suffix in texts)


def change_report(before: Recorded, after: Recorded) -> Iterator[Block]:
    """Yield the blocks of the report."""
    changes, others = paired(before, after)
    notes = read_changes(after.stem, before.version, after.version)
    yield Heading(1, title_of(before, after))
    yield Text(f"{SCOPE} Again: `loadmaster audit vllm --against OTHER_PYTHON`.")
    names = sorted(before.versions.keys() | after.versions.keys())
    yield Table(
        ("package", "before", "after"),
        tuple((n, before.versions.get(n, "none"), after.versions.get(n, "none")) for n in names),
    )
    yield Heading(2, "In short")
    yield Text(short(changes))
    yield _counts(changes)
    for title, direction in (("Worse", "worse"), ("Better", "better"), ("Judged in one version alone", "one")):
        chosen = [c for c in changes if c.direction == direction]
        if not chosen:
            continue
        yield Heading(2, title)
        for i, (note, of) in enumerate(grouped(chosen, notes), 1):
            yield from _group(f"{i}. {_title(note, of)}", note, of, before, after)
    yield from _standing(changes, before, after)
    yield from _other_words(changes)
    yield Heading(2, "Every case")
    yield Table(
        ("case", "defect", "before", "after"),
        tuple((code(c.after["name"]), code(c.after["defect"] or "sound"), *_both(c)) for c in changes),
    )
    if others:
        yield Text(f"In one of the runs alone, and not compared: {', '.join(map(code, others))}.")
    yield Heading(2, "Importance")
    yield Items(IMPORTANCE)


def short(changes: Sequence[Change]) -> str:
    """Return how many cases changed, in a sentence.

    >>> short([])
    '0 cases in both: the verdict is the same in 0, better in 0, worse in 0; 0 were judged in one version alone.'
    """
    of = Counter(c.direction for c in changes)
    return (
        f"{len(changes):,} cases in both: the verdict is the same in {of['same']:,}, better in {of['better']:,}, worse in "
        f"{of['worse']:,}; {of['one']:,} were judged in one version alone."
    )


def _counts(changes: Sequence[Change]) -> Table:
    def count(is_sound: bool, index: int, verdict: Verdict) -> str:
        return str(sum(c.verdicts[index] is verdict for c in changes if (c.after["kind"] is None) is is_sound))

    columns = [(False, 0), (False, 1), (True, 0), (True, 1)]
    return Table(
        ("verdict", "defective, before", "after", "sound, before", "after"),
        tuple(
            (v.value, *(count(*column, v) for column in columns))
            for v in Verdict
            if any(v in c.verdicts for c in changes)
        ),
    )


def _both(change: Change) -> tuple[str, str]:
    return change.verdicts[0].value, change.verdicts[1].value


def _title(note: ChangeNote | None, of: Sequence[Change]) -> str:
    return note.title if note else f"{_both(of[0])[0]}, then {_both(of[0])[1]}: {UNREAD}"


def _group(
    title: str, note: ChangeNote | None, of: Sequence[Change], before: Recorded, after: Recorded
) -> Iterator[Block]:
    places = [*(note.where if note else ()), *(p for c in of for row in (c.before, c.after) if (p := place_of(row)))]
    yield Heading(3, title)
    yield Items(
        (
            ("cause", note.cause if note else UNREAD),
            ("files and symbols", ", ".join(_place(p, before, after) for p in dict.fromkeys(places))),
            ("importance", ", ".join(dict.fromkeys(c.importance for c in of))),
            ("risk", note.risk if note else UNREAD),
            ("test that upstream lacks", note.test if note else UNREAD),
            ("again", code(f"loadmaster audit vllm --against OTHER_PYTHON --cases '{of[0].after['name']}'")),
        )
    )
    yield Table(
        ("case", "defect", "before", "seen before", "after", "seen after"),
        tuple(
            (
                code(c.after["name"]),
                code(c.after["defect"] or "sound"),
                *(part for row in (c.before, c.after) for part in (row["verdict"], code(row["evidence"]))),
            )
            for c in of
        ),
    )


def place_of(row: Row) -> str:
    """Return the place in the engine that a case shows: where it raised an error, or the loader."""
    return str(row["auto"]["raised_in"] or row["auto"]["loader"])


def _place(place: str, before: Recorded, after: Recorded) -> str:
    return f"{code(place)} ({_compared(place, before, after)})"


def _compared(place: str, before: Recorded, after: Recorded) -> str:
    old, new = before.places.get(place), after.places.get(place)
    if old is None or new is None:
        return "code not compared"
    if old == new:
        return "the same code" if old != GONE else "in neither"
    return "gone" if new == GONE else "new" if old == GONE else "code changed"


def _standing(changes: Sequence[Change], before: Recorded, after: Recorded) -> Iterator[Block]:
    """Yield the findings whose verdict did not change, and whether the code that causes them did."""
    same = [c.after for c in changes if c.direction == "same"]
    rows = []
    for note, of in groups(same, read_notes(after.stem, after.version)):
        where = tuple(dict.fromkeys((*(note.where if note else ()), *(p for r in of if (p := place_of(r))))))
        changed = [p for p in where if _compared(p, before, after) != "the same code"]
        state = ", ".join(_place(p, before, after) for p in changed) or "the same code"
        title = note.title if note else f"{of[0]['kind'] or 'sound'}: {UNREAD}"
        rows.append((title, of[0]["verdict"], str(len(of)), state, note.test if note else UNREAD))
    if rows:
        yield Heading(2, "Findings that stand")
        yield Text("Their causes are in the report of the later version.")
        yield Table(("finding", "verdict", "cases", "code at its places", "test that upstream lacks"), tuple(rows))


def _other_words(changes: Sequence[Change]) -> Iterator[Block]:
    worded = [c for c in changes if c.direction == "same" and c.before["evidence"] != c.after["evidence"]]
    worded = [c for c in worded if c.verdicts[1] is not Verdict.NOT_RUN]
    if worded:
        yield Heading(2, "The same verdict on other evidence")
        yield Table(
            ("case", "verdict", "seen before", "seen after"),
            tuple(
                (code(c.after["name"]), c.after["verdict"], code(c.before["evidence"]), code(c.after["evidence"]))
                for c in worded
            ),
        )
