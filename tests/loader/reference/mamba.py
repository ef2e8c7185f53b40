"""The loader of families with Mamba-2 layers."""

from __future__ import annotations

import torch

from tests.loader.reference import blocks
from tests.loader.reference.blocks import layers, of_stack
from tests.loader.reference.loader import Loader, cut_columns, cut_rows
from tests.loader.reference.place import Part


def nemotron_h(r: Loader, drafts: int) -> None:
    """Nemotron-H and Nemotron-3: one mixer a layer; a draft of an attention and an experts layer under `mtp.`."""
    model = next(p for p in ("backbone.", "model.") if p + "norm_f.weight" in r.stored)
    if r.is_first:
        r.vocabulary("embed_tokens.", model + "embeddings.")
    if r.is_last:
        r.params["norm.weight"] = r.stored[model + "norm_f.weight"]
        r.vocabulary("lm_head.", "lm_head.")
    for p, q in layers(r, model):
        _layer(r, p, q)
    if drafts and r.is_last:
        for k in (0, 1):
            _layer(r, f"mtp.layers.{k}.", f"mtp.{k}.")
        r.copy("mtp.0.", "mtp.layers.0.", ("eh_proj.weight", "enorm.weight", "hnorm.weight"))
        r.params["mtp.1.shared_head.norm.weight"] = r.stored["mtp.layers.1.final_layernorm.weight"]
        r.vocabulary("mtp.0.embed_tokens.", model + "embeddings.")
        r.vocabulary("mtp.0.shared_head.head.", "lm_head.")


def _layer(r: Loader, p: str, q: str) -> None:
    r.copy(q, p, ["norm.weight"])
    a, b = p + "mixer.", q + "mixer."
    if a + "A_log" in r.stored:
        _mamba(r, a, b)
    elif a + "q_proj.weight" in r.stored:
        head = r.config["head_dim"]

        def kv(size: int) -> Part:
            return r.place.heads(size, head)

        r.put(b + "qkv_proj.", r.rows(a + "q_proj."), *(r.rows(f"{a}{x}_proj.", share=kv) for x in "kv"))
        r.put(b + "o_proj.", r.columns(a + "o_proj."))
    elif a + "gate.weight" in r.stored:
        blocks.router(r, a, b)
        r.copy(b, a, ("fc1_latent_proj.weight", "fc2_latent_proj.weight"))
        _mlp(r, a + "shared_experts.", b + "shared_experts.")
        _experts(r, a + "experts.", b + "experts.")
    else:
        _mlp(r, a, b)


def _mlp(r: Loader, a: str, b: str) -> None:
    r.put(b + "up_proj.", r.rows(a + "up_proj."))
    r.put(b + "down_proj.", r.columns(a + "down_proj."))


def _experts(r: Loader, a: str, b: str) -> None:
    share, count = r.place.expert_share, r.config["n_routed_experts"]
    if a + "up_proj" in r.stored:
        ups, downs = (of_stack(r, f"{a}{part}_proj", False) for part in ("up", "down"))
    else:
        ups, downs = ([r.find(f"{a}{e}.{part}_proj.") for e in range(count)] for part in ("up", "down"))
    r.put_experts(b + "w1_", [[cut_rows(w, share)] for w in ups])
    r.put_experts(b + "w2_", [[cut_columns(w, share)] for w in downs])


def _mamba(r: Loader, a: str, b: str) -> None:
    """z, x and dt by heads, B and C by groups, of which several ranks have the same where there are fewer."""
    heads, state = r.config["mamba_num_heads"], r.config["ssm_state_size"]
    inner, states = heads * r.config["mamba_head_dim"], r.config["n_groups"] * state

    def groups(size: int) -> Part:
        return r.place.heads(size, state)

    parts = ((inner, r.place.share), (inner, r.place.share), (states, groups), (states, groups), (heads, r.place.share))
    first, cuts = 0, []
    for rows, share in parts:
        cuts.append(r.rows(a + "in_proj.", (first, first + rows), share))
        first += rows
    r.put(b + "in_proj.", *cuts)
    for name in ("conv1d.weight", "conv1d.bias"):
        runs = r.stored[a + name].split([inner, states, states])
        held = zip(runs, (r.place.share, groups, groups), strict=True)
        r.params[b + name] = torch.cat([run[slice(*share(len(run)))] for run, share in held])
    for name in ("A_log", "D", "dt_bias", "norm.weight"):
        r.params[b + name] = r.vector(a + name, r.place.share)
    r.put(b + "out_proj.", r.columns(a + "out_proj."))
