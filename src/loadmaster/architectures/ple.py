"""Qwen4Exp's embeddings of n-grams in some layers (PLE), as their three tables.

``ple_layer_ids``, counted from 1, are the layers that have one. Its table has rows for each order of n-grams and each hash head,
then up to ``make_ngram_vocab_size_divisible_by`` - 1 that no hash reaches; it is stored in ``split_ngram_parts`` slices, as BF16,
as FP8 with one factor for all slices, or as NVFP4 in ModelOpt's names. Ranks divide its rows, as engines do, anywhere. The rest
is held by all: projections, norms and a convolution over all residual streams, and constants of the hash, which follow from the
config and are not always stored.

Sources: ``modeling_qwen4_exp.py`` of transformers; ``qwen4_exp/common/ngram_embedding.py`` and ``nvidia/ple_layer.py`` in
``vllm/models``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from loadmaster.architectures.blocks import LAYER
from loadmaster.architectures.config import Config
from loadmaster.architectures.ngram import head_rows
from loadmaster.architectures.schema import Param, Placement, Tensor, linear
from loadmaster.architectures.spelling import Spelling
from loadmaster.errors import ConfigError, UnsupportedError
from loadmaster.formats import FP8_TENSOR, NVFP4_MODELOPT, Format

_FORMATS: Final = {
    name: replace(f, components=tuple(c for c in f.components if not c.optional))
    for name, f in (("float8_e4m3fn", FP8_TENSOR), ("nvfp4", NVFP4_MODELOPT))
}
"""Without factors of activations, which a table does not have."""
_TABLE: Final = "ple_embedding.ngram_embedding."
_CONSTANTS: Final = ("layer_multipliers", "ngram_heads_offsets", "ngram_heads_vocab_sizes")
_NORMS: Final = ("norm_key", "norm_query", "norm_conv")


def ple_rows(c: Config) -> dict[int, int]:
    """Return for each layer with a table, counted from 0, the rows of its hash heads together."""
    layers, num_layers = sorted({*c.sizes("ple_layer_ids")}), c.size("num_hidden_layers")
    if layers and not 1 <= layers[0] <= layers[-1] <= num_layers:
        raise ConfigError(f"config.json: ple_layer_ids must be numbers from 1 to {num_layers}, found {layers}")
    orders, heads = _hashes(c)
    rows = head_rows(c.size("ngram_vocab_size_base", 20_000_000), len(layers), (orders - 1) * heads)
    return {layer - 1: sum(of_heads) for layer, of_heads in zip(layers, rows, strict=True)}


def ple(c: Config, rows: int, streams: int) -> tuple[Tensor, ...]:
    """Return the tensors of one layer, whose hash heads have ``rows`` together, on ``streams`` residual streams.

    Raises:
        UnsupportedError: the table does not divide by its hash heads, or not by its slices; or its format is not known.
    """
    hidden = c.size("hidden_size")
    width, slices = c.size("ple_embed_dim", hidden), c.size("split_ngram_parts", 512)
    orders, heads = _hashes(c)
    rows += -rows % c.size("make_ngram_vocab_size_divisible_by", 128)
    for what, size, by, count in (
        ("ple_embed_dim is", width, "hash heads", (orders - 1) * heads),
        ("a table of n-grams has", rows, "slices (split_ngram_parts)", slices),
    ):
        if size % count:
            raise UnsupportedError(
                f"config.json: {what} {size:,}, which {count:,} {by} do not divide; it is not supported"
            )
    shape = (rows, width // ((orders - 1) * heads))
    sizes = (orders, *((orders - 1) * heads,) * 2)
    return (
        Tensor("ple.table", shape, Placement(0), quantised=True, table="host", slices=slices, formats=_formats(c)),
        *(
            Tensor(f"ple.{name}", (size,), dtypes=("I64",), keep="I64", optional="the constants of the hash")
            for name, size in zip(_CONSTANTS, sizes, strict=True)
        ),
        linear("ple.key", streams * hidden, width),
        linear("ple.value", hidden, width),
        *(Tensor(f"ple.{name}", (streams * hidden,)) for name in _NORMS),
        Tensor("ple.conv", (streams * hidden, 1, c.size("ple_conv_kernel_size", 4))),
    )


def _hashes(c: Config) -> tuple[int, int]:
    """Return the largest order of n-grams, and the hash heads of each order from 2 on."""
    return c.size("ngram_size", 3, least=2), c.size("heads_per_ngram", 8)


def _formats(c: Config) -> tuple[Format, ...]:
    """Return the formats of a table: ``ple_embedding_dtype`` says which one, or else the headers do."""
    if (name := c.values.get("ple_embedding_dtype")) is None:
        return tuple(_FORMATS.values()) if c.values.get("quantization_config") else ()
    if name not in _FORMATS:
        hint = f"supported: {', '.join(_FORMATS)}"
        raise UnsupportedError(f"config.json: ple_embedding_dtype {name!r} is not supported", hint=hint)
    return (_FORMATS[name],)


_BESIDE = {
    **{f"ple.{name}": f"ple_embedding.{name}" for name in _CONSTANTS},
    **{f"ple.{name}": f"{name}.weight" for name in _NORMS},
    "ple.conv": "conv1d.weight",
}

SPELLING: Spelling = {
    "ple.table": f"{LAYER}ple.{_TABLE}shard_{{slice}}.weight",
    "ple.key": LAYER + "ple.key_proj.weight",
    "ple.value": LAYER + "ple.value_proj.weight",
    **{logical: f"{LAYER}ple.{stored}" for logical, stored in _BESIDE.items()},
}

NATIVE = (
    Param(f"{{block}}.ple.{_TABLE}weight", ("ple.table",)),
    Param("{block}.ple.kv_proj.weight", ("ple.key", "ple.value")),
    *(Param(f"{{block}}.ple.{stored}", (logical,)) for logical, stored in _BESIDE.items()),
)
