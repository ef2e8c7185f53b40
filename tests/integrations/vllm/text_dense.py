"""Dense text models that are no presets, as vLLM has them."""

from __future__ import annotations

from typing import Final

from tests.integrations.vllm.text_case import TextCase, text

WINDOWS: Final = {"layer_types": ["sliding_attention", "full_attention"] * 2}

CASES: Final[dict[str, TextCase]] = {
    "granite": TextCase(text("GraniteForCausalLM", "granite")),
    "granite, tied": TextCase(text("GraniteForCausalLM", "granite", tie_word_embeddings=True)),
    "granite-swa": TextCase(text("GraniteSWAForCausalLM", "granite_swa")),
    "glm-4": TextCase(text("Glm4ForCausalLM", "glm4")),
    "seed-oss": TextCase(text("SeedOssForCausalLM", "seed_oss")),
    "smollm-3": TextCase(text("SmolLM3ForCausalLM", "smollm3")),
    "ministral-3": TextCase(text("Ministral3ForCausalLM", "ministral3")),
    "exaone-4": TextCase(text("Exaone4ForCausalLM", "exaone4", num_nextn_predict_layers=None, **WINDOWS)),
    "olmo": TextCase(text("OlmoForCausalLM", "olmo")),
    "arcee": TextCase(text("ArceeForCausalLM", "arcee")),
    "nemotron": TextCase(text("NemotronForCausalLM", "nemotron")),
    "solar": TextCase(
        text("SolarForCausalLM", "llama"),
        {"bskcn_1": [1], "bskcn_2": [2], "bskcn_3": [3], "bskcn_4": [3], "bskcn_tv": [0.9, 0.8]},
    ),
    "cwm": TextCase(text("CwmForCausalLM", "cwm")),
    "pangu-embedded": TextCase(text("PanguEmbeddedForCausalLM", "llama")),
    "vaultgemma": TextCase(text("VaultGemmaForCausalLM", "vaultgemma")),
    "hyperclova-x": TextCase(text("HyperCLOVAXForCausalLM", "hyperclovax")),
}
