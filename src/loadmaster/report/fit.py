"""Prints which layouts fit, and turns them into the JSON object of ``fit --json``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from loadmaster.findings import gib
from loadmaster.parallel import ParallelLayout, partition
from loadmaster.report.console import print_wide, say
from loadmaster.report.memory import memory_object
from loadmaster.sizing.fit import MOST_DEVICES, Candidate, Fit, Machine

MOST_LINES = 5
"""Layouts of each kind that are listed, unless all are asked for."""

LEGEND = "~ is an estimate; steps are for comparison alone"


def options_of(layout: ParallelLayout) -> str:
    """Return the options of a command line that ask for a layout; a partition only if it is not the usual one.

    >>> options_of(ParallelLayout(2, 4, enable_expert_parallel=True)), options_of(ParallelLayout())
    ('-pp 2 -tp 4 -ep', 'one device')
    """
    sizes = (
        ("-pp", layout.pipeline_parallel_size),
        ("-tp", layout.tensor_parallel_size),
        ("-dp", layout.data_parallel_size),
    )
    words = [f"{name} {size}" for name, size in sizes if size > 1]
    words += ["-ep"] if layout.enable_expert_parallel else []
    if layout.layer_partition is not None:
        counts, stages = layout.layer_partition, len(layout.layer_partition)
        usual = tuple(end - first for first, end in partition(sum(counts), stages))
        words += [] if counts == usual else [f"--layer-partition {','.join(map(str, counts))}"]
    return " ".join(words) or "one device"


def fit_object(fit: Fit, *, proven: bool | None) -> dict[str, Any]:
    """Return the object of all layouts; sizes are bytes. ``proven``: of the best layout's plan, null if none fits."""
    return {
        "fits": bool(fit.fitting),
        "proven": proven,
        "devices": list(fit.machine.device_bytes),
        "devices_per_host": fit.machine.per_host,
        "fitting": [candidate_object(c) for c in fit.fitting],
        "too_small": [candidate_object(c) for c in fit.too_small],
        "illegal": [{"layout": i.layout.as_json(), "options": options_of(i.layout), "why": i.why} for i in fit.illegal],
        "smallest": None if fit.smallest is None else candidate_object(fit.smallest),
    }


def candidate_object(c: Candidate) -> dict[str, Any]:
    """Return the object of one layout; ``memory`` is that of the fullest rank of each stage."""
    return {
        "layout": c.layout.as_json(),
        "options": options_of(c.layout),
        "refused": c.refused,
        "resident_bytes": list(c.resident_bytes),
        "host_bytes": list(c.host_bytes),
        "replicated_bytes": c.replicated_bytes,
        "crossing_bytes": c.crossing_bytes,
        "crosses": [dict(cut) for cut in c.crosses],
        "spans_hosts": c.spans_hosts,
        "step_s": c.step_s,
        "num_tokens": c.memory.num_tokens,
        "memory": memory_object(c.memory),
    }


