from pathlib import Path

import pytest

from loadmaster.synth.tokenizer import write_tokenizer


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny checkpoints' tokenizer and nothing else."""
    path = tmp_path_factory.mktemp("model")
    write_tokenizer(path, {"max_position_embeddings": 64, "eos_token_id": 257})
    return path
