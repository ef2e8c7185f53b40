"""The published models that can be written, by the kind of their layers."""

from __future__ import annotations

from loadmaster.synth.models import dense, hybrids, latent, mixtures
from loadmaster.synth.presets import Preset

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for kind in (dense, mixtures, latent, hybrids)
    for published in kind.PRESETS
    for preset in published.in_formats()
}
"""Every model that can be written, by the name that ``loadmaster synth`` accepts."""
