"""What people read of an explanation: a few lines, whatever the number of ranks and experts; JSON has everything."""

from __future__ import annotations

import json

from rich.console import Console

from loadmaster.checkpoint import open_checkpoint
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan
from loadmaster.plan.explanation import explain
from loadmaster.report.explanation import explanation_object, print_explanation
from loadmaster.report.json import dumps
from tests.conftest import Tiny


def text(tiny: Tiny, name: str, layout: ParallelLayout) -> list[str]:
    console = Console(width=100)
    with console.capture() as printed:
        print_explanation(console, explain(build_plan(open_checkpoint(tiny("glm-5.1-fp8")), layout), name))
    return printed.get().splitlines()


def test_a_parameter_is_an_expression_and_what_fills_it(tiny: Tiny) -> None:
    lines = text(tiny, "layers.0.self_attn.o_proj.weight", ParallelLayout(1, 2))
    assert lines[:3] == [
        "layers.0.self_attn.o_proj.weight  parameter of native, layer 0, stage 0, rank 0-1",
        "  = Shard(model.layers.0.self_attn.o_proj.weight, dim=1, axis=tp)",
        "  one component of fp8_block, kept as stored; the others: layers.0.self_attn.o_proj.weight_scale_inv",
    ]
    assert lines[3:5] == [
        "rank 0: F8_E4M3 [320, 128], 40.0 KiB",
        "  [:, :]: copied from model.layers.0.self_attn.o_proj.weight[:, 0:128]",
    ]
    assert lines[5].endswith(", 40,960 of them in runs of 128")


def test_of_many_experts_and_ranks_the_first_and_the_last_are_printed(tiny: Tiny) -> None:
    layout = ParallelLayout(1, 2, data_parallel_size=4, enable_expert_parallel=True)
    lines = text(tiny, "layers.3.mlp.experts.w2_weight", layout)
    assert sum(line.startswith("rank") for line in lines) == 5
    assert "rank 3-6: other parts of it, cut alike; --json has all" in lines
    assert len(text(tiny, "layers.3.mlp.experts.w2_weight", ParallelLayout())) == 3 + 1 + 1 + 4 + 1
    value = explain(build_plan(open_checkpoint(tiny("glm-5.1-fp8")), layout), "layers.3.mlp.experts.w2_weight")
    found = json.loads(dumps(explanation_object(value)))
    assert [share["ranks"] for share in found["param"]["shares"]] == [[rank] for rank in range(8)]
    assert found["tensor"] is None


def test_a_tensor_says_who_reads_it_or_what_would(tiny: Tiny) -> None:
    lines = text(tiny, "model.layers.6.eh_proj.weight", ParallelLayout())
    assert lines[2] == "  not read: waived, mtp not enabled; --speculative-config reads it"
    lines = text(tiny, "model.layers.3.mlp.experts.5.down_proj.weight_scale_inv", ParallelLayout())
    assert lines[0].endswith("tensor, F32 [3, 1], 12 bytes")
    assert lines[2] == "  read by rank 0"
    assert lines[4].split() == ["0", "layers.3.mlp.experts.w2_weight_scale_inv", "[5]", "all", "12"]
