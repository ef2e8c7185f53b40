import json
from pathlib import Path

import pytest

from loadmaster.architectures import Config, gemma3
from loadmaster.engine import Limits, read_limits
from loadmaster.errors import ConfigError


def test_generation_config_comes_before_the_config(tmp_path: Path) -> None:
    config = {"max_position_embeddings": 100, "vocab_size": 7, "eos_token_id": 1}
    assert read_limits(Config(config), tmp_path) == Limits(100, 7, (1,))
    (tmp_path / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [2, 3], "temperature": 0.6, "top_p": None, "max_length": 9})
    )
    assert read_limits(Config(config), tmp_path, 10) == Limits(10, 7, (2, 3), {"temperature": 0.6})


def test_the_text_model_of_a_composite_counts(tmp_path: Path) -> None:
    config = gemma3.FAMILY.describe({"eos_token_id": 3, "text_config": {"max_position_embeddings": 9}})
    assert read_limits(config, tmp_path) == Limits(9, eos_token_ids=(3,))


@pytest.mark.parametrize(("config", "wanted"), [({}, None), ({}, 0), ({"max_position_embeddings": 4}, 5)])
def test_a_length_that_is_unknown_or_too_long_is_refused(
    tmp_path: Path, config: dict[str, int], wanted: int | None
) -> None:
    with pytest.raises(ConfigError, match=r"max-model-len|max_position_embeddings"):
        read_limits(Config(config), tmp_path, wanted)


def test_a_broken_generation_config_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text("[]")
    with pytest.raises(ConfigError, match="not a JSON object"):
        read_limits(Config({"max_position_embeddings": 4}), tmp_path)
