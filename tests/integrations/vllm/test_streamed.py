"""What no target describes, because vLLM 0.33 holds another form of what is stored, and drafts: streamed, and compared here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from loadmaster.audit.forms import deepseek_v41
from loadmaster.audit.ranks import Rank, load
from loadmaster.checkpoint import open_checkpoint
from loadmaster.integrations.vllm.installed import find_vllm
from loadmaster.loader import load_rank
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.synth import PRESETS, write_tiny
from tests.integrations.vllm.golden import write
from tests.integrations.vllm.models import arguments_of

INSTALLED = find_vllm()
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        (INSTALLED and INSTALLED.target) != "vllm-0.33", reason="vLLM 0.33 has them: make test-vllm-cuda"
    ),
]

SPREAD = Rank(tp=(1, 2), ep=True)
CASES = [(p, r) for p in ("mimo-v2.5-pro", "mimo-v2.6-pro", "mistral-large-3") for r in (Rank((1, 2)), SPREAD)]
CASES += [("deepseek-v4.1-flash", r) for r in (Rank((0, 2)), Rank((1, 2)), Rank(tp=(1, 2)), SPREAD)]


def held(path: Path, preset: str, rank: Rank, **engine: object) -> dict[str, torch.Tensor]:
    """Return the parameters of the language model; those of towers that are left out have no memory."""
    params = load(path, rank, **arguments_of(preset), **engine).params
    return {name: param for name, param in params.items() if param.device.type != "meta"}


def raw(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


@pytest.mark.parametrize(("preset", "rank"), CASES, ids=str)
def test_what_is_streamed_is_what_vllms_own_loader_makes(preset: str, rank: Rank, tmp_path: Path) -> None:
    path = write(preset, tmp_path)
    own, streamed = (held(path, preset, rank, load_format=way) for way in ("auto", "loadmaster"))
    assert own.keys() == streamed.keys()
    assert [name for name in own if not torch.equal(raw(own[name]), raw(streamed[name]))] == []


@pytest.mark.parametrize("preset", ["deepseek-v4-pro-0813", "deepseek-v4.1-flash"])
def test_dspark_s_drafts_are_streamed_as_vllms_own_loader_loads_them(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM joins keys of all three blocks in one matrix; only its second runner of models, which needs Triton, runs them."""
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    path = write(preset, tmp_path)
    own, streamed = (held(path, preset, SPREAD, load_format=way, draft="dspark") for way in ("auto", "loadmaster"))
    assert {"model.main_proj.weight", "model.markov_head.markov_w1.weight"} <= own.keys()
    assert own.keys() == streamed.keys()
    assert [name for name in own if not torch.equal(raw(own[name]), raw(streamed[name]))] == []


@pytest.mark.parametrize("rank", [Rank(), Rank(tp=(1, 2)), SPREAD], ids=str)
def test_vllm_holds_of_deepseek_v41_what_is_planned_and_repeats_factors_of_blocks_for_each_row(
    rank: Rank, tmp_path: Path
) -> None:
    path = write("deepseek-v4.1-flash", tmp_path)
    vllm = held(path, "deepseek-v4.1-flash", rank, load_format="auto")
    plan = build_plan(open_checkpoint(path), ParallelLayout(1, rank.tp[1], enable_expert_parallel=rank.ep))
    planned = deepseek_v41(load_rank(prove(plan).require_proven(), rank.tp[0]).tensors)
    assert planned.keys() == vllm.keys()
    assert [
        n for n in vllm if planned[n].shape != vllm[n].shape or not torch.equal(raw(planned[n]), raw(vllm[n]))
    ] == []


def test_experts_with_room_are_streamed_too_and_the_room_is_zero(tmp_path: Path) -> None:
    path, rank = write("gpt-oss", tmp_path / "gpt-oss"), Rank(tp=(1, 2))
    streaming = {"load_format": "loadmaster", "model_loader_extra_config": {"direct": False}}
    own, streamed = (held(path, "gpt-oss", rank, **how) for how in ({"load_format": "auto"}, streaming))
    assert own.keys() == streamed.keys()
    assert [name for name in own if not torch.equal(raw(own[name]), raw(streamed[name]))] == []
    path = write("kimi-linear", tmp_path / "kimi")
    streamed = held(path, "kimi-linear", Rank(tp=(1, 4)), **streaming)
    assert not streamed["model.layers.1.block_sparse_moe.experts.routed_experts.w2_weight"][:, :, 128:].any()


@pytest.mark.parametrize("rank", [Rank(), Rank(tp=(1, 2)), SPREAD], ids=str)
def test_experts_are_written_directly_where_a_kernel_wants_wider_hidden_states_too(rank: Rank, tmp_path: Path) -> None:
    """Marlin: multiples of 256 and 128."""
    write_tiny(PRESETS["gpt-oss"], tmp_path, overrides={"hidden_size": 160})
    direct = {"load_format": "loadmaster", "model_loader_extra_config": {"direct": True}}
    ways = ({"load_format": "auto"}, direct)
    own, written = (held(tmp_path, "gpt-oss", rank, moe_backend="marlin", **way) for way in ways)
    assert written["model.layers.1.mlp.experts.routed_experts.w2_weight"].shape[1] == 256
    assert own.keys() == written.keys()
    assert [name for name in own if not torch.equal(raw(own[name]), raw(written[name]))] == []


def test_experts_of_kimi_linear_are_written_where_vllm_has_room_for_more(tmp_path: Path) -> None:
    """vLLM clears that room after loading only (``_zero_intermediate_padding``)."""
    rank = Rank(tp=(1, 4))
    path = write("kimi-linear", tmp_path)
    own, ours = (held(path, "kimi-linear", rank, load_format=way) for way in ("auto", "loadmaster"))
    inner, room = 512 // 4, 256
    assert own.keys() == ours.keys()
    for name, param in ours.items():
        parts = [(param, own[name])]
        if name.endswith(".routed_experts.w13_weight"):
            assert param.shape[1] == 2 * room
            halves = zip(param.split(room, 1), own[name].split(room, 1), strict=True)
            parts = [(ours_half[:, :inner], own_half[:, :inner]) for ours_half, own_half in halves]
            assert not any(half[:, inner:].any() for half in param.split(room, 1))
        if name.endswith(".routed_experts.w2_weight"):
            assert param.shape[2] == room
            parts = [(param[:, :, :inner], own[name][:, :, :inner])]
            assert not param[:, :, inner:].any()
        assert all(torch.equal(raw(a), raw(b)) for a, b in parts), name
