"""The loaders of families whose layers are of several kinds."""

from __future__ import annotations

from collections.abc import Iterator

from tests.loader.reference import blocks
from tests.loader.reference.blocks import layers
from tests.loader.reference.loader import Cut, Loader
from tests.loader.reference.place import Part
from tests.loader.reference.weights import Weight


def mimo_v2(r: Loader, drafts: int) -> None:
    """MiMo-V2: q, k and v of a layer in chunks, each of which is a weight by itself; MTP layers under `model.mtp.`."""
    r.top()
    for p, q in layers(r):
        r.copy(q, p, blocks.NORMS)
        _mimo_attention(r, p, q, sliding=p + "self_attn.attention_sink_bias" in r.stored)
        if p + "mlp.gate.weight" in r.stored:
            blocks.router(r, p + "mlp.", q + "mlp.")
            blocks.experts(r, p + "mlp.experts.", q + "mlp.", r.config["n_routed_experts"])
        else:
            blocks.gated_mlp(r, p + "mlp.", q + "mlp.")
    for k in range(drafts if r.is_last else 0):
        p, q = f"model.mtp.layers.{k}.", f"mtp.{k}."
        _mimo_attention(r, p, q, sliding=True)
        blocks.gated_mlp(r, p + "mlp.", q + "mlp.")
        r.copy(q, p, ("input_layernorm.weight", "eh_proj.weight", "enorm.weight", "hnorm.weight"))
        r.params[q + "post_attention_layernorm.weight"] = r.stored[p + "pre_mlp_layernorm.weight"]
        r.params[q + "shared_head.norm.weight"] = r.stored[p + "final_layernorm.weight"]
        r.vocabulary(q + "embed_tokens.", "model.embed_tokens.")
        r.vocabulary(q + "shared_head.head.", "lm_head.")


def _mimo_attention(r: Loader, p: str, q: str, *, sliding: bool) -> None:
    kind = "swa_" if sliding else ""
    heads, kv_heads = r.config[kind + "num_attention_heads"], r.config[kind + "num_key_value_heads"]
    head, v_head = r.config[kind + "head_dim"], r.config[kind + "v_head_dim"]
    chunks = _chunks(r.find(p + "self_attn.qkv_proj."), r.config["num_key_value_heads"])
    queries = (heads * head, r.place.share(heads * head))
    first, cuts = 0, []
    for rows, held in (queries, *((kv_heads * size, r.place.heads(kv_heads * size, size)) for size in (head, v_head))):
        each = rows // len(chunks)
        cuts += list(_within(chunks, first, each, held))
        first += each
    r.put(q + "self_attn.qkv_proj.", *cuts)
    r.put(q + "self_attn.o_proj.", r.columns(p + "self_attn.o_proj."))
    if sliding:
        r.params[q + "self_attn.sinks"] = r.vector(p + "self_attn.attention_sink_bias", r.place.share)


def _chunks(whole: Weight, count: int) -> list[Weight]:
    """The chunks of a weight, each with the scales that it has for itself."""
    pieces = {name: t.chunk(count) for name, t in whole.stored.items()}
    return [type(whole)({name: t[i] for name, t in pieces.items()}) for i in range(count)]


def _within(chunks: list[Weight], first: int, each: int, held: Part) -> Iterator[Cut]:
    """What is held of a part that has ``each`` rows from ``first`` on in every chunk."""
    for i, chunk in enumerate(chunks):
        start, stop = max(held[0], i * each), min(held[1], (i + 1) * each)
        if start < stop:
            yield Cut(chunk, chunk.rows, (first + start - i * each, first + stop - i * each))


def gemma4(r: Loader, drafts: int) -> None:
    """Gemma-4: heads of two sizes, layers without values or without keys, experts beside the MLP, tables for each layer."""
    prefixes = ("model.", "language_model.model.", "model.language_model.")
    model = next(x for x in prefixes if x + "norm.weight" in r.stored)
    r.top(model)
    if r.is_first and model + "embed_tokens_per_layer.weight" in r.stored:
        r.vocabulary("embed_tokens_per_layer.", model + "embed_tokens_per_layer.")
        r.copy("", model, ("per_layer_model_projection.weight", "per_layer_projection_norm.weight"))
    norms = [f"{when}_feedforward_layernorm{x}" for when in ("pre", "post") for x in ("", "_1", "_2")]
    whole = (
        *(f"{name}.weight" for name in (*norms, "router.proj", "per_layer_input_gate", "per_layer_projection")),
        *("post_per_layer_input_norm.weight", "router.scale", "router.per_expert_scale", "layer_scalar"),
        *("self_attn.q_norm.weight", "self_attn.k_norm.weight"),
    )
    for p, q in layers(r, model):
        a, b = p + "self_attn.", q + "self_attn."
        r.copy(q, p, (*blocks.NORMS, *whole))
        head = len(r.stored[a + "q_norm.weight"])
        r.put(b + "q_proj.", r.rows(a + "q_proj."))
        r.put(b + "o_proj.", r.columns(a + "o_proj."))
        for name in ("k_proj.", "v_proj."):
            if a + name + "weight" in r.stored:
                r.put(b + name, r.rows(a + name, share=lambda size, head=head: r.place.heads(size, head)))
        blocks.gated_mlp(r, p + "mlp.", q + "mlp.")
        if p + "experts.down_proj" in r.stored:
            blocks.stacked_experts(r, p + "experts.gate_up_proj", p + "experts.down_proj", q)
