"""The page of models: every family, the formats in which `loadmaster synth` can make it, and whether it runs."""

from __future__ import annotations

from collections.abc import Iterator

from loadmaster.architectures.registry import FAMILIES, find_family
from loadmaster.architectures.schema import Family
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


def parts() -> list[str]:
    """Return the page's parts."""
    families = table(("family", "architectures", "formats here", "generate, serve"), map(_family, FAMILIES))
    presets = table(
        ("model", "family", "architecture", "format", "generate, serve"),
        ((f"`{name}`", *row) for name, row in _presets()),
    )
    return [INTRODUCTION, families, "## Models that `loadmaster synth` makes", presets]


def _family(family: Family) -> tuple[str, ...]:
    met = [format_ for _, (name, _, format_, _) in _presets() if name == family.name]
    formats = sorted(set(met), key=met.index)
    runs = "runs" if family.runs else "planned and loaded only"
    return family.name, ", ".join(f"`{a}`" for a in family.architectures), ", ".join(formats), runs


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
