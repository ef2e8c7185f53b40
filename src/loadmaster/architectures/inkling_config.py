"""What the configs of Inkling and Inkling-2 say: defaults of their classes, other keys, which layers have a window, and sizes.

Layers with a window have separate numbers of heads (``swa_…``).

Sources: ``configuration_inkling.py`` and ``configuration_inkling2.py`` of transformers 5.24.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from loadmaster.architectures.config import Config
from loadmaster.errors import UnsupportedError

LAYERS: Final = ("hybrid", "hybrid_sliding")
"""The types of layers: without a window, with one."""


def described(c: Config, defaults: Mapping[str, Any], formats: Collection[str] = ()) -> Config:
    """Return a config with the defaults of its class, and that class's keys where published configs have other ones.

    ``formats`` are the methods of quantisation whose names are known.
    """
    method = c.section("quantization_config").values.get("quant_method", "")
    if c.values.get("quantization_config") is not None and not (isinstance(method, str) and method in formats):
        raise UnsupportedError(
            f"config.json: {c.values['architectures'][0]} quantised by {method or 'an unnamed method'} is not supported",
            hint=f"supported: {', '.join(('plain weights', *formats))}",
        )
    values = {**defaults, **c.values}
    if (dense := c.optional_size("dense_intermediate_size")) is not None:  # the other one is the experts' then
        values |= {"moe_intermediate_size": c.size("intermediate_size"), "intermediate_size": dense}
    return Config(values)


def local_layers(c: Config) -> frozenset[int]:
    """Return the layers with a window: those of the config, else five of six."""
    num_layers, given = c.size("num_hidden_layers"), c.sizes("local_layer_ids")
    default = [LAYERS[i in given if given else (i + 1) % 6 > 0] for i in range(num_layers)]
    types = c.types("layer_types", LAYERS, num_layers, default)
    return frozenset(i for i, kind in enumerate(types) if kind == LAYERS[True])


def conv_width(c: Config) -> int:
    """Return the number of tokens that a short convolution covers."""
    return c.size("conv_kernel_size", c.size("sconv_kernel_size", 4))


def sizes_of(c: Config, *, is_local: bool) -> tuple[int, int, int, int]:
    """Return heads, heads of keys, their elements, and the extent of relative positions, with a window or without."""
    keys = ("num_attention_heads", "num_key_value_heads", "head_dim")
    heads, kv_heads, head = (c.size(f"swa_{key}" if is_local else key) for key in keys)
    return heads, kv_heads, head, c.size("sliding_window_size" if is_local else "rel_extent")
