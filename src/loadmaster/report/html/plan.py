"""The page of a plan: what it proves, its stages, and its tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from loadmaster.architectures.notation import box
from loadmaster.findings import errors, gib
from loadmaster.plan import Plan, Proof
from loadmaster.plan.anatomy import dissect
from loadmaster.plan.explanation.params import ExplainedParam, explain_on
from loadmaster.report.html.document import document, section
from loadmaster.report.html.markup import Markup, element, text
from loadmaster.report.html.memory import memory_section
from loadmaster.report.html.stages import StagesPicture
from loadmaster.report.html.tables import (
    findings_section,
    kinds_section,
    params_section,
    ranks_section,
    shards_section,
)
from loadmaster.report.text import layout_text
from loadmaster.sizing.memory import Memory

READS = 3
"""Up to this many ranges of a piece are in the page; `loadmaster explain` shows all."""

PARAMETERS_ALONE = (
    "Parameters alone. With --device-memory, the KV cache, a batch and CUDA are shown too, and what is left."
)


def plan_html(proof: Proof, version: str, capacity_bytes: int | None = None, memory: Memory | None = None) -> str:
    """Return a proof as an HTML document. ``capacity_bytes`` is the memory of a device, where it was given.

    ``memory`` is the whole memory of all ranks; without it, parameters alone are compared with ``capacity_bytes``.
    """
    plan, anatomy = proof.plan, dissect(proof.plan)
    params = list(_params(plan))
    name = plan.checkpoint.origin.title
    alone = [] if memory is not None else [element("p", PARAMETERS_ALONE, class_="muted words")]
    sections = [
        section("Stages", [StagesPicture(proof, anatomy, capacity_bytes, memory).drawn(), *alone], "stages-panel"),
        *([] if memory is None else [memory_section(memory, anatomy, proof.findings)]),
        kinds_section(anatomy),
        findings_section(proof),
        ranks_section(proof),
        params_section([p["name"] for p in params]),
        shards_section(plan, anatomy),
    ]
    return document(f"{name}, plan", _header(proof, version, name), sections, {"params": params})


def _header(proof: Proof, version: str, name: str) -> Iterator[Markup]:
    plan, table = proof.plan, proof.plan.checkpoint.table
    num_errors = len(errors(proof.findings))
    proven = "Proven: every parameter of every rank will be complete"
    verdict = proven if proof.proven else f"Not proven: {num_errors} error(s)"
    yield element("p", f"Loadmaster {version} · plan {plan.hash[:16]}", class_="muted")
    yield element("h1", name)
    if plan.checkpoint.origin.kind != "folder":
        yield element("p", str(plan.checkpoint.origin), class_="muted")
    yield element("p", verdict, class_="verdict good" if proof.proven else "verdict bad")
    engine = [] if plan.target.name == "native" else [f"parameters of {plan.target.name}"]
    size = f"{len(table):,} tensors in {len(plan.checkpoint.files)} file(s), {gib(table.payload_bytes)}"
    facts = [plan.family.name, size, f"{plan.num_ranks} rank(s)", layout_text(plan.layout), *engine]
    yield element("p", " · ".join(facts), class_="muted")
    yield element("p", "Placement, from headers alone: payload bytes not read, numerics not checked.", class_="muted")


def _params(plan: Plan) -> Iterator[dict[str, Any]]:
    """Yield the parameters of the first layer of each class, and the model's own, as the first rank of their stage holds them."""
    chosen: dict[int, set[str]] = {}
    for bound in plan.classes:
        layer = bound.layers[0]
        chosen.setdefault(plan.stage_of(layer), set()).add(plan.block(layer))
    blocks = {plan.block(layer) for layer in plan.class_of}
    seen: set[str] = set()
    for stage in range(len(plan.stages)):
        if stage not in chosen and stage not in (0, len(plan.stages) - 1):
            continue
        rank = plan.rank(plan.layout.stage_ranks(stage)[0])
        wanted = [h for h in rank.held if h.new in chosen.get(stage, ()) or h.new not in blocks]
        names = {s.name for h in wanted for s in h.specs()} - seen
        seen |= names
        yield from (_param(p, rank.rank) for p in explain_on(plan, rank, names))


def _param(param: ExplainedParam, rank: int) -> dict[str, Any]:
    (share,) = param.shares
    pieces = []
    for piece in share.pieces:
        lines = [f"{text(r.tensor)}  {text(r.file)} bytes {r.start:,} to {r.end:,}" for r in piece.reads[:READS]]
        more = len(piece.reads) - READS
        pieces.append(
            {
                "box": box(piece.box, share.shape),
                "operation": piece.operation,
                "expression": text(piece.expression),
                "reads": [*lines, *([f"… and {more:,} more"] if more > 0 else [])],
            }
        )
    return {
        "name": text(param.name),
        "expression": text(param.expression),
        "rank": rank,
        "dtype": share.dtype,
        "shape": list(share.shape),
        "size": gib(share.num_bytes),
        "alias": share.alias and text(share.alias),
        "pieces": pieces,
    }
