"""Architecture name → family. One line for each family of this package; other packages add theirs through an entry point.

This package's families are looked up first. Other packages are searched (`loadmaster.architectures.plugins`) only for an
architecture that none of these has, so the search costs nothing where it isn't needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import cache
from typing import Any, Final

from loadmaster.architectures import (
    alice_ai,
    aria,
    bailing_hybrid,
    bailing_linear,
    bailing_moe,
    dbrx,
    deepseek,
    deepseek_model,
    deepseek_v4,
    deepseek_v41,
    dense,
    domyn_edge,
    dory,
    exaone4,
    falcon,
    gemma3,
    gemma3n,
    gemma4,
    glm,
    glm4_moe,
    glm5_next,
    gpt2,
    gpt_oss,
    granite_moe,
    hunyuan,
    hy_v4,
    inkling,
    inkling2,
    interns1_pro,
    k2_horizon,
    kimi_linear,
    lfm2,
    llama,
    llama4,
    longcat_flash,
    looped,
    mamba,
    mamba_hybrids,
    mimo,
    mimo_v2,
    minimax_m3,
    minimax_text,
    mistral_large,
    mistral_large4,
    mixtral,
    molmo,
    moondream,
    muse_spark,
    nemotron_h,
    nemotron_nas,
    olmo,
    olmo_hybrid,
    opt,
    other_dense,
    other_mla,
    other_moe,
    packed_qkv,
    phi,
    phi3,
    plain_mlp,
    plamo,
    qwen3_5,
    qwen3_next,
    qwen4_exp,
    qwen_moe,
    sparse,
    step3,
    step3_text,
    step5,
    zamba2,
)
from loadmaster.architectures.aliases import MODEL_TYPES, architecture_of
from loadmaster.architectures.config import Config
from loadmaster.architectures.mlx import key_of_mlx, named_by_mlx
from loadmaster.architectures.model import Model
from loadmaster.architectures.schema import Family
from loadmaster.architectures.wrappers import WRAPPERS, wrapper_of
from loadmaster.errors import ConfigError, UnsupportedError

FAMILIES: tuple[Family, ...] = (
    deepseek.FAMILY,
    deepseek_v4.FAMILY,
    kimi_linear.FAMILY,
    bailing_hybrid.FAMILY,
    mistral_large.MLA,
    mistral_large4.FAMILY,
    hy_v4.FAMILY,
    longcat_flash.FAMILY,
    muse_spark.FAMILY,
    inkling.FAMILY,
    inkling2.FAMILY,
    deepseek_v41.FAMILY,
    llama.FAMILY,
    qwen_moe.FAMILY,
    qwen3_next.FAMILY,
    qwen3_5.FAMILY,
    qwen4_exp.FAMILY,
    mixtral.FAMILY,
    glm4_moe.FAMILY,
    glm5_next.FAMILY,
    gpt_oss.FAMILY,
    llama4.FAMILY,
    gemma3.FAMILY,
    gemma4.FAMILY,
    gemma3n.FAMILY,
    phi3.FAMILY,
    granite_moe.FAMILY,
    olmo.FAMILY,
    dense.FAMILY,
    exaone4.FAMILY,
    other_dense.FAMILY,
    other_dense.EXAONE,
    other_dense.TELECHAT2,
    nemotron_nas.FAMILY,
    glm.FAMILY,
    plain_mlp.FAMILY,
    plain_mlp.APERTUS,
    opt.OPT,
    opt.PERSIMMON,
    falcon.FALCON,
    falcon.BLOOM,
    falcon.NEOX,
    gpt2.GPT2,
    gpt2.MPT,
    phi.PHI,
    phi.GPTJ,
    packed_qkv.QWEN,
    packed_qkv.CHATGLM,
    packed_qkv.BAICHUAN,
    packed_qkv.INTERNLM2,
    mimo.FAMILY,
    mimo_v2.FAMILY,
    minimax_m3.FAMILY,
    nemotron_h.FAMILY,
    step3.FAMILY,
    other_moe.PHIMOE,
    other_moe.ERNIE,
    other_moe.DOTS1,
    *sparse.FAMILIES,
    granite_moe.SWA,
    bailing_moe.FAMILY,
    bailing_linear.FAMILY,
    other_mla.FAMILY,
    other_mla.PANGU,
    other_mla.MINICPM3,
    minimax_text.FAMILY,
    olmo_hybrid.FAMILY,
    plamo.FAMILY,
    step3_text.FAMILY,
    molmo.MOLMO,
    molmo.MOLMO2,
    mamba.PURE,
    mamba.JAMBA,
    mamba_hybrids.PURE,
    mamba_hybrids.HYBRID,
    mamba_hybrids.GRANITE_HYBRID,
    zamba2.FAMILY,
    dbrx.FAMILY,
    looped.HRM_TEXT,
    looped.LOOP_CODER,
    dory.FAMILY,
    alice_ai.FAMILY,
    domyn_edge.FAMILY,
    k2_horizon.FAMILY,
    step5.FAMILY,
    moondream.FAMILY,
    aria.FAMILY,
    interns1_pro.FAMILY,
    hunyuan.FAMILY,
    lfm2.FAMILY,
)

MODELS: dict[str, Callable[[Config], Model]] = {
    "deepseek": deepseek_model.read_model,
    "llama": llama.read_model,
    "qwen_moe": qwen_moe.read_model,
    "mixtral": mixtral.read_model,
    "glm4_moe": glm4_moe.read_model,
    "gpt_oss": gpt_oss.read_model,
    "gemma3": gemma3.read_model,
    "phi3": phi3.read_model,
    "granite_moe": granite_moe.read_model,
    "olmo": olmo.read_model,
}
"""What reads the config of a family that runs, by the family's name."""


