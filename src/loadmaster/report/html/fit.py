"""The page of `fit`: layouts that fit, best first and drawn; those that do not, and why; the smallest machine that would do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from loadmaster.findings import Finding, gib, ranges
from loadmaster.parallel import partition
from loadmaster.plan import Plan
from loadmaster.report.fit import LEGEND, by_reason, layout_table, machine_text, options_of, reasons
from loadmaster.report.html.document import document, section
from loadmaster.report.html.markup import Markup, element
from loadmaster.report.html.memory import bar, memory_key, needs, parts_of, scale_of
from loadmaster.report.html.tables import finding, table
from loadmaster.report.ranks import numbers
from loadmaster.sizing.fit import MOST_DEVICES, Candidate, Fit

MOST_PICTURES = 24
"""Layouts of each kind that are drawn. The tables have all."""


def fit_html(fit: Fit, plan: Plan, version: str, *, proven: bool | None, findings: Sequence[Finding] = ()) -> str:
    """Return the layouts of a machine as an HTML document.

    ``plan`` is of the model on any layout. ``proven`` and ``findings`` are of the best layout's plan; None: nothing fits.
    """
    pictures = _Pictures(len(plan.schema.layers))
    sections = [
        _fitting(fit, pictures),
        _smallest(fit, pictures),
        *([_too_small(fit, pictures)] if fit.too_small else []),
        *([_illegal(fit)] if fit.illegal else []),
        _findings(findings, is_known=proven is not None),
    ]
    name = plan.checkpoint.origin.title
    return document(f"{name}, layouts that fit", _header(fit, plan, version, proven), sections, {})


def _header(fit: Fit, plan: Plan, version: str, proven: bool | None) -> Iterator[Markup]:
    stored, machine = plan.table, machine_text(fit.machine)
    yield element("p", f"Loadmaster {version}", class_="muted")
    yield element("h1", plan.checkpoint.origin.title)
    if plan.checkpoint.origin.kind != "folder":
        yield element("p", str(plan.checkpoint.origin), class_="muted")
    if fit.fitting:
        best = f"best: {options_of(fit.fitting[0].layout)}, {'proven' if proven else 'not proven'}"
        words = f"Fits {machine}: {len(fit.fitting)} layout(s); {best}"
        yield element("p", words, class_="verdict good" if proven else "verdict bad")
    else:
        yield element("p", f"Does not fit {machine}", class_="verdict bad")
    facts = [
        plan.family.name,
        f"{len(stored):,} tensors, {gib(stored.payload_bytes)}",
        f"parameters of {plan.target.name}",
    ]
    if known := (*fit.fitting, *fit.too_small):
        workload = known[0].memory.workload
        facts.append(f"requests of {workload.max_model_len:,} tokens")
        facts.append(f"batches of {workload.max_num_batched_tokens:,} tokens")
    yield element("p", " · ".join(facts), class_="muted")
    yield element("p", f"From headers alone. {LEGEND}.", class_="muted")


class _Pictures:
    """Draws layouts of a model of ``num_layers`` layers. ``seen`` are the colours that were used."""

    def __init__(self, num_layers: int) -> None:
        self.num_layers = num_layers
        self.seen: set[str] = set()

    def layouts(self, candidates: Sequence[Candidate], *, first: int = 1, scale: int | None = None) -> Iterator[Markup]:
        """Yield a card for each layout, numbered from ``first``, and how many more there are."""
        shown = candidates[:MOST_PICTURES]
        cards = [self._layout(c, f"{number}. ", scale) for number, c in enumerate(shown, first)]
        yield element("div", cards, class_="layouts")
        if len(candidates) > len(shown):
            yield element("p", f"… and {len(candidates) - len(shown):,} more, in the table", class_="muted words")

    def layout(self, c: Candidate) -> Markup:
        """Return the card of one layout."""
        return element("div", [self._layout(c, "", None)], class_="layouts")

    def _layout(self, c: Candidate, number: str, scale: int | None) -> Markup:
        title = element("h3", [element("span", number, class_="muted"), options_of(c.layout)])
        if c.refused is None:
            words = [element("p", line, class_="muted") for line in reasons(c)]
        else:
            words = [element("p", c.refused, class_="refused")]
        return element("article", [title, *self._stages(c, scale or scale_of(c.memory)), *words], class_="layout")

    def _stages(self, c: Candidate, scale: int) -> Iterator[Markup]:
        """Yield a bar for each stage's fullest rank, and what crosses to the next; stages in a row that are alike share a bar."""
        layout = c.layout
        layers = partition(self.num_layers, layout.pipeline_parallel_size, layout.layer_partition)
        for run in _runs(c):
            r, last = c.memory.ranks[run[0]], run[-1]
            parts = parts_of(r, c.memory)
            self.seen |= {class_ for class_, _, num_bytes in parts if num_bytes}
            ranks = [rank for stage in run for rank in layout.stage_ranks(stage)]
            many = "stages" if len(run) > 1 else "stage"
            where = f"{many} {ranges(run)} · layers {layers[run[0]][0]}–{layers[last][1] - 1} · rank {numbers(ranks)}"
            used, rest = needs(r, c.memory)
            yield element("p", [element("span", where), element("b", used), element("span", rest)], class_="lane")
            yield bar(r, parts, scale)
            yield from (element("p", words, class_="carries") for words in _crossing(c, run))


