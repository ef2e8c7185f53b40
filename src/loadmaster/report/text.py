"""Prints proofs, findings and checkpoints as text and tables; in colour only on a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from loadmaster.checkpoint import Checkpoint
from loadmaster.errors import LoadmasterError
from loadmaster.findings import Finding, gib, ranges
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import ParamSpec
from loadmaster.plan.proof import Proof
from loadmaster.report.console import form_of, print_wide, say, unit_of
from loadmaster.report.json import architectures
from loadmaster.report.ranks import print_ranks

_STYLE = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def print_findings(console: Console, findings: Sequence[Finding]) -> None:
    """Print findings in the given order, each with its place, its message and a hint."""
    for f in findings:
        ranks = f"  rank {ranges(f.ranks)}" if f.ranks else ""
        console.print(f"[{_STYLE[f.severity]}]{f.severity}[/] {f.code}{ranks}", highlight=False)
        for what, value in (("tensor", f.tensor), ("param", f.param), ("file", f.file)):
            if value:
                console.print(f"    {what:7s} {escape(value)}", highlight=False, soft_wrap=True)
        console.print(f"    {escape(f.message)}", highlight=False, soft_wrap=True)
        if f.hint:
            console.print(f"    hint: {escape(f.hint)}", highlight=False, soft_wrap=True)


def print_proof(
    console: Console,
    proof: Proof,
    elapsed_s: float,
    params: Sequence[ParamSpec] = (),
    print_more: Callable[[Console], None] = lambda console: None,
) -> None:
    """Print the requested parameters, each rank's figures, the waivers, the findings and the verdict.

    ``print_more`` prints what else was asked for, after the ranks' figures.
    """
    for s in params:
        alias = f"  is {s.alias}" if s.alias else ""
        say(console, f"{s.name}  {s.dtype} {list(s.shape)}{alias}")
    plan, table = proof.plan, proof.plan.checkpoint.table
    layout = plan.layout
    console.print(
        f"[bold]{escape(str(plan.checkpoint.origin))}[/]  {escape(_architecture(plan.config))}, "
        f"{len(table):,} tensors in {len(plan.checkpoint.files)} file(s), {gib(table.payload_bytes)}",
        highlight=False,
        soft_wrap=True,
    )
    engine = "" if plan.target.name == "native" else f", parameters of {plan.target.name}"
    console.print(layout_text(layout) + engine, highlight=False)
    print_ranks(console, proof.ranks, layout)
    print_more(console)
    for w in proof.waivers:
        by_user = f" (--waive {escape(w.pattern)})" if w.pattern else ""
        console.print(
            f"waived: {escape(w.reason)}{by_user}: {w.extent}",
            highlight=False,
            soft_wrap=True,
        )
    print_findings(console, proof.findings)
    if proof.proven:
        console.print(
            f"[bold green]proven[/] in {elapsed_s:.2f} s: placement, from headers alone; payload bytes not read, "
            f"numerics not checked. plan {plan.hash[:16]}",
            highlight=False,
            soft_wrap=True,
        )
    else:
        count = sum(f.severity == "error" for f in proof.findings)
        console.print(f"[bold red]not proven[/]: {count} error(s)", highlight=False)


def _architecture(config: Mapping[str, Any]) -> str:
    names = architectures(config)
    return names[0] if names else "the config names no architecture"


def layout_text(layout: ParallelLayout) -> str:
    """Return a layout in words.

    >>> layout_text(ParallelLayout(8, 4, enable_expert_parallel=True, num_redundant_experts=4))
    'pipeline 8 × tensor 4, whole experts over 4 ranks, 4 of them redundant'
    """
    data = f" × data {layout.data_parallel_size}" if layout.data_parallel_size > 1 else ""
    experts = f", whole experts over {layout.stage_size} ranks" if layout.enable_expert_parallel else ""
    turns = " in turns" if layout.expert_placement == "round_robin" else ""
    more = f", {layout.num_redundant_experts} of them redundant" if layout.num_redundant_experts else ""
    return (
        f"pipeline {layout.pipeline_parallel_size} × tensor {layout.tensor_parallel_size}{data}{experts}{turns}{more}"
    )


def print_error(console: Console, error: LoadmasterError, findings: Sequence[Finding]) -> None:
    """Print an error that ended a command."""
    console.print(f"[bold red]{type(error).__name__}[/]: {escape(error.message)}", highlight=False, soft_wrap=True)
    if error.hint:
        console.print(f"hint: {escape(error.hint)}", highlight=False, soft_wrap=True)
    print_findings(console, [f for f in findings if f.message != error.message])


def print_checkpoint(console: Console, checkpoint: Checkpoint, names: Iterable[str] | None) -> None:
    """Print a checkpoint's contents; with ``names``, one line for each of those tensors."""
    table = checkpoint.table
    config = "no config" if checkpoint.config is None else _architecture(checkpoint.config)
    console.print(
        f"[bold]{escape(str(checkpoint.origin))}[/]  {escape(config)}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(
        f"{len(table):,} tensors in {len(checkpoint.files)} file(s), {gib(table.payload_bytes)} of payload",
        highlight=False,
    )
    if names is not None:
        for name in names:
            number = table.ids[name]
            s = table.signatures[table.signature[number]]
            file = checkpoint.files[table.file[number]].name
            say(console, f"{name}  {form_of(s)}  {file} @ {table.start[number]:,}")
    else:
        counts: Counter[str] = Counter()
        sizes: Counter[str] = Counter()
        for number, size in zip(table.signature.tolist(), table.nbytes.tolist(), strict=True):
            counts[table.signatures[number].dtype] += 1
            sizes[table.signatures[number].dtype] += size
        dtypes = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("dtype", "tensors", "bytes"):
            dtypes.add_column(column, justify="left" if column == "dtype" else "right")
        for dtype, count in counts.most_common():
            dtypes.add_row(dtype, f"{count:,}", gib(sizes[dtype]))
        console.print(dtypes)
    print_findings(console, checkpoint.findings)


