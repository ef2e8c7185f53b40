"""Sparse attention by an indexer: which layers select tokens, and which reuse what an earlier one has selected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

from loadmaster.architectures.config import Config
from loadmaster.architectures.schema import Carried
from loadmaster.errors import ConfigError


def indexer_types(c: Config) -> tuple[str, ...]:
    """Return for each layer whether it selects tokens (``full``), reuses the last selection (``shared``) or has ``none``.

    The rule is that of ``GlmMoeDsaConfig``: an explicit list, else a pattern of F and S, else a frequency and an offset.
    """
    num_layers = c.size("num_hidden_layers")
    if c.values.get("index_topk") is None:
        return ("none",) * num_layers
    types = c.strings("indexer_types")
    pattern = c.values.get("index_topk_pattern")
    if not types and isinstance(pattern, str):
        types = tuple({"F": "full", "S": "shared"}.get(letter, letter) for letter in pattern)
    elif not types:
        freq, offset = c.size("index_topk_freq", 1), c.size("index_skip_topk_offset", 2, least=0)
        types = tuple("full" if max(i - offset + 1, 0) % freq == 0 else "shared" for i in range(num_layers))
    if len(types) < num_layers or not set(types) <= {"full", "shared"}:
        raise ConfigError(f"config.json: indexer_types must give full or shared for each of {num_layers} layers")
    if types[0] == "shared":
        raise ConfigError("config.json: indexer_types begins with shared, but no earlier layer selects tokens")
    return types[:num_layers]


def draft_indexer(c: Config) -> str:
    """Return the type of the MTP layers: they have an indexer of their own in every model with indexers."""
    return "none" if c.values.get("index_topk") is None else "full"


def selections(c: Config, indexers: Sequence[str]) -> tuple[tuple[Carried, ...], ...]:
    """Return for each layer the selection of tokens that it takes from an earlier one; nothing where it makes its own."""
    selecting = accumulate((0 if kind == "shared" else i for i, kind in enumerate(indexers)), max)
    selection = Carried("topk_indices", (c.size("index_topk", 1),), "I64")
    return tuple((replace(selection, source=source),) if source < i else () for i, source in enumerate(selecting))
