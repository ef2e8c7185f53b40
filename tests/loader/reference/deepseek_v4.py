"""The loaders of DeepSeek-V4 and V4.1: DeepSeek's own names, four streams, drafts of one to three blocks."""

from __future__ import annotations

from itertools import count

from tests.loader.reference import blocks
from tests.loader.reference.blocks import layers
from tests.loader.reference.latent import STREAMS
from tests.loader.reference.loader import Loader, cut_rows
from tests.loader.reference.weights import Fp8Block

COMPRESSOR = ("norm.weight", "wkv.weight", "wgate.weight")
DRAFT = (
    *("enorm.weight", "hnorm.weight", "norm.weight", "main_norm.weight", "confidence_head.proj.weight"),
    *(f"markov_head.{name}.weight" for name in ("markov_w1", "markov_w2", "embed", "head")),
)


def deepseek_v4(r: Loader, drafts: int) -> None:
    """DeepSeek-V4 and V4.1."""
    r.top("", "head.", "embed.")
    for p, q in layers(r, ""):
        _block(r, p, q)
    if r.is_last:
        r.floats("", "", [f"hc_head_{name}" for name in STREAMS])
    for k in count():
        p = q = f"mtp.{k}."
        if not drafts or not r.is_last or p + "attn_norm.weight" not in r.stored:
            break
        _block(r, p, q)
        r.copy(q, p, DRAFT)
        r.floats(q, p, [f"hc_head_{name}" for name in STREAMS])
        for name in ("e_proj.", "h_proj.", "main_proj."):
            if p + name + "weight" in r.stored:
                r.put(q + name, r.whole(p + name))


def _block(r: Loader, p: str, q: str) -> None:
    a, b, m, n = p + "attn.", q + "attn.", p + "ffn.", q + "ffn."
    r.copy(q, p, ("attn_norm.weight", "ffn_norm.weight"))
    r.floats(q, p, [f"hc_{part}_{name}" for part in ("attn", "ffn") for name in STREAMS])
    for name in ("wq_a.", "wkv."):
        r.put(b + name, r.whole(a + name))
    for name in ("wq_b.", "wo_a."):
        r.put(b + name, r.rows(a + name))
    r.put(b + "wo_b.", r.columns(a + "wo_b."))
    r.copy(b, a, ("q_norm.weight", "kv_norm.weight"))
    r.params[b + "attn_sink"] = r.vector(a + "attn_sink", r.place.share).float()
    for compressor in ("compressor.", "indexer.compressor."):
        r.copy(b + compressor, a + compressor, COMPRESSOR)
        r.floats(b + compressor, a + compressor, ["ape"])
    r.copy(b, a, [f"indexer.{name}.weight" for name in ("weights_proj", "k_norm", "wk")])
    if a + "indexer.wq_b.weight" in r.stored:
        r.put(b + "indexer.wq_b.", r.whole(a + "indexer.wq_b."))
    if p + "engram.wkv.weight" in r.stored:
        _engram(r, p + "engram.", q + "engram.")
    r.copy(n, m, ("gate.weight", "gate.tid2eid"))
    r.floats(n, m, ("gate.bias", "gate.bias_vl"))
    num_experts = next(e for e in count() if f"{m}experts.{e}.w1.weight" not in r.stored)
    blocks.experts(r, m + "experts.", n, num_experts, ("w1", "w3", "w2"))
    r.put(n + "shared_experts.gate_up_proj.", *(r.rows(f"{m}shared_experts.{w}.") for w in ("w1", "w3")))
    r.put(n + "shared_experts.down_proj.", r.columns(m + "shared_experts.w2."))


def _engram(r: Loader, p: str, q: str) -> None:
    """The table of n-grams, whole hash heads on each rank; a head has a prime number of rows, no two the same."""
    r.copy(q, p, ("q_weight", "k_weight"))
    r.put(q + "wkv.", r.rows(p + "wkv."))
    table = Fp8Block({name: r.stored[f"{p}embed.{name}"] for name in ("weight", "scale")}, (1, 32))
    heads = (r.config["engram_max_ngram_size"] - 1) * r.config["engram_n_heads"]
    tables = len(r.config["engram_layer_ids"])
    rows = _primes(r.config["engram_vocab_size"], tables * heads)
    layer = int(p.split(".")[1])
    first = r.config["engram_layer_ids"].index(layer) * heads
    edges = [sum(rows[first : first + i]) for i in range(heads + 1)]
    held = r.place.share(heads)
    r.put(q + "embed.", cut_rows(table, lambda _: (edges[held[0]], edges[held[1]])))


def _primes(first: int, number: int) -> list[int]:
    found: list[int] = []
    for n in count(first):
        if all(n % d for d in range(2, int(n**0.5) + 1)):
            found.append(n)
        if len(found) == number:
            return found
    raise AssertionError
