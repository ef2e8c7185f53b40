"""The loaders of families with routed experts."""

from __future__ import annotations

from tests.loader.reference import blocks, latent
from tests.loader.reference.blocks import layers
from tests.loader.reference.loader import Cut, Loader, cut_columns, cut_rows
from tests.loader.reference.weights import Mxfp4


def deepseek(r: Loader, drafts: int) -> None:
    """DeepSeek-V3 and V3.2, Kimi-K2, GLM-5."""
    r.top()
    for p, q in layers(r):
        _mla_layer(r, p, q)
    if r.is_last and drafts:
        p, q = f"model.layers.{r.config['num_hidden_layers']}.", "mtp.0."
        _mla_layer(r, p, q)
        blocks.draft(r, p, q)


def _mla_layer(r: Loader, p: str, q: str) -> None:
    r.copy(q, p, blocks.NORMS)
    latent.attention(r, p + "self_attn.", q + "self_attn.")
    latent.indexer(r, p + "self_attn.indexer.", q + "self_attn.indexer.")
    shared_and_routed(r, p + "mlp.", q + "mlp.")


def shared_and_routed(r: Loader, p: str, q: str) -> None:
    """A dense MLP, or the shared expert and the routed ones."""
    if p + "gate.weight" not in r.stored:
        blocks.gated_mlp(r, p, q)
        return
    blocks.router(r, p, q)
    blocks.gated_mlp(r, p + "shared_experts.", q + "shared_experts.")
    if p + "experts.gate_up_proj" in r.stored:
        blocks.stacked_experts(r, p + "experts.gate_up_proj", p + "experts.down_proj", q)
    else:
        blocks.experts(r, p + "experts.", q, r.config["n_routed_experts"])


def glm4_moe(r: Loader, drafts: int) -> None:
    """GLM-4.5 and later."""

    def layer(p: str, q: str) -> None:
        r.copy(q, p, blocks.NORMS)
        blocks.attention(r, p, q)
        shared_and_routed(r, p + "mlp.", q + "mlp.")

    r.top()
    for p, q in layers(r):
        layer(p, q)
    if r.is_last and drafts:
        p, q = f"model.layers.{r.config['num_hidden_layers']}.", "mtp.0."
        layer(p, q)
        blocks.draft(r, p, q)


def mixtral(r: Loader, drafts: int) -> None:
    """Mixtral and MiniMax-M2, whose norms of queries and keys go over all heads."""
    r.top()
    for p, q in layers(r):
        r.copy(q, p, blocks.NORMS)
        blocks.attention(r, p, q, norms_over_all_heads=p + "self_attn.q_norm.weight" in r.stored)
        m = p + ("mlp." if p + "mlp.gate.weight" in r.stored else "block_sparse_moe.")
        blocks.router(r, m, q + "mlp.", bias="e_score_correction_bias")
        if m + "experts.gate_up_proj" in r.stored:
            blocks.stacked_experts(r, m + "experts.gate_up_proj", m + "experts.down_proj", q + "mlp.")
        else:
            blocks.experts(r, m + "experts.", q + "mlp.", r.config["num_local_experts"], ("w1", "w3", "w2"))


