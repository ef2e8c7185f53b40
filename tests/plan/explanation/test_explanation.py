"""Explanations agree with what is loaded: every byte that ranks read is in them, and what is not read has a reason."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import ArgumentError
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import Plan, WaiverRequest, build_plan
from loadmaster.plan.explanation import ExplainedParam, ExplainedTensor, explain, param_names
from tests.conftest import Tiny
from tests.failures.damaged import DamagedCheckpoint


def plan(
    path: Path, *sizes: int, target: str = "native", drafts: int = 0, waive: tuple[WaiverRequest, ...] = ()
) -> Plan:
    layout = ParallelLayout(*sizes, num_draft_layers=drafts)
    return build_plan(open_checkpoint(path), layout, target=target, waive=waive)


def param(of: Plan, name: str) -> ExplainedParam:
    found = explain(of, name).param
    assert found is not None
    return found


def tensor(of: Plan, name: str) -> ExplainedTensor:
    found = explain(of, name).tensor
    assert found is not None
    return found


@pytest.mark.parametrize("target", ["native", "vllm-0.32"])
def test_parameters_and_tensors_account_for_every_byte_that_each_rank_reads(tiny: Tiny, target: str) -> None:
    of = plan(tiny("qwen3-moe"), 2, 2, target=target)
    needed = {rank: of.rank(rank).needed_bytes for rank in range(4)}
    by_param: Counter[int] = Counter()
    for name in {name for _, name in param_names(of)}:  # some are on every stage
        for share in param(of, name).shares:
            assert share.ranks
            for rank in share.ranks:
                by_param[rank] += sum(r.num_bytes for piece in share.pieces for r in piece.reads)
    by_tensor: Counter[int] = Counter()
    for name in of.table.names:
        for use in tensor(of, name).uses:
            for rank in use.ranks:
                by_tensor[rank] += use.reads.num_bytes
    assert by_param == by_tensor == needed


def test_a_fused_parameter_shows_what_is_decoded_and_what_is_copied(tiny: Tiny) -> None:
    of = plan(tiny("glm-5.1-fp8"), 2, 2)
    found = param(of, "layers.3.self_attn.indexer.wk_weights_proj.weight")
    at = "model.layers.3.self_attn.indexer"
    assert found.expression == (
        f"Concat(Cast(Decode(fp8_block, {at}.wk.weight, {at}.wk.weight_scale_inv), BF16), {at}.weights_proj.weight)"
    )
    assert (found.layer, found.stages, found.ranks, found.format) == (3, (1,), (2, 3), None)
    (share,) = found.shares  # both ranks hold the same
    assert [(p.operation, p.box) for p in share.pieces] == [
        ("decode", ((0, 32), (0, 320))),
        ("copy", ((32, 40), (0, 320))),
    ]
    table = of.table
    read = share.pieces[1].reads[0]
    assert (read.tensor, read.start) == (f"{at}.weights_proj.weight", table.start[table.ids[read.tensor]])
    assert read.end - read.start == read.num_bytes == 8 * 320 * 2


def test_experts_are_read_from_a_tensor_each_and_ranks_differ_in_their_part(tiny: Tiny) -> None:
    found = param(plan(tiny("glm-5.1-fp8"), 2, 2), "layers.3.mlp.experts.w13_weight_scale_inv")
    assert found.format == "fp8_block"
    assert found.components == ("layers.3.mlp.experts.w13_weight", found.name)
    assert "Shard(model.layers.3.mlp.experts.{expert}.up_proj.weight_scale_inv, dim=0, axis=moe)" in found.expression
    values = param(plan(tiny("glm-5.1-fp8"), 2, 2), "layers.3.mlp.experts.w13_weight")
    assert [share.ranks for share in values.shares] == [(2,), (3,)]
    gate = values.shares[1].pieces[0]
    assert gate.experts == tuple(range(8))
    assert [r.tensor for r in gate.reads][:2] == [
        "model.layers.3.mlp.experts.0.gate_proj.weight",
        "model.layers.3.mlp.experts.1.gate_proj.weight",
    ]
    assert gate.expression.endswith("[48:96, :]")


def test_a_tied_head_shares_memory_and_reads_nothing(tiny: Tiny) -> None:
    one = param(plan(tiny("smollm2")), "lm_head.weight")
    assert one.shares[0].alias == "embed_tokens.weight"
    assert one.shares[0].pieces == ()
    of = plan(tiny("smollm2"), 2)
    assert param(of, "lm_head.weight").shares[0].alias is None  # a copy, on the last stage
    uses = tensor(of, "model.embed_tokens.weight").uses
    assert [(use.ranks, use.param) for use in uses] == [((0,), "embed_tokens.weight"), ((1,), "lm_head.weight")]


def test_a_row_parallel_tensor_is_read_in_runs(tiny: Tiny) -> None:
    found = tensor(plan(tiny("glm-5.1-fp8"), 1, 2), "model.layers.0.self_attn.o_proj.weight")
    assert [(use.ranks, use.part) for use in found.uses] == [((0,), "[:, 0:128]"), ((1,), "[:, 128:256]")]
    runs = found.uses[1].reads.runs
    assert (runs.run, runs.counts, runs.strides) == (128, (320,), (256,))
    assert found.uses[1].reads.start == (found.start or 0) + 128


def test_an_mtp_layer_is_waived_until_it_is_asked_for(tiny: Tiny) -> None:
    path, name = tiny("glm-5.1-fp8"), "model.layers.6.eh_proj.weight"
    without = tensor(plan(path, 2), name)
    assert (without.fate, without.reason, without.ranks) == ("waived", "mtp not enabled", ())
    asked = tensor(plan(path, 2, drafts=1), name)
    assert (asked.fate, asked.reason, asked.ranks) == ("read", None, (1,))
    assert asked.params == ("mtp.0.eh_proj.weight",)


def test_a_surplus_tensor_is_unexpected_or_waived_by_the_user(tiny_copy: Tiny) -> None:
    path = tiny_copy("qwen3")
    DamagedCheckpoint(path).copy(r"([12])\.self_attn\.o_proj", r"\1.self_attn.z_proj")
    name = "model.layers.1.self_attn.z_proj.weight"
    stray = tensor(plan(path), name)
    assert stray.fate == "unexpected"
    assert {f.code for f in stray.findings} == {"tensor-unexpected"}
    waived = tensor(plan(path, waive=(WaiverRequest("*.z_proj.*", "left over"),)), name)
    assert (waived.fate, waived.reason, waived.pattern) == ("waived", "left over", "*.z_proj.*")


def test_a_tensor_of_a_wrong_shape_names_the_parameter_that_lacks_it(tiny_copy: Tiny) -> None:
    path = tiny_copy("qwen3")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"intermediate_size": config["intermediate_size"] * 2}))
    of = plan(path)
    found = tensor(of, "model.layers.0.mlp.up_proj.weight")
    assert (found.fate, found.params) == ("defective", ("layers.0.mlp.gate_up_proj.weight",))
    assert "shape-mismatch" in {f.code for f in of.findings}


def test_a_tensor_of_a_missing_shard_is_explained_by_the_finding_about_the_shard(tiny_copy: Tiny) -> None:
    path = tiny_copy("glm-5.1-fp8")
    index = json.loads((path / "model.safetensors.index.json").read_text())
    shard = sorted(set(index["weight_map"].values()))[-1]
    name = next(n for n, file in index["weight_map"].items() if file == shard)
    (path / shard).unlink()
    found = tensor(plan(path), name)
    assert (found.fate, found.file, found.shape) == ("missing", shard, None)
    assert "shard-missing" in {f.code for f in found.findings}


def test_an_unknown_name_gets_the_nearest_ones(tiny: Tiny) -> None:
    of = plan(tiny("qwen3"))
    with pytest.raises(ArgumentError, match="neither a parameter of native nor a stored tensor") as error:
        explain(of, "model.layers.1.self_attn.o_prj.weight")
    assert "nearest: model.layers.1.self_attn.o_proj.weight" in str(error.value.hint)
    with pytest.raises(ArgumentError) as error:
        explain(of, "self_attn.qkv")
    assert "nearest: layers.0.self_attn.qkv_proj.weight, " in str(error.value.hint)
    with pytest.raises(ArgumentError, match="hint: `loadmaster plan --params RANK`"):
        explain(of, "zzzz")
