"""The page of models: every family, the formats in which `loadmaster synth` can make it, and whether it runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from loadmaster.architectures.registry import FAMILIES, find_family
from loadmaster.architectures.schema import Family
from loadmaster.architectures.spelling import respelled
from loadmaster.architectures.wrappers import WRAPPERS
from loadmaster.layers.formats import RUNNABLE_FORMATS
from loadmaster.plan.claims import read_claims
from loadmaster.synth import PRESETS
from tools.pages import table

INTRODUCTION = f"""\
Every family is planned, proven and loaded on every layout that its sizes allow. `generate` and `serve` compute those that
run, over pipeline stages: from weights in any format if they are decoded while loading (`--weights decoded`), or as stored
({", ".join(f or "plain" for f in RUNNABLE_FORMATS)}). They refuse the others by name, before anything is loaded. Other
packages [can bring more families](../guides/add-a-family.md).

Formats are those in which `loadmaster synth` makes models of the family, as published. [Any format](formats.md) may be met
in any family: the headers decide."""


KNOWN: Final = {"_TEXT_GENERATION_MODELS": (124, 124), "_MULTIMODAL_MODELS": (116, 127)}
"""Table of vLLM 0.33's registry → how many of its architectures are known, and how many it has. A test counts where vLLM is."""

COUNTED = f"""\
Of the architectures in the registry of vLLM 0.33 (`vllm/model_executor/models/registry.py`),
{" and ".join(f"{known} of {every} in `{name}`" for name, (known, every) in KNOWN.items())} are known, counted by their names in
that file, other names of a class included. The other multimodal ones have a language model that no family describes."""

WRAPPED = """\
The language model of these is planned, proven and loaded by its own family's tables, under other names. Vision and audio towers
and projectors are left unread, with that reason, or with `--multimodal` held by the first stage, as they are stored. Where no
class of transformers and no headers of a release could be compared, every plan has the warning `family-unchecked`."""

_EXAMPLE = {"embed": "model.embed_tokens.weight"}


def parts() -> list[str]:
    """Return the page's parts."""
    families = table(("family", "architectures", "formats here", "generate, serve"), map(_family, FAMILIES))
    wrappers = table(("architecture", "language model", "its names in the files"), _wrappers())
    presets = table(
        ("model", "family", "architecture", "format", "generate, serve"),
        ((f"`{name}`", *row) for name, row in _presets()),
    )
    return [
        INTRODUCTION,
        families,
        COUNTED,
        "## Models around a language model",
        WRAPPED,
        wrappers,
        "## Models that `loadmaster synth` makes",
        presets,
    ]


def _family(family: Family) -> tuple[str, ...]:
    met = [format_ for _, (name, _, format_, _) in _presets() if name == family.name]
    formats = sorted(set(met), key=met.index)
    runs = "runs" if family.runs else "planned and loaded only"
    return family.name, ", ".join(f"`{a}`" for a in family.architectures), ", ".join(formats), runs


def _wrappers() -> Iterator[tuple[str, str, str]]:
    for w in WRAPPERS:
        inside = f"`{w.language}`" if isinstance(w.language, str) else f"as `{w.section}` says"
        if callable(w.language):
            inside = "by `version`"
        forms = dict.fromkeys(respelled(_EXAMPLE, *p)["embed"] for p in w.prefixes)
        names = ", ".join(f"`{name}`" for name in forms if isinstance(name, str))
        note = "; not compared with a release" if w.unchecked else ""
        yield ", ".join(f"`{a}`" for a in w.architectures), inside + note, names


def _presets() -> Iterator[tuple[str, tuple[str, str, str, str]]]:
    for name, preset in PRESETS.items():
        config = preset.config_of(tiny=False)
        family = find_family(config)
        claims = read_claims(family.describe(config), "BF16")
        format_ = claims.formats[0].name if claims.formats else "plain"
        runs = "runs" if family.runs and format_ in _runnable() else ""
        yield name, (family.name, f"`{config['architectures'][0]}`", format_, runs)


def _runnable() -> tuple[str, ...]:
    return tuple(f or "plain" for f in RUNNABLE_FORMATS)
