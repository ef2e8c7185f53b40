"""The picture of the stages: each with its layers, what it receives, its memory and its ranks, and the findings on it."""

from __future__ import annotations

from collections.abc import Iterator

from loadmaster.findings import gib
from loadmaster.plan import Proof
from loadmaster.plan.anatomy import Anatomy, StageAnatomy
from loadmaster.report.html.bars import WIDTH, by_kind, drawing, stacked
from loadmaster.report.html.markup import Markup, element
from loadmaster.report.html.memory import bar, in_words, needs, parts_of, scale_of
from loadmaster.report.html.tables import mark
from loadmaster.report.ranks import numbers
from loadmaster.sizing.memory import Memory

ROW, GAP = 7.0, 2.0
"""Height of a layer's bar and the space after it, in pixels."""
MOST_CELLS = 16
"""The most small squares in a row. A row is a data-parallel replica, where its tensor-parallel ranks fit."""


class StagesPicture:
    """Draws the stages of a proof side by side, in the order in which tokens pass them.

    ``capacity_bytes`` is the memory of a device, where it was given. With ``memory`` a bar shows all that is on a device, without
    it the parameters.
    """

    def __init__(self, proof: Proof, anatomy: Anatomy, capacity_bytes: int | None, memory: Memory | None) -> None:
        self._proof, self._anatomy, self._capacity = proof, anatomy, capacity_bytes
        self._memory = memory
        self._on = {} if memory is None else {r.rank: r for r in memory.ranks}
        self._longest = max((row.num_bytes for stage in anatomy.stages for row in stage.rows), default=1)
        self._most = max(r.resident_bytes for r in proof.ranks)
        self._over = {r.rank for r in proof.ranks if capacity_bytes is not None and r.resident_bytes > capacity_bytes}
        self._over.update(rank for f in proof.findings if f.code == "memory-capacity" for rank in f.ranks)

    def drawn(self) -> Markup:
        """Return the picture."""
        return element("div", [self._stage(stage) for stage in self._anatomy.stages], class_="stages", id="stages")

    def _stage(self, stage: StageAnatomy) -> Markup:
        worst = max(stage.ranks, key=lambda rank: self._proof.ranks[rank].resident_bytes)
        return element(
            "article",
            [
                element("h3", f"Stage {stage.number}"),
                element("p", f"rank {numbers(stage.ranks)}", class_="muted"),
                element("p", _layers(stage), class_="muted"),
                element("p", _receives(stage), class_="carries"),
                _rows(stage, self._longest),
                element("p", "Memory of a rank" if self._on else "Parameters of a rank", class_="caption"),
                *self._rank(worst),
                self._ranks(stage) if len(stage.ranks) > 1 else "",
                *_findings(self._proof, stage),
            ],
            class_="stage",
            id=f"stage-{stage.number}",
            data_rank=stage.ranks[0],
        )

    def _rank(self, rank: int) -> Iterator[Markup]:
        """Yield the bar of a rank's memory, and what it holds in words."""
        sizes, resident = self._anatomy.sizes[rank], self._proof.ranks[rank].resident_bytes
        if self._memory is not None:
            r = self._on[rank]
            yield bar(r, parts_of(r, self._memory, sizes), scale_of(self._memory), 14)
            used, rest = needs(r, self._memory)
            yield element("p", used, class_="value")
            yield element("p", rest, class_="muted")
            return
        scale = max(self._most, self._capacity or 0)
        ground = element("rect", class_="ground", x=0, y=0, width=WIDTH, height=14)
        shapes = [ground, *stacked(by_kind(sizes), scale, 0, 14)]
        if self._capacity is not None and self._capacity < scale:
            at = WIDTH * self._capacity / scale
            shapes.append(element("line", class_="limit", x1=at, x2=at, y1=0, y2=14))
        yield drawing(shapes, 14, "memory by kind", "memory")
        of = "" if self._capacity is None else f" of {gib(self._capacity)}"
        yield element("p", gib(resident) + of, class_="value")

    def _ranks(self, stage: StageAnatomy) -> Markup:
        """Return a square for each rank of a stage."""
        cells = max(4, min(MOST_CELLS, self._proof.plan.layout.tensor_parallel_size))
        side = WIDTH / cells
        squares = []
        for number, rank in enumerate(stage.ranks):
            row, column = divmod(number, cells)
            resident = self._proof.ranks[rank].resident_bytes
            holds = gib(resident) if self._memory is None else in_words(self._on[rank], self._memory)
            squares.append(
                element(
                    "rect",
                    [element("title", f"rank {rank}: {holds}")],
                    class_="rank over" if rank in self._over else "rank",
                    x=column * side,
                    y=row * side,
                    width=side * 0.88,
                    height=side * 0.88,
                    fill_opacity=0.25 + 0.75 * resident / max(self._most, 1),
                    data_rank=rank,
                )
            )
        height = -(-len(stage.ranks) // cells) * side
        label = f"the ranks of stage {stage.number}"
        return element(
            "svg", squares, class_="ranks", viewBox=f"0 0 {WIDTH:g} {height:g}", role="img", aria_label=label
        )


def _layers(stage: StageAnatomy) -> str:
    first, end = stage.layers
    drafts = sum(row.layer is not None and row.layer >= end for row in stage.rows)
    return f"layers {first}–{end - 1}" + (" + MTP" if drafts else "")


def _receives(stage: StageAnatomy) -> str:
    if not stage.carries:
        return "receives tokens"
    names = ", ".join(name.replace("_", " ") for name in stage.carries)
    return f"→ {names}, {gib(stage.carries_bytes)} a token" if stage.carries_bytes else f"→ {names}"


def _rows(stage: StageAnatomy, longest: int) -> Markup:
    shapes: list[Markup] = []
    for number, row in enumerate(stage.rows):
        y = number * (ROW + GAP)
        title = element("title", f"{row.name}: {gib(row.num_bytes)}")
        ground = element("rect", [title], class_="ground", x=0, y=y, width=WIDTH, height=ROW)
        shapes += [ground, *stacked([(c, f"{row.name}, {t}", n) for c, t, n in by_kind(row.sizes)], longest, y, ROW)]
    return drawing(shapes, len(stage.rows) * (ROW + GAP), f"bytes of each layer of stage {stage.number}", "layers")


def _findings(proof: Proof, stage: StageAnatomy) -> Iterator[Markup]:
    """Yield a mark for each finding that is about ranks of this stage, and not about all ranks."""
    for number, finding in enumerate(proof.findings):
        mine = set(stage.ranks).intersection(finding.ranks)
        if mine:
            yield mark(number, finding)
