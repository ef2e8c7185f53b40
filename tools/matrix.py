"""Plans every model that `loadmaster synth` can make on a dozen layouts: proven, or the finding that should come.

``python -m tools.matrix`` writes two tables. ``tests/plan/golden/matrix.md`` is of the tiny models and is held against what
is planned on every run of the tests. ``docs/reference/matrix.md`` is of the published sizes, without bytes; ``--full``
writes it too, which takes minutes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from loadmaster.checkpoint import Checkpoint, open_checkpoint
from loadmaster.errors import InputError
from loadmaster.findings import Finding
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.report.json import findings_of
from loadmaster.synth import PRESETS, Preset, write_full_size, write_tiny
from tools.pages import NOTICE, table

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "plan" / "golden" / "matrix.md"
PAGE = ROOT / "docs" / "reference" / "matrix.md"

LAYOUTS: dict[str, ParallelLayout] = {
    "pp 2": ParallelLayout(2),
    "pp 4, mtp": ParallelLayout(4, num_draft_layers=1),
    "tp 2": ParallelLayout(1, 2),
    "tp 3": ParallelLayout(1, 3),
    "tp 4": ParallelLayout(1, 4),
    "tp 8": ParallelLayout(1, 8),
    "tp 16": ParallelLayout(1, 16),
    "tp 8 ep": ParallelLayout(1, 8, True),
    "pp 2 tp 4": ParallelLayout(2, 4),
    "dp 2 tp 2": ParallelLayout(1, 2, data_parallel_size=2),
    "pp 2 dp 2 tp 2 ep": ParallelLayout(2, 2, True, data_parallel_size=2),
    "tp 4 ep in turns": ParallelLayout(1, 4, True, expert_placement="round_robin"),
    "tp 4 ep, 4 redundant": ParallelLayout(1, 4, True, num_redundant_experts=4),
}

INTRODUCTION = (
    "`✓` is proven without an error or a warning; anything else is the code of what is found, and the reasons stand below "
    "the table, each with the layouts it is given for. `ep`: whole experts are dealt out (`--enable-expert-parallel`)."
)


def main(argv: list[str] | None = None) -> int:
    """Write the tables. Return the exit status."""
    options = argparse.ArgumentParser(prog="python -m tools.matrix", description=__doc__)
    options.add_argument("--full", action="store_true", help="also the published sizes, which takes minutes")
    full = options.parse_args(argv).full
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(matrix("Layouts of the tiny models", write_tiny), encoding="utf-8")
    if full:
        PAGE.write_text(matrix("Layouts of the published models", write_full_size), encoding="utf-8")
    return 0


def matrix(title: str, write: Callable[[Preset, Path], object]) -> str:
    """Return the page of all presets, each written by ``write`` and planned on every layout."""
    rows, reasons = [], []
    for name, preset in PRESETS.items():
        with tempfile.TemporaryDirectory() as folder:
            write(preset, Path(folder) / name)
            found = dict(outcomes(open_checkpoint(Path(folder) / name)))
        rows.append((f"`{name}`", *(cell(f) for f in found.values())))
        reasons += [f"- `{name}`: {reason}" for reason in _reasons(found)]
    heading = table(("model", *LAYOUTS), rows)
    return "\n\n".join([NOTICE, f"# {title}", INTRODUCTION, heading, "## Reasons", "\n".join(reasons)]) + "\n"


def outcomes(checkpoint: Checkpoint) -> Iterator[tuple[str, tuple[Finding, ...]]]:
    """Yield for each layout what is found; nothing where it is proven."""
    for name, layout in LAYOUTS.items():
        try:
            proof = prove(build_plan(checkpoint, layout))
        except InputError as error:
            yield name, findings_of(error)
        else:
            yield name, tuple(f for f in proof.findings if f.severity != "note")


def cell(found: tuple[Finding, ...]) -> str:
    """Return the codes of findings, or a tick."""
    return "✓" if not found else ", ".join(f"`{code}`" for code in dict.fromkeys(f.code for f in found))


def _reasons(found: dict[str, tuple[Finding, ...]]) -> Iterator[str]:
    by_reason: dict[str, list[str]] = {}
    for layout, findings in found.items():
        for f in findings:
            hint = f" ({f.hint})" if f.hint else ""
            by_reason.setdefault(f"{f.message}{hint}", []).append(layout)
    for reason, layouts in by_reason.items():
        yield f"{', '.join(layouts)}: {' '.join(reason.split())}"


if __name__ == "__main__":
    sys.exit(main())
