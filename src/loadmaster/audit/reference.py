"""The parameters that a rank must have, made from the sound checkpoint without the engine, and compared byte by byte.

Copied bytes come from `loadmaster.testing.expected`, which reads whole tensors and cuts them with numpy, by the families'
tables. The few computed parameters (a dequantised part of a fused one), rows that an engine holds in another order, and experts
with zeros behind them for an engine's kernels, come from this package's own loader. A few rewriting rules give the engine's
names; a wrong rule would show as a difference.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Final, TypeAlias

import torch

from loadmaster import dtypes
from loadmaster.architectures.spelling import Spelling
from loadmaster.loader import load_rank
from loadmaster.plan import Plan, prove
from loadmaster.testing import expected as testing
from loadmaster.torch_dtypes import TORCH

Expected: TypeAlias = dict[str, torch.Tensor]
"""This package's name of a parameter → what it holds."""

PLAIN: Final = tuple(TORCH[name] for name in dtypes.PLAIN)
"""Formats that a loader may convert between, also from powers of two: they store plain values."""

UNHELD: Final = (".g_idx", "_g_idx")
"""Endings of parameters that vLLM lacks: it does not support checkpoints with reordered groups."""

_REWRITINGS: Final = (
    ("mlp.experts.", "block_sparse_moe.experts."),
    ("mlp.gate.", "block_sparse_moe.gate."),
    ("mlp.gate.e_score", "block_sparse_moe.e_score"),
    ("mlp.gate.", "feed_forward.router."),
    ("mlp.gate.e_score", "mlp.router.e_score"),
    ("mlp.gate.", "mlp.router.classifier."),
    ("mlp.", "feed_forward."),
    (".experts.", ".experts.routed_experts."),
    (".mlp.shared_mlp.gate_up_proj.", ".shared_mlp.input_linear."),
    (".mlp.shared_mlp.down_proj.", ".shared_mlp.output_linear."),
    (".self_attn.", ".attn."),
    (".embed_tokens.", ".embedding."),
    ("model.norm.", "model.norm_f."),
    (".w1_weight", ".w13_weight"),
    (".self_attn.sinks", ".self_attn.attention_sink_bias"),
)


def expected_params(plan: Plan, rank: int, spelling: Spelling, *, draft: bool = False) -> Expected:
    """Return the parameters of one rank of a sound checkpoint's plan; with ``draft`` those of the draft alone."""
    excluded, reordered = (*UNHELD, *_held_otherwise(plan)), _reordered(plan)
    specs = {s.name: s for s in plan.rank(rank).specs if s.alias is None and not s.name.endswith(excluded)}
    copies = testing.Expected(plan, rank, spelling).arrays()
    expected = {
        n: torch.from_numpy(a.copy()).view(torch.uint8).view(TORCH[specs[n].dtype]).reshape(a.shape)
        for n, a in copies.items()
        if n in specs and a.size * a.itemsize == specs[n].num_bytes and not n.endswith(reordered)
    }
    expected = {n: t.reshape(specs[n].shape) for n, t in expected.items()}
    computed = [n for n in specs if n not in expected]
    if computed:
        loaded = load_rank(prove(plan).require_proven(), rank).tensors
        expected |= {n: loaded[n].clone() for n in computed}
    if plan.layout.coordinate(rank).tp_rank and not plan.layout.enable_expert_parallel:
        # vLLM adds a row-parallel bias of experts on the first rank alone, and holds zeros on the others
        expected |= {n: torch.zeros_like(t) for n, t in expected.items() if n.endswith("experts.w2_bias")}
    return _draft(expected, len(plan.schema.layers)) if draft else expected


def _held_otherwise(plan: Plan) -> tuple[str, ...]:
    """Return endings of parameters that vLLM stores differently on purpose, so that they cannot be compared.

    It permutes Llama-4's queries and keys for its rotary embedding, and holds -exp(A_log) of Mamba-2. It keeps OLMo's norms of
    all heads whole on every rank. It multiplies Muse-Spark's routers, and pads and rearranges MiMo-V2's packed q, k and v in FP8.
    """
    if plan.family.name == "mimo_v2":
        return (".qkv_proj.weight", ".qkv_proj.weight_scale_inv")
    if plan.family.name == "muse_spark":
        return (".mlp.gate.weight", ".feed_forward.router.weight")
    if plan.family.name == "nemotron_h":
        return (".mixer.A_log",)
    if plan.family.name == "llama4":
        return (".qkv_proj.weight",)
    if plan.family.name == "olmo" and plan.layout.tensor_parallel_size > 1:
        return (".q_norm.weight", ".k_norm.weight")
    return ()


def _reordered(plan: Plan) -> tuple[str, ...]:
    """Return endings of parameters whose rows an engine holds in another order than the family."""
    return tuple(p.name.removeprefix("{block}") for p in plan.target.params if p.rotary or p.laid)


def _draft(expected: Expected, num_layers: int) -> Expected:
    """Return the draft model's parameters by the engine's layer numbers, inside its block or next to it."""
    drafted: Expected = {}
    for name, tensor in expected.items():
        if not name.startswith("mtp."):
            continue
        _, number, rest = name.split(".", 2)
        layer = f"layers.{num_layers + int(number)}"
        is_outside = rest.partition(".")[0] in ("eh_proj", "enorm", "hnorm", "shared_head")
        held = (
            rest
            if rest.startswith("embed_tokens")
            else f"{layer}.{rest}"
            if is_outside
            else f"{layer}.mtp_block.{rest}"
        )
        drafted[held] = tensor
    return drafted


def engine_name(native: str, params: Container[str]) -> str | None:
    """Return the engine's name of a parameter; None if it has no such parameter.

    A tied head has the embedding's name.

    >>> engine_name("layers.1.mlp.gate.weight", {"model.layers.1.block_sparse_moe.gate.weight"})
    'model.layers.1.block_sparse_moe.gate.weight'
    """
    if native in params:
        return native
    names = [native, "model.embed_tokens.weight"] if native.startswith("lm_head") else [f"model.{native}"]
    for old, new in _REWRITINGS:
        names += [n.replace(old, new, 1) for n in names if old in n and new not in n]
    return next((n for n in names if n in params), None)


def difference(param: torch.Tensor, expected: torch.Tensor) -> str | None:
    """Return how a parameter differs from its expected value; None if it does not.

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
    """Return one factor for two fused parts if both have the same and the engine holds one."""
    if tensor.shape[:-1] == shape and tensor.shape[-1:] == (2,) and bool((tensor[..., 0] == tensor[..., 1]).all()):
        return tensor[..., 0]
    return tensor


def _squeezed(tensor: torch.Tensor) -> list[int]:
    return [n for n in tensor.shape if n != 1]


def _name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
