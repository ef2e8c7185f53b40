"""DeepSeek-V4 (Flash, Pro): four residual streams, compressed attention, routing by token ids, MTP or DSpark drafts.

``compress_ratios`` gives the attention of each layer: 0 has a window only, 4 a compressor and an indexer, 128 a compressor. The
first ``num_hash_layers`` layers choose experts by a table of token ids. Streams, ``[4, hidden]`` for each token, cross every cut.
Names are DeepSeek's own: no ``model.`` prefix, and a scale is ``X.scale`` beside ``X.weight``. The releases of April have an MTP
layer, later ones three blocks of DSpark; both share the model's embedding and head.

Sources: a tensor contract that was checked against the headers of both generations of both sizes;
``vllm/models/deepseek_v4/{attention,compressor,quant_config}.py``; ``deepseek_v4`` of transformers.
"""

from __future__ import annotations

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.schema import (
    Carried,
    Family,
    Param,
    Schema,
    Spelling,
    Tensor,
    by_columns,
    by_rows,
    embedding,
    linear,
    respelled,
)
from loadmaster.errors import ConfigError, UnsupportedError


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    num_layers, num_hash = c.size("num_hidden_layers"), c.size("num_hash_layers", 0, least=0)
    if c.size("vision_n_layers", 0, least=0):
        raise UnsupportedError("config.json: DeepSeek-V4 with vision (vision_n_layers) is not supported yet")
    ratios = c.values.get("compress_ratios")
    if not isinstance(ratios, list) or len(ratios) < num_layers or not {*ratios[:num_layers]} <= {0, 4, 128}:
        raise ConfigError(f"config.json: compress_ratios must give 0, 4 or 128 for each of {num_layers} layers")
    layers = [(ratio, layer < num_hash) for layer, ratio in enumerate(ratios[:num_layers])]
    kinds = {_kind(*kind): (*_attention(c, kind[0]), *_experts(c, by_token=kind[1])) for kind in layers}
    drafts = _drafts(c)
    streams = (Carried("hidden_states", (c.size("hc_mult", 4), c.size("hidden_size"))),)
    return Schema(
        top=(*embedding(c), *_head_streams(c, "")),
        kinds=kinds | {kind: (*_attention(c, 0), *_experts(c), *more) for kind, more in drafts},
        layers=tuple(_kind(*kind) for kind in layers),
        drafts=tuple(kind for kind, _ in drafts),
        carries=((), *(streams,) * (num_layers - 1)),
    )


def _kind(ratio: int, by_token: bool) -> str:
    return f"ratio {ratio}{', by token' if by_token else ''}"


def _f32(name: str, *shape: int, by_head: bool = False) -> Tensor:
    return Tensor(name, shape, by_rows() if by_head else None, keep="F32")


def _head_streams(c: Config, prefix: str) -> tuple[Tensor, ...]:
    """Return what makes one stream of all, before a head."""
    hidden, streams = c.size("hidden_size"), c.size("hc_mult", 4)
    sizes = {"fn": (streams, streams * hidden), "base": (streams,), "scale": (1,)}
    return tuple(_f32(f"{prefix}hc_head_{name}", *shape) for name, shape in sizes.items())


