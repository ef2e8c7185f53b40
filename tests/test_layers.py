"""The planning half installs and runs without ``loadmaster[run]``.

The layer contract (pyproject.toml, ``make layers``) reads imports; these tests run without what it forbids.
"""

import ast
import shutil
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

from loadmaster import __file__ as package
from tests.conftest import Tiny

RUN_EXTRA = ("torch", "transformers", "tokenizers", "jinja2", "fastapi", "llguidance", "uvicorn")
SERVER_ONLY = ("fastapi", "jinja2", "llguidance", "uvicorn")

WITHOUT_RUN_EXTRA = f"""
import sys
sys.modules.update(dict.fromkeys({RUN_EXTRA!r}))  # None: "not found" to import statements and to find_spec
"""


def run_without_extra(script: str, *args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_RUN_EXTRA + script, *map(str, args)], capture_output=True, text=True, timeout=300
    )


def loadmaster(*args: object) -> subprocess.CompletedProcess[str]:
    return run_without_extra("from loadmaster.cli.main import entry; sys.exit(entry())", *args)


def test_what_is_blocked_cannot_be_imported() -> None:
    done = run_without_extra("import torch.nn")
    assert done.returncode == 1
    assert "torch" in done.stderr


@pytest.mark.parametrize("module", ["loadmaster.plan", "loadmaster.report", "loadmaster.synth", "loadmaster.cli.main"])
def test_planning_half_imports_without_torch(module: str) -> None:
    done = run_without_extra(f"import {module}")
    assert done.returncode == 0, done.stderr


def test_every_module_of_the_planning_rooms_and_of_the_kit_imports_without_torch() -> None:
    done = run_without_extra(
        """
import importlib, pkgutil
for room in ("checkpoint", "formats", "parallel", "architectures", "plan", "payload", "report", "synth", "testing"):
    package = importlib.import_module(f"loadmaster.{room}")
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
"""
    )
    assert done.returncode == 0, done.stderr


def test_synth_inspect_and_plan_run_without_torch(tmp_path: Path) -> None:
    checkpoint = tmp_path / "tiny"
    for args in (
        ("synth", "glm-5.1-fp8", checkpoint, "--tiny"),
        ("inspect", checkpoint),
        ("plan", checkpoint, "-pp", "2"),
    ):
        done = loadmaster(*args)
        assert done.returncode == 0, f"{args}\n{done.stdout}\n{done.stderr}"


def test_generate_asks_for_nothing_of_the_server(tiny: Tiny) -> None:
    script = f"""
import sys
sys.modules.update(dict.fromkeys({SERVER_ONLY!r}))
from loadmaster.cli.main import entry
entry()
"""
    args = ("-c", script, "generate", str(tiny("smollm2")), "--prompt", "Hello", "--max-tokens", "1")
    done = subprocess.run([sys.executable, *args], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")


def test_serve_says_what_it_lacks(tiny: Tiny) -> None:
    done = loadmaster("serve", tiny("smollm2"), "--engine", "native")
    assert done.returncode == 1
    assert (
        "packages that are not installed: torch, transformers, tokenizers, fastapi, jinja2, llguidance, uvicorn"
        in done.stderr
    )


UNPICKLES = ("pickle", "shelve", "marshal", "dill", "cloudpickle", "multiprocessing")
"""Modules that can run what they read."""

PIPES = ("workers/crew.py", "workers/member.py", "workers/supervisor.py", "workers/worker.py")
"""What has an end of a pipe or link between processes of an engine; see docs/decisions/0004-who-can-join.md."""


def test_nothing_is_unpickled_but_messages_of_known_classes() -> None:
    source = Path(package).parent
    found = set()
    receives = []
    for path in source.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Attribute):  # torch.load, and collectives of objects: all_gather_object, …
                is_load = node.attr == "load" and isinstance(node.value, ast.Name) and node.value.id == "torch"
                is_object = node.attr.endswith(("_object", "_object_list")) and node.attr != "json_object"
                names = ["pickle"] if is_load or is_object else []
            else:
                continue
            if any(name.partition(".")[0] in UNPICKLES for name in names):
                found.add(path.relative_to(source).as_posix())
    assert found == {*PIPES, "workers/encoding.py"}
    assert receives == []


def reads_config(source: str) -> bool:
    """Whether code takes a config, or reads one: anything called config, and the class `Config`."""
    nodes = list(ast.walk(ast.parse(source)))
    names = {n.id for n in nodes if isinstance(n, ast.Name)} | {n.arg for n in nodes if isinstance(n, ast.arg)}
    names |= {n.attr for n in nodes if isinstance(n, ast.Attribute)}
    names |= {alias.name for n in nodes if isinstance(n, ast.ImportFrom) for alias in n.names}
    return any(name.lower().strip("_") == "config" or name == "text_config" for name in names)


def test_layers_and_models_take_typed_values_and_read_no_config() -> None:
    source = Path(package).parent
    paths = [path for room in ("layers", "models") for path in (source / room).glob("*.py")]
    assert paths
    assert [path.name for path in paths if reads_config(path.read_text())] == []


@pytest.mark.parametrize(
    "planted",
    ['config["hidden_size"]', 'plan.config.get("hidden_size")', "def f(config): ...", "import_ = Config(values)"],
)
def test_a_config_that_is_read_is_found(planted: str) -> None:
    assert reads_config(planted)


def circle(imports: dict[str, set[str]]) -> list[str] | None:
    """Return modules that import each other in turn, directly or through others; None where there are none."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return sorted(set(error.args[1]))
    return None


def imports_of(package: str) -> dict[str, set[str]]:
    """Return what each module imports, in functions and for type checkers too."""
    graph = grimp.build_graph(package, exclude_type_checking_imports=False, cache_dir=None)
    return {module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}


def test_no_module_is_part_of_an_import_circle() -> None:
    assert circle(imports_of("loadmaster")) is None


def test_a_circle_that_is_planted_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "planted"
    shutil.copytree(Path(package).parent / "parallel", copy, ignore=shutil.ignore_patterns("__pycache__"))
    for path in copy.glob("*.py"):
        path.write_text(path.read_text().replace("loadmaster.parallel", "planted"))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert circle(imports_of("planted")) is None
    placement = copy / "placement.py"
    planted = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from planted.layout import ParallelLayout\n"
    placement.write_text(placement.read_text() + planted)
    assert circle(imports_of("planted")) == ["planted.layout", "planted.placement"]
