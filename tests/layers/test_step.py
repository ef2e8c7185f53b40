"""The numbers of a step on the device, and the runs of a context's pages."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from loadmaster.layers.step import Context, Step
from loadmaster.workers.page_table import PageTable


def context(start: int, stop: int, first: int, length: int, pages: list[int]) -> Context:
    return Context(start, stop, first, length, np.array(pages, np.int32), 4)


@pytest.mark.parametrize(
    ("length", "pages", "runs"),
    [
        (1, [5], [(20, 21)]),
        (8, [5, 6], [(20, 28)]),
        (9, [5, 6, 2], [(20, 28), (8, 9)]),
        (11, [3, 2, 1], [(12, 16), (8, 12), (4, 7)]),
    ],
)
def test_adjacent_pages_are_one_run(length: int, pages: list[int], runs: list[tuple[int, int]]) -> None:
    made = context(0, 1, length - 1, length, pages)
    assert list(made.runs) == runs
    assert made.slots(torch.device("cpu")).tolist() == [slot for run in runs for slot in range(*run)]
    rows = torch.arange(100.0).view(1, 50, 2)
    assert torch.equal(
        made.rows(rows, 1 if length > 1 else 0), rows[:, made.slots(rows.device)[1 if length > 1 else 0 :]]
    )


@pytest.mark.parametrize("is_refilled", [False, True])
def test_a_step_says_where_the_pages_of_each_context_are(is_refilled: bool) -> None:
    contexts = [context(0, 3, 2, 5, [7, 1]), context(3, 4, 0, 1, [9])]
    width = 3 if is_refilled else None
    buffer = torch.full((Step.buffer_size(4, 2, 2, 3),), -1) if is_refilled else None
    step = Step(contexts, [10, 11, 12, 13], [2, 3, 4, 0], [30, 31, 4, 36], [2, 3], buffer=buffer, table_width=width)
    assert step.is_refilled == is_refilled
    assert step.token_ids_T.tolist() == [10, 11, 12, 13]
    assert step.positions_T.tolist() == [2, 3, 4, 0]
    assert step.slots_T.tolist() == [30, 31, 4, 36]
    assert step.logit_rows_R.tolist() == [2, 3]
    paged = step.paged
    assert paged.query_starts.tolist() == [0, 3, 4]
    assert paged.lengths.tolist() == [5, 1]
    assert paged.page_table.tolist() == ([[7, 1, 0], [9, 0, 0]] if is_refilled else [[7, 1], [9, 0]])
    assert paged.num_tokens == (3, 1)
    assert paged.max_length == (None if is_refilled else 5)


def test_contexts_with_few_tokens_have_one_block_and_long_ones_begin_with_their_last() -> None:
    contexts = [context(0, 5, 0, 5, [0, 1]), context(5, 6, 3, 4, [2])]
    paged = Step(contexts, [0] * 6, [0] * 6, [0] * 6, []).paged
    few, many = paged.blocks(2, 2)
    assert few is not None
    assert many is not None
    assert few.tolist() == [[1, 0]]
    assert many.tolist() == [[0, 4], [0, 2], [0, 0]]
    assert paged.blocks(5, 2)[1] is None


def test_a_page_table_grows_and_earlier_contexts_keep_their_pages() -> None:
    table = PageTable(4)
    table.add([3, 8])
    before = table.context(0, 1, 4, 5)
    table.add(range(20, 60))
    table.add(())
    assert table.pages.tolist() == [3, 8, *range(20, 60)]
    assert before.pages.tolist() == [3, 8]
    assert table.slots(3, 6) == [15, 32, 33]
    assert table.slots(9, 10) == [81]
    assert table.context(0, 1, 9, 10).pages.tolist() == [3, 8, 20]
