"""The picture of the stages: each with its layers, what it receives, its memory and its ranks, and the findings on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from loadmaster.findings import gib
from loadmaster.plan import Proof
from loadmaster.plan.anatomy import Anatomy, Kind, StageAnatomy
from loadmaster.report.html.bars import WIDTH, by_kind, drawing, stacked
from loadmaster.report.html.markup import Markup, element
from loadmaster.report.ranks import numbers

ROW, GAP = 7.0, 2.0
"""Height of a layer's bar and the space after it, in pixels."""
MOST_CELLS = 16
"""The most small squares in a row. A row is a data-parallel replica, where its tensor-parallel ranks fit."""


def stages_section(proof: Proof, anatomy: Anatomy, capacity_bytes: int | None) -> Markup:
    """Return the stages side by side, in the order in which tokens pass them."""
    longest = max((row.num_bytes for stage in anatomy.stages for row in stage.rows), default=1)
    most = max(r.resident_bytes for r in proof.ranks)
    scale = max(most, capacity_bytes or 0)
    cards = [_stage(proof, anatomy, stage, longest, scale, capacity_bytes) for stage in anatomy.stages]
    return element("div", cards, class_="stages", id="stages")


def _stage(
    proof: Proof, anatomy: Anatomy, stage: StageAnatomy, longest: int, scale: int, capacity: int | None
) -> Markup:
    first = stage.ranks[0]
    figures = [proof.ranks[rank] for rank in stage.ranks]
    worst = max(figures, key=lambda r: r.resident_bytes)
    return element(
        "article",
        [
            element("h3", f"Stage {stage.number}"),
            element("p", f"rank {numbers(stage.ranks)}", class_="muted"),
            element("p", _layers(stage), class_="muted"),
            element("p", _receives(stage), class_="carries"),
            _rows(stage, longest),
            element("p", "Memory of a rank", class_="caption"),
            _memory(anatomy.sizes[worst.rank], scale, capacity),
            element("p", _resident(worst.resident_bytes, capacity), class_="value"),
            _ranks(stage, proof, capacity) if len(stage.ranks) > 1 else "",
            *_findings(proof, stage),
        ],
        class_="stage",
        id=f"stage-{stage.number}",
        data_rank=first,
    )


def _layers(stage: StageAnatomy) -> str:
    first, end = stage.layers
    drafts = sum(row.layer is not None and row.layer >= end for row in stage.rows)
    return f"layers {first}–{end - 1}" + (" + MTP" if drafts else "")


def _receives(stage: StageAnatomy) -> str:
    if not stage.carries:
        return "receives tokens"
    names = ", ".join(name.replace("_", " ") for name in stage.carries)
    return f"→ {names}, {stage.carries_bytes / 1024:.0f} KiB a token" if stage.carries_bytes else f"→ {names}"


def _rows(stage: StageAnatomy, longest: int) -> Markup:
    shapes: list[Markup] = []
    for number, row in enumerate(stage.rows):
        y = number * (ROW + GAP)
        title = element("title", f"{row.name}: {gib(row.num_bytes)}")
        ground = element("rect", [title], class_="ground", x=0, y=y, width=WIDTH, height=ROW)
        shapes += [ground, *stacked([(c, f"{row.name}, {t}", n) for c, t, n in by_kind(row.sizes)], longest, y, ROW)]
    return drawing(shapes, len(stage.rows) * (ROW + GAP), f"bytes of each layer of stage {stage.number}", "layers")


def _memory(sizes: Mapping[Kind, int], scale: int, capacity: int | None) -> Markup:
    shapes = [
        element("rect", class_="ground", x=0, y=0, width=WIDTH, height=14),
        *stacked(by_kind(sizes), scale, 0, 14),
    ]
    if capacity is not None and capacity < scale:
        at = WIDTH * capacity / scale
        shapes.append(element("line", class_="limit", x1=at, x2=at, y1=0, y2=14))
    return drawing(shapes, 14, "memory by kind", "memory")


def _resident(num_bytes: int, capacity: int | None) -> str:
    return gib(num_bytes) if capacity is None else f"{gib(num_bytes)} of {gib(capacity)}"


def _ranks(stage: StageAnatomy, proof: Proof, capacity: int | None) -> Markup:
    cells = max(4, min(MOST_CELLS, proof.plan.layout.tensor_parallel_size))
    side = WIDTH / cells
    most = max(r.resident_bytes for r in proof.ranks)
    squares = []
    for number, rank in enumerate(stage.ranks):
        r = proof.ranks[rank]
        row, column = divmod(number, cells)
        over = capacity is not None and r.resident_bytes > capacity
        squares.append(
            element(
                "rect",
                [element("title", f"rank {rank}: {gib(r.resident_bytes)}")],
                class_="rank over" if over else "rank",
                x=column * side,
                y=row * side,
                width=side * 0.88,
                height=side * 0.88,
                fill_opacity=0.25 + 0.75 * r.resident_bytes / max(most, 1),
                data_rank=rank,
            )
        )
    height = -(-len(stage.ranks) // cells) * side
    label = f"the ranks of stage {stage.number}"
    return element("svg", squares, class_="ranks", viewBox=f"0 0 {WIDTH:g} {height:g}", role="img", aria_label=label)


def _findings(proof: Proof, stage: StageAnatomy) -> Iterator[Markup]:
    """Yield a mark for each finding that is about ranks of this stage, and not about all ranks."""
    for number, finding in enumerate(proof.findings):
        mine = set(stage.ranks).intersection(finding.ranks)
        if mine:
            link = element("a", finding.code, href=f"#finding-{number}")
            yield element("p", [finding.severity, " ", link], class_=f"mark {finding.severity}")
