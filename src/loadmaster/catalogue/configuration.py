"""Configuration: what is wrong with config.json, or with what the user requested."""

from __future__ import annotations

from typing import Final

from loadmaster.catalogue.entry import Entry

CONFIGURATION: Final[dict[str, Entry]] = {
    "config-missing": Entry(
        "there is no config.json",
        "shards copied without it",
        "config.json: there is no config.json",
        "copy the config.json that was published with the checkpoint",
    ),
    "config-invalid": Entry(
        (
            "config.json, or the hf_quant_config.json that describes its quantisation, is not a JSON object, or a key is missing "
            "or has an impossible value"
        ),
        "a config edited by hand, or one of another version of the architecture",
        "config.json: hidden_size is '320', expected an integer of at least 1",
        "take the published config.json",
    ),
    "config-implausible": Entry(
        "a value of config.json is possible but unlikely",
        "a config edited by hand, a placeholder that was never replaced",
        ("config.json: max_position_embeddings is 1,000,000,000; no published model has more than ten million"),
        "take the published config.json",
    ),
    "quantization-disagrees": Entry(
        "config.json and hf_quant_config.json (ModelOpt's) describe different quantisations",
        "a checkpoint quantised again, in a folder where one of the two files belongs to the earlier one",
        (
            "hf_quant_config.json: this file says that the weights are quantised as NVFP4, config.json says "
            "fp8; using config.json"
        ),
        "remove hf_quant_config.json if config.json is right, else the quantization_config from config.json",
    ),
    "architecture-unknown": Entry(
        "the config names an architecture that is not described here",
        "a model family that is not supported, or a misspelt `architectures`",
        "config.json: the architecture 'GlmForever' is not known",
        "see the README for the supported families; a new family is a table of its tensors",
    ),
    "family-unchecked": Entry(
        "the tables of the model's family were not compared with the headers of a release, nor with a class of transformers",
        "a family whose names come from another program's loader or from its documentation",
        (
            "config.json: the tables of KimiVLForConditionalGeneration were not compared with a release: transformers has no "
            "class of it; its names are those of vLLM's loader"
        ),
        "none needed where the plan is proven: every stored tensor is then read or waived, in the shape that the config gives",
    ),
    "plugin-broken": Entry(
        "another package that describes the config's architecture, or may, cannot be used",
        (
            "a package with an entry point of the group loadmaster.families that does not import, whose tables are wrong, or"
            " that another one repeats"
        ),
        (
            "config.json: the architecture 'AcmeForCausalLM' is not known, and a package that may describe it is broken: "
            "acme 1.2 (entry point family = acme:FAMILY): ModuleNotFoundError: No module named 'acme_kernels'"
        ),
        "fix, update or uninstall the package that the message names",
    ),
    "unsupported": Entry(
        "what the config declares, or what the user requested, is valid but not supported yet",
        "a quantisation method or a variant of a family that is not described here",
        "config.json: quantization_config.quant_method 'exl2' is not supported",
        "the message says what is supported",
    ),
    "plan-invalid": Entry(
        "the given plan is not a plan, or this version would make it differently",
        "ranks that run different versions, a plan saved before an update",
        "a plan of version 1, expected 9",
        "plan again, with one version on all hosts",
    ),
}
