"""The loaders of Qwen's families with experts or linear attention."""

from __future__ import annotations

import torch

from tests.loader.reference import blocks
from tests.loader.reference.blocks import layers
from tests.loader.reference.loader import Loader, cut_rows
from tests.loader.reference.weights import Weight


def qwen_moe(r: Loader, drafts: int) -> None:
    """Qwen2-MoE and Qwen3-MoE."""
    r.top()
    for p, q in layers(r):
        r.copy(q, p, blocks.NORMS)
        blocks.attention(r, p, q)
        _qwen_mlp(r, p + "mlp.", q + "mlp.")


def _qwen_mlp(r: Loader, p: str, q: str) -> None:
    if p + "gate.weight" not in r.stored:
        blocks.gated_mlp(r, p, q)
        return
    blocks.router(r, p, q)
    if p + "shared_expert_gate.weight" in r.stored:
        blocks.gated_mlp(r, p + "shared_expert.", q + "shared_expert.")
        r.copy(q, p, ["shared_expert_gate.weight"])
    if p + "experts.gate_up_proj" in r.stored:
        blocks.stacked_experts(r, p + "experts.gate_up_proj", p + "experts.down_proj", q)
    else:
        num_experts = r.config.get("num_experts") or r.config["num_local_experts"]
        blocks.experts(r, p + "experts.", q, num_experts)


def qwen3_next(r: Loader, drafts: int) -> None:
    """Qwen3-Next: linear attention, cut by key heads, and gated attention."""
    r.top()
    for p, q in layers(r):
        r.copy(q, p, blocks.NORMS)
        _qwen_mlp(r, p + "mlp.", q + "mlp.")
        a, b = p + "linear_attn.", q + "linear_attn."
        if a + "A_log" not in r.stored:
            blocks.attention(r, p, q)
            continue
        r.put(b + "in_proj_qkvz.", r.rows(a + "in_proj_qkvz."))
        r.put(b + "in_proj_ba.", r.rows(a + "in_proj_ba."))
        _what_follows(r, a, b)


def qwen3_5(r: Loader, drafts: int) -> None:
    """Qwen3.5 and 3.8: q, k and v in one tensor, z, b and a in others; the MTP layer under names of its own."""
    model = next(p for p in ("model.language_model.", "model.") if p + "norm.weight" in r.stored)
    r.top(model)
    for p, q in layers(r, model):
        r.copy(q, p, blocks.NORMS)
        _qwen_mlp(r, p + "mlp.", q + "mlp.")
        _qwen3_5_attention(r, p, q)
    if drafts and r.is_last:
        p, q = "mtp.layers.0.", "mtp.0."
        r.copy(q, p, blocks.NORMS)
        blocks.attention(r, p, q)
        _qwen_mlp(r, p + "mlp.", q + "mlp.")
        for ours, stored in {
            "eh_proj": "fc",
            "enorm": "pre_fc_norm_embedding",
            "hnorm": "pre_fc_norm_hidden",
            "shared_head.norm": "norm",
        }.items():
            r.params[f"{q}{ours}.weight"] = r.stored[f"mtp.{stored}.weight"]
        r.vocabulary(q + "embed_tokens.", model + "embed_tokens.")
        r.vocabulary(q + "shared_head.head.", "lm_head.")


def _qwen3_5_attention(r: Loader, p: str, q: str) -> None:
    """Linear attention whose q, k and v are one tensor, or attention with heads."""
    a, b = p + "linear_attn.", q + "linear_attn."
    if a + "A_log" not in r.stored:
        blocks.attention(r, p, q)
        return
    keys, values = _key_and_value_rows(r)
    edges = (0, keys, 2 * keys, 2 * keys + values)
    parts = [r.rows(a + "in_proj_qkv.", edges[i : i + 2]) for i in range(3)]
    r.put(b + "in_proj_qkvz.", *parts, r.rows(a + "in_proj_z."))
    r.put(b + "in_proj_ba.", r.rows(a + "in_proj_b."), r.rows(a + "in_proj_a."))
    _what_follows(r, a, b)


def _key_and_value_rows(r: Loader) -> tuple[int, int]:
    keys, values = (r.config[f"linear_num_{x}_heads"] * r.config[f"linear_{x}_head_dim"] for x in ("key", "value"))
    return keys, values


def _what_follows(r: Loader, a: str, b: str) -> None:
    """What a linear attention has beside the projections of its input."""
    keys, values = _key_and_value_rows(r)
    r.put(b + "out_proj.", r.columns(a + "out_proj."))
    runs = r.stored[a + "conv1d.weight"].split([keys, keys, values])
    r.params[b + "conv1d.weight"] = torch.cat([run[slice(*r.place.share(len(run)))] for run in runs])
    for name in ("dt_bias", "A_log"):
        r.params[b + name] = r.vector(a + name, r.place.share)
    r.copy(b, a, ["norm.weight"])


MIXER = [f"{name}.weight" for name in ("hc_norm", "input_mix_weight_down", "input_mix_weight_up")]


def qwen4_exp(r: Loader, drafts: int) -> None:
    """Qwen4Exp: mixers of streams instead of norms, an indexer, a table in slices; the MTP layer under names of its own."""
    model = "model.language_model."
    if r.is_first:
        r.vocabulary("embed_tokens.", model + "embed_tokens.")
    if r.is_last:
        r.vocabulary("lm_head.", "lm_head.")
        r.copy("hyper_connection_mixer.", model + "hyper_connection_mixer.", MIXER)
    for p, q in layers(r, model):
        _qwen4_layer(r, p, q)
    if drafts and r.is_last:
        _qwen4_layer(r, "mtp.layers.0.", "mtp.0.")
        r.copy("mtp.0.hyper_connection_mixer.", "mtp.hyper_connection_mixer.", MIXER)
        names = ("fc_embedding", "fc_hidden", "pre_fc_norm_embedding", "pre_fc_norm_hidden")
        r.copy("mtp.0.", "mtp.", [f"{name}.weight" for name in names])


def _qwen4_layer(r: Loader, p: str, q: str) -> None:
    _qwen3_5_attention(r, p, q)
    _qwen_mlp(r, p + "mlp.", q + "mlp.")
    names = ("index_qk_proj", "q_layernorm", "k_layernorm")
    r.copy(q, p, [f"self_attn.indexer.{name}.weight" for name in names])
    for part in ("attn", "mlp"):
        a, b = (f"{layer}{part}_hyper_connection." for layer in (p, q))
        r.copy(b, a, (MIXER[0], MIXER[2]))
        down = [r.stored[f"{a}{name}.weight"] for name in ("input_mix_weight_down", "block_inject_weight")]
        r.params[b + "input_mix_weight_down_block_inject.weight"] = torch.cat(down)
    if p + "ple.conv1d.weight" not in r.stored:
        return
    a, b = p + "ple.", q + "ple."
    r.copy(b, a, [f"{name}.weight" for name in ("norm_key", "norm_query", "norm_conv", "conv1d")])
    r.put(b + "kv_proj.", r.whole(a + "key_proj."), r.whole(a + "value_proj."))
    table = "ple_embedding.ngram_embedding."
    slices = [r.stored[f"{a}{table}shard_{i}.weight"] for i in range(r.config["split_ngram_parts"])]
    r.put(b + table, cut_rows(Weight({"weight": torch.cat(slices)}), r.place.share))
