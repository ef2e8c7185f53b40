"""The file of a plan: complete in itself, small, and safe whatever the checkpoint's names are."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from loadmaster.checkpoint import open_checkpoint
from loadmaster.checkpoint.difference import compare_checkpoints
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import Proof, build_plan, prove
from loadmaster.plan.anatomy import dissect
from loadmaster.plan.difference import compare_layouts
from loadmaster.report.html import checkpoint_difference_html, layout_difference_html, plan_html
from tests.conftest import Tiny
from tests.failures.damaged import DamagedCheckpoint
from tests.report.html.document import Document, assert_complete


def proof(path: Path, layout: ParallelLayout | None = None, **more: int) -> Proof:
    return prove(build_plan(open_checkpoint(path), layout or ParallelLayout()), **more)


def test_the_figures_are_those_of_the_plan(tiny: Tiny) -> None:
    plan = build_plan(open_checkpoint(tiny("glm-5.1-fp8")), ParallelLayout(2, 2, num_draft_layers=1))
    anatomy = dissect(plan)
    resident = [plan.rank(rank).resident_bytes for rank in range(4)]
    assert [sum(sizes.values()) for sizes in anatomy.sizes] == resident
    assert sum(anatomy.totals.values()) == sum(resident)
    assert [[row.layer for row in stage.rows if row.layer is not None] for stage in anatomy.stages] == [
        [0, 1, 2],
        [3, 4, 5, 6],
    ]
    assert [sum(row.num_bytes for row in stage.rows) for stage in anatomy.stages] == [resident[0], resident[2]]
    assert anatomy.stages[1].rows[-1].sizes.keys() <= {"MTP", "embedding", "head", "scales"}
    assert (anatomy.stages[0].carries_bytes, anatomy.stages[1].carries_bytes) == (0, 320 * 2)
    files = plan.checkpoint.files
    assert anatomy.shards.sum() == plan.table.payload_bytes
    assert anatomy.shards.shape == (len(files), 3)
    assert anatomy.shards[:, -1].sum() == sum(w.num_bytes for w in plan.waivers)


def test_the_page_needs_nothing_else_and_allows_nothing_else(tiny: Tiny) -> None:
    text = plan_html(proof(tiny("glm-5.1-fp8"), ParallelLayout(2, 2)), "0.1.0", 2**30)
    assert_complete(text)


def test_names_of_the_checkpoint_are_text(tiny: Tiny, tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>"
    path = Path(shutil.copytree(tiny("qwen3"), tmp_path / '"><b>&amp;'))
    DamagedCheckpoint(path).copy(r"layers\.1\.self_attn\.o_proj", evil)
    text = plan_html(proof(path), "0.1.0")
    page = Document(text)
    assert [tag for tag, _ in page.elements].count("script") == 2
    assert any(evil in t for t in page.texts)  # in a finding, as text
    assert '"><b>&amp;' in page.texts
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert json.loads(data)["params"]


def test_findings_stand_at_their_stage_and_a_rank_over_capacity_is_marked(tiny: Tiny) -> None:
    found = proof(tiny("qwen3"), ParallelLayout(2, 2), capacity_bytes=1000)
    text = plan_html(found, "0.1.0", 1000)
    page = Document(text)
    assert sum(attrs.get("class") == "mark error" for _, attrs in page.elements) == 2
    assert sum(attrs.get("class") == "rank over" for _, attrs in page.elements) == 4
    assert sum(attrs.get("class") == "limit" for _, attrs in page.elements) == 2
    assert any(t.startswith("Not proven") for t in page.texts)


def test_differences_are_pages_too(tiny: Tiny) -> None:
    before, after = (open_checkpoint(tiny(name)) for name in ("qwen3-moe", "qwen3-moe-fp8"))
    page = Document(checkpoint_difference_html(before, after, compare_checkpoints(before, after), "0.1.0"))
    assert "model.layers.0-3.self_attn.q_proj.weight" in page.texts
    assert len(page.ids) == len(set(page.ids))
    plans = [build_plan(before, ParallelLayout(*sizes)) for sizes in ((2, 1), (1, 2))]
    page = Document(layout_difference_html(before, compare_layouts(*plans), "0.1.0"))
    assert [attrs.get("class") for _, attrs in page.elements].count("change") == 2


@pytest.mark.slow
def test_512_ranks_of_a_full_size_model_are_less_than_2_mb(tmp_path: Path) -> None:
    from loadmaster.synth import PRESETS, write_full_size

    write_full_size(PRESETS["glm-5.1-fp8"], tmp_path)
    layout = ParallelLayout(8, 8, True, data_parallel_size=8)
    assert len(plan_html(proof(tmp_path, layout), "0.1.0", 80 * 2**30).encode()) < 2_000_000
