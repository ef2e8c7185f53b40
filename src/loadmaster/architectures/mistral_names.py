"""Mistral's own names, in which it publishes models beside, or instead of, those of transformers (``consolidated.safetensors``).

Names have no prefix. The rows of queries and keys are stored pair by pair, as rotary embeddings turn them; in transformers' form
the first rows of all pairs of a head come before the second ones.

Sources: ``convert_mistral_weights_to_hf.py`` of transformers 5.24; ``maybe_remap_mistral`` in vLLM's ``models/mistral.py``.
"""

from __future__ import annotations

from typing import Final

from loadmaster.architectures.schema import LANGUAGE_ONLY
from loadmaster.architectures.spelling import Spelling, packed

LAYER: Final = "layers.{layer}."


def gated_mlp(logical: str, stored: str) -> Spelling:
    """Return the spelling of a gated MLP, or of experts, under ``layers.{layer}.`` + ``stored``."""
    return {f"{logical}.{part}": f"{LAYER}{stored}.{name}.weight" for part, name in _MLP.items()}


_MLP: Final = {"gate": "w1", "down": "w2", "up": "w3"}

COMMON: Final[Spelling] = {
    "embed": "tok_embeddings.weight",
    "norm": "norm.weight",
    "head": "output.weight",
    "input_norm": LAYER + "attention_norm.weight",
    "post_norm": LAYER + "ffn_norm.weight",
    **gated_mlp("mlp", "feed_forward"),
}
"""What all models have but for attention."""

DENSE: Final[Spelling] = {
    **COMMON,
    **packed(LAYER + "attention.wq.weight", "attn.q", pairs=True),
    **packed(LAYER + "attention.wk.weight", "attn.k", pairs=True),
    "attn.v": LAYER + "attention.wv.weight",
    "attn.o": LAYER + "attention.wo.weight",
}
"""Dense models."""

VISION: Final = (
    r"(vision_encoder|vision_language_adapter|patch_merger|pre_mm_projector_norm)\..*",
    LANGUAGE_ONLY,
)