def _runs(c: Candidate) -> list[list[int]]:
    """Return the stages in runs that look the same: sizes equal to a hundredth of a GiB, and the same tensors between them."""
    runs: list[list[int]] = []
    known: object = None
    for stage, r in enumerate(c.memory.ranks):
        looks = [round(n / 2**30, 2) for n in (r.fixed_bytes, r.cache_bytes or 0, r.device_bytes or 0)]
        run = runs[-1] if runs else []
        if run and looks == known and (len(run) == 1 or c.crosses[stage - 1] == c.crosses[stage - 2]):
            run.append(stage)
        else:
            runs.append([stage])
        known = looks
    return runs


def _crossing(c: Candidate, run: Sequence[int]) -> Iterator[str]:
    """Yield what the stages of a run pass to each other, and what the last one passes on."""
    within = c.crosses[run[0]] if len(run) > 1 else None
    beyond = c.crosses[run[-1]] if run[-1] < len(c.crosses) else None
    if within is not None and within == beyond:
        yield f"↓ {_tensors(within)}, as after each of these {len(run)} stages"
        return
    if within is not None:
        yield f"↕ {_tensors(within)}, from each of these {len(run)} stages to the next"
    if beyond is not None:
        yield f"↓ {_tensors(beyond)}"


def _tensors(crossing: Sequence[tuple[str, int]]) -> str:
    names = ", ".join(name.replace("_", " ") for name, _ in crossing)
    return f"{sum(size for _, size in crossing):,} bytes a token: {names}"


def _fitting(fit: Fit, pictures: _Pictures) -> Markup:
    if not fit.fitting:
        return section("Layouts that fit", [element("p", "None.", class_="muted")], "fitting")
    scale = max(scale_of(c.memory) for c in fit.fitting)
    drawn = list(pictures.layouts(fit.fitting, scale=scale))
    key = memory_key(pictures.seen, fit.fitting[0].memory)
    return section("Layouts that fit, best first", [key, *drawn, table(*layout_table(fit.fitting))], "fitting")


def _smallest(fit: Fit, pictures: _Pictures) -> Markup:
    title = "The smallest machine of such devices"
    if fit.smallest is None:
        words = f"None of up to {MOST_DEVICES} devices would do."
        return section(title, [element("p", words, class_="muted")], "smallest")
    c = fit.smallest
    words = f"{c.layout.num_ranks} device(s), as {options_of(c.layout)}."
    return section(title, [element("p", words, class_="words"), pictures.layout(c)], "smallest")


def _too_small(fit: Fit, pictures: _Pictures) -> Markup:
    about = "Possible, but a rank lacks memory. The line marks the end of the device."
    content = [element("p", about, class_="muted words"), *pictures.layouts(fit.too_small)]
    if not fit.fitting:
        content.insert(0, memory_key(pictures.seen, fit.too_small[0].memory))
    if len(fit.too_small) > MOST_PICTURES:
        content.append(table(*layout_table(fit.too_small)))
    return section("Too small", content, "too-small")


def _illegal(fit: Fit) -> Markup:
    rows = [
        element("p", [element("code", ", ".join(options_of(layout) for layout in layouts)), f": {why}"], class_="words")
        for why, layouts in by_reason(fit).items()
    ]
    return section("Not possible", rows, "illegal")


def _findings(findings: Sequence[Finding], *, is_known: bool) -> Markup:
    shown = [finding(number, f) for number, f in enumerate(findings)]
    none = "None." if is_known else "No layout fits, so no plan was proven."
    return section("Findings of the best layout", shown or [element("p", none, class_="muted")], "findings")