def print_load(console: Console, result: dict[str, Any]) -> None:
    """Print a load report: the bytes that each rank read, and how fast."""
    unit, size = unit_of(max((r["resident_bytes"] for r in result["ranks"]), default=0))
    ranks = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for column in ("rank", f"needed {unit}", "fetched", "resident", "direct", "staged", "seconds", "GB/s"):
        ranks.add_column(column, justify="right", no_wrap=True)
    for r in result["ranks"]:
        sizes = (r[k] for k in ("needed_bytes", "fetched_bytes", "resident_bytes", "direct_bytes", "staged_bytes"))
        ranks.add_row(
            str(r["rank"]),
            *(f"{n / size:.2f}" for n in sizes),
            f"{r['seconds']:.2f}",
            f"{r['bytes_per_s'] / 1e9:.2f}",
        )
        for name, p in r.get("params", {}).items():
            console.print(
                f"{p['sha256'][:16]}  {p['dtype']} {p['shape']}  {name}".replace("[", r"\["),
                highlight=False,
                soft_wrap=True,
            )
    print_wide(console, ranks)
    for r in result["ranks"]:
        if r["phases"]:
            spent = ", ".join(f"{name} {seconds:.3f}" for name, seconds in r["phases"].items())
            console.print(f"rank {r['rank']} on {r['device']}, {r['io']}; seconds: {spent}", highlight=False)
            peaks = f"{gib(r['peak_device_bytes'])} on the device, {gib(r['peak_host_bytes'])} on the host"
            console.print(f"rank {r['rank']} peak: {peaks}", highlight=False)
        if verified := r.get("verified"):
            how = "written to" if verified["first"] else "compared with"
            words = f"rank {r['rank']}: checksums {how} {verified['manifest']} in {verified['seconds']:.3f} s"
            console.print(words, highlight=False)
    console.print(f"[bold green]loaded[/] {gib(result['needed_bytes'])} in {result['seconds']:.2f} s", highlight=False)
