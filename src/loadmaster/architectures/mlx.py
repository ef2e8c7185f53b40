"""How MLX names a model's tensors: the names of mlx-lm's classes, which are the published ones for most dense models.

mlx-lm stacks experts, and for some models it also splits, transposes or changes stored values. Only architectures whose values
it leaves as they are can be read by these tables; they are listed by name. Source: ``sanitize`` of each class in
``mlx_lm/models``, version 0.32.2, whose parameters ``tools/format_goldens.py`` compares by name and shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from loadmaster.architectures.schema import Family
from loadmaster.architectures.spelling import Packed, Spelling
from loadmaster.errors import UnsupportedError

KEYS: Final = ("quantization", "quantization_config")
"""Where MLX writes its settings: since 2024 under both keys. It names no method."""

_AS_PUBLISHED: Final = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "GemmaForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "Phi3ForCausalLM",
    "PhiForCausalLM",
    "Olmo2ForCausalLM",
    "GraniteForCausalLM",
    "CohereForCausalLM",
    "Cohere2ForCausalLM",
    "StableLmForCausalLM",
    "SeedOssForCausalLM",
    "SmolLM3ForCausalLM",
    "Ernie4_5ForCausalLM",
    "GlmForCausalLM",
    "Glm4ForCausalLM",
    "NemotronForCausalLM",
    "InternLM2ForCausalLM",
    "HunYuanDenseV1ForCausalLM",
)
_STACKED: Final = (("experts.{expert}.", "switch_mlp."),)
_OF_MIXTRAL: Final = (*_STACKED, (".w1.", ".gate_proj."), (".w2.", ".down_proj."), (".w3.", ".up_proj."))

NAMES: Final[Mapping[str, tuple[tuple[str, str], ...]]] = {
    **dict.fromkeys(_AS_PUBLISHED, ()),
    "Qwen2MoeForCausalLM": _STACKED,
    "Qwen3MoeForCausalLM": _STACKED,
    "MixtralForCausalLM": _OF_MIXTRAL,
}
"""Architecture -> how the names of experts change; all experts of a layer are in one tensor."""


def key_of_mlx(config: Mapping[str, Any]) -> str | None:
    """Return the key under which a config has MLX's settings; None if it has none.

    >>> key_of_mlx({"quantization": {"group_size": 64, "bits": 4}}), key_of_mlx({"quantization_config": {"quant_method": "fp8"}})
    ('quantization', None)
    """
    for key in KEYS:
        value = config.get(key)
        if isinstance(value, Mapping) and "quant_method" not in value and {"group_size", "bits"} <= value.keys():
            return key
    return None


def named_by_mlx(family: Family, architecture: str) -> Family:
    """Return a family with the names that MLX gives its tensors.

    Raises:
        UnsupportedError: they are not known, or MLX changes values too.
    """
    changes = NAMES.get(architecture)
    if changes is None:
        raise UnsupportedError(
            f"config.json: {architecture} was converted to MLX, and how MLX names or changes its tensors is not described",
            hint=f"take the weights that were converted, or a copy in another format; described: {', '.join(NAMES)}",
        )
    spellings = tuple(_changed(s, changes) for s in family.spellings)
    return replace(family, spelling=spellings[0], variants=spellings[1:])


def _changed(spelling: Spelling, changes: tuple[tuple[str, str], ...]) -> dict[str, str | Packed]:
    """Return a spelling with the experts of each layer in one tensor."""

    def stacked(logical: str, stored: str | Packed) -> str | Packed:
        if not isinstance(stored, str) or "{expert}" not in stored:
            return stored
        for old, new in changes:
            stored = stored.replace(old, new)
        return Packed(stored, (logical,), stacked=True)

    return {logical: stacked(logical, stored) for logical, stored in spelling.items()}
