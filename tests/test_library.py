"""The public names: there, typed, and loaded only when they are asked for."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import loadmaster

SOURCE = Path(loadmaster.__file__)


def python(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)


def test_every_public_name_is_that_of_its_room() -> None:
    rooms = vars(loadmaster)["ROOMS"]
    assert sorted(n for names in rooms.values() for n in names) == sorted(loadmaster.__all__)
    for room, names in rooms.items():
        for name in names:
            assert getattr(loadmaster, name) is getattr(importlib.import_module(f"loadmaster.{room}"), name)
    assert set(loadmaster.__all__) <= set(dir(loadmaster))


def test_type_checkers_see_the_same_names_from_the_same_rooms() -> None:
    (branch,) = (
        node
        for node in ast.parse(SOURCE.read_text()).body
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    )
    seen = {
        (node.module, alias.name) for node in branch.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    rooms = vars(loadmaster)["ROOMS"]
    assert seen == {(f"loadmaster.{room}", name) for room, names in rooms.items() for name in names}
    assert (SOURCE.parent / "py.typed").exists()


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'open_chekpoint'"):
        loadmaster.open_chekpoint  # type: ignore[attr-defined]  # noqa: B018


def test_import_loads_nothing_and_planning_no_torch() -> None:
    done = python(
        "import loadmaster, sys; assert 'numpy' not in sys.modules; loadmaster.build_plan, loadmaster.prove; "
        "assert 'numpy' in sys.modules and 'torch' not in sys.modules"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("what", ["import loadmaster", "from loadmaster.cli.main import main; main(['--help'])"])
def test_import_and_help_take_no_time(what: str) -> None:
    slow = {"asyncio", "http", "multiprocessing", "socket", "sqlite3", "ssl", "subprocess"}
    done = python(
        f"""
import sys
before = set(sys.modules)  # what an environment loads into every process
try:
    {what}
except SystemExit:
    pass
print(*{{name.partition(".")[0] for name in set(sys.modules) - before}}, file=sys.stderr)
"""
    )
    names = set(done.stderr.split())
    assert done.returncode == 0 and "loadmaster" in names, done.stderr
    assert names & slow == set()
    assert names - sys.stdlib_module_names == {"loadmaster"}


@pytest.mark.slow
def test_mypy_knows_the_types_of_the_library(tmp_path: Path) -> None:
    api = pytest.importorskip("mypy.api")
    script = tmp_path / "user.py"
    script.write_text(
        "from loadmaster import ParallelLayout, build_plan, open_checkpoint, prove\n"
        "proof = prove(build_plan(open_checkpoint('x'), ParallelLayout(2)))\n"
        "reveal_type(proof.ranks[0].layers)\n"
        "from loadmaster import open_chekpoint\n"
    )
    out, _, _ = api.run(["--strict", "--follow-imports=silent", str(script)])
    assert 'Revealed type is "tuple[' in out.replace("builtins.", "")
    assert 'has no attribute "open_chekpoint"' in out
