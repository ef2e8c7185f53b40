"""vLLM's default loader behind the filter writes what it writes without."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadmaster.checkpoint import open_checkpoint
from loadmaster.integrations.filter.vllm import LOAD_FORMAT, register
from loadmaster.integrations.vllm.installed import find_vllm
from tests.integrations.vllm.golden import goldens, ranks_of, told, write

pytestmark = pytest.mark.vllm


@pytest.mark.parametrize("preset", ["llama", "qwen3-moe", "deepseek-v3", "glm-5.1-fp8", "mixtral"])
def test_every_rank_gets_the_same_parameters_from_fewer_tensors(preset: str, tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    from loadmaster.audit.ranks import build

    installed = find_vllm()
    assert installed is not None and installed.target is not None, "the installed vLLM is described"
    expected = goldens(installed.target)[preset]
    register()
    path = write(preset, tmp_path)
    stored = set(open_checkpoint(path).table.names)
    for rank in ranks_of(installed.target)[preset]:
        built = build(path, rank, load_format=LOAD_FORMAT)
        offered: set[str] = set()
        write_all = built.model.load_weights

        def counted(weights, write_all=write_all, offered=offered):  # type: ignore[no-untyped-def]
            return write_all((offered.add(name) or (name, tensor)) for name, tensor in weights)  # type: ignore[func-returns-value]

        built.model.load_weights = counted
        built.write()
        assert told(built.params) == expected[str(rank)]
        assert offered <= stored
        if rank.pp[1] > 1 or rank.ep:
            assert offered < stored
