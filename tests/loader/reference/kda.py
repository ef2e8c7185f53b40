"""The loaders of families with Kimi Delta Attention (KDA): Kimi-Linear, Kimi-K3, GLM-5.3-Flash, Ling-3."""

from __future__ import annotations

import torch

from tests.loader.reference import blocks, latent, mixtures
from tests.loader.reference.blocks import layers
from tests.loader.reference.loader import Loader


def attention(r: Loader, a: str, b: str, *, out: str = "o_proj") -> None:
    """KDA from module ``a`` to ``b``: all is divided by heads, but the first matrices of pairs and the norm."""
    r.put(b + "qkv_proj.", *(r.rows(f"{a}{x}_proj.") for x in "qkv"))
    for part in "fg":
        if a + f"{part}_proj.weight" in r.stored:
            r.put(f"{b}{part}_proj.", r.rows(f"{a}{part}_proj."))
        else:
            r.put(f"{b}{part}_a_proj.", r.whole(f"{a}{part}_a_proj."))
            r.put(f"{b}{part}_b_proj.", r.rows(f"{a}{part}_b_proj."))
    r.put(b + "b_proj.", r.rows(a + "b_proj."))
    r.put(b + "o_proj.", r.columns(f"{a}{out}."))
    r.params[b + "conv1d.weight"] = torch.cat([r.vector(f"{a}{x}_conv1d.weight", r.place.share) for x in "qkv"])
    r.params[b + "dt_bias"] = r.vector(a + "dt_bias", r.place.share).float()
    heads = r.config.get("linear_attn_config", {}).get("num_heads") or r.config["num_attention_heads"]
    start, stop = r.place.share(heads)
    decay = r.stored[a + "A_log"].float()
    r.params[b + "A_log"] = decay[:, :, start:stop] if decay.ndim == 4 else decay[start:stop]  # K3 has zeros after them
    r.copy(b, a, ["o_norm.weight"])


def kimi(r: Loader, drafts: int) -> None:
    """Kimi-Linear; and Kimi-K3, where each part reads a mix of residuals and experts read a latent."""
    outer = "language_model." if "language_model.model.norm.weight" in r.stored else ""
    r.top(outer + "model.", outer + "lm_head.")
    mixes = [f"{of}_{part}.weight" for of in ("self_attention_res", "mlp_res") for part in ("norm", "proj")]
    for p, q in layers(r, outer + "model."):
        a, b, m, n = p + "self_attn.", q + "self_attn.", p + "block_sparse_moe.", q + "mlp."
        r.copy(q, p, (*blocks.NORMS, *mixes))
        if a + "A_log" in r.stored:
            attention(r, a, b)
        else:
            latent.attention(r, a, b)
            if a + "g_proj.weight" in r.stored:
                r.put(b + "g_proj.", r.rows(a + "g_proj."))
        if m + "gate.weight" not in r.stored:
            blocks.gated_mlp(r, p + "mlp.", n)
            continue
        blocks.router(r, m, n)
        r.copy(n, m, [f"routed_expert_{part}.weight" for part in ("down_proj", "norm", "up_proj")])
        blocks.gated_mlp(r, m + "shared_experts.", n + "shared_experts.")
        blocks.experts(r, m + "experts.", n, r.config["num_experts"], ("w1", "w3", "w2"))
    if r.is_last:
        r.copy("", outer + "model.", ("output_attn_res_norm.weight", "output_attn_res_proj.weight"))


def glm5_next(r: Loader, drafts: int) -> None:
    """GLM-5.3-Flash: four residual streams, and an indexer that pools its keys; the MTP layer has one stream."""
    model = "model.language_model."

    def layer(p: str, q: str) -> None:
        a, b = p + "self_attn.", q + "self_attn."
        r.copy(q, p, blocks.NORMS)
        if a + "A_log" in r.stored:
            attention(r, a, b)
        else:
            latent.attention(r, a, b)
            latent.indexer(r, a + "indexer.", b + "indexer.")
            r.copy(b + "indexer.", a + "indexer.", [f"index_kpool_compress_{x}" for x in ("ape", "gate")])
        for part in ("attn", "ffn"):
            r.copy(q, p, [f"hc_{part}_fn"])
            r.floats(q, p, [f"hc_{part}_base", f"hc_{part}_scale"])
        mixtures.shared_and_routed(r, p + "mlp.", q + "mlp.")

    r.top(model)
    for p, q in layers(r, model):
        layer(p, q)
    if r.is_last and drafts:
        p, q = f"{model}layers.{r.config['num_hidden_layers']}.", "mtp.0."
        layer(p, q)
        blocks.draft(r, p, q, embed=model + "embed_tokens.")


def ling(r: Loader, drafts: int) -> None:
    """Ling-3: whole matrices for decay and gate, a gate for each head of latent attention; the MTP layer after the others."""

    def layer(p: str, q: str) -> None:
        a, b = p + "attention.", q + "self_attn."
        r.copy(q, p, blocks.NORMS)
        if a + "A_log" in r.stored:
            attention(r, a, b, out="o_proj" if a + "o_proj.weight" in r.stored else "dense")
        else:
            latent.attention(r, a, b, latent.TRANSFORMERS | {"o": "dense"})
            r.put(b + "g_proj.", r.rows(a + "g_proj."))
        m, n = p + "mlp.", q + "mlp."
        if m + "gate.weight" not in r.stored:
            blocks.gated_mlp(r, m, n)
            return
        blocks.router(r, m, n, bias="gate.expert_bias")
        blocks.gated_mlp(r, m + "shared_experts.", n + "shared_experts.")
        blocks.experts(r, m + "experts.", n, r.config["num_experts"])

    r.top(embed="word_embeddings.")
    for p, q in layers(r):
        layer(p, q)
    if r.is_last and drafts:
        p, q = f"model.layers.{r.config['num_hidden_layers']}.", "mtp.0."
        layer(p, q)
        blocks.draft(r, p, q, embed="model.word_embeddings.", norm="final_layernorm")
