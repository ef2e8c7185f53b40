"""DeepSeek-V4.1: V4 whose layers share compressed KV caches and selections, with n-gram tables in two layers (Engram).

``kv_source_layer_ids`` compress keys and values, which the layers after them read, up to the next source: no stage can begin
inside such a group. ``index_source_layer_ids`` select tokens for the layers after them. ``compress_ratios`` is 0 where there is a
window only; a source of ratio 1 has no gate. Engram tables have rows for each order of n-grams and each hash head, in FP8 with a
scale for each 32 columns; they are usually in the memory of the host. Other weights are FP8 in blocks of 32 × 32, experts FP4;
scales are powers of two. The draft is DSpark, with another number of experts.

Sources: an inventory of all shard headers of DeepSeek-V4.1-Flash; ``vllm/models/deepseek_v41/{attention,compressor}.py``,
``common/engram.py``, ``nvidia/{model,dspark}.py``. transformers has no such class.
"""

from __future__ import annotations

from loadmaster.architectures import deepseek_v4_blocks as v4
from loadmaster.architectures import dspark, residual_streams
from loadmaster.architectures.config import Config
from loadmaster.architectures.ngram import head_rows
from loadmaster.architectures.schema import (
    Carried,
    Family,
    Placement,
    Schema,
    Tensor,
    by_rows,
    embedding,
    joined,
    linear,
)
from loadmaster.architectures.spelling import Spelling, respelled
from loadmaster.errors import ConfigError
from loadmaster.formats import fp8_block

_TABLE = fp8_block((1, 32), suffix="scale", powers=True)
BIASES = ("moe.bias", "moe.bias_vl")


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    num_layers, ratios = c.size("num_hidden_layers"), c.sizes("compress_ratios")
    if len(ratios) < num_layers:
        raise ConfigError(f"config.json: compress_ratios must give a number for each of {num_layers} layers")
    sources = _sources(c, ratios[:num_layers])
    indexers = c.sizes("index_source_layer_ids")
    tables = _tables(c)
    block = (*v4.attention(c), *v4.experts(c, biases=BIASES))
    kinds: dict[str, tuple[Tensor, ...]] = {}
    layers = []
    for layer, source in enumerate(sources):
        names, tensors = ["plain"], list(block)
        if source == layer and ratios[layer]:
            names.append(f"source of ratio {ratios[layer]}")
            tensors += _compressor(c, ratios[layer])
        if layer in indexers:
            names.append("index")
            tensors += v4.index_queries(c)
        if layer in tables:
            names.append(f"engram {layer}")
            tensors += _engram(c, tables[layer])
        layers.append(", ".join(names[1:] or names))
        kinds[layers[-1]] = tuple(tensors)
    drafted = (*v4.attention(c), *v4.experts(c, biases=BIASES, count=c.size("dspark_n_routed_experts", 0, least=0)))
    drafts, of_drafts = dspark.dspark(c, drafted, markov=dspark.MARKOV_OF_V41)
    carried = (residual_streams.carried(c), Carried("pre_mix", (residual_streams.num_streams(c),), "F32"))
    return Schema(
        top=embedding(c),
        kinds={**kinds, **of_drafts},
        layers=tuple(layers),
        drafts=drafts,
        blocks_a_draft=len(drafts) or 1,
        carries=((), *(carried,) * (num_layers - 1)),
        joined=joined(sources, "the compressed KV cache"),
    )


def _sources(c: Config, ratios: tuple[int, ...]) -> tuple[int, ...]:
    """Return for each layer the layer whose compressed KV cache it reads; itself, where it has a window only."""
    given = c.sizes("kv_source_layer_ids")
    sources = [
        layer if not ratio else max((s for s in given if s <= layer), default=-1) for layer, ratio in enumerate(ratios)
    ]
    if -1 in sources:
        layer = sources.index(-1)
        raise ConfigError(
            f"config.json: layer {layer} has compress_ratio {ratios[layer]}, and kv_source_layer_ids has no layer up to it"
        )
    return tuple(sources)


def _compressor(c: Config, ratio: int) -> list[Tensor]:
    hidden, head, index = c.size("hidden_size"), c.size("head_dim"), c.size("index_head_dim")
    weights = [
        Tensor(f"attn.compressor.{part}", (head, hidden)) for part in ("wkv", *(("wgate",) if ratio > 1 else ()))
    ]
    keys = [Tensor("attn.indexer.k_norm", (index,)), Tensor("attn.indexer.wk", (index, head))]
    return [Tensor("attn.compressor.norm", (head,)), *weights, *keys]


def _tables(c: Config) -> dict[int, tuple[int, ...]]:
    """Return for each layer with an n-gram table the rows of its hash heads."""
    layers, num_rows = c.sizes("engram_layer_ids"), c.sizes("engram_num_embeddings")
    if not layers:
        return {}
    heads = (c.size("engram_max_ngram_size", least=2) - 1) * c.size("engram_n_heads")
    tables = dict(zip(layers, head_rows(c.size("engram_vocab_size"), len(layers), heads), strict=True))
    needed = tuple(map(sum, tables.values()))
    if needed != num_rows:
        raise ConfigError(
            f"config.json: engram_num_embeddings is {list(num_rows)}, and the hash heads have {list(needed)} rows",
            hint="heads have as many rows as consecutive primes from engram_vocab_size on",
        )
    return tables


def _engram(c: Config, rows: tuple[int, ...]) -> list[Tensor]:
    hidden, streams, width = c.size("hidden_size"), residual_streams.num_streams(c), c.size("engram_head_dim")
    shape, placed = (sum(rows), width), Placement(0, sections=rows)
    return [
        Tensor("engram.embed", shape, placed, quantised=True, table="host", formats=(_TABLE,)),
        *(Tensor(f"engram.{name}_weight", (streams, hidden)) for name in ("q", "k")),
        linear("engram.wkv", (streams + 1) * hidden, len(rows) * width, by_rows()),
    ]


_BLOCK: Spelling = v4.spelling(
    ("attn.indexer.k_norm", "attn.indexer.wk", "engram.embed", "engram.wkv"), ("engram.q_weight", "engram.k_weight")
)
_DRAFTS: Spelling = {
    **respelled(_BLOCK, ("layers.", "mtp.")),
    **{f"mtp.{name}": f"mtp.{{layer}}.{name}.weight" for name in dspark.WEIGHTS},
}

FAMILY = Family(
    name="deepseek_v41",
    architectures=("DeepseekV41ForCausalLM",),
    schema=schema,
    spelling={**v4.TOP, **_BLOCK},
    drafts=(_DRAFTS,),
    native=v4.native({**_DRAFTS, **_BLOCK}),
    waived=(v4.VISION,),
    section="text_config",
)
