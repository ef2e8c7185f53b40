"""Layers that read the KV cache of an earlier layer: no cut between stages may lie between the two."""

from __future__ import annotations

from collections.abc import Sequence

from loadmaster.architectures.config import Config
from loadmaster.errors import ConfigError


def unread(sources: Sequence[int], stored: str) -> tuple[tuple[str, str], ...]:
    """Return the pattern of what layers store that read the cache of another layer, with the reason; nothing without such layers.

    ``stored`` is a pattern of these modules' names in attention.
    """
    layers = "|".join(str(layer) for layer, source in enumerate(sources) if source < layer)
    pattern = rf"(.*\.)?layers\.({layers})\.self_attn\.{stored}\..*"
    return ((pattern, "keys and values of another layer are used"),) if layers else ()


def given_sources(c: Config, num_layers: int) -> tuple[int, ...]:
    """Return for each layer the layer whose KV cache it reads, as ``kv_source_layers`` gives them.

    Raises:
        ConfigError: they are not themselves, or earlier layers with a cache.
    """
    sources = c.sizes("kv_source_layers") or tuple(range(num_layers))
    if len(sources) != num_layers or any(s > layer or sources[s] != s for layer, s in enumerate(sources)):
        raise ConfigError(
            f"config.json: kv_source_layers must give for each of {num_layers} layers itself, or an earlier layer that gives "
            "itself"
        )
    return sources


def last_sources(c: Config, is_full: Sequence[bool]) -> tuple[int, ...]:
    """Return for each layer the layer whose KV cache it reads: ``num_kv_shared_layers`` read the last of their type before these.

    ``is_full`` gives the type of each layer: without a window, or with one.

    Raises:
        ConfigError: no layer of a type has a cache.
    """
    own = len(is_full) - c.size("num_kv_shared_layers", 0, least=0)
    last = {full: max((n for n in range(own) if is_full[n] == full), default=-1) for full in (True, False)}
    sources = tuple(layer if layer < own else last[full] for layer, full in enumerate(is_full))
    if min(sources) < 0:
        raise ConfigError(
            f"config.json: num_kv_shared_layers leaves {own} of {len(is_full)} layers with keys and values of their own",
            hint="each type in layer_types needs one",
        )
    return sources
