"""OLMo-Hybrid, which vLLM 0.33's own loader does not load, written directly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from loadmaster.architectures.registry import find_family
from loadmaster.audit.ranks import Rank, load
from loadmaster.integrations.vllm.installed import find_vllm
from loadmaster.testing.plans import write_checkpoint
from tests.integrations.vllm.text_case import EVERY, TextCase, text
from tests.integrations.vllm.text_models import TARGET, of_vllm, planned, raw

INSTALLED = find_vllm()
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif((INSTALLED and INSTALLED.target) != TARGET, reason="vLLM 0.33 has it: make test-vllm-cuda"),
]

CASES = [
    TextCase(text("OlmoHybridForCausalLM", "olmo_hybrid", linear_value_head_dim=32), ranks=EVERY),
    TextCase(
        text("OlmoHybridForCausalLM", "olmo_hybrid", linear_num_value_heads=16, tie_word_embeddings=True),
        ranks=(Rank((1, 2), (1, 2)),),
    ),
]
PUBLISHED, INSIDE = 0, 1
"""The spellings: OLMo's own names of norms, and those inside transformers, which vLLM reads."""


def write(case: TextCase, path: Path, spelling: int) -> Path:
    write_checkpoint(find_family(case.config), case.config, path, spelling=spelling)
    return path


def test_vllms_own_loader_knows_neither_the_names_nor_the_parts_of_the_convolution(tmp_path: Path) -> None:
    for spelling, raised, said in (
        (PUBLISHED, ValueError, r"no module or parameter named 'layers\.0\.attention_layer_norm'"),
        (INSIDE, TypeError, "list indices must be integers or slices, not NoneType"),
    ):
        path = write(CASES[0], tmp_path / str(spelling), spelling)
        with pytest.raises(raised, match=said):
            load(path, load_format="auto", **CASES[0].arguments)


@pytest.mark.parametrize("case", CASES, ids=("wider values", "tied, more heads of values"))
def test_written_directly_are_the_parameters_of_vllms_loader_if_it_is_told_the_parts(
    case: TextCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, published = (write(case, tmp_path / str(spelling), spelling) for spelling in (INSIDE, PUBLISHED))
    direct = {"model_loader_extra_config": {"direct": True}}
    for rank in case.ranks:
        made = [of_vllm(case, path, rank, "loadmaster", **direct) for path in (inside, published)]
        with monkeypatch.context() as told:
            tell_the_parts(told)
            own = of_vllm(case, inside, rank)
        plan, computed = planned(case, inside, rank)
        assert not computed
        for other in (*made, plan):
            assert own.keys() == other.keys()
            assert [n for n, t in own.items() if not torch.equal(raw(t), raw(other[n]))] == []


def tell_the_parts(patch: pytest.MonkeyPatch) -> None:
    """Let the loader of a convolution read where it is told whether it has the part of q, of k or of v."""
    from vllm.model_executor.layers.mamba.gdn import olmo_gdn_linear_attn as layer

    make = layer._make_fused_conv1d_weight_loader

    def told(*sizes: Any) -> Any:
        write = make(*sizes)
        return lambda param, weight: write(param, weight, weight.shard_id)

    patch.setattr(layer, "_make_fused_conv1d_weight_loader", told)
