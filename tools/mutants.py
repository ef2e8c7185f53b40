"""Mutation testing: is the verifier, the algebra or the placement wrong in one place, does a test notice?

``python -m tools.mutants`` (``make mutants``) changes one operator, constant, condition or statement at a time, imports
the changed module in a forked process whose libraries are loaded already, and runs the tests that bear on it until one
fails. No file is touched. Mutants that no test kills are listed; what remains of them is explained in
``docs/reference/mutants.md``. Not changed: annotations, asserts and ``strict=True`` (for bugs of our own),
text, decorators.
"""

from __future__ import annotations

import argparse
import ast
import doctest
import importlib.abc
import importlib.util
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from hypothesis import Phase, settings

from tools.mutations import mutants

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 60

LAWS = [
    "tests/plan/test_laws.py",
    "tests/plan/test_figures.py",
    "tests/architectures/test_algebra.py",
    "tests/parallel",
    "tests/plan/test_plan.py",
]
TARGETS = {
    "loadmaster.parallel.placement": [
        "tests/parallel",
        "tests/architectures/test_algebra.py",
        "tests/plan/test_plan.py",
    ],
    "loadmaster.architectures.lower": ["tests/architectures/test_algebra.py", "tests/plan/test_plan.py"],
    "loadmaster.architectures.views": ["tests/architectures/test_views.py", "tests/architectures/test_algebra.py"],
    "loadmaster.architectures.algebra": ["tests/architectures/test_algebra.py", *LAWS],
    "loadmaster.architectures.cuts": ["tests/architectures/test_cuts.py", "tests/plan/test_stages.py"],
    "loadmaster.sizing.cuts": ["tests/sizing/test_cuts.py"],
    "loadmaster.plan.stages": ["tests/plan/test_stages.py", "tests/sizing/test_cuts.py"],
    "loadmaster.plan.towers": ["tests/plan/test_towers.py"],
    "loadmaster.plan.filling": ["tests/plan/test_filling.py"],
    "loadmaster.plan.needed": ["tests/plan/test_needed.py"],
    "loadmaster.plan.composition": [
        "tests/plan/test_held.py",
        "tests/plan/test_filling.py",
        "tests/plan/test_tables.py",
        "tests/plan/test_towers.py",
        *LAWS,
    ],
    "loadmaster.integrations.vllm.box_copies": ["tests/integrations/vllm/test_box_copies.py"],
    "loadmaster.plan.laws": LAWS,
    "loadmaster.plan.proof": (*LAWS, "tests/failures/test_memory.py"),
}
"""Module -> the tests that are run against its mutants, the likeliest to notice first."""

WITHOUT = "not full_size and not eight_stages and not begins_on_a_shared"
"""What is left out of them, as pytest's ``-k``: full-size checkpoints, which take seconds."""

LIBRARIES = ("numpy", "orjson", "ml_dtypes", "pytest", "hypothesis.strategies", "safetensors.torch", "rich.console")
"""Loaded before the forks."""


class _Loader(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from a tree; all others come as usual."""

    def __init__(self, name: str, tree: ast.Module, path: Path) -> None:
        self.name, self.tree, self.path = name, ast.fix_missing_locations(tree), path

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Claim the one module."""
        return importlib.util.spec_from_loader(name, self, origin=str(self.path)) if name == self.name else None

    def exec_module(self, module: ModuleType) -> None:
        """Run the changed tree."""
        module.__file__ = str(self.path)
        exec(compile(self.tree, str(self.path), "exec"), module.__dict__)


def survives(name: str, tree: ast.Module, path: Path, tests: Sequence[str]) -> bool:
    """Run the tests of a module against a tree of it, in a process of its own; a timeout kills as well."""
    child = os.fork()
    if child == 0:
        signal.alarm(TIMEOUT_S)
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        status = 1
        try:
            sys.meta_path.insert(0, _Loader(name, tree, path))
            if doctest.testmod(importlib.import_module(name)).failed == 0:
                import pytest

                quiet = [
                    "-x",
                    "-q",
                    "-p",
                    "no:cacheprovider",
                    "-p",
                    "no:xdist",
                    "-k",
                    WITHOUT,
                    "--hypothesis-profile",
                    "mutants",
                ]
                status = int(pytest.main([*quiet, *(t for t in dict.fromkeys(tests) if Path(t).exists())]))
        finally:
            os._exit(status)
    _, ended = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(ended) == 0


def try_module(name: str, lines: tuple[int, int]) -> dict[str, Any]:
    """Make and try all mutants of a module; return the survivors and the score as JSON values.

    Raises:
        SystemExit: its tests fail as it is.
    """
    path = ROOT / "src" / (name.replace(".", "/") + ".py")
    source = path.read_text()
    if not survives(name, ast.parse(source), path, TARGETS[name]):
        raise SystemExit(f"{name}: its tests fail as it is")
    begin = time.perf_counter()
    tried, survivors = 0, []
    for mutant in mutants(source):
        if lines[0] <= mutant.line <= lines[1]:
            tried += 1
            if survives(name, mutant.tree, path, TARGETS[name]):
                line = source.splitlines()[mutant.line - 1].strip()
                survivors.append({"line": mutant.line, "what": mutant.what, "source": line})
                print(f"{path.name}:{mutant.line}: {mutant.what}    {line}", flush=True)
    killed, seconds = tried - len(survivors), round(time.perf_counter() - begin, 1)
    print(f"{name}: {killed} of {tried} killed, {seconds} s", flush=True)
    score = round(killed / max(tried, 1), 4)
    return {"mutants": tried, "killed": killed, "score": score, "seconds": seconds, "survivors": survivors}


def main(argv: list[str] | None = None) -> None:
    """Make and try the mutants of all modules, or of some."""
    options = argparse.ArgumentParser(prog="python -m tools.mutants", description=__doc__)
    options.add_argument("--module", action="append", choices=TARGETS, help="only this one")
    options.add_argument("--lines", default=f"0-{10**9}", help="only mutants of these lines: 10-20")
    options.add_argument("--results", type=Path, help="folder for mutants.json")
    args = options.parse_args(argv)
    os.chdir(ROOT)
    for library in LIBRARIES:
        importlib.import_module(library)
    without_shrinking = [Phase.explicit, Phase.generate]
    settings.register_profile("mutants", deadline=None, derandomize=True, database=None, phases=without_shrinking)
    first, last = map(int, args.lines.split("-"))
    result = {name: try_module(name, (first, last)) for name in args.module or TARGETS}
    if args.results:
        args.results.mkdir(parents=True, exist_ok=True)
        (args.results / "mutants.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
