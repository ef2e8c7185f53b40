"""GPTQ's biases of zeros: left unread with a reason, and an error where a value is not zero."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from loadmaster.checkpoint import open_checkpoint
from loadmaster.plan import Proof, build_plan, prove
from loadmaster.synth import PRESETS, write_tiny
from loadmaster.testing.damaged import DamagedCheckpoint
from tests.payload.inject import findings, only, put

BIASED = r"(proj|shared_expert_gate)\.qweight$"
"""Every packed weight: of q, k and v, the bias is the model's own and there already."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gptq") / "model"
    write_tiny(PRESETS["qwen2-moe-gptq"], path, overrides={"num_hidden_layers": 2})
    damaged = DamagedCheckpoint(path)
    own = set(damaged.names(r"\.bias$"))

    def with_bias(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        bias = name.replace("qweight", "bias")
        zeros = torch.zeros(tensor.shape[1], dtype=torch.float16)
        return {name: tensor} if bias in own else {name: tensor, bias: zeros}

    damaged.each(BIASED, with_bias)
    return path


def _proof(path: Path) -> Proof:
    return prove(build_plan(open_checkpoint(path)))


def test_biases_of_zeros_are_waived_and_the_models_own_are_read(exported: Path) -> None:
    proof = _proof(exported)
    assert proof.findings == ()
    [waiver] = [w for w in proof.plan.waivers if "bias of zeros" in w.reason]
    stored = len(DamagedCheckpoint(exported).names(r"\.bias$"))
    assert waiver.num_tensors == stored - 2 * 3  # q, k and v of two layers
    specs = {s.name for s in proof.plan.rank(0).specs}
    assert "layers.0.self_attn.qkv_proj.bias" in specs
    assert "layers.0.self_attn.o_proj.bias" not in specs
    assert [f for f in findings(exported) if f.severity != "note"] == []


def test_a_value_that_is_not_zero_is_an_error_at_its_tensor(exported: Path) -> None:
    name = "model.layers.0.mlp.experts.3.up_proj.bias"
    put(exported, name, (5,), 0.25)
    try:
        found = only(findings(exported))
    finally:
        put(exported, name, (5,), 0.0)
    assert (found.code, found.severity, found.tensor) == ("value-not-zero", "error", name)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda bias: bias[:-1], "shape-mismatch"),
        (lambda bias: bias.to(torch.int32), "dtype-inadmissible"),
    ],
)
def test_a_bias_of_another_shape_or_kind_is_a_finding(change: object, code: str, tmp_path: Path) -> None:
    path = tmp_path / "model"
    write_tiny(PRESETS["llama-gptq"], path, overrides={"num_hidden_layers": 2})
    name = "model.layers.1.self_attn.o_proj.bias"

    def with_bias(weight: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        return {weight: tensor, name: change(torch.zeros(tensor.shape[1], dtype=torch.float16))}  # type: ignore[operator]

    DamagedCheckpoint(path).each(r"layers\.1\.self_attn\.o_proj\.qweight$", with_bias)
    assert [(f.code, f.tensor) for f in _proof(path).findings] == [(code, name)]
