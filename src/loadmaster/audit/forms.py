"""How vLLM holds the parameters of models that no target describes, made from this package's own parameters.

DeepSeek-V4.1: vLLM repeats the factors of a block of 32 by 32 for each of its rows, and fills up attention sinks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

import torch

Params: TypeAlias = dict[str, torch.Tensor]

_FUSED: Final = (
    (r"\.attn\.(wq_a|wkv)\.", ".attn.fused_wqa_wkv.", ("wq_a", "wkv")),
    (r"\.compressor\.(wkv|wgate)\.", ".compressor.fused_wkv_wgate.", ("wkv", "wgate")),
)
_RENAMED: Final = (
    (r"^(?!lm_head)", "model."),
    (r"^", "language_model."),
    (r"\.ffn\.experts\.", ".ffn.experts.routed_experts."),
    (r"\.gate\.bias$", ".gate.e_score_correction_bias"),
    (r"\.engram\.embed\.", ".engram.embed_tokens."),
    (r"\.engram\.embed_tokens\.scale$", ".engram.embed_tokens.weight_scale_inv"),
    (r"\.(w13|w2)_scale$", r".\1_weight_scale"),
    (r"\.scale$", ".weight_scale"),
)
_HEADS: Final = 64
"""Numbers of heads that the kernel has are multiples of this."""


def deepseek_v41(params: Params) -> Params:
    """Return native parameters of DeepSeek-V4.1 as vLLM 0.33 names and holds them."""
    made: Params = {}
    for name, tensor in params.items():
        is_scale = tensor.dtype == torch.float8_e8m0fnu
        of_block = is_scale and name.endswith(".scale") and ".engram.embed." not in name
        form = tensor.view(torch.uint8) if is_scale or tensor.dtype == torch.int8 else tensor
        if name.endswith(".attn_sink"):
            form = torch.cat([form, torch.full((-len(form) % _HEADS,), -torch.inf)])
        renamed = name
        for old, new in _RENAMED:
            renamed = re.sub(old, new, renamed)
        made[renamed] = form.repeat_interleave(32, 0) if of_block else form
    for pattern, fused, (first, second) in _FUSED:
        for name in [n for n in made if re.search(pattern, n) and f".{first}." in n]:
            parts = [made.pop(n) for n in (name, name.replace(f".{first}.", f".{second}.")) if n in made]
            made[re.sub(pattern, fused, name)] = torch.cat(parts)
    return made


FORMS: Final[Mapping[str, Callable[[Params], Params]]] = {"deepseek_v41": deepseek_v41}
"""Family → what makes vLLM's parameters of its native ones."""
