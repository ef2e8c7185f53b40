"""The pages of differences: between two checkpoints, and between two layouts of one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from loadmaster.checkpoint import Checkpoint
from loadmaster.checkpoint.difference import CheckpointDifference, TensorGroup
from loadmaster.errors import clip
from loadmaster.findings import Finding, gib, ranges
from loadmaster.plan.difference import LayoutDifference, RankChange
from loadmaster.report.console import form_of
from loadmaster.report.html.bars import WIDTH, drawing, stacked
from loadmaster.report.html.document import document, section
from loadmaster.report.html.markup import Markup, element
from loadmaster.report.html.tables import finding, key_entry
from loadmaster.report.text import layout_text

MOST_ROWS = 2000
"""The most rows of a table. JSON has all."""

PARTS = (
    ("kept", "s-2", "kept"),
    ("host", "s-1", "from its host"),
    ("remote", "s-5", "from other hosts"),
    ("storage", "unread", "from storage"),
)


def checkpoint_difference_html(
    before: Checkpoint, after: Checkpoint, difference: CheckpointDifference, version: str
) -> str:
    """Return a difference between checkpoints as an HTML document."""
    sections = [
        _table(
            "Tensors",
            ("change", "tensors", "count", "before", "after", "bytes"),
            (_group(group) for group in difference.tensors),
            len(difference.tensors),
        ),
        _table(
            "Moved to another shard",
            ("before", "after", "tensors", "bytes"),
            ((m.before, m.after, f"{m.num_tensors:,}", gib(m.num_bytes)) for m in difference.moves),
            len(difference.moves),
        ),
        _table(
            "config.json",
            ("key", "before", "after"),
            ((c.key, clip(c.before or "", 120), clip(c.after or "", 120)) for c in difference.config),
            len(difference.config),
        ),
        _findings("Findings only before", difference.findings_lost),
        _findings("Findings only after", difference.findings_gained),
    ]
    title = f"{before.origin.title} and {after.origin.title}, difference"
    return document(title, _compared(before, after, difference.is_equal, version), sections, {})


def layout_difference_html(checkpoint: Checkpoint, difference: LayoutDifference, version: str) -> str:
    """Return a difference between layouts of one checkpoint as an HTML document."""
    needed = sum(r.needed_bytes for r in difference.ranks)
    hosts = f", {difference.ranks_per_host} ranks a host" if difference.ranks_per_host else ""
    header = [
        element("p", f"Loadmaster {version}", class_="muted"),
        element("h1", checkpoint.origin.title),
        element("p", f"{layout_text(difference.before)} → {layout_text(difference.after)}{hosts}"),
        element(
            "p", f"Of {gib(needed)} that ranks need, they have {gib(needed - difference.new_bytes)}", class_="verdict"
        ),
    ]
    sections = [
        section("Bytes that each rank needs", [*_bars(difference.ranks, bool(difference.ranks_per_host))], "ranks")
    ]
    return document(f"{checkpoint.origin.title}, layouts", header, sections, {})


def _compared(before: Checkpoint, after: Checkpoint, is_equal: bool, version: str) -> Iterator[Markup]:
    yield element("p", f"Loadmaster {version}", class_="muted")
    yield element("h1", f"{before.origin.title} → {after.origin.title}")
    yield element("p", "Equal" if is_equal else "Different", class_="verdict")
    for which, checkpoint in (("before", before), ("after", after)):
        table = checkpoint.table
        holds = f"{len(table):,} tensors in {len(checkpoint.files)} file(s), {gib(table.payload_bytes)}"
        yield element("p", f"{which}: {checkpoint.origin}, {holds}", class_="muted")
    yield element("p", "From headers and configs alone: payload bytes not compared.", class_="muted")


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], count: int) -> Markup:
    if not count:
        return section(title, [element("p", "No difference.", class_="muted")], title.split(".")[0].split()[0].lower())
    head = element("tr", [element("th", c, scope="col") for c in columns])
    shown = [
        element("tr", [element("td", cell) for cell in row]) for row, _ in zip(rows, range(MOST_ROWS), strict=False)
    ]
    more = [element("p", f"… and {count - MOST_ROWS:,} more", class_="muted")] if count > MOST_ROWS else []
    table = element("table", [element("thead", [head]), element("tbody", shown)], class_="texts")
    scroll = element("div", [table], class_="scroll", tabindex=0)
    return section(title, [scroll, *more], title.split(".")[0].split()[0].lower())


def _group(group: TensorGroup) -> tuple[str, ...]:
    size = f"{gib(group.before_bytes)} → {gib(group.after_bytes)}"
    return group.change, group.pattern, f"{group.num_tensors:,}", form_of(group.before), form_of(group.after), size


def _findings(title: str, findings: Sequence[Finding]) -> Markup:
    shown = [finding(number, f) for number, f in enumerate(findings)] or [element("p", "None.", class_="muted")]
    return section(title, shown, title.lower().replace(" ", "-"))


def _bars(ranks: Sequence[RankChange], has_hosts: bool) -> Iterator[Markup]:
    most = max((r.needed_bytes for r in ranks), default=1)
    for r in ranks:
        sizes = {"kept": r.kept_bytes, "host": r.host_bytes, "remote": r.remote_bytes, "storage": r.storage_bytes}
        parts = [(class_, f"rank {r.rank}, {title}: {gib(sizes[key])}", sizes[key]) for key, class_, title in PARTS]
        ground = element("rect", class_="ground", x=0, y=0, width=WIDTH, height=10)
        bar = drawing([ground, *stacked(parts, most, 0, 10)], 10, f"bytes of rank {r.rank}")
        figures = f"needs {gib(r.needed_bytes)}, {gib(r.new_bytes)} of it new"
        yield element(
            "div",
            [element("span", f"rank {ranges((r.rank,))}"), bar, element("span", figures, class_="muted")],
            class_="change",
        )
    names = {key: title if has_hosts or key != "host" else "from other ranks" for key, _, title in PARTS}
    shown = [(key, class_) for key, class_, _ in PARTS if any(getattr(r, f"{key}_bytes") for r in ranks)]
    yield element("ul", [key_entry(class_, names[key]) for key, class_ in shown], class_="key")
