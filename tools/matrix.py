"""Plans every model that `loadmaster synth` can make on a dozen layouts: proven, or the finding that should come.

``python -m tools.matrix`` writes two tables. ``tests/plan/golden/matrix.md`` is of the tiny models and is held against what
is planned on every run of the tests. ``docs/reference/matrix.md`` is of the published sizes, without bytes; ``--full``
writes it too, which takes minutes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from loadmaster.checkpoint import Checkpoint, open_checkpoint
from loadmaster.errors import InputError
from loadmaster.findings import Finding, errors
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.report.json import findings_of
from loadmaster.synth import PRESETS, Preset, write_full_size, write_tiny
from tools.pages import NOTICE, table

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "plan" / "golden" / "matrix.md"
PAGE = ROOT / "docs" / "reference" / "matrix.md"

PAGES = (
    (GOLDEN, "Layouts of the tiny models", write_tiny),
    (PAGE, "Layouts of the published models", write_full_size),
)
"""Where a table is written, its title, and how its models are made."""

DRAFTED = "pp 4 with draft"
LAYOUTS: dict[str, ParallelLayout] = {
    "pp 2": ParallelLayout(2),
    DRAFTED: ParallelLayout(4),
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
    "tp 4 ep with 4 redundant": ParallelLayout(1, 4, True, num_redundant_experts=4),
}

NO_DRAFT, MOVED = "–", "layout-moved"
INTRODUCTION = f"""\
Every model that `loadmaster synth` makes, planned on {len(LAYOUTS)} layouts.

| in the table | means |
| --- | --- |
| `✓` | the plan is proven |
| `(✓)` | the plan is proven, with a warning |
| `✓ moved` | the plan is proven; its stages begin elsewhere than an even division would, because layers that share a KV cache \
stay together |
| `layout-indivisible` | refused: the sizes of the model do not divide over so many ranks |
| `layout-cut` | refused: there are more stages than places where one can begin |
| another code | refused: what is found |
| `{NO_DRAFT}` | the model has no draft layers |

The reasons, and the warnings, are listed below the table with their layouts.

`pp`: pipeline stages. `tp`: tensor-parallel ranks. `dp`: data-parallel ranks. `draft`: the draft layers (MTP, DSpark) are loaded
too. `ep`: each rank holds whole experts (`--enable-expert-parallel`); `in turns`: rank 0 holds experts 0, 4, 8 …; `4 redundant`:
four experts have a second copy."""


def main(argv: list[str] | None = None) -> int:
    """Write the tables. Return the exit status."""
    options = argparse.ArgumentParser(prog="python -m tools.matrix", description=__doc__)
    options.add_argument("--full", action="store_true", help="also the published sizes, which takes minutes")
    options.add_argument(
        "--only", nargs="+", metavar="MODEL", help="renew these models, and keep what is said of the others"
    )
    args = options.parse_args(argv)
    GOLDEN.parent.mkdir(exist_ok=True)
    for page, title, write in PAGES[: 2 if args.full else 1]:
        kept = known(page.read_text(encoding="utf-8")) if args.only else {}
        page.write_text(matrix(title, write, {n: kept[n] for n in kept if n not in args.only}), encoding="utf-8")
    return 0


Lines: TypeAlias = tuple[tuple[str, ...], list[str]]
"""The row of a model in the table, and its reasons below."""


def known(page: str) -> dict[str, Lines]:
    """Return what a page says of each model."""
    lines = page.splitlines()
    rows = [tuple(line.strip("| ").split(" | ")) for line in lines if line.startswith("| `")]
    reasons = [line for line in lines if line.startswith("- `")]
    models = {row[0]: row for row in rows if row[0].strip("`") in PRESETS}
    return {name.strip("`"): (row, [r for r in reasons if r.startswith(f"- {name}: ")]) for name, row in models.items()}


def matrix(title: str, write: Callable[[Preset, Path], object], kept: Mapping[str, Lines] | None = None) -> str:
    """Return the page of all presets, each written by ``write`` and planned on every layout; ``kept`` are not planned."""
    rows, reasons = [], []
    for name, preset in PRESETS.items():
        row, of_model = (kept or {}).get(name) or _planned(name, preset, write)
        rows.append(row)
        reasons += of_model
    heading = table(("model", *LAYOUTS), rows)
    return "\n\n".join([NOTICE, f"# {title}", INTRODUCTION, heading, "## Reasons", "\n".join(reasons)]) + "\n"


def _planned(name: str, preset: Preset, write: Callable[[Preset, Path], object]) -> Lines:
    with tempfile.TemporaryDirectory() as folder:
        write(preset, Path(folder) / name)
        found = dict(outcomes(open_checkpoint(Path(folder) / name), num_drafts(preset, write is write_tiny)))
    return (f"`{name}`", *(cell(f) for f in found.values())), [f"- `{name}`: {reason}" for reason in _reasons(found)]


def num_drafts(preset: Preset, tiny: bool) -> int:
    """Return how many draft layers a model has."""
    config = preset.config_of(tiny=tiny)
    family = preset.family_of(config)
    return family.schema(family.describe(config)).num_drafts


def outcomes(checkpoint: Checkpoint, drafts: int) -> Iterator[tuple[str, tuple[Finding, ...] | None]]:
    """Yield for each layout what is found: nothing where it is proven, None where the model has no draft that it asks for."""
    for name, layout in LAYOUTS.items():
        if name == DRAFTED and not drafts:
            yield name, None
            continue
        try:
            proof = prove(build_plan(checkpoint, replace(layout, num_draft_layers=drafts if name == DRAFTED else 0)))
        except InputError as error:
            yield name, findings_of(error)
        else:
            yield name, tuple(f for f in proof.findings if f.severity != "note" or f.code == MOVED)


def cell(found: tuple[Finding, ...] | None) -> str:
    """Return a tick, or the codes of what prevents the layout."""
    if found is None:
        return NO_DRAFT
    codes = dict.fromkeys(f.code for f in errors(found))
    if codes:
        return ", ".join(f"`{code}`" for code in codes)
    moved = any(f.code == MOVED for f in found)
    return ("(✓)" if len(found) > moved else "✓") + (" moved" if moved else "")


def _reasons(found: dict[str, tuple[Finding, ...] | None]) -> Iterator[str]:
    by_reason: dict[str, list[str]] = {}
    for layout, findings in found.items():
        for f in findings or ():
            hint = f" ({f.hint})" if f.hint else ""
            by_reason.setdefault(f"{f.message}{hint}", []).append(layout)
    proven = [layout for layout, findings in found.items() if findings is not None and not errors(findings)]
    for reason, layouts in by_reason.items():
        yield f"{'all that are proven' if layouts == proven else ', '.join(layouts)}: {' '.join(reason.split())}"


if __name__ == "__main__":
    sys.exit(main())
