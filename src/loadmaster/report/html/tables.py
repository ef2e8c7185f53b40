"""The rest of the page: bytes by kind, findings, figures of ranks, shards, and parameters to choose from."""

from __future__ import annotations

from collections.abc import Sequence

from loadmaster.findings import Finding, gib, ranges
from loadmaster.plan import Plan, Proof
from loadmaster.plan.anatomy import Anatomy
from loadmaster.report.console import unit_of
from loadmaster.report.html.bars import WIDTH, drawing, kind_class, stacked
from loadmaster.report.html.document import section
from loadmaster.report.html.markup import Markup, element
from loadmaster.report.ranks import lines_of, numbers

STAGE_COLOURS = 8
"""Stages take turns in this many colours."""
MOST_FINDINGS = 200
SHARDS_HEIGHT = 560.0
"""The height of the picture of shards, in pixels; of very many, it is more."""


def kinds_section(anatomy: Anatomy) -> Markup:
    """Return the resident bytes of all ranks by kind: a bar, and its key."""
    totals = anatomy.totals
    whole = sum(totals.values())
    bar = stacked([(kind_class(k), f"{k}: {gib(n)}", n) for k, n in totals.items()], whole, 0, 16)
    keys = []
    for kind, size in totals.items():
        share = element("span", f" {size / whole:.1%}", class_="muted")
        keys.append(element("li", [swatch(kind_class(kind)), f"{kind} ", element("b", gib(size)), share]))
    picture = drawing(bar, 16, "bytes by kind")
    return section("Parameters by kind, all ranks", [picture, element("ul", keys, class_="key")], "kinds")


def findings_section(proof: Proof) -> Markup:
    """Return the findings and the waivers."""
    shown = [finding(number, f) for number, f in enumerate(proof.findings[:MOST_FINDINGS])]
    if len(proof.findings) > MOST_FINDINGS:
        shown.append(element("p", f"… and {len(proof.findings) - MOST_FINDINGS:,} more", class_="muted"))
    waived = [element("p", f"waived: {w.reason}: {w.extent}", class_="muted") for w in proof.waivers]
    none = [] if shown else [element("p", "None.", class_="muted")]
    return section("Findings", [*shown, *none, *waived], "findings")


def finding(number: int, finding: Finding) -> Markup:
    """Return one finding, with its place, its message and its hint."""
    where = [
        element("p", [element("span", f"{what} ", class_="muted"), element("code", value)])
        for what, value in (
            ("tensor", finding.tensor),
            ("param", finding.param),
            ("file", finding.file),
            ("rank", ranges(finding.ranks) if finding.ranks else None),
        )
        if value
    ]
    hint = [element("p", f"hint: {finding.hint}")] if finding.hint else []
    head = element("p", [element("b", finding.severity), " ", element("code", finding.code)])
    content = [head, *where, element("p", finding.message), *hint]
    return element("div", content, class_=f"finding {finding.severity}", id=f"finding-{number}")


def mark(number: int, finding: Finding) -> Markup:
    """Return a line that links to a finding."""
    link = element("a", finding.code, href=f"#finding-{number}")
    return element("p", [finding.severity, " ", link], class_=f"mark {finding.severity}")


def ranks_section(proof: Proof) -> Markup:
    """Return the figures of ranks; ranks of one stage with the same sizes share a line."""
    unit, size = unit_of(max(r.resident_bytes for r in proof.ranks))
    host = ["host"] if any(r.host_bytes for r in proof.ranks) else []
    sized = (f"resident {unit}", *host, "needed", "fetched", "replica")
    columns = ("rank", "stage", "layers", "parameters", *sized, "reads")
    rows = []
    for line in lines_of(proof.ranks):
        r = line.ranks[0]
        layers = f"{r.layers[0]}–{r.layers[1] - 1}" + "".join(f", mtp {d}" for d in r.draft_layers)
        tables = (r.host_bytes,) if host else ()
        sizes = (
            f"{n / size:.2f}" for n in (r.resident_bytes, *tables, r.needed_bytes, r.fetched_bytes, r.replica_bytes)
        )
        cells = (
            numbers([o.rank for o in line.ranks]),
            r.pp_rank,
            layers,
            f"{r.num_params:,}",
            *sizes,
            f"{r.num_reads:,}",
        )
        rows.append([str(c) for c in cells])
    return section("Ranks", [table(columns, rows)], "ranks")


def shards_section(plan: Plan, anatomy: Anatomy) -> Markup:
    """Return where each shard's bytes go: a bar for each file, in the colours of the stages that need it."""
    files = plan.checkpoint.files
    largest = int(anatomy.shards.sum(axis=1).max(initial=1))
    num_stages = len(anatomy.stages)
    step = min(12.0, max(3.0, SHARDS_HEIGHT / max(len(files), 1)))
    shapes: list[Markup] = []
    for number, row in enumerate(anatomy.shards.tolist()):
        parts = [
            (f"s-{stage % STAGE_COLOURS}", f"{files[number].name} → stage {stage}: {gib(n)}", n)
            for stage, n in enumerate(row[:-1])
        ]
        parts.append(("unread", f"{files[number].name}, not read: {gib(row[-1])}", row[-1]))
        shapes += stacked(parts, largest, number * step, step * 0.8)
    names = f"{files[0].name} … {files[-1].name}" if len(files) > 1 else files[0].name if files else ""
    key = [key_entry(f"s-{s}", f"stage {s}") for s in range(min(num_stages, STAGE_COLOURS))]
    if num_stages > STAGE_COLOURS:
        key.append(element("li", f"then the colours repeat, up to stage {num_stages - 1}"))
    if int(anatomy.shards[:, -1].sum()):
        key.append(key_entry("unread", f"not read {gib(int(anatomy.shards[:, -1].sum()))}"))
    picture = drawing(shapes, len(files) * step, "bytes of each shard by stage")
    about = element("p", f"{len(files)} file(s), a bar each, from top to bottom: {names}", class_="muted")
    return section("Where each shard goes", [about, picture, element("ul", key, class_="key")], "shards")


def params_section(names: list[str]) -> Markup:
    """Return the field in which a parameter is chosen; the script fills in what is known of it."""
    options = [element("option", name, value=str(number)) for number, name in enumerate(names)]
    label = element("label", ["One layer of each kind, and the model's own. ", element("select", options, id="param")])
    return section("A parameter", [label, element("div", [], id="param-details")], "params")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    """Return a table, which scrolls where it is wider than the page."""
    head = element("tr", [element("th", c, scope="col") for c in columns])
    body = [element("tr", [element("td", cell) for cell in row]) for row in rows]
    made = element("table", [element("thead", [head]), element("tbody", body)])
    return element("div", [made], class_="scroll", tabindex=0)


def key_entry(class_: str, words: str) -> Markup:
    """Return what a colour stands for."""
    return element("li", [swatch(class_), words])


def swatch(class_: str) -> Markup:
    """Return a small square in a colour."""
    square = element("rect", class_=class_, x=0, y=0, width=WIDTH, height=WIDTH)
    return element("svg", [square], class_="swatch", viewBox=f"0 0 {WIDTH:g} {WIDTH:g}", aria_hidden="true")
