"""The loaders of families with latent attention in other names, or with more beside it; and the parts of latent attention."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from tests.loader.reference import blocks, mixtures
from tests.loader.reference.blocks import layers
from tests.loader.reference.loader import Loader

TRANSFORMERS = {
    **{"q": "q_proj", "q_a": "q_a_proj", "q_a_norm": "q_a_layernorm", "q_b": "q_b_proj", "o": "o_proj"},
    **{"kv_a": "kv_a_proj_with_mqa", "kv_a_norm": "kv_a_layernorm", "kv_b": "kv_b_proj"},
}
MISTRAL = {
    **{"q": "wq", "q_a": "wq_a", "q_a_norm": "q_a_norm", "q_b": "wq_b", "o": "wo"},
    **{"kv_a": "wkv_a_with_mqa", "kv_a_norm": "kv_a_norm", "kv_b": "wkv_b"},
}


def attention(r: Loader, a: str, b: str, names: Mapping[str, str] = TRANSFORMERS) -> None:
    """Latent attention from module ``a`` to ``b``; its latent may be another layer's."""
    n = {part: f"{a}{stored}." for part, stored in names.items()}
    if n["q_a_norm"] + "weight" in r.stored:
        r.put(b + "fused_qkv_a_proj.", r.whole(n["q_a"]), r.whole(n["kv_a"]))
        r.params[b + "q_a_layernorm.weight"] = r.stored[n["q_a_norm"] + "weight"]
        r.put(b + "q_b_proj.", r.rows(n["q_b"]))
    else:
        r.put(b + "q_proj.", r.rows(n["q"]))
        if n["kv_a_norm"] + "weight" in r.stored:
            r.put(b + "kv_a_proj_with_mqa.", r.whole(n["kv_a"]))
    if n["kv_a_norm"] + "weight" in r.stored:
        r.params[b + "kv_a_layernorm.weight"] = r.stored[n["kv_a_norm"] + "weight"]
    r.put(b + "kv_b_proj.", r.rows(n["kv_b"]))
    r.put(b + "o_proj.", r.columns(n["o"]))


def indexer(r: Loader, a: str, b: str) -> None:
    """An indexer, if the layer has one: the keys and the weights of heads are one parameter."""
    if a + "weights_proj.weight" not in r.stored:
        return
    r.put(b + "wq_b.", r.whole(a + "wq_b."))
    pair = [r.whole(f"{a}{name}.").decoded(r.dtype) for name in ("wk", "weights_proj")]
    r.params[b + "wk_weights_proj.weight"] = torch.cat(pair)
    r.copy(b, a, ("k_norm.weight", "k_norm.bias"))


def mistral(r: Loader, drafts: int) -> None:
    """Mistral-Large-3 and -4 and Mistral-4: in Mistral's names or in those of transformers."""
    if "tok_embeddings.weight" not in r.stored:
        mixtures.deepseek(r, drafts)
        return
    r.top("", "output.", "tok_embeddings.")
    for p, q in layers(r, ""):
        r.params[q + "input_layernorm.weight"] = r.stored[p + "attention_norm.weight"]
        r.params[q + "post_attention_layernorm.weight"] = r.stored[p + "ffn_norm.weight"]
        a, b = p + "attention.", q + "self_attn."
        attention(r, a, b, MISTRAL)
        indexer(r, a + "indexer.", b + "indexer.")
        r.copy(b + "indexer.", a + "indexer.", [f"q_input_norm.{x}" for x in ("weight", "bias")])
        r.copy(b + "indexer.", a + "indexer.", ["ssmax_scaling.s", "ssmax_scaling.b"])
        for name in ("ssmax_scaling.s", "ssmax_scaling.b"):
            if a + name in r.stored:
                r.params[b + name] = r.vector(a + name, r.place.share)
        if p + "gate.weight" not in r.stored:
            _mistral_mlp(r, p + "feed_forward.", q + "mlp.")
            continue
        r.params[q + "mlp.gate.weight"] = r.stored[p + "gate.weight"]
        _mistral_mlp(r, p + "shared_experts.", q + "mlp.shared_experts.")
        blocks.experts(r, p + "experts.", q + "mlp.", r.config["n_routed_experts"], ("w1", "w3", "w2"))
    if "lerope.alpha" in r.stored:
        r.params["rotary.alpha"] = r.stored["lerope.alpha"]


def _mistral_mlp(r: Loader, p: str, q: str) -> None:
    r.put(q + "gate_up_proj.", r.rows(p + "w1."), r.rows(p + "w3."))
    r.put(q + "down_proj.", r.columns(p + "w2."))


STREAMS = ("fn", "base", "scale")


def hy_v4(r: Loader, drafts: int) -> None:
    """Hy4: a gate and sinks in latent attention, mixers of streams in every layer but those of the draft."""

    def layer(p: str, q: str) -> None:
        a, b = p + "self_attn.", q + "self_attn."
        r.copy(q, p, blocks.NORMS)
        attention(r, a, b)
        indexer(r, a + "indexer.", b + "indexer.")
        r.put(b + "gate_proj.", r.rows(a + "linear_gate."))
        r.params[b + "sinks"] = r.vector(a + "learnable_sink_param", r.place.share)
        mixtures.shared_and_routed(r, p + "mlp.", q + "mlp.")

    r.top()
    for p, q in layers(r):
        layer(p, q)
        for part in ("attn", "mlp"):
            for name in STREAMS:
                r.params[f"{q}hc_{part}.{name}"] = r.stored[f"{p}hc_{part}_layer.hc_pre.hc_{name}"].float()
    if r.is_last:
        for name in STREAMS:
            r.params[f"hc_head.{name}"] = r.stored[f"model.hc_head.hc_head_{name}"].float()
    if r.is_last and drafts:
        p, q = "model.mtp_layers.0.", "mtp.0."
        layer(p, q)
        blocks.draft(r, p, q, norm="final_layernorm")


def longcat_flash(r: Loader, drafts: int) -> None:
    """LongCat-Flash: two attentions and two MLPs in a layer, beside experts; its MTP layer has an embedding of its own."""
    r.top()
    for p, q in layers(r):
        for n in "01":
            for norm in blocks.NORMS:
                name = norm.replace(".", f".{n}.")
                r.params[q + name] = r.stored[p + name]
            attention(r, f"{p}self_attn.{n}.", f"{q}self_attn.{n}.")
            blocks.gated_mlp(r, f"{p}mlps.{n}.", f"{q}mlps.{n}.")
        m = p + "mlp.router."
        r.params[q + "mlp.gate.weight"] = r.stored[m + "classifier.weight"]
        r.params[q + "mlp.gate.e_score_correction_bias"] = r.stored[m + "e_score_correction_bias"].float()
        blocks.experts(r, p + "mlp.experts.", q + "mlp.", r.config["n_routed_experts"])
    if r.is_last and drafts:
        p, q = "model.mtp.layers.0.", "mtp.0."
        r.copy(q, p, (*blocks.NORMS, "eh_proj.weight"))
        attention(r, p + "self_attn.", q + "self_attn.")
        blocks.gated_mlp(r, p + "transformer_layer.mlp.", q + "mlp.")
        for norm in ("enorm", "hnorm"):
            r.params[f"{q}{norm}.weight"] = r.stored[f"{p}{norm}.m.weight"]
        r.params[q + "shared_head.norm.weight"] = r.stored["model.mtp.norm.weight"]
        r.vocabulary(q + "embed_tokens.", "model.mtp.embed_tokens.")
        r.vocabulary(q + "shared_head.head.", "lm_head.")
