"""The whole memory of ranks in the page of a plan: the figures of the text, and the finding where it does not fit."""

from __future__ import annotations

import pytest

from loadmaster.checkpoint import open_checkpoint
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import Proof, build_plan, prove
from loadmaster.plan.anatomy import dissect
from loadmaster.report.html import plan_html
from loadmaster.report.html.memory import needs, parts_of
from loadmaster.report.html.plan import PARAMETERS_ALONE
from loadmaster.report.memory import memory_table, summary
from loadmaster.sizing import Memory, MemoryOptions, measure_proof, with_memory
from tests.conftest import Tiny
from tests.report.html.document import Document, assert_complete

GIB = 2**30


@pytest.fixture(scope="module")
def proof(tiny: Tiny) -> Proof:
    return prove(build_plan(open_checkpoint(tiny("glm-5.1-fp8")), ParallelLayout(2, 2, num_draft_layers=1)))


def measured(proof: Proof, *device_bytes: int, length: int | None = None) -> Memory:
    return measure_proof(proof, "native", MemoryOptions(device_bytes, max_model_len=length, max_num_batched_tokens=64))


def test_the_parts_of_a_bar_are_what_the_rank_needs(proof: Proof) -> None:
    memory, anatomy = measured(proof, 8 * GIB), dissect(proof.plan)
    for r in memory.ranks:
        sizes = {class_: num_bytes for class_, _, num_bytes in parts_of(r, memory, anatomy.sizes[r.rank])}
        assert r.device_bytes == sum(sizes.values()) + (r.left_bytes or 0)
        assert sizes["m-cache"] + sizes["m-index"] == r.cache_bytes
        assert 0 < sizes["m-index"] < sizes["m-cache"]
        assert ("k-mtp" in sizes) == (r.draft_bytes > 0)
        of_kinds = {class_: num_bytes for class_, _, num_bytes in parts_of(r, memory)}
        assert of_kinds["k-parameters"] + of_kinds.get("k-mtp", 0) == r.parameters_bytes


def test_the_page_has_the_figures_of_the_text(proof: Proof) -> None:
    memory = measured(proof, 8 * GIB)
    text = plan_html(with_memory(proof, memory), "0.1.0", 8 * GIB, memory)
    assert_complete(text)
    page = Document(text)
    columns, rows = memory_table(memory)
    assert {*columns, *(cell for row in rows for cell in row), *summary(memory)} <= set(page.texts)
    assert "of it indexer" in columns and "of them MTP" in columns
    used, left = needs(memory.ranks[0], memory)
    assert {used, left} <= set(page.texts) and left.endswith(" left ~")


def test_a_request_that_does_not_fit_is_drawn_with_what_it_needs(proof: Proof) -> None:
    memory = measured(proof, GIB)  # less than CUDA takes
    found = with_memory(proof, memory)
    assert not memory.holds_a_request
    page = Document(plan_html(found, "0.1.0", GIB, memory))
    used, why = needs(memory.ranks[0], memory)
    r = memory.ranks[0]
    drawn = sum(num_bytes for _, _, num_bytes in parts_of(r, memory))
    assert drawn == r.fixed_bytes + (r.request_bytes or 0)
    assert {used, why} <= set(page.texts) and why.startswith("needed with one request of ")
    classes = [attrs.get("class") for _, attrs in page.elements]
    assert classes.count("rank over") == 4
    assert classes.count("mark error") == 3  # at both stages, and at the memory


def test_without_devices_the_need_is_shown_and_nothing_is_left(proof: Proof) -> None:
    memory = measured(proof, length=64)
    page = Document(plan_html(proof, "0.1.0", None, memory))
    assert needs(memory.ranks[0], memory)[1] == ""
    assert not any(text.endswith("left ~") for text in page.texts)
    assert "sum ~" in page.texts
    assert PARAMETERS_ALONE not in page.texts
    assert PARAMETERS_ALONE in Document(plan_html(proof, "0.1.0")).texts
