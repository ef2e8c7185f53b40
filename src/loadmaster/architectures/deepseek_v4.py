"""DeepSeek-V4 (Flash, Pro): four residual streams, compressed attention, routing by token ids, MTP or DSpark drafts.

``compress_ratios`` gives the attention of each layer: 0 has a window only, 4 a compressor and an indexer, 128 a compressor. The
first ``num_hash_layers`` layers choose experts by a table of token ids. Checkpoints with vision have biases for image tokens, and
those of the hash layers too. The releases of April have an MTP layer, later ones three blocks of DSpark; both share the model's
embedding and head. ``-Base`` checkpoints have experts in FP8.

Sources: a tensor contract that was checked against the headers of both generations of both sizes;
``vllm/models/deepseek_v4/{attention,compressor,quant_config}.py``; ``deepseek_v4`` of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping

from loadmaster.architectures import deepseek_v4_blocks as v4
from loadmaster.architectures import dspark, residual_streams
from loadmaster.architectures.config import Config
from loadmaster.architectures.schema import Family, Param, Schema, Tensor, embedding, linear
from loadmaster.architectures.spelling import Spelling, respelled
from loadmaster.errors import ConfigError


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    num_layers, num_hash = c.size("num_hidden_layers"), c.size("num_hash_layers", 0, least=0)
    ratios = c.values.get("compress_ratios")
    if (
        not isinstance(ratios, list)
        or len(ratios) < num_layers
        or not all(type(ratio) is int and ratio in (0, 4, 128) for ratio in ratios[:num_layers])
    ):
        raise ConfigError(f"config.json: compress_ratios must give 0, 4 or 128 for each of {num_layers} layers")
    layers = [(ratio, layer < num_hash) for layer, ratio in enumerate(ratios[:num_layers])]
    drafts, kinds_of_drafts = _drafts(c)
    return Schema(
        top=(*embedding(c), *_head_streams(c, "")),
        kinds={**{_kind(*kind): _block(c, *kind) for kind in layers}, **kinds_of_drafts},
        layers=tuple(_kind(*kind) for kind in layers),
        drafts=drafts,
        blocks_a_draft=len(c.sizes("dspark_target_layer_ids")) or 1,
        carries=((), *((residual_streams.carried(c),),) * (num_layers - 1)),
    )


def _kind(ratio: int, by_token: bool) -> str:
    return f"ratio {ratio}{', by token' if by_token else ''}"


def _head_streams(c: Config, prefix: str) -> tuple[Tensor, ...]:
    """Return what makes one stream of all, before a head."""
    return tuple(v4.f32(f"{prefix}hc_head_{name}", *shape) for name, shape in residual_streams.head_shapes(c).items())


def _block(c: Config, ratio: int = 0, by_token: bool = False) -> tuple[Tensor, ...]:
    tensors = list(v4.attention(c))
    if ratio:
        tensors += _compressor(c, "attn.compressor", c.size("head_dim"), ratio)
    if ratio == 4:
        tensors += _compressor(c, "attn.indexer.compressor", c.size("index_head_dim"), ratio)
        tensors += v4.index_queries(c)
    vision = ("moe.bias", "moe.bias_vl") if c.size("vision_n_layers", 0, least=0) else ()
    tensors += v4.experts(c, biases=vision or (() if by_token else ("moe.bias",)))
    if by_token:
        table = (c.size("vocab_size"), c.size("num_experts_per_tok"))
        tensors.append(Tensor("moe.by_token", table, dtypes=("I64",), keep="I64"))
    return tuple(tensors)


def _compressor(c: Config, name: str, head: int, ratio: int) -> list[Tensor]:
    """Return what makes one entry of ``ratio`` tokens; where they overlap, at 4, of two kinds."""
    rows = head * (2 if ratio == 4 else 1)
    weights = [Tensor(f"{name}.{part}", (rows, c.size("hidden_size"))) for part in ("wkv", "wgate")]
    return [v4.f32(f"{name}.ape", ratio, rows), Tensor(f"{name}.norm", (head,)), *weights]


def _drafts(c: Config) -> tuple[tuple[str, ...], Mapping[str, tuple[Tensor, ...]]]:
    """Return the kinds of the draft blocks in order, and what each has: MTP layers, or the blocks of DSpark."""
    hidden, streams = c.size("hidden_size"), _head_streams(c, "mtp.")
    if c.sizes("dspark_target_layer_ids"):
        return dspark.dspark(c, _block(c), last=streams)
    projections = [linear(f"mtp.{name}", hidden, hidden) for name in ("e_proj", "h_proj")]
    norms = [Tensor(f"mtp.{name}", (hidden,)) for name in ("enorm", "hnorm", "norm")]
    kinds = {"mtp": (*_block(c), *projections, *norms, *streams)}
    return ("mtp",) * c.size("num_nextn_predict_layers", 0, least=0), kinds


_STREAMS = tuple(f"hc_head_{name}" for name in residual_streams.NAMES)
_BLOCK: Spelling = {
    **v4.spelling(values=("attn.compressor.ape", "attn.indexer.compressor.ape")),
    "moe.by_token": v4.LAYER + "ffn.gate.tid2eid",
}
_DRAFTS: Spelling = {
    **respelled(_BLOCK, ("layers.", "mtp.")),
    **{
        f"mtp.{name}": f"mtp.{{layer}}.{name}.weight"
        for name in ("e_proj", "h_proj", "enorm", "hnorm", *dspark.WEIGHTS)
    },
    **{f"mtp.{name}": f"mtp.{{layer}}.{name}" for name in _STREAMS},
}

FAMILY = Family(
    name="deepseek_v4",
    architectures=("DeepseekV4ForCausalLM",),
    schema=schema,
    spelling={**v4.TOP, **{name: name for name in _STREAMS}, **_BLOCK},
    drafts=(_DRAFTS,),
    native=(
        *v4.native({**_DRAFTS, **_BLOCK}),
        *(Param(name, (name,), stage="last") for name in _STREAMS),
    ),
    waived=(v4.VISION,),
)