def print_fit(console: Console, fit: Fit, *, everything: bool = False, proven: bool | None = None) -> None:
    """Print the layouts that fit, best first, those that do not and why, and the smallest machine."""
    most = len(fit.fitting) if everything else MOST_LINES
    machine = machine_text(fit.machine)
    if fit.fitting:
        console.print(f"[bold green]fits[/] {machine}: {len(fit.fitting)} layout(s), best first", highlight=False)
        columns, rows = layout_table(fit.fitting[:most])
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        for column in columns:
            table.add_column(column, justify="left" if column == columns[0] else "right", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        print_wide(console, table)
        if len(fit.fitting) > most:
            say(console, f"… and {len(fit.fitting) - most} more (--all)")
        best = fit.fitting[0]
        verdict = "" if proven is None else ", proven" if proven else ", NOT proven"
        say(console, f"best: {options_of(best.layout)}{verdict}")
        for words in reasons(best):
            say(console, f"  {words}")
    else:
        console.print(f"[bold red]does not fit[/] {machine}", highlight=False)
    for c in fit.too_small[: len(fit.too_small) if everything else MOST_LINES]:
        say(console, f"too small: {options_of(c.layout)}: {c.refused}")
    if len(fit.too_small) > MOST_LINES and not everything:
        say(console, f"… and {len(fit.too_small) - MOST_LINES} more (--all)")
    for why, layouts in by_reason(fit).items():
        named = [options_of(layout) for layout in layouts]
        shown = named if everything else named[:3]
        more = f" and {len(named) - len(shown)} more" if len(named) > len(shown) else ""
        say(console, f"not possible: {', '.join(shown)}{more}: {why}")
    if fit.smallest is None:
        say(console, f"no machine of up to {MOST_DEVICES} such devices would do")
    else:
        c = fit.smallest
        say(console, f"smallest machine of such devices: {c.layout.num_ranks}, as {options_of(c.layout)}")
    say(console, f"{LEGEND} (docs/guides/fit.md)")


def machine_text(machine: Machine) -> str:
    """Return a machine in words.

    >>> machine_text(Machine((2**30, 2**30, 2**31), per_host=2))
    '3 device(s) of 1.00 GiB, 2.00 GiB on 2 host(s)'
    """
    hosts = -(-machine.num_devices // machine.per_host)
    sizes = [gib(n) for n in sorted(set(machine.device_bytes))]
    return f"{machine.num_devices} device(s) of {', '.join(sizes)} on {hosts} host(s)"


def layout_table(candidates: Sequence[Candidate]) -> tuple[list[str], list[list[str]]]:
    """Return the columns of a table of layouts, and a row for each."""
    columns = ["layout", "parameters GiB", "left ~", "tokens fit", "replicated", "crossing B/token", "step ~"]
    rows = []
    for c in candidates:
        low, high = min(c.resident_bytes) / 2**30, max(c.resident_bytes) / 2**30
        left = min(r.left_bytes or 0 for r in c.memory.ranks)
        rows.append(
            [
                options_of(c.layout),
                f"{high:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f}-{high:.2f}",
                f"{left / 2**30:.2f}",
                "unknown" if c.memory.num_tokens is None else f"{c.memory.num_tokens:,}",
                f"{c.replicated_bytes / 2**30:.2f}",
                f"{c.crossing_bytes:,}",
                f"{c.step_s * 1e3:.1f} ms",
            ]
        )
    return columns, rows


def reasons(c: Candidate) -> Iterator[str]:
    """Yield what speaks for and against a layout."""
    workload = c.memory.workload
    fullest, twice = gib(max(c.resident_bytes)), gib(c.replicated_bytes)
    yield f"{fullest} of parameters on the fullest rank, {twice} held more than once over all ranks"
    if any(c.host_bytes):
        yield f"{gib(max(c.host_bytes))} of tables in the memory of the host for the rank with the most, in addition"
    if c.memory.num_tokens is not None:
        at_once = c.memory.num_tokens / workload.max_model_len
        copies = c.layout.data_parallel_size
        each = f" in each of {copies} copies" if copies > 1 else ""
        yield f"{c.memory.num_tokens:,} tokens fit at a time{each}: {at_once:.1f} requests of {workload.max_model_len:,} tokens"
    else:
        yield f"{c.memory.unknown}, and is not counted"
    if c.layout.pipeline_parallel_size > 1:
        yield f"{c.crossing_bytes:,} bytes a token cross the {c.layout.pipeline_parallel_size - 1} cut(s)"
    if c.layout.stage_size > 1:
        where = "across hosts" if c.spans_hosts else "inside a host"
        yield f"ranks of a stage add up their outputs {where}, twice a layer"


def by_reason(fit: Fit) -> dict[str, list[ParallelLayout]]:
    """Return the layouts that are not possible, by the reason why."""
    reasons: dict[str, list[ParallelLayout]] = defaultdict(list)
    for illegal in fit.illegal:
        reasons[illegal.why].append(illegal.layout)
    return reasons
