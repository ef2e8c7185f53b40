"""Waivers that a user asks for: they cover what no parameter needs, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import ArgumentError, UsageError
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import Plan, Proof, WaiverRequest, build_plan, prove
from tests.conftest import Tiny
from tests.failures.damaged import DamagedCheckpoint

SURPLUS = WaiverRequest("*.z_proj.*", "left over from training")


@pytest.fixture
def surplus(tiny_copy: Tiny) -> Path:
    """Return a sound checkpoint with one tensor more in each of two layers."""
    path = tiny_copy("qwen3")
    DamagedCheckpoint(path).copy(r"([12])\.self_attn\.o_proj", r"\1.self_attn.z_proj")
    return path


def proof(path: Path, *waive: WaiverRequest) -> Proof:
    return prove(build_plan(open_checkpoint(path), ParallelLayout(2), waive=waive))


def codes(found: Proof) -> list[tuple[str, str]]:
    return [(f.code, f.severity) for f in found.findings]


def test_surplus_tensors_are_an_error_until_they_are_waived_with_a_reason(surplus: Path) -> None:
    without = proof(surplus)
    assert {code for code, _ in codes(without)} == {"tensor-unexpected"}
    assert "--waive 'model.layers.1.self_attn.z_proj.weight=REASON'" in str(without.findings[0].hint)
    waived = proof(surplus, SURPLUS)
    assert waived.proven
    assert waived.findings == ()
    (waiver,) = waived.waivers
    assert (waiver.pattern, waiver.reason, waiver.num_tensors) == (SURPLUS.pattern, SURPLUS.reason, 2)
    table = waived.plan.checkpoint.table
    assert waiver.num_bytes == sum(table.nbytes[i] for name, i in table.ids.items() if "z_proj" in name)


def test_a_pattern_waives_what_it_matches_and_no_more(surplus: Path) -> None:
    found = proof(surplus, WaiverRequest("model.layers.1.self_attn.z_proj.weight", "known"))
    assert [f.tensor for f in found.findings] == ["model.layers.2.self_attn.z_proj.weight"]
    assert proof(surplus, WaiverRequest("z_proj", "not the whole name")).findings[0].code == "tensor-unexpected"


def test_a_pattern_that_matches_what_is_read_is_refused(surplus: Path) -> None:
    found = proof(surplus, WaiverRequest("model.layers.*.self_attn.*", "too wide"))
    assert not found.proven
    assert codes(found) == [("waiver-read", "error")]
    assert "24 of the 26 tensors that it matches are needed by the model and still read" in found.findings[0].message
    assert sum(w.num_tensors for w in found.waivers) == 2


@pytest.mark.parametrize("pattern", ["*", "model.layers.1.self_attn.o_proj.weight", "model.layers.1.*"])
def test_what_is_missing_or_misshapen_cannot_be_waived(pattern: str, tiny_copy: Tiny) -> None:
    path = tiny_copy("qwen3")
    DamagedCheckpoint(path).drop(r"layers\.1\.self_attn\.o_proj\.weight$")
    assert ("tensor-missing", "error") in codes(proof(path, WaiverRequest(pattern, "excused")))
    DamagedCheckpoint(path).config(hidden_size=256)
    misshapen = codes(proof(path, WaiverRequest(pattern, "excused")))
    assert ("shape-mismatch", "error") in misshapen


def test_a_renamed_tensor_cannot_be_waived_under_its_new_name(tiny_copy: Tiny) -> None:
    path = tiny_copy("qwen3")
    DamagedCheckpoint(path).rename(r"layers\.1\.self_attn\.o_proj", "layers.1.self_attn.out_proj")
    found = proof(path, WaiverRequest("*.out_proj.*", "excused"))
    assert ("tensor-missing", "error") in codes(found)
    assert found.waivers == ()


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("model.vision.*", "it matches no stored tensor"),
        ("model.layers.6.*", "that it matches need no waiver"),  # the MTP layer is waived already
    ],
)
def test_a_waiver_without_effect_is_a_warning(pattern: str, says: str, tiny: Tiny) -> None:
    found = proof(tiny("glm-5.1-fp8"), WaiverRequest(pattern, "known"))
    assert found.proven
    assert codes(found) == [("waiver-unused", "warning")]
    assert says in found.findings[0].message
    assert [w.reason for w in found.waivers] == ["mtp not enabled"]


def test_waivers_are_inputs_of_the_plan(surplus: Path) -> None:
    plan = proof(surplus, SURPLUS).plan
    again = Plan.from_json(plan.to_json())
    assert (again, again.waive) == (plan, (SURPLUS,))
    assert prove(again).waivers == prove(plan).waivers
    other = proof(surplus, WaiverRequest(SURPLUS.pattern, "another reason")).plan
    assert len({plan.hash, other.hash, proof(surplus).plan.hash}) == 3


def test_a_plan_without_waivers_says_nothing_of_them(tiny: Tiny) -> None:
    assert b'"waive"' not in proof(tiny("qwen3")).plan.to_json()


@pytest.mark.parametrize("waive", ["*=all", ["*=all"], [None], 7])
def test_anything_else_than_requests_is_a_typed_error(waive: Any, tiny: Tiny) -> None:
    with pytest.raises(ArgumentError, match="waive "):
        build_plan(open_checkpoint(tiny("qwen3")), waive=waive)


@pytest.mark.parametrize("text", ["", "=", "x", "x=", "x= ", "=why"])
def test_a_waiver_needs_a_pattern_and_a_reason(text: str) -> None:
    with pytest.raises(UsageError, match=r"has no (pattern|reason)"):
        WaiverRequest.parse(text)
