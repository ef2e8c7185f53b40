import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from loadmaster.synth.tokenizer import write_tokenizer
from loadmaster.workers import process


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny checkpoints' tokenizer and nothing else."""
    path = tmp_path_factory.mktemp("model")
    write_tokenizer(path, {"max_position_embeddings": 64, "eos_token_id": 257})
    return path


@pytest.fixture(scope="module")
def forked_workers() -> Iterator[None]:
    """Let the engines of a module fork their workers (`tests.workers.forked`); how a worker starts is tested elsewhere."""
    from tests.workers.forked import Forked

    with pytest.MonkeyPatch.context() as patch:
        if sys.platform == "linux":
            forks = SimpleNamespace(Popen=Forked, PIPE=subprocess.PIPE, TimeoutExpired=subprocess.TimeoutExpired)
            patch.setattr(process, "subprocess", forks)
        yield


@pytest.fixture
def started_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the engines of a test start their workers as a user's engine does, in a module with `forked_workers`."""
    monkeypatch.setattr(process, "subprocess", subprocess)
