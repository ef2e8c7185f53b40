"""What the parameters of a rank must be, from the sound checkpoint: made without the engine, and compared byte by byte.

Copies of stored bytes are those of `loadmaster.testing.expected`, which reads whole tensors and cuts them with numpy, by the
families' tables. The few parameters that are computed (a dequantised part of a fused one) are those of this package's own
loader. What the engine calls them is found by a few rewritings; a wrong one would show as a difference.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Final, TypeAlias

import torch

from loadmaster.architectures.schema import Spelling
from loadmaster.loader import load_rank
from loadmaster.loader.memory import TORCH
from loadmaster.plan import Plan, prove
from loadmaster.testing import expected as testing

Expected: TypeAlias = dict[str, torch.Tensor]
"""This package's name of a parameter → what it holds."""

PLAIN: Final = (torch.bfloat16, torch.float16, torch.float32)
"""Formats that a loader may convert to, from one another or from powers of two: their values are the numbers meant."""

UNHELD: Final = (".g_idx",)
"""Ends of parameters that vLLM has none of: it takes no checkpoints in which the order of groups matters."""

_REWRITINGS: Final = (
    ("mlp.experts.", "block_sparse_moe.experts."),
    ("mlp.gate.", "block_sparse_moe.gate."),
    ("mlp.gate.e_score", "block_sparse_moe.e_score"),
    ("mlp.gate.", "feed_forward.router."),
    ("mlp.", "feed_forward."),
    (".experts.", ".experts.routed_experts."),
    (".mlp.shared_mlp.gate_up_proj.", ".shared_mlp.input_linear."),
    (".mlp.shared_mlp.down_proj.", ".shared_mlp.output_linear."),
    (".self_attn.", ".attn."),
    (".embed_tokens.", ".embedding."),
)


def expected_params(plan: Plan, rank: int, spelling: Spelling, *, draft: bool = False) -> Expected:
    """Return the parameters of one rank of a sound checkpoint's plan; with ``draft`` those of the draft alone."""
    left = (*UNHELD, *_held_otherwise(plan))
    specs = {s.name: s for s in plan.rank(rank).specs if s.alias is None and not s.name.endswith(left)}
    copies = testing.Expected(plan, rank, spelling).arrays()
    made = {
        n: torch.from_numpy(a.copy()).view(torch.uint8).view(TORCH[specs[n].dtype]).reshape(a.shape)
        for n, a in copies.items()
        if n in specs
    }
    computed = [n for n in specs if n not in made]
    if computed:
        loaded = load_rank(prove(plan).require_proven(), rank).tensors
        made |= {n: loaded[n].clone() for n in computed}
    if plan.layout.coordinate(rank).tp_rank and not plan.layout.enable_expert_parallel:
        # vLLM adds a row-parallel bias of experts on the first rank alone, and holds zeros on the others
        made |= {n: torch.zeros_like(t) for n, t in made.items() if n.endswith(".experts.w2_bias")}
    return _draft(made, len(plan.schema.layers)) if draft else made


def _held_otherwise(plan: Plan) -> tuple[str, ...]:
    """Return ends of parameters that vLLM holds in another way on purpose, so that they cannot be compared.

    It permutes Llama-4's queries and keys for its rotary embedding, and keeps OLMo's norms of all heads whole on every rank.
    """
    if plan.family.name == "llama4":
        return (".qkv_proj.weight",)
    if plan.family.name == "olmo" and plan.layout.tensor_parallel_size > 1:
        return (".q_norm.weight", ".k_norm.weight")
    return ()


def _draft(expected: Expected, num_layers: int) -> Expected:
    """Return the draft's parameters, as the engine numbers its layers: it has them in a block, or beside it."""
    made: Expected = {}
    for name, tensor in expected.items():
        if not name.startswith("mtp."):
            continue
        _, number, rest = name.split(".", 2)
        layer = f"layers.{num_layers + int(number)}"
        own = rest.partition(".")[0] in ("eh_proj", "enorm", "hnorm", "shared_head")
        held = rest if rest.startswith("embed_tokens") else f"{layer}.{rest}" if own else f"{layer}.mtp_block.{rest}"
        made[held] = tensor
    return made


def engine_name(native: str, params: Container[str]) -> str | None:
    """Return what the engine calls a parameter; None where it has none of the kind.

    A head that is the embedding has the embedding's name.

    >>> engine_name("layers.1.mlp.gate.weight", {"model.layers.1.block_sparse_moe.gate.weight"})
    'model.layers.1.block_sparse_moe.gate.weight'
    """
    names = [native, "model.embed_tokens.weight"] if native.startswith("lm_head") else [f"model.{native}"]
    for old, new in _REWRITINGS:
        names += [n.replace(old, new, 1) for n in names if old in n and new not in n]
    return next((n for n in names if n in params), None)


def difference(param: torch.Tensor, expected: torch.Tensor) -> str | None:
    """Return how a parameter differs from what it should hold; None where it does not.

    Between formats of plain numbers values are converted first, as a loader may; codes of a quantised format are not.
    """
    have, want = param.detach(), _once(expected, param.shape)
    if _squeezed(have) != _squeezed(want):
        return f"is {list(have.shape)}, and the checkpoint gives {list(want.shape)}"
    if have.dtype != want.dtype:
        if have.dtype not in PLAIN or want.dtype not in (*PLAIN, torch.float8_e8m0fnu):
            return f"is {_name(have)}, and the checkpoint gives {_name(want)}"
        want = want.to(have.dtype)
    wrong = (raw(have) != raw(want)).any(1)
    if not wrong.any():
        return None
    return f"{int(wrong.sum()):,} of {wrong.numel():,} elements hold other values than the checkpoint gives"


def raw(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor's bytes, a row an element."""
    return tensor.detach().contiguous().reshape(-1, 1).view(torch.uint8)


def _once(tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Return a factor of two fused parts once, where both have the same and the engine holds one."""
    if tensor.shape[:-1] == shape and tensor.shape[-1:] == (2,) and bool((tensor[..., 0] == tensor[..., 1]).all()):
        return tensor[..., 0]
    return tensor


def _squeezed(tensor: torch.Tensor) -> list[int]:
    return [n for n in tensor.shape if n != 1]


def _name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
