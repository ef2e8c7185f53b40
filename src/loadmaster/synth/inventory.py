"""Which tensors a checkpoint of a preset holds: names, dtypes and shapes, in the order of the files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from loadmaster.architectures.config import Config
from loadmaster.architectures.registry import find_family
from loadmaster.architectures.schema import Tensor
from loadmaster.checkpoint import Signature
from loadmaster.formats import fp8_block
from loadmaster.synth.presets import Preset, glm_ignored


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor to be written. ``logical`` is its name in the schema; ``component`` 0 holds values, 1 their scale."""

    name: str
    signature: Signature
    logical: str
    component: int = 0


def config_of(preset: Preset, *, tiny: bool) -> dict[str, Any]:
    """Return the config.json of a preset, full size or tiny."""
    config = {**preset.config, **(preset.tiny if tiny else {})}
    if preset.name.startswith("glm"):
        ignored = glm_ignored(
            config["num_hidden_layers"], config["first_k_dense_replace"], config["num_nextn_predict_layers"]
        )
        config["quantization_config"] = {**config["quantization_config"], "modules_to_not_convert": ignored}
    return config


def inventory(preset: Preset, config: dict[str, Any]) -> list[Entry]:
    """Return every tensor of the checkpoint."""
    family = find_family(config)
    schema = family.schema(Config(config))
    quantised = "quantization_config" in config
    block = config.get("quantization_config", {}).get("weight_block_size", (128, 128))
    kinds = dict(enumerate((*schema.layers, *schema.drafts)))

    def of(tensor: Tensor, layer: int) -> Iterator[Entry]:
        for expert in range(tensor.experts) if tensor.experts else (None,):
            name = family.spelling[tensor.name].format(layer=layer, expert=expert)
            if quantised and tensor.quantised:
                weight, scale = fp8_block(tuple(block)).components
                yield Entry(name, Signature(weight.dtypes[0], tensor.shape), tensor.name)
                yield Entry(
                    name.removesuffix("weight") + scale.suffix,
                    Signature(scale.dtypes[0], scale.shape(tensor.shape)),
                    tensor.name,
                    1,
                )
            else:
                dtype = tensor.keep or ("F32" if tensor.name in preset.f32 else "BF16")
                yield Entry(name, Signature(dtype, tensor.shape), tensor.name)

    entries = [e for t in schema.top for e in of(t, -1)]
    for layer, kind in kinds.items():
        for tensor in schema.kinds[kind]:
            if tensor.optional is None or preset.own_draft_head:
                entries += of(tensor, layer)
    return entries
