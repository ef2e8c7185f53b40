"""Text models that are no presets: a plan of vLLM 0.33's parameters against what vLLM's own loader writes, and direct writing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from loadmaster.integrations.vllm.installed import find_vllm
from tests.integrations.vllm.text_models import CASES, TABLES, TARGET, joined, kept, of_vllm, planned, raw, told

INSTALLED = find_vllm()


def test_every_case_has_digests_and_no_other() -> None:
    ranks = {name: {len(digests.split()) for digests in params.values()} for name, params in kept().items()}
    assert ranks == {name: {len(case.ranks)} for name, case in CASES.items()}
    assert len(CASES) == sum(map(len, TABLES)), "two cases have one name"


@pytest.mark.parametrize("name", CASES)
def test_a_plan_writes_what_vllms_own_loader_writes(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    path = case.write(tmp_path / "tiny")
    assert joined([told(*planned(case, path, rank)) for rank in case.ranks]) == kept()[name]


@pytest.mark.vllm
@pytest.mark.skipif((INSTALLED and INSTALLED.target) != TARGET, reason="vLLM 0.33 has them: make test-vllm-cuda")
@pytest.mark.parametrize("name", CASES)
def test_written_directly_are_the_parameters_of_vllms_own_loader(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    path = case.write(tmp_path / "tiny")
    for rank in case.ranks:
        own = of_vllm(case, path, rank)
        direct = of_vllm(case, path, rank, "loadmaster", model_loader_extra_config={"direct": True})
        assert own.keys() == direct.keys()
        unlike = {name for name, tensor in own.items() if not torch.equal(raw(tensor), raw(direct[name]))}
        assert unlike == {name for name in own if case.lost and name.endswith(case.lost)}
