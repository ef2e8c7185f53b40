"""What crosses each boundary, in bytes that can be counted by hand; and what is refused."""

from __future__ import annotations

from pathlib import Path

from loadmaster.checkpoint import open_checkpoint
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan
from loadmaster.sizing.cuts import list_boundaries
from loadmaster.synth import PRESETS, write_full_size
from tests.conftest import Tiny


def test_hidden_states_cross_every_cut_in_the_dtype_that_is_computed_in(tiny: Tiny) -> None:
    checkpoint = open_checkpoint(tiny("llama"))
    hidden = (checkpoint.config or {})["hidden_size"]
    for dtype, size in (("BF16", 2), ("F32", 4)):
        cuts = list_boundaries(build_plan(checkpoint, dtype=dtype))
        assert {c.crosses for c in cuts if not c.refused} == {(("hidden_states", hidden * size),)}


def test_a_layer_that_shares_a_selection_makes_it_cross_and_vllm_cannot_cut_there(tmp_path: Path) -> None:
    overrides = {"num_hidden_layers": 8, "n_routed_experts": 8}
    write_full_size(PRESETS["glm-5.2-fp8"], tmp_path / "glm", overrides=overrides)
    checkpoint = open_checkpoint(tmp_path / "glm")
    cuts = list_boundaries(build_plan(checkpoint))
    shared = [c for c in cuts if dict(c.crosses).get("topk_indices")]
    assert {dict(c.crosses)["topk_indices"] for c in shared} == {2048 * 8}
    assert all(c.token_bytes == 6144 * 2 + 2048 * 8 and c.refused is None for c in shared)
    of_vllm = {c.layer: c for c in list_boundaries(build_plan(checkpoint, target="vllm-0.32"))}
    assert [c.layer for c in shared] == [n for n, c in of_vllm.items() if c.refused and "topk_indices" in c.refused]
    assert dict(of_vllm[1].crosses) == {"hidden_states": 6144 * 2, "residual": 6144 * 2}


def test_both_sides_are_what_two_stages_hold_and_the_ends_are_refused(tiny: Tiny) -> None:
    checkpoint = open_checkpoint(tiny("deepseek-v3"))
    layout = ParallelLayout(2, layer_partition=(2, 4), num_draft_layers=1)
    plan = build_plan(checkpoint, layout)
    cuts = list_boundaries(plan)
    assert [c.layer for c in cuts] == [0, 1, 2, 3, 4, 5, 6]
    assert [c.layer for c in cuts if c.is_made] == [2]
    assert (cuts[2].bytes_before, cuts[2].bytes_after) == tuple(plan.rank(r).resident_bytes for r in (0, 1))
    assert [bool(c.refused) for c in cuts] == [True, *(False,) * 5, True]
    assert "MTP layers stay" in str(cuts[-1].refused)


def test_beyond_either_end_one_side_holds_all_and_the_other_nothing(tiny: Tiny) -> None:
    checkpoint = open_checkpoint(tiny("deepseek-v3"))
    whole = build_plan(checkpoint, ParallelLayout(num_draft_layers=1))
    first, *_, last = list_boundaries(whole)
    held = whole.rank(0).resident_bytes
    assert (first.bytes_before, first.bytes_after) == (0, held)
    assert (last.bytes_before, last.bytes_after) == (held, 0)
    assert not (first.crosses or last.crosses or first.carries or last.carries)
