"""The loaders of Inkling and Inkling-2, in their own names: convolutions, relative positions, alternating rows, snapshots."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tests.loader.reference import blocks
from tests.loader.reference.blocks import layers
from tests.loader.reference.loader import Loader, cut_columns, cut_rows
from tests.loader.reference.place import Part

WHOLE = (
    *(f"attn.{part}_norm.weight" for part in "qk"),
    *(f"{part}_input_norm.weight" for part in "qkv"),
    *(f"{part}_{kind}.weight" for part in ("attn", "mlp") for kind in ("norm", "sconv")),
    *("attn.rel_logits_proj.proj", "mlp.gate.weight", "mlp.gate.global_scale", "mlp.global_scale"),
    *(f"controllers.{of}.{n}_weight" for of in ("attn", "k", "v", "mlp") for n in ("down", "forget", "gain")),
)
"""What every rank holds, where a layer has it."""


def inkling(r: Loader, drafts: int) -> None:
    """Inkling; its MTP layers share one norm, which is read with the first."""
    model = _top(r)
    for p, q in layers(r, model):
        _layer(r, p, q)
    for k in range(drafts if r.is_last else 0):
        p, q = f"model.mtp.layers.{k}.", f"mtp.{k}."
        _layer(r, p + "transformer_block.", q)
        r.copy(q, p, [f"{name}.weight" for name in ("input_proj", "hidden_norm", "embed_norm")])
        if k == 0:
            r.copy(q, "model.mtp.", ["chain_norm.weight"])


def inkling2(r: Loader, drafts: int) -> None:
    """Inkling-2 and its loop: a query for each mix of snapshots, that of an attention under the number before."""
    model = _top(r)
    for i, (p, q) in zip(r.layers, layers(r, model), strict=True):
        _layer(r, p, q)
        if i:
            r.params[q + "attn_res.query"] = r.stored[f"{model}attn_res.attn_queries.{i - 1}"].float()
        r.params[q + "mlp_res.query"] = r.stored[f"{model}attn_res.mlp_queries.{i}"].float()
    r.floats("", model, [f"middle_cycle_cross_pass_{name}" for name in ("queries", "kv_queries")])
    if r.is_last:
        r.floats("", model, ["attn_res.output_query"])


def _top(r: Loader) -> str:
    model = "model.llm."
    if r.is_first:
        r.vocabulary("embed.", model + "embed.")
        r.copy("", model, ["embed_norm.weight"])
    if r.is_last:
        r.copy("", model, ["norm.weight"])
        r.vocabulary("unembed.", model + "unembed.")
    return model


def _layer(r: Loader, p: str, q: str) -> None:
    a, b, m, n = p + "attn.", q + "attn.", p + "mlp.", q + "mlp."
    r.copy(q, p, WHOLE)
    head = r.config["head_dim"]

    def kv(size: int) -> Part:
        return r.place.heads(size, head)

    parts = (("wq_du", r.place.share), ("wk_dv", kv), ("wv_dv", kv), ("wr_du", r.place.share))
    r.put(b + "qkvr.", *(r.rows(f"{a}{name}.", share=share) for name, share in parts))
    r.put(b + "wo_ud.", r.columns(a + "wo_ud."))
    for part in "kv":
        _convolution(r, f"{a}{part}_sconv.", f"{b}{part}_sconv.", kv)
    by_head = ("gate_attn.weight", "q_l2_clip.scale", "rel_l2_clip.scale", "attn_sink_proj.weight")
    r.params |= {b + name: r.vector(a + name, r.place.share) for name in by_head if a + name in r.stored}
    if m + "gate.weight" not in r.stored:
        r.put(n + "w13_dn.", r.rows(m + "w13_dn."))
        r.put(n + "w2_md.", r.columns(m + "w2_md."))
        return
    r.floats(n, m, ["gate.bias"])
    share = r.place.expert_share
    w13, w2 = (blocks.of_stack(r, f"{m}experts.{name}_weight", False) for name in ("w13", "w2"))
    r.put_experts(n + "experts.w13_", [[cut_rows(w, share)] for w in w13])
    r.put_experts(n + "experts.w2_", [[cut_columns(w, share)] for w in w2])
    for name, dim in (("w13", 1), ("w2", 2)):
        shared = f"shared_experts.shared_{name}_weight"
        if m + shared in r.stored:
            r.params[n + shared] = _part(r.stored[m + shared], dim, r.place.share(r.stored[m + shared].shape[dim]))


def _convolution(r: Loader, a: str, b: str, kv: Callable[[int], Part]) -> None:
    """A short convolution of keys or values; without a window, weights that depend on the input, by head too."""
    if a + "weight" in r.stored:
        r.params[b + "weight"] = r.vector(a + "weight", kv)
        return
    static, dynamic = r.stored[a + "static_w"], r.stored[a + "weight_proj"]
    r.params[b + "static_w"] = _part(static, 1, kv(static.shape[1]))
    r.params[b + "weight_proj"] = _part(dynamic, 0, r.place.heads(len(dynamic), len(static)))


def _part(tensor: torch.Tensor, dim: int, part: Part) -> torch.Tensor:
    return tensor.narrow(dim, part[0], part[1] - part[0])
