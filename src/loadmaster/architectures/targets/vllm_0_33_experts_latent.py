"""vLLM 0.33's further mixtures of experts with latent attention: architecture in config.json → how vLLM implements it (`vllm`).

Sources: ``longcat_flash``, ``glm4_moe_lite``, ``AXK1``, ``sarvam`` and ``openpangu`` in
``vllm/model_executor/models``, of 0.33.0, and the files of their MTP layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from loadmaster.architectures.targets.vllm import CORRECTION, EXPERTS, F32_ROUTER, TIED, Described, without

DESCRIBED: Final[Mapping[str, Described]] = {
    "LongcatFlashForCausalLM": Described(
        ("LongcatFlashForCausalLM",),
        modules=(EXPERTS, ("mlp.gate.weight", "mlp.router.classifier.weight"), ("mlp.gate.", "mlp.router.")),
        keep=(("mlp.router.classifier.weight", "F32"),),
        obstacle=without(TIED),
    ),
    "Glm4MoeLiteForCausalLM": Described(
        ("Glm4MoeLiteForCausalLM",), drafts=("Glm4MoeLiteMTP",), keep=F32_ROUTER, obstacle=without(TIED)
    ),
    "AXK1ForCausalLM": Described(("AXK1ForCausalLM",), obstacle=without(TIED)),
    "SarvamMLAForCausalLM": Described(("SarvamMLAForCausalLM",), computed=(CORRECTION,)),  # less their mean
    **dict.fromkeys(
        ("PanguUltraMoEForCausalLM", "PanguProMoEV2ForCausalLM"),
        Described(("PanguUltraMoEForCausalLM", "PanguProMoEV2ForCausalLM"), drafts=("OpenPanguMTP",)),
    ),
}
