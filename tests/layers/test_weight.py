from __future__ import annotations

import torch

from loadmaster.layers.weight import Weight
from loadmaster.plan import Grid


def test_a_plain_weight_is_itself() -> None:
    values = torch.ones(2, 3, dtype=torch.bfloat16)
    assert Weight(values).dense(torch.float32).dtype == torch.float32


def test_a_fused_weight_has_one_grid_a_part_because_the_first_ends_inside_a_block() -> None:
    values = torch.ones(5, 3, dtype=torch.float8_e4m3fn)
    scale = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    grids = (Grid((0, 3), (0, 2), (2, 2)), Grid((3, 5), (2, 3), (2, 2)))  # parts of 3 and 2 rows, blocks of 2 × 2
    assert Weight(values, scale, grids).dense(torch.float32).tolist() == [
        [1, 1, 2],
        [1, 1, 2],
        [3, 3, 4],
        [5, 5, 6],
        [5, 5, 6],
    ]


def test_a_phase_says_where_in_its_first_block_a_cut_weight_begins() -> None:
    values = torch.ones(2, 2, dtype=torch.float8_e4m3fn)
    scale = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert Weight(values, scale, (Grid((0, 2), (0, 2), (4, 4), (3, 3)),)).dense(torch.float32).tolist() == [
        [1, 2],
        [3, 4],
    ]


def test_experts_share_the_grid() -> None:
    values = torch.ones(2, 1, 2, dtype=torch.float8_e4m3fn)
    weight = Weight(values, torch.tensor([[[1.0]], [[5.0]]]), (Grid((0, 1), (0, 1), (128, 128)),))
    assert weight.expert(1).dense(torch.float32).tolist() == [[5, 5]]
    assert weight.dense(torch.float32).tolist() == [[[1, 1]], [[5, 5]]]
