"""The fused kernels against the plain forms of the layers, in float64 or with the same bits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from loadmaster.kernels import fused
from loadmaster.layers.rotary import rotate

pytestmark = pytest.mark.gpu

DEVICE = "cuda"

LIMITS = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}


def distance(out: torch.Tensor, expected: torch.Tensor) -> float:
    return ((out.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("dtype", list(LIMITS))
@pytest.mark.parametrize("shape", [(1, 64), (5, 4096), (3, 1000), (7, 3, 128), (2, 5, 80)])
def test_norms(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(*shape[:-1], shape[-1] + 16).to(DEVICE, dtype)[..., : shape[-1]]  # rows that are not adjacent
    weight = (1 + torch.randn(shape[-1]) / 10).to(DEVICE, dtype)
    wide, factor = x.double(), weight.double()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)
    for kind, expected in (
        ("rms", normed * factor),
        ("rms_wide", normed * factor),
        ("rms_offset", normed * (1 + factor)),
    ):
        out = fused.rms_norm(x, weight, 1e-5, kind)
        assert out.is_contiguous()
        error = distance(out, expected)
        assert error < LIMITS[dtype], (kind, error)


@pytest.mark.parametrize("dtype", list(LIMITS))
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "dim", "pairs"), [(8, 2, 64, 32), (9, 3, 80, 40), (4, 4, 128, 16)]
)
def test_rotation_and_the_write_to_the_cache(
    num_heads: int, num_kv_heads: int, dim: int, pairs: int, dtype: torch.dtype
) -> None:
    num_tokens = 5
    qkv = torch.randn(num_tokens, num_heads + 2 * num_kv_heads, dim).to(DEVICE, dtype)
    q, k, v = qkv.split((num_heads, num_kv_heads, num_kv_heads), dim=1)
    angles = torch.randn(num_tokens, pairs)
    cos, sin = angles.cos().to(DEVICE, dtype), angles.sin().to(DEVICE, dtype)
    slots = torch.tensor([3, 17, 0, 9, 4], device=DEVICE)
    k_cache, v_cache = torch.full((2, num_kv_heads, 20, dim), float("nan"), dtype=dtype, device=DEVICE)
    out = fused.rotate_and_store(q, k, v, cos, sin, slots, k_cache, v_cache)

    def rotated(x: torch.Tensor) -> torch.Tensor:
        turned = rotate(x[..., : 2 * pairs].double(), cos.double(), sin.double(), interleaved=False)
        return torch.cat([turned, x[..., 2 * pairs :].double()], dim=-1)

    assert distance(out, rotated(q)) < LIMITS[dtype]
    assert distance(k_cache[:, slots].transpose(0, 1), rotated(k)) < LIMITS[dtype]
    assert torch.equal(v_cache[:, slots].transpose(0, 1), v)
    others = [slot for slot in range(20) if slot not in slots.tolist()]
    assert k_cache[:, others].isnan().all()
    assert v_cache[:, others].isnan().all()


@pytest.mark.parametrize("dtype", list(LIMITS))
@pytest.mark.parametrize("width", [64, 1000, 14336])
def test_the_gated_activation(width: int, dtype: torch.dtype) -> None:
    x = torch.randn(3, 2 * width).to(DEVICE, dtype)
    gate, up = x.double().chunk(2, dim=-1)
    assert distance(fused.silu_and_multiply(x), F.silu(gate) * up) < LIMITS[dtype]
