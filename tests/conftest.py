"""What holds for every test: one thread a process, no network, no surprise from the terminal."""

import os

# The tests run side by side and start processes of their own; a thread pool in each would only make them wait for each
# other. Set before torch or numpy is imported, and inherited by every process that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(HF_HUB_OFFLINE="1", NO_COLOR="1", COLUMNS="100")
os.environ.pop("FORCE_COLOR", None)

# Hundreds of processes import the package: each would compile all of it again if none may write bytecode.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import gc
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

sys.dont_write_bytecode = False

Tiny = Callable[[str], Path]
"""A preset's name → the folder of its tiny checkpoint."""

# How long an example takes to make is the machine's affair.
settings.register_profile("local", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("local"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


def quick(names: Iterable[str], *kept: str) -> list[Any]:
    """Return parameters for all names; those that are not ``kept`` are slow."""
    return [name if name in kept else pytest.param(name, marks=pytest.mark.slow) for name in names]


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # thousands of tests, which each full collection would look at again


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a GPU, and there is none here")
    if item.get_closest_marker("vllm") and importlib.util.find_spec("vllm") is None:
        pytest.skip("needs vLLM, which is not installed here")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Tiny checkpoints by preset, written once a test process; not to be changed."""
    from loadmaster.synth import PRESETS, write_tiny

    made: dict[str, Path] = {}

    def path(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            write_tiny(PRESETS[family], made[family])
        return made[family]

    return path


@pytest.fixture
def tiny_copy(tiny: Tiny, tmp_path: Path) -> Tiny:
    """A copy of a tiny checkpoint that a test may damage."""

    def path(family: str) -> Path:
        return Path(shutil.copytree(tiny(family), tmp_path / family))

    return path


@pytest.fixture(scope="module")
def forked_workers() -> Iterator[None]:
    """Let the engines of a module fork their workers (`tests.workers.forked`); how a worker starts is tested elsewhere."""
    from loadmaster.workers import process
    from tests.workers.forked import Forked

    with pytest.MonkeyPatch.context() as patch:
        if sys.platform == "linux":
            forks = SimpleNamespace(Popen=Forked, PIPE=subprocess.PIPE, TimeoutExpired=subprocess.TimeoutExpired)
            patch.setattr(process, "subprocess", forks)
        yield


@pytest.fixture
def started_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the engines of a test start their workers as a user's engine does, in a module with `forked_workers`."""
    from loadmaster.workers import process

    monkeypatch.setattr(process, "subprocess", subprocess)
