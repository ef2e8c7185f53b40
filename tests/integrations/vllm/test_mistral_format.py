"""A model in Mistral's own names and config, written directly into vLLM, beside what vLLM's loader for this form makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from loadmaster.architectures.llama import FAMILY
from loadmaster.audit.ranks import Rank, load
from loadmaster.testing import write_checkpoint
from tests.architectures.test_mistral_names import CONFIG, PARAMS
from tests.integrations.vllm.test_left import DIRECT

MISTRAL: dict[str, Any] = {"config_format": "mistral"}


@pytest.mark.vllm
@pytest.mark.parametrize("rank", [Rank(), Rank((1, 2), (0, 2)), Rank(tp=(3, 4))], ids=str)
def test_mistrals_own_form_is_written_as_vllms_loader_for_it_does(rank: Rank, tmp_path: Path) -> None:
    write_checkpoint(FAMILY, CONFIG, tmp_path, spelling=1)
    for number, file in enumerate(sorted(tmp_path.glob("*.safetensors")), 1):
        file.rename(tmp_path / f"consolidated-{number:05d}-of-00002.safetensors")
    (tmp_path / "model.safetensors.index.json").unlink()
    (tmp_path / "config.json").unlink()
    (tmp_path / "params.json").write_text(json.dumps(PARAMS))
    own = load(tmp_path, rank, load_format="mistral", **MISTRAL).params
    direct = load(tmp_path, rank, **DIRECT, **MISTRAL).params
    assert own.keys() == direct.keys()
    assert all(torch.equal(own[name], direct[name]) for name in own)
