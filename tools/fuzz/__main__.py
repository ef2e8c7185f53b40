"""``python -m tools.fuzz``: damaged checkpoints by the thousand, then headers; what was found goes to a result file.

Cases are drawn by Hypothesis in batches. A failure is shrunk and printed as one line that ``--replay`` takes; failures
that are alike are counted once, and the run goes on. The exit status is 1 if there was any.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tools.fuzz.bases import LAYOUTS, MADE, Bases
from tools.fuzz.judge import OracleError, judge
from tools.fuzz.libfuzzer import fuzz_headers
from tools.fuzz.mutations import KINDS, Mutation, mutate

BATCH = 500

Case = tuple[str, int, tuple[Mutation, ...]]
"""Name of the model, number of the layout, mutations."""

_number = st.integers(0, 2**16 - 1)


def cases_of(presets: Iterable[str]) -> st.SearchStrategy[Case]:
    """Return the strategy that draws cases of some presets."""
    return st.tuples(
        st.sampled_from(sorted(presets)),
        st.sampled_from(range(len(LAYOUTS))),
        st.lists(st.tuples(st.sampled_from(sorted(KINDS)), _number, _number, _number), min_size=1, max_size=2).map(
            tuple
        ),
    )


@dataclass
class Campaign:
    """What a run of many cases has seen."""

    bases: Bases
    scratch: Path
    cases: st.SearchStrategy[Case]
    outcomes: Counter[str] = field(default_factory=Counter)
    by_kind: dict[str, Counter[str]] = field(default_factory=dict)
    failures: dict[str, dict[str, Any]] = field(default_factory=dict)
    number: int = 0

    def run(self, case: Case) -> str:
        """Judge one case; its folder is gone afterwards.

        Raises:
            OracleError: the tool is wrong about it.
        """
        preset, layout, mutations = case
        base = self.bases[preset]
        draft = base.draft()
        done = mutate(draft, mutations)
        if not done:
            return "nothing done"
        self.number += 1
        folder = self.scratch / str(self.number)
        try:
            return judge(base, LAYOUTS[layout], draft, folder)
        except OracleError as failure:
            kinds = {kind for kind, *_ in mutations}
            if not failure.signature.startswith("crash"):
                failure.signature += f" after {' and '.join(sorted(kinds))}"
            failure.add_note(f"{preset} on {LAYOUTS[layout]}: {'; then '.join(done)}")
            raise
        finally:
            for made in self.scratch.glob(f"{self.number}*"):
                shutil.rmtree(made)

    def batch(self, number: int, size: int) -> None:
        """Draw ``size`` cases; shrink the first failure of a kind not seen before, and keep it."""
        last: list[tuple[Case, OracleError]] = []

        @seed(number)
        @settings(
            max_examples=size,
            database=None,
            deadline=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        )
        @given(self.cases)
        def one(case: Case) -> None:
            outcome = "failure"
            try:
                outcome = self.run(case)
            except OracleError as failure:
                if failure.signature not in self.failures:
                    last.append((case, failure))
                    raise
                self.failures[failure.signature]["times"] += 1
            finally:
                self.outcomes[outcome] += 1
                for kind in {m[0] for m in case[2]}:
                    self.by_kind.setdefault(kind, Counter())[outcome] += 1

        try:
            one()
        except OracleError:
            case, failure = last[-1]
            what = {"replay": json.dumps(case), "what": str(failure)[:3000], "case": failure.__notes__[0], "times": 1}
            self.failures[failure.signature] = what
            print(
                f"\nFAILURE {failure}\n  {what['case']}\n  python -m tools.fuzz --replay '{what['replay']}'", flush=True
            )


def fuzz_checkpoints(runs: int, first_seed: int, presets: Iterable[str] = MADE) -> dict[str, Any]:
    """Run a campaign; return what it saw as JSON values. Cases that shrinking tries are counted as runs."""
    memory = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(prefix="fuzz-", dir=memory if os.access(memory, os.W_OK) else None))
    begin = time.perf_counter()
    try:
        (root / "cases").mkdir()
        campaign = Campaign(Bases(root / "bases"), root / "cases", cases_of(presets))
        number = first_seed
        while (done := sum(campaign.outcomes.values())) < runs:
            campaign.batch(number, min(BATCH, runs - done))
            number += 1
            print(f"{sum(campaign.outcomes.values()):,} runs, {time.perf_counter() - begin:.0f} s", flush=True)
    finally:
        shutil.rmtree(root)
    return {
        "runs": sum(campaign.outcomes.values()),
        "seconds": round(time.perf_counter() - begin, 1),
        "first_seed": first_seed,
        "outcomes": dict(campaign.outcomes.most_common()),
        "by_kind": {k: dict(c.most_common()) for k, c in sorted(campaign.by_kind.items())},
        "failures": campaign.failures,
    }


def replay(text: str) -> int:
    """Run one case again, as a failure printed it. Return the exit status."""
    preset, layout, mutations = json.loads(text)
    with tempfile.TemporaryDirectory() as root:
        (Path(root) / "cases").mkdir()
        campaign = Campaign(Bases(Path(root) / "bases"), Path(root) / "cases", cases_of([preset]))
        try:
            print(campaign.run((preset, layout, tuple(tuple(m) for m in mutations))))
        except OracleError as failure:
            print(failure, *failure.__notes__, sep="\n")
            return 1
    return 0


def main(argv: list[str] | None = None) -> int:
    """Fuzz. Return the exit status."""
    options = argparse.ArgumentParser(prog="python -m tools.fuzz", description=__doc__)
    options.add_argument("--runs", type=int, default=10_000, help="damaged checkpoints")
    options.add_argument("--header-runs", type=int, default=1_000_000, help="headers")
    options.add_argument("--seed", type=int, default=0, help="of the first batch")
    options.add_argument("--results", type=Path, help="folder for fuzz.json")
    options.add_argument("--presets", nargs="+", choices=sorted(MADE), default=sorted(MADE), metavar="NAME")
    options.add_argument("--replay", help="one case, as a failure printed it")
    args = options.parse_args(argv)
    if args.replay:
        return replay(args.replay)
    result: dict[str, Any] = {}
    if args.runs:
        result["checkpoints"] = fuzz_checkpoints(args.runs, args.seed, args.presets)
    if args.header_runs:
        result["headers"] = fuzz_headers(args.header_runs, args.seed)
    print(json.dumps(result, indent=2))
    if args.results:
        args.results.mkdir(parents=True, exist_ok=True)
        (args.results / "fuzz.json").write_text(json.dumps(result, indent=2) + "\n")
    return 1 if any(part["failures"] for part in result.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
