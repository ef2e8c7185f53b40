from __future__ import annotations

import pytest
import torch

from loadmaster.kernels.dequantise import dequantise_blocks
from loadmaster.kernels.fp8_dequantise import dequantise_blocks_into

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("out", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("scale", [torch.float32, torch.float8_e8m0fnu, torch.bfloat16])
@pytest.mark.parametrize(
    ("rows", "columns", "phase"), [(1, 1, (0, 0)), (300, 515, (0, 0)), (64, 200, (100, 70)), (129, 128, (127, 1))]
)
def test_the_kernel_gives_the_reference_s_bits(
    rows: int, columns: int, phase: tuple[int, int], scale: torch.dtype, out: torch.dtype
) -> None:
    torch.manual_seed(rows)
    codes = torch.randint(0, 256, (rows, columns), dtype=torch.uint8)
    codes[(codes & 0x7F) == 0x7F] = 0x2A  # no NaN: which one results is nobody's word
    values = codes.view(torch.float8_e4m3fn)
    blocks = [-(-(p + n) // 128) for p, n in zip(phase, (rows, columns), strict=True)]
    factors = (torch.randn(blocks) * 1e-2).to(torch.float32)
    factors.view(-1)[0] = 2.0**-130  # products that are subnormal
    factors = factors.abs().to(scale) if scale == torch.float8_e8m0fnu else factors.to(scale)
    expected = dequantise_blocks(values, factors, (128, 128), phase).to(out)
    wide = torch.full((rows, columns + 7), float("nan"), dtype=out, device="cuda")
    dequantise_blocks_into(wide[:, 3 : 3 + columns], values.cuda(), factors.cuda(), (128, 128), phase)
    assert torch.equal(wide[:, 3 : 3 + columns].cpu(), expected)
    assert wide[:, :3].isnan().all()
    assert wide[:, 3 + columns :].isnan().all()
