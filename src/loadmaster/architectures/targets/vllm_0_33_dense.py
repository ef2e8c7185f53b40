"""vLLM 0.33's dense models whose layers are of one kind: architecture in config.json → how vLLM implements it (`vllm`).

Sources: ``granite``, ``glm4``, ``exaone4``, ``mistral``, ``nemotron``, ``solar``, ``openpangu``, ``hyperclovax`` and
``transformers`` in ``vllm/model_executor/models``, of 0.33.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from loadmaster.architectures.targets.vllm import Described

_GRANITE: Final = Described(("GraniteForCausalLM",), sends=("hidden_states",))
_OF_TRANSFORMERS: Final = Described(("TransformersForCausalLM",), sends=("hidden_states",))
"""Models of which vLLM has no class: it fuses the linear layers of transformers' class."""

DESCRIBED: Final[Mapping[str, Described]] = {
    **dict.fromkeys(("ArceeForCausalLM", "CwmForCausalLM", "OlmoForCausalLM", "SeedOssForCausalLM"), _OF_TRANSFORMERS),
    **dict.fromkeys(("SmolLM3ForCausalLM", "VaultGemmaForCausalLM"), _OF_TRANSFORMERS),
    **{
        name: Described((name,))
        for name in (
            "Exaone4ForCausalLM",
            "Glm4ForCausalLM",
            "HyperCLOVAXForCausalLM",
            "NemotronForCausalLM",
            "PanguEmbeddedForCausalLM",
            "SolarForCausalLM",
        )
    },
    **dict.fromkeys(("GraniteForCausalLM", "GraniteSWAForCausalLM"), _GRANITE),
    "Ministral3ForCausalLM": Described(("MistralForCausalLM",)),
}