class DescribedConfig(dict[str, Any]):
    """A config.json together with its family: for a family that is not registered (yet), as in its tests."""

    def __init__(self, values: Mapping[str, Any], family: Family) -> None:
        super().__init__(values)
        self.family = family


LANGUAGE_SECTIONS: Final = ("text_config", "llm_config", "language_config", "thinker_config")
"""Sections in which configs of models with vision describe their language model."""


def find_family(config: Mapping[str, Any]) -> Family:
    """Return the family of the architecture that ``config`` means (`architecture_of`).

    Raises:
        ConfigError: it names none, or one that is not known; the hint has the nearest names.
        UnsupportedError: it was converted to MLX, which names its tensors in a way that is not described.
        FamilyError: the architecture is not known here, and a package that may describe it is broken, or two describe it.
    """
    if isinstance(config, DescribedConfig):
        return config.family
    name = architecture_of(config)
    if name is None:
        message, hint = _unnamed(config)
        raise ConfigError(message, hint=hint)
    family = _find(name, config)
    return family if key_of_mlx(config) is None else named_by_mlx(family, name)


def _find(name: str, config: Mapping[str, Any]) -> Family:
    if (family := own_family(name)) is not None:
        return family
    if (wrapper := wrapper_of(name)) is not None:
        return _wrapped(name, wrapper.language_of(config))

    from loadmaster.architectures.plugins import find_plugin

    plugin = find_plugin(name, known())
    if plugin is not None:
        return plugin
    raise ConfigError(
        f"config.json: the architecture {name!r} is not known",
        hint=f"{_nearest(name, known())}{_inside(config)}docs/reference/models.md lists what is known; other packages can add "
        "more (docs/guides/add-a-family.md)",
        code="architecture-unknown",
    )


def own_family(architecture: str) -> Family | None:
    """Return this package's family of an architecture that is no wrapper; None where it has none."""
    return next((f for f in FAMILIES if architecture in f.architectures), None)


@cache
def _wrapped(architecture: str, language: str) -> Family:
    """Return the family of a wrapper around a language model."""
    family, wrapper = own_family(language), wrapper_of(architecture)
    assert wrapper is not None
    if family is None:
        raise ConfigError(
            f"config.json: the language model of {architecture} is {language!r}, which is not known",
            hint=f"{_nearest(language, known())}docs/reference/models.md lists what is known",
            code="architecture-unknown",
        )
    return wrapper.around(family, language, architecture)


def _unnamed(config: Mapping[str, Any]) -> tuple[str, str]:
    """Return message and hint for a config whose architecture nothing says."""
    example = '"architectures" must be a list with the model class, such as ["LlamaForCausalLM"]'
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type in MODEL_TYPES:
        return "config.json names no architecture", example
    return (
        f"config.json names no architecture, and the model_type {model_type!r} is not known",
        f"{_nearest(model_type, MODEL_TYPES)}{example}",
    )


def _nearest(name: str, choices: Iterable[str]) -> str:
    """Return the beginning of a hint: the known names that are most like ``name``; nothing where none is."""
    near = get_close_matches(name, list(choices), 3, 0.6)
    return f"nearest: {', '.join(near)}; " if near else ""


def _inside(config: Mapping[str, Any]) -> str:
    """Return the part of a hint about the language model inside a model with other parts; nothing where there is none."""
    sections = ((key, config.get(key)) for key in LANGUAGE_SECTIONS)
    named = ((key, architecture_of(s)) for key, s in sections if isinstance(s, Mapping))
    return next(
        (
            f"its language model ({key}) is {name}, which is {'known' if name in known() else 'not known either'}; "
            for key, name in named
            if name is not None
        ),
        "",
    )


def read_model(config: Mapping[str, Any]) -> Model:
    """Return what computing the model needs to know of its config.json.

    Raises:
        UnsupportedError: the family cannot be run, or the config asks for something that its layers do not compute.
        ConfigError: a value is missing or impossible.
    """
    family = find_family(config)
    reader = MODELS.get(family.name) if family.runs else None
    if reader is None:
        raise UnsupportedError(f"models of the family {family.name} can be planned and loaded, not run yet")
    return reader(family.describe(config))


def known() -> tuple[str, ...]:
    """Return the names of all architectures that this package describes."""
    every = (*(f.architectures for f in FAMILIES), *(w.architectures for w in WRAPPERS))
    return tuple(name for names in every for name in names)
