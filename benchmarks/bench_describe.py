"""Drafts ten models that loadmaster knows as if it did not, and compares each draft with the table.

    python -m benchmarks.bench_describe [--show PRESET] [--results DIR]

Headers are those of the full-size models. A draft is right where its plan reads the same bytes of each stored tensor as the
table's plan, on every rank of one rank, pp 2 and tp 2. Printed for each model: lines of the draft, lines that it marks as
guesses, questions, stored names, those that the draft leaves unread although the table reads them, and those of which some
rank reads other bytes. An MTP layer is included where the table has one. Names that differ by layer and expert only count once.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from loadmaster.architectures.registry import find_family
from loadmaster.checkpoint import open_checkpoint
from loadmaster.describe import draft_family, write_package
from loadmaster.describe.package import load_family
from loadmaster.errors import LoadmasterError
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import Plan, build_plan
from loadmaster.plan.needed import needed
from loadmaster.synth import PRESETS, write_full_size
from loadmaster.testing import described

MODELS = (
    "phi-4",
    "gemma-3",
    "minimax-m2",
    "gpt-oss",
    "llama-4",
    "deepseek-v3",
    "kimi-k2-int4",
    "glm-5.1-fp8",
    "qwen3.5-moe",
    "qwen3.8",
)
LAYOUTS = ((1, 1), (2, 1), (1, 2))
"""Pipeline and tensor parallel sizes."""


def pattern(name: str) -> str:
    """Return a stored name without its numbers."""
    return re.sub(r"\.\d+\.", ".#.", name)


def differences(ours: Plan, theirs: Plan) -> tuple[set[str], set[str]]:
    """Return the names that only the table reads, and those of which a rank reads other bytes."""
    unread, other = set(), set()
    for rank in range(theirs.num_ranks):
        a, b = needed(ours, rank), needed(theirs, rank)
        unread |= {pattern(n) for n in b.keys() - a.keys()}
        other |= {pattern(n) for n in a.keys() - b.keys()}
        other |= {pattern(n) for n in a.keys() & b.keys() if a[n].ranges != b[n].ranges}
    return unread, other


def main() -> None:
    """Print a line for each model."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--show", metavar="PRESET", help="print the draft of one model")
    parser.add_argument("--results", type=Path)
    args = parser.parse_args()
    shown, figures = args.show, {}
    print("model            s   lines  guesses  questions  names  unread  divided otherwise")
    for name in [shown] if shown else MODELS:
        with TemporaryDirectory() as folder:
            write_full_size(PRESETS[name], Path(folder) / "model")
            checkpoint = open_checkpoint(Path(folder) / "model")
            table = checkpoint.table
            begin = time.perf_counter()
            tensors = {n: table.signatures[s] for n, s in zip(table.names, table.signature, strict=True)}
            draft = draft_family(tensors, checkpoint.config or {})
            file = write_package(draft, name, checkpoint.config or {}, Path(folder) / "out")
            elapsed = time.perf_counter() - begin
            text = file.read_text()
            unread, other = set[str](), set[str]()
            error = ""
            family = load_family(file)
            table_of = find_family(checkpoint.config or {})
            drafts = min(len(table_of.schema(table_of.describe(checkpoint.config or {})).drafts), 1)
            for sizes in LAYOUTS:
                try:
                    ours = build_plan(
                        described(checkpoint, family),
                        ParallelLayout(*sizes, num_draft_layers=min(drafts, len(draft.drafts))),
                    )
                    a, b = differences(ours, build_plan(checkpoint, ParallelLayout(*sizes, num_draft_layers=drafts)))
                except LoadmasterError as failure:
                    error = failure.message
                else:
                    unread, other = unread | a, other | b
            code = text.split('"""', 2)[2]
            lines = sum(bool(line.strip()) for line in code.splitlines())
            figures[name] = {
                "lines": lines,
                "guesses": code.count("# guess"),
                "questions": len(draft.questions),
                "names": len({pattern(n) for n in table.names}),
                "unread": len(unread),
                "divided otherwise": len(other - unread),
            }
            columns = zip((8, 9, 11, 7, 8, 8), figures[name].values(), strict=True)
            print(f"{name:14}{elapsed:5.1f}" + "".join(f"{value:{width}}" for width, value in columns), error)
            if shown:
                print(text, *sorted(unread), "--", *sorted(other - unread), sep="\n")
    if args.results:
        args.results.mkdir(parents=True, exist_ok=True)
        (args.results / "describe.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
