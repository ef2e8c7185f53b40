"""What is known of a published model that can be written: config, formats, shards, and header details not in the config."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from loadmaster.architectures.registry import find_family
from loadmaster.architectures.schema import Family
from loadmaster.synth.quantised import QUANTISED

GROUP, TINY_GROUP = 128, 32
"""Inputs that share a factor in formats with groups: as published, and in tiny models."""


@dataclass(frozen=True)
class Preset:
    """One published model.

    ``tiny`` are the config values that make it small; nested objects are merged. ``formats`` are additional published formats
    (`QUANTISED`): each makes a preset ``name-format``. ``own_draft_head``: the MTP layer stores an embedding and a head.
    ``f32`` are logical tensors stored as F32. ``e8m0``: FP8 scales are stored as powers of two. ``shard_name`` is the pattern
    of its file names. ``extra`` are tensors outside the language model, as (dtype, shape). ``family`` describes it, where the
    config's architecture does not find it; names are in its usual spelling. ``unquantised`` lists the modules that the config
    says are not quantised, for any size.
    """

    name: str
    config: Mapping[str, Any]
    tiny: Mapping[str, Any]
    num_shards: int
    formats: tuple[str, ...] = ()
    format: str | None = None
    own_draft_head: bool = False
    f32: tuple[str, ...] = ()
    e8m0: bool = False
    shard_name: str = "model-{i:05d}-of-{n:05d}.safetensors"
    tiny_shards: int = 4
    extra: Mapping[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    family: Family | None = None
    unquantised: Callable[[Mapping[str, Any]], list[str]] | None = None

    def in_formats(self) -> Iterator[Preset]:
        """Yield the preset itself, and one for each of its formats."""
        yield self
        for name in self.formats:
            yield replace(self, name=f"{self.name}-{name}", formats=(), format=name, e8m0=name == "fp8-ue8m0")

    def family_of(self, config: Mapping[str, Any]) -> Family:
        """Return the family that describes ``config``, its config.json."""
        return self.family or find_family(config)

    def config_of(self, *, tiny: bool) -> dict[str, Any]:
        """Return its config.json, full size or tiny."""
        config = merged(self.config, self.tiny if tiny else {})
        if self.format:
            config["quantization_config"] = QUANTISED[self.format](TINY_GROUP if tiny else GROUP)
        if self.unquantised:
            left = {"modules_to_not_convert": self.unquantised(config)}
            config["quantization_config"] = {**config["quantization_config"], **left}
        return config


def merged(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config with some values changed, also inside nested objects; None removes one.

    >>> merged({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"c": 4}})
    {'a': 1, 'b': {'c': 4, 'd': 3}}
    """
    values = dict(config)
    for key, value in changes.items():
        nested = isinstance(value, Mapping) and isinstance(values.get(key), Mapping)
        values[key] = merged(values[key], value) if nested else value
    return {k: v for k, v in values.items() if v is not None}
