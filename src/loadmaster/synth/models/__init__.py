"""The published models that can be written, by the kind of their layers."""

from __future__ import annotations

from loadmaster.synth.models import dense, hybrids, inkling, kda, latent, mamba, mixtures, step, streams
from loadmaster.synth.presets import Preset

KINDS = (dense, mixtures, latent, hybrids, kda, mamba, step, streams, inkling)

PRESETS: dict[str, Preset] = {
    preset.name: preset for kind in KINDS for published in kind.PRESETS for preset in published.in_formats()
}
"""Every model that can be written, by the name that ``loadmaster synth`` accepts."""
