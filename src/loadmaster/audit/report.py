"""The report of an audit: findings by harm, each with its cause and a command to reproduce it; then everything else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import Final, TypeAlias

from loadmaster.audit.damage import KINDS
from loadmaster.audit.notes import Note, read_notes
from loadmaster.audit.page import Block, Heading, Items, Table, Text, code, html, markdown
from loadmaster.audit.recorded import Recorded, Row
from loadmaster.audit.verdict import Verdict

Kind: TypeAlias = tuple[str, str | None]
"""A preset, and whether the model or its draft was loaded."""

PLACES: Final = 5
"""How many places in the engine one finding lists."""

FAULTS: Final = tuple(v for v in Verdict if v not in (Verdict.CLEAR, Verdict.RIGHT, Verdict.NOT_RUN))
"""Verdicts that are findings."""

JUDGED: Final = (
    (
        "loaded wrong in silence",
        "no error, and a parameter has bytes that nobody wrote, or holds something else than the sound checkpoint gives, or "
        "something that the checkpoint stores was dropped; and no warning named it that the sound one does not get too",
    ),
    ("loaded wrong with a warning", "the same, with a warning that names what is concerned"),
    ("hang, crash", "the process did not end within two minutes, or ended by a signal"),
    (
        "unclear error",
        "the message, its causes and what was logged do not both name a tensor, parameter or file concerned and say in words "
        "what is wrong: a bare name is no sentence, a sentence without a name leaves one to look",
    ),
    ("late error", "a clear one, after tensors were read, although the headers or the config show the defect"),
    ("refused clearly", "a clear one, before any tensor was read"),
    ("loaded right", "every parameter is written whole and holds what the sound checkpoint gives"),
)

SCOPE: Final = (
    "Each case is a tiny checkpoint in the real layout of its model, with random weights, loaded by one rank in its "
    "own process, with groups that answer as those of a larger layout. The model is built and its weights are loaded, by "
    "`initialize_model` and `DefaultModelLoader.load_weights`; where a wrong model is loaded without an error, "
    "`process_weights_after_loading` is run too, if a CPU can do that to the sound one. No forward pass is run. While the "
    "model is built, memory gets a pattern, so that what nobody wrote is known by its bytes. What a parameter must hold is "
    "cut and put together from whole stored tensors with numpy, by this package's tables of the family; the few that are "
    "computed (a dequantised part of a fused one) are those of its loader. A defect is judged only if the same "
    "checkpoint without it is loaded right on the same rank."
)


def summary(rows: Sequence[Row]) -> str:
    """Return the number of cases of each verdict, in one line."""
    counts = Counter(row["verdict"] for row in rows)
    return f"{len(rows):,} cases: " + ", ".join(f"{counts[v.value]:,} {v.value}" for v in Verdict if counts[v.value])


def write_reports(out: Path, recorded: Recorded) -> tuple[Path, ...]:
    """Write ``vllm-VERSION.json``, ``.md`` and ``.html``, and return their paths."""
    out.mkdir(parents=True, exist_ok=True)
    blocks = list(report(recorded))
    texts = {"json": recorded.text(), "md": markdown(blocks), "html": html(title_of(recorded), blocks)}
    for suffix, text in texts.items():
        (out / f"{recorded.stem}.{suffix}").write_text(text, encoding="utf-8")
    return tuple(out / f"{recorded.stem}.{suffix}" for suffix in texts)


def title_of(recorded: Recorded) -> str:
    """Return the report's title."""
    return f"vLLM {recorded.version}: what its loaders make of sound and defective checkpoints"


def report(recorded: Recorded) -> Iterator[Block]:
    """Yield the blocks of the report."""
    rows, notes = recorded.rows, read_notes(recorded.stem, recorded.version)
    yield Heading(1, title_of(recorded))
    yield Text(f"{SCOPE} Again: `loadmaster audit vllm`.")
    yield Text("Versions: " + ", ".join(f"{name} {version}" for name, version in recorded.versions.items()) + ".")
    yield Heading(2, "In short")
    yield _counts(rows)
    yield from _findings(rows, notes)
    yield from _rest(rows)
    yield from _others(rows)
    yield Heading(2, "How it is judged")
    yield Items(JUDGED)


