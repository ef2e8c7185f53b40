"""How many of the architectures in vLLM 0.33's registry are known, as the page of models says."""

from __future__ import annotations

from importlib import import_module

import pytest

from loadmaster.architectures.aliases import ALIASES
from loadmaster.architectures.registry import known
from loadmaster.integrations.vllm.installed import find_vllm
from tools.models import KNOWN

INSTALLED = find_vllm()
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif((INSTALLED and INSTALLED.target) != "vllm-0.33", reason="the page counts those of vLLM 0.33"),
]


@pytest.mark.parametrize("table", KNOWN)
def test_the_page_of_models_counts_what_is_known(table: str) -> None:
    names = set(getattr(import_module("vllm.model_executor.models.registry"), table))
    assert (len(names & {*known(), *ALIASES}), len(names)) == KNOWN[table]
