"""What people read of a difference: groups, not names; ranks alike on one line; a verdict last."""

from __future__ import annotations

import json

from rich.console import Console

from loadmaster.checkpoint import open_checkpoint
from loadmaster.checkpoint.difference import compare_checkpoints
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan
from loadmaster.plan.difference import compare_layouts
from loadmaster.report.difference import (
    checkpoint_difference_object,
    layout_difference_object,
    print_checkpoint_difference,
    print_layout_difference,
)
from loadmaster.report.json import dumps
from tests.conftest import Tiny


def test_checkpoints_are_printed_in_groups(tiny: Tiny) -> None:
    before, after = (open_checkpoint(tiny(name)) for name in ("qwen3-moe", "qwen3-moe-fp8"))
    difference = compare_checkpoints(before, after)
    console = Console(width=100)
    with console.capture() as printed:
        print_checkpoint_difference(console, before, after, difference)
    lines = printed.get().splitlines()
    assert any(
        line.startswith("~ retyped  model.layers.0-3.self_attn.q_proj.weight  BF16 [") and " → F8_E4M3 [" in line
        for line in lines
    )
    assert any(line.startswith("+ config  quantization_config.") for line in lines)
    assert lines[-1].startswith("different: ")
    assert len(lines) < 60
    found = json.loads(dumps(checkpoint_difference_object(before, after, difference)))
    assert not found["equal"]
    assert found["tensors"][0]["num_tensors"] == difference.tensors[0].num_tensors


def test_ranks_that_change_alike_share_a_line(tiny: Tiny) -> None:
    checkpoint = open_checkpoint(tiny("qwen3"))
    plans = [build_plan(checkpoint, ParallelLayout(*sizes)) for sizes in ((1, 1), (1, 4))]
    difference = compare_layouts(*plans, ranks_per_host=2)
    console = Console(width=100)
    with console.capture() as printed:
        print_layout_difference(console, difference)
    lines = [line.split() for line in printed.get().splitlines()]
    assert lines[0] == ["before", "pipeline", "1", "×", "tensor", "1"]
    assert [line[0] for line in lines[3:-1]] == ["0", "1", "2-3"]
    assert lines[-1][0] == "different:"
    found = json.loads(dumps(layout_difference_object(difference)))
    assert [r["rank"] for r in found["ranks"]] == [0, 1, 2, 3]
    assert found["new_bytes"] == sum(r["host_bytes"] + r["remote_bytes"] for r in found["ranks"])