def _counts(rows: Sequence[Row]) -> Table:
    def count(verdict: Verdict, is_sound: bool, key: str | None = None) -> str:
        verdicts = [(r[key] if key else r)["verdict"] for r in rows if (r["kind"] is None) is is_sound]
        return str(verdicts.count(verdict.value))

    counts = tuple(
        (v.value, count(v, False), count(v, False, "loadmaster"), count(v, True))
        for v in Verdict
        if any(v.value in (r["verdict"], r["loadmaster"]["verdict"]) for r in rows)
    )
    return Table(("verdict", "defective", "the same with `--load-format loadmaster`", "sound"), counts)


def groups(rows: Sequence[Row], notes: Sequence[Note]) -> list[tuple[Note | None, list[Row]]]:
    """Return the findings, the most harmful first: the cases of one note; without a note, those of one kind and place."""
    grouped: dict[object, tuple[Note | None, list[Row]]] = {}
    for row in rows:
        if row["verdict"] not in {v.value for v in FAULTS}:
            continue
        note = next((n for n in notes if n.fits(row["name"], row["verdict"])), None)
        place = row["auto"]["raised_in"] or row["auto"]["loader"]
        grouped.setdefault(note or (row["kind"], row["verdict"], place), (note, []))[1].append(row)
    return sorted(grouped.values(), key=lambda g: (Verdict(g[1][0]["verdict"]).harm, -len(g[1])))


def _findings(rows: Sequence[Row], notes: Sequence[Note]) -> Iterator[Block]:
    findings, refused = groups(rows, notes), refused_by_tracking(rows)
    yield Heading(2, "Findings")
    yield Text(
        "By harm; among equals, those seen in most cases first. In each, `plan` is what `loadmaster plan` says of the same "
        "checkpoint, from headers alone, and `loadmaster` what `--load-format loadmaster` does with it."
    )
    yield Table(
        ("", "finding", "verdict", "cases"),
        tuple((str(i), _title(note, of), of[0]["verdict"], str(len(of))) for i, (note, of) in enumerate(findings, 1)),
    )
    for i, (note, of) in enumerate(findings, 1):
        yield Heading(3, f"{i}. {_title(note, of)}")
        yield Items(tuple(_details(note, of, refused)))
        yield Table(
            ("case", "defect", "seen", "plan", "loadmaster"),
            tuple((code(r["name"]), code(r["defect"] or "sound"), code(r["evidence"]), _plan(r), _ours(r)) for r in of),
        )


def _title(note: Note | None, rows: Sequence[Row]) -> str:
    return (
        note.title
        if note
        else f"{KINDS[rows[0]['kind']] if rows[0]['kind'] else 'a sound checkpoint'}: not looked into"
    )


def _details(note: Note | None, rows: Sequence[Row], refused: Set[Kind]) -> Iterator[tuple[str, str]]:
    places = dict.fromkeys(row["auto"]["raised_in"] or row["auto"]["loader"] for row in rows)
    yield "verdict", f"{rows[0]['verdict']}, in {len(rows)} case{'s' if len(rows) > 1 else ''}"
    if note is not None:
        yield "cause", note.cause
    where = tuple(dict.fromkeys((*(note.where if note else ()), *(p for p in places if p))))
    more = f" and {len(where) - PLACES} more" if len(where) > PLACES else ""
    yield "where", ", ".join(code(p) for p in where[:PLACES]) + more
    families = ", ".join(sorted({row["family"] for row in rows}))
    yield "affected", f"{note.affected} Seen with: {families}." if note else f"seen with: {families}"
    if checked := _checked(rows, refused):
        yield "vLLM's own checks", checked
    if note is not None:
        yield "test that upstream lacks", note.test
    yield "again", code(f"loadmaster audit vllm --cases '{rows[0]['name']}'")


