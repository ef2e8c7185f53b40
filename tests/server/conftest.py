from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from loadmaster.synth.tokenizer import write_tokenizer
from tests.server.fake import FakeEngine, client_of, serving


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny checkpoints' tokenizer and nothing else."""
    path = tmp_path_factory.mktemp("model")
    write_tokenizer(path, {"max_position_embeddings": 64, "eos_token_id": 257})
    return path


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    """What answers ``hey``, unless a module has another."""
    return FakeEngine(b"hey")


@pytest.fixture(scope="module")
def url(engine: FakeEngine, model_path: Path) -> Iterator[str]:
    """The address of a server over ``engine``."""
    with serving(engine, model_path) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    """A client of that server."""
    with client_of(url) as client:
        yield client
