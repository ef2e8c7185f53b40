"""The parts that many models have: attention with heads, the gated MLP, routed experts, the MTP layer's own."""

from __future__ import annotations

import torch

from tests.loader.reference.loader import Loader, cut_columns, cut_rows
from tests.loader.reference.place import Part
from tests.loader.reference.weights import Weight

NORMS = ("input_layernorm.weight", "post_attention_layernorm.weight")


def layers(r: Loader, prefix: str = "model.") -> list[tuple[str, str]]:
    """The stored and the running name of each layer of the stage."""
    return [(f"{prefix}layers.{i}.", f"layers.{i}.") for i in r.layers]


def attention(r: Loader, p: str, q: str, *, norms_over_all_heads: bool = False) -> None:
    """Attention with heads from layer ``p`` to ``q``, with whatever biases and norms are there."""
    a, b = p + "self_attn.", q + "self_attn."
    head = r.config.get("head_dim") or r.config["hidden_size"] // r.config["num_attention_heads"]

    def kv(size: int) -> Part:
        return r.place.heads(size, head)

    shares = {"q": r.place.share, "k": kv, "v": kv}
    r.put(b + "qkv_proj.", *(r.rows(f"{a}{x}_proj.", share=share) for x, share in shares.items()))
    r.put(b + "o_proj.", r.columns(a + "o_proj."))
    if a + "q_proj.bias" in r.stored:
        biases = [r.vector(f"{a}{x}_proj.bias", share) for x, share in shares.items()]
        r.params[b + "qkv_proj.bias"] = torch.cat(biases)
    r.copy(b, a, ["o_proj.bias"])
    if norms_over_all_heads:
        r.params[b + "q_norm.weight"] = r.vector(a + "q_norm.weight", r.place.share)
        r.params[b + "k_norm.weight"] = r.vector(a + "k_norm.weight", kv)
    else:
        r.copy(b, a, ["q_norm.weight", "k_norm.weight"])


def gated_mlp(r: Loader, p: str, q: str) -> None:
    """gate, up and down from module ``p`` to ``q``."""
    r.put(q + "gate_up_proj.", r.rows(p + "gate_proj."), r.rows(p + "up_proj."))
    r.put(q + "down_proj.", r.columns(p + "down_proj."))
    if p + "gate_proj.bias" in r.stored:
        r.params[q + "gate_up_proj.bias"] = torch.cat(
            [r.vector(f"{p}{x}_proj.bias", r.place.share) for x in ("gate", "up")]
        )
        r.copy(q, p, ["down_proj.bias"])


def packed_mlp(r: Loader, gate_up: str, down: str, q: str) -> None:
    """A gated MLP whose gate and up lie in one tensor, gate first."""
    inner = r.find(gate_up).shape[0] // 2
    r.put(q + "gate_up_proj.", r.rows(gate_up, (0, inner)), r.rows(gate_up, (inner, 2 * inner)))
    r.put(q + "down_proj.", r.columns(down))


def experts(
    r: Loader, p: str, q: str, num_experts: int, names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
) -> None:
    """Routed experts stored one by one under ``p``."""
    gate, up, down = names
    share = r.place.expert_share
    found = [[r.find(f"{p}{e}.{name}.") for name in (gate, up, down)] for e in range(num_experts)]
    r.put_experts(q + "experts.w13_", [[cut_rows(g, share), cut_rows(u, share)] for g, u, _ in found])
    r.put_experts(q + "experts.w2_", [[cut_columns(d, share)] for *_, d in found])


def stacked_experts(r: Loader, gate_up: str, down: str, q: str, *, transposed: bool = False) -> None:
    """Routed experts stored all in one tensor, gate before up; plain ones perhaps (in, out)."""
    share = r.place.expert_share
    w13, w2 = (of_stack(r, name, transposed) for name in (gate_up, down))
    inner = w13[0].shape[0] // 2
    parts = ((0, inner), (inner, 2 * inner))
    r.put_experts(q + "experts.w13_", [[cut_rows(w, share, part) for part in parts] for w in w13])
    r.put_experts(q + "experts.w2_", [[cut_columns(w, share)] for w in w2])


def of_stack(r: Loader, base: str, transposed: bool) -> list[Weight]:
    """The experts of a stack, each out × in."""
    stack = r.find(base)
    if transposed and type(stack) is Weight:
        stack = Weight({"weight": stack.stored["weight"].transpose(1, 2)})
    return [stack.expert(e) for e in range(len(next(iter(stack.stored.values()))))]


def router(r: Loader, p: str, q: str, *, bias: str = "gate.e_score_correction_bias") -> None:
    """The router, and DeepSeek's correction bias, which stays F32, where there is one."""
    r.copy(q, p, ["gate.weight"])
    if p + bias in r.stored:
        r.params[q + "gate.e_score_correction_bias"] = r.stored[p + bias].float()


def draft(r: Loader, p: str, q: str, *, embed: str = "model.embed_tokens.", norm: str = "shared_head.norm") -> None:
    """What an MTP layer has beside a decoder layer's; without an embedding and a head of its own, it has the model's."""
    r.copy(q, p, ("eh_proj.weight", "enorm.weight", "hnorm.weight"))
    r.params[q + "shared_head.norm.weight"] = r.stored[f"{p}{norm}.weight"]
    for name, model in (("embed_tokens.", embed), ("shared_head.head.", "lm_head.")):
        r.vocabulary(q + name, p + name if p + name + "weight" in r.stored else model)