def refused_by_tracking(rows: Sequence[Row]) -> set[Kind]:
    """Return the sound models that vLLM's opt-in check refuses although they load correctly; it proves nothing then."""
    return {
        (row["preset"], row["draft"])
        for row in rows
        if row["kind"] is None and row["verdict"] == Verdict.RIGHT.value and row["tracked"] != Verdict.RIGHT.value
    }


def _checked(rows: Sequence[Row], refused: Set[Kind]) -> str | None:
    """Return the results of vLLM's opt-in check, and of the processing that follows loading."""
    checked = [r["tracked"] for r in rows if r["tracked"] is not None and (r["preset"], r["draft"]) not in refused]
    if not checked:
        return None
    caught = sum(verdict not in (Verdict.SILENT.value, Verdict.WARNED.value) for verdict in checked)
    processed = sum(row["processed"] for row in rows)
    return (
        f"with `enable_weights_track`, which has to be asked for, {caught} of {len(checked)} raise an error; "
        f"`process_weights_after_loading` was run in {processed} and raised nothing"
    )


def _plan(row: Row) -> str:
    codes = dict.fromkeys(f"{code(f['code'])} ({f['severity']})" for f in row["plan"])
    verified = dict.fromkeys(f"{code(f['code'])} ({f['severity']}, `verify`)" for f in row["verify"])
    return ", ".join((*codes, *verified)) or "nothing"


def _ours(row: Row) -> str:
    return f"{row['loadmaster']['verdict']}: {code(row['loadmaster']['evidence'])}"


def _rest(rows: Sequence[Row]) -> Iterator[Block]:
    rest = [r for r in rows if r["kind"] and r["verdict"] in (Verdict.CLEAR.value, Verdict.RIGHT.value)]
    if rest:
        yield Heading(2, "Defects that vLLM is right about")
        yield Table(
            ("case", "defect", "verdict", "seen", "plan", "loadmaster"),
            tuple(
                (code(r["name"]), code(r["defect"]), r["verdict"], code(r["evidence"]), _plan(r), _ours(r))
                for r in rest
            ),
        )


def _others(rows: Sequence[Row]) -> Iterator[Block]:
    sound = [r for r in rows if not r["kind"] and r["verdict"] == Verdict.RIGHT.value]
    if sound:
        yield Heading(2, "Sound checkpoints that are loaded right")
        yield Text(
            "By rank: its place among stages (pp) and in the group of tensor or expert parallelism (tp, ep). What is not "
            "compared is what the reference does not have: scales of a cache, and parameters that vLLM orders otherwise."
        )
        by_preset: dict[str, list[Row]] = {}
        for row in sound:
            by_preset.setdefault(row["preset"], []).append(row)
        yield Table(
            ("preset", "family", "ranks", "parameters compared"),
            tuple(
                (p, of[0]["family"], ", ".join(_rank(r) for r in of), ", ".join(_compared(r) for r in of))
                for p, of in by_preset.items()
            ),
        )
        if refused := refused_by_tracking(rows):
            names = ", ".join(
                code(f"{preset}, draft" if draft else preset) for preset, draft in sorted(refused, key=str)
            )
            yield Text(f"With `enable_weights_track` some of them are refused all the same: {names}.")
    if missed := [r for r in rows if r["verdict"] == Verdict.NOT_RUN.value]:
        yield Heading(2, "Not run")
        yield Text("Not counted: nothing can be said of vLLM's loaders here.")
        yield Table(("case", "why"), tuple((code(r["name"]), code(r["evidence"])) for r in missed))


def _rank(row: Row) -> str:
    return f"{row['rank']}, draft" if row["draft"] else str(row["rank"])


def _compared(row: Row) -> str:
    narrowed = f" ({row['auto']['narrowed']} narrowed)" if row["auto"]["narrowed"] else ""
    return f"{row['auto']['num_compared']} of {row['auto']['num_params']}{narrowed}"