def _attention(c: Config, ratio: int) -> tuple[Tensor, ...]:
    hidden, heads, head, rank = (c.size(k) for k in ("hidden_size", "num_attention_heads", "head_dim", "q_lora_rank"))
    groups, group, streams = c.size("o_groups"), c.size("o_lora_rank"), c.size("hc_mult", 4)
    mixes = streams * (2 + streams)
    tensors = [
        Tensor("attn_norm", (hidden,)),
        linear("attn.wq_a", rank, hidden),
        linear("attn.wkv", head, hidden),
        Tensor("attn.q_norm", (rank,)),
        Tensor("attn.kv_norm", (head,)),
        linear("attn.wq_b", heads * head, rank, by_rows(head)),
        linear("attn.wo_a", groups * group, heads * head // groups, by_rows(group)),
        linear("attn.wo_b", hidden, groups * group, by_columns(group)),
        _f32("attn.attn_sink", heads, by_head=True),
    ]
    for part in ("attn", "ffn"):
        sizes = {"fn": (mixes, streams * hidden), "base": (mixes,), "scale": (3,)}
        tensors += [_f32(f"hc_{part}_{name}", *shape) for name, shape in sizes.items()]
    if ratio:
        tensors += _compressor("attn.compressor", hidden, head, ratio)
    if ratio == 4:
        index_heads, index_head = c.size("index_n_heads"), c.size("index_head_dim")
        tensors += _compressor("attn.indexer.compressor", hidden, index_head, ratio)
        tensors.append(Tensor("attn.indexer.weights_proj", (index_heads, hidden)))
        tensors.append(linear("attn.indexer.wq_b", index_heads * index_head, rank))
    return tuple(tensors)


def _compressor(name: str, hidden: int, head: int, ratio: int) -> list[Tensor]:
    """Return what makes one entry of ``ratio`` tokens; where they overlap, at 4, of two kinds."""
    rows = head * (2 if ratio == 4 else 1)
    weights = [Tensor(f"{name}.{part}", (rows, hidden)) for part in ("wkv", "wgate")]
    return [_f32(f"{name}.ape", ratio, rows), Tensor(f"{name}.norm", (head,)), *weights]


def _experts(c: Config, *, by_token: bool = False) -> tuple[Tensor, ...]:
    hidden, inner, count = c.size("hidden_size"), c.size("moe_intermediate_size"), c.size("n_routed_experts")
    table = (c.size("vocab_size"), c.size("num_experts_per_tok"))
    chosen = Tensor("moe.by_token", table, dtypes=("I64",), keep="I64") if by_token else _f32("moe.bias", count)
    shared = blocks.gated_mlp(hidden, inner * c.size("n_shared_experts", 1), logical="shared")
    return (Tensor("ffn_norm", (hidden,)), chosen, *blocks.experts(hidden, inner, count), *shared)


def _drafts(c: Config) -> tuple[tuple[str, tuple[Tensor, ...]], ...]:
    """Return the kind of each draft block, with what it has besides a layer: MTP layers, or the blocks of DSpark."""
    hidden, taps = c.size("hidden_size"), len(c.sizes("dspark_target_layer_ids"))
    if not taps:
        projections = [linear(f"mtp.{name}", hidden, hidden) for name in ("e_proj", "h_proj")]
        norms = [Tensor(f"mtp.{name}", (hidden,)) for name in ("enorm", "hnorm", "norm")]
        count = c.size("num_nextn_predict_layers", 0, least=0)
        return (("mtp", (*projections, *norms, *_head_streams(c, "mtp."))),) * count
    vocab, rank = c.size("vocab_size"), c.size("dspark_markov_rank")
    first = (linear("mtp.main_proj", hidden, taps * hidden), Tensor("mtp.main_norm", (hidden,)))
    last = (
        Tensor("mtp.norm", (hidden,)),
        *_head_streams(c, "mtp."),
        *(Tensor(f"mtp.markov_head.markov_{name}", (vocab, rank)) for name in ("w1", "w2")),
        Tensor("mtp.confidence_head.proj", (1, hidden + rank)),
    )
    return (("dspark, first", first), *(("dspark", ()),) * (taps - 2), ("dspark, last", last))


_LAYER = "layers.{layer}."
_WEIGHTS = (
    *("attn_norm", "ffn_norm", "attn.indexer.weights_proj", "attn.indexer.wq_b"),
    *(f"attn.{name}" for name in ("wq_a", "wkv", "q_norm", "kv_norm", "wq_b", "wo_a", "wo_b")),
    *(f"attn.{of}compressor.{name}" for of in ("", "indexer.") for name in ("norm", "wkv", "wgate")),
)
_VALUES = (
    *("attn.attn_sink", "attn.compressor.ape", "attn.indexer.compressor.ape"),
    *(f"hc_{part}_{name}" for part in ("attn", "ffn") for name in ("fn", "base", "scale")),
)
_DRAFT_WEIGHTS = (
    *("e_proj", "h_proj", "enorm", "hnorm", "norm", "main_proj", "main_norm"),
    *("markov_head.markov_w1", "markov_head.markov_w2", "confidence_head.proj"),
)
_STREAMS = ("hc_head_fn", "hc_head_base", "hc_head_scale")
_TOP: Spelling = {"embed": "embed.weight", "norm": "norm.weight", "head": "head.weight", **{n: n for n in _STREAMS}}
_MLPS = {"moe": "experts.{expert}", "shared": "shared_experts"}
_BLOCK: Spelling = {
    **{name: f"{_LAYER}{name}.weight" for name in _WEIGHTS},
    **{name: f"{_LAYER}{name}" for name in _VALUES},
    "moe.router": _LAYER + "ffn.gate.weight",
    "moe.bias": _LAYER + "ffn.gate.bias",
    "moe.by_token": _LAYER + "ffn.gate.tid2eid",
    **{f"{logical}.gate": f"{_LAYER}ffn.{stored}.w1.weight" for logical, stored in _MLPS.items()},
    **{f"{logical}.up": f"{_LAYER}ffn.{stored}.w3.weight" for logical, stored in _MLPS.items()},
    **{f"{logical}.down": f"{_LAYER}ffn.{stored}.w2.weight" for logical, stored in _MLPS.items()},
}
_DRAFTS: Spelling = {
    **respelled(_BLOCK, ("layers.", "mtp.")),
    **{f"mtp.{name}": f"mtp.{{layer}}.{name}.weight" for name in _DRAFT_WEIGHTS},
    **{f"mtp.{name}": f"mtp.{{layer}}.{name}" for name in _STREAMS},
}
_FUSED = {f"{mlp}.{part}" for mlp in _MLPS for part in ("gate", "up", "down")}

FAMILY = Family(
    name="deepseek_v4",
    architectures=("DeepseekV4ForCausalLM",),
    schema=schema,
    spelling={**_TOP, **_BLOCK},
    drafts=(_DRAFTS,),
    native=(
        *blocks.TOP_NATIVE,
        *(Param(name, (name,), stage="last") for name in _STREAMS),
        *(Param(f"{{block}}.{n.removeprefix('mtp.')}", (n,)) for n in {**_BLOCK, **_DRAFTS} if n not in _FUSED),
        Param("{block}.ffn.experts.w13_weight", ("moe.gate", "moe.up")),
        Param("{block}.ffn.experts.w2_weight", ("moe.down",)),
        *blocks.gated_mlp_native("ffn.shared_experts", logical="shared"),
    ),
)
