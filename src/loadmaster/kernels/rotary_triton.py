"""Rotary embedding inside kernels. Importing this needs Triton."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rotated(x, cos, sin, pair, num_pairs, IS_INTERLEAVED: tl.constexpr):
    """Return the first and the second elements of rotated pairs, in float32; see `loadmaster.layers.rotary.rotate`."""
    is_pair = pair < num_pairs
    if IS_INTERLEAVED:
        a = tl.load(x + 2 * pair, mask=is_pair, other=0.0).to(tl.float32)
        b = tl.load(x + 2 * pair + 1, mask=is_pair, other=0.0).to(tl.float32)
    else:
        a = tl.load(x + pair, mask=is_pair, other=0.0).to(tl.float32)
        b = tl.load(x + num_pairs + pair, mask=is_pair, other=0.0).to(tl.float32)
    c = tl.load(cos + pair, mask=is_pair, other=0.0).to(tl.float32)
    s = tl.load(sin + pair, mask=is_pair, other=0.0).to(tl.float32)
    return a * c - b * s, b * c + a * s