def gpt_oss(r: Loader, drafts: int) -> None:
    """gpt-oss: gate and up interleaved, so that any even run of rows is a run of pairs; perhaps zeros after the last block."""
    r.top()
    inner = r.config["intermediate_size"]
    for p, q in layers(r):
        r.copy(q, p, blocks.NORMS)
        blocks.attention(r, p, q)
        r.params[q + "self_attn.sinks"] = r.vector(p + "self_attn.sinks", r.place.share)
        r.copy(q + "mlp.", p + "mlp.", ("router.weight", "router.bias"))
        e, f = p + "mlp.experts.", q + "mlp.experts."
        w13, w2 = (blocks.of_stack(r, e + name, transposed=True) for name in ("gate_up_proj", "down_proj"))
        word = 32 if type(w2[0]) is Mxfp4 else 1
        start, stop, count = r.place.expert_run(inner, word)
        r.put_experts(f + "w13_", [[Cut(w, w.rows, (2 * start, 2 * stop))] for w in w13])
        r.put_experts(f + "w2_", [[Cut(w, w.columns, (start, stop))] for w in w2])
        held = r.place.experts(len(w13))
        r.params[f + "w13_bias"] = r.stored[e + "gate_up_proj_bias"][held][:, 2 * start : 2 * stop]
        r.params[f + "w2_bias"] = r.stored[e + "down_proj_bias"][held]
        for name in ("w13_weight", "w13_blocks", "w13_scales", "w13_bias"):
            _lengthen(r, f + name, 1, 2 * count)
        for name, length in (("w2_weight", count), ("w2_blocks", count // word), ("w2_scales", count // word)):
            _lengthen(r, f + name, 2, length)


def _lengthen(r: Loader, name: str, dim: int, length: int) -> None:
    """Put zeros at the end of a dim of a parameter, if there is one of this name."""
    if name in r.params:
        held = r.params[name]
        made = held.new_zeros(*held.shape[:dim], length, *held.shape[dim + 1 :])
        made.narrow(dim, 0, held.shape[dim]).copy_(held)
        r.params[name] = made


def llama4(r: Loader, drafts: int) -> None:
    """Llama-4: experts in stacks (in, out) or one by one; with or without the prefix of the model with vision."""
    outer = "language_model." if "language_model.model.norm.weight" in r.stored else ""
    r.top(outer + "model.", outer + "lm_head.")
    for p, q in layers(r, outer + "model."):
        r.copy(q, p, blocks.NORMS)
        blocks.attention(r, p, q)
        m, n = p + "feed_forward.", q + "mlp."
        if m + "router.weight" not in r.stored:
            blocks.gated_mlp(r, m, n)
            continue
        r.params[n + "gate.weight"] = r.stored[m + "router.weight"]
        blocks.gated_mlp(r, m + "shared_expert.", n + "shared_expert.")
        if m + "experts.gate_up_proj" in r.stored:
            blocks.stacked_experts(r, m + "experts.gate_up_proj", m + "experts.down_proj", n, transposed=True)
        else:
            blocks.experts(r, m + "experts.", n, r.config["num_local_experts"])


def granite_moe(r: Loader, drafts: int) -> None:
    """Granite-MoE: experts in stacks (out, in), perhaps a shared MLP; a tied head."""
    r.top()
    for p, q in layers(r):
        r.copy(q, p, blocks.NORMS)
        blocks.attention(r, p, q)
        m = p + "block_sparse_moe."
        inside = m + "router.weight" in r.stored  # the names inside transformers
        names = ("experts.gate_up_proj", "experts.down_proj") if inside else ("input_linear.", "output_linear.")
        r.params[q + "mlp.gate.weight"] = r.stored[m + ("router.weight" if inside else "router.layer.weight")]
        blocks.stacked_experts(r, m + names[0], m + names[1], q + "mlp.")
        shared = p + "shared_mlp."
        if shared + "output_linear.weight" in r.stored:
            blocks.packed_mlp(r, shared + "input_linear.", shared + "output_linear.", q + "mlp.shared_mlp.")


def muse_spark(r: Loader, drafts: int) -> None:
    """Muse-Spark: a gate in attention, gates of the residual, and experts between two projections that all ranks hold."""
    model = "model.language_model."
    r.top(model)
    whole = (
        *("input_layernorm.weight", "pre_feedforward_layernorm.weight", "post_feedforward_layernorm.weight"),
        *("post_attention_residual_gate.gate", "post_feedforward_residual_gate.gate"),
        *(f"mlp.{name}.weight" for name in ("pre_expert_proj", "post_expert_proj")),
        *(f"mlp.{name}.weight" for name in ("pre_expert_norm", "experts.post_expert_norm")),
    )
    for p, q in layers(r, model):
        r.copy(q, p, whole)
        blocks.attention(r, p, q)
        r.put(q + "self_attn.gate_proj.", r.rows(p + "self_attn.gate_proj."))
        if p + "mlp.gate.weight" in r.stored:
            blocks.router(r, p + "mlp.", q + "mlp.")
            e = p + "mlp.experts."
            blocks.stacked_experts(r, e + "gate_up_proj", e + "down_proj", q + "mlp.")
        else:
            blocks.gated_mlp(r, p + "mlp.", q + "mlp.")


def step3(r: Loader, drafts: int) -> None:
    """Step-3.5 and 3.7: experts in three stacks; MTP layers after the others, each with its own head."""
    model = next(p for p in ("model.language_model.", "model.") if p + "norm.weight" in r.stored)
    r.top(model)
    for p, q in layers(r, model):
        _step_layer(r, p, q)
    for k in range(drafts if r.is_last else 0):
        p, q = f"{model}layers.{r.config['num_hidden_layers'] + k}.", f"mtp.{k}."
        _step_layer(r, p, q)
        r.copy(q, p, ("eh_proj.weight", "enorm.weight", "hnorm.weight"))
        r.params[q + "shared_head.norm.weight"] = r.stored[p + "transformer.shared_head.norm.weight"]
        r.vocabulary(q + "shared_head.head.", p + "transformer.shared_head.output.")
        r.vocabulary(q + "embed_tokens.", model + "embed_tokens.")


def _step_layer(r: Loader, p: str, q: str) -> None:
    r.copy(q, p, blocks.NORMS)
    blocks.attention(r, p, q)
    r.put(q + "self_attn.g_proj.", r.rows(p + "self_attn.g_proj."))
    if p + "moe.gate.weight" not in r.stored:
        blocks.gated_mlp(r, p + "mlp.", q + "mlp.")
        return
    blocks.router(r, p + "moe.", q + "mlp.", bias="router_bias")
    blocks.gated_mlp(r, p + "share_expert.", q + "mlp.shared_experts.")
    share = r.place.expert_share
    gate, up, down = (blocks.of_stack(r, f"{p}moe.{part}_proj.", False) for part in ("gate", "up", "down"))
    pairs = zip(gate, up, strict=True)
    r.put_experts(q + "mlp.experts.w13_", [[cut_rows(g, share), cut_rows(u, share)] for g, u in pairs])
    r.put_experts(q + "mlp.experts.w2_", [[cut_columns(d, share)] for d in down])


def minimax_m3(r: Loader, drafts: int) -> None:
    """MiniMax-M3: an indexer in sparse layers, whose heads of queries are those of keys; all MTP layers are sparse."""
    outer = "language_model." if "language_model.model.norm.weight" in r.stored else ""

    def layer(p: str, q: str) -> None:
        a, b, m, n = p + "self_attn.", q + "self_attn.", p + "block_sparse_moe.", q + "mlp."
        r.copy(q, p, blocks.NORMS)
        blocks.attention(r, p, q)
        if a + "index_k_proj.weight" in r.stored:
            head = len(r.stored[a + "index_k_norm.weight"])
            r.put(b + "index_q_proj.", r.rows(a + "index_q_proj.", share=lambda size: r.place.heads(size, head)))
            r.put(b + "index_k_proj.", r.whole(a + "index_k_proj."))
            r.copy(b, a, ("index_q_norm.weight", "index_k_norm.weight"))
        if m + "gate.weight" not in r.stored:
            blocks.gated_mlp(r, p + "mlp.", n)
            return
        blocks.router(r, m, n, bias="e_score_correction_bias")
        blocks.gated_mlp(r, m + "shared_experts.", n + "shared_experts.")
        blocks.experts(r, m + "experts.", n, r.config["num_local_experts"], ("w1", "w3", "w2"))

    r.top(outer + "model.", outer + "lm_head.")
    for p, q in layers(r, outer + "model."):
        layer(p, q)
    for k in range(drafts if r.is_last else 0):
        p, q = f"{outer}model.mtp.layers.{k}.", f"mtp.{k}."
        layer(p + "transformer_layer.", q)
        r.copy(q, p, ("eh_proj.weight", "enorm.weight", "hnorm.weight"))
        r.params[q + "shared_head.norm.weight"] = r.stored[p + "final_layernorm.weight"]
        r.vocabulary(q + "embed_tokens.", outer + "model.embed_tokens.")
        r.vocabulary(q + "shared_head.head.", outer + "lm_head.")
