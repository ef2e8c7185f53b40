"""How large a checkpoint's files and its config may be: every limit, its reason, and the largest published value known.

A checkpoint is not trusted. Without limits a few bytes of a config, or a file of zeros, could ask for more time and memory
than the machine has. Within them a command that reads only headers ends within 10 seconds and 1 GiB on an ordinary
machine. No published model comes near, except Kimi-K3 with its tensors and its index. Larger values are refused, never
truncated. ``docs/reference/limits.md`` is generated from this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Limit:
    """At most ``value`` ``of`` something; ``known`` is the largest published, ``reason`` what the limit prevents."""

    value: int
    of: str
    known: str
    reason: str

    def exceeded(self, count: int) -> str:
        """Return the message for a value above the limit.

        >>> Limit(10, "dims of a tensor", "5", "").exceeded(1000)
        '1,000 dims of a tensor, and the limit is 10'
        """
        return f"{count:,} {self.of}, and the limit is {self.value:,}"

    @property
    def hint(self) -> str:
        """What to do about it, with the largest published value."""
        return f"the largest published: {self.known}; see docs/reference/limits.md"


class LimitError(ValueError):
    """A value is above a limit. ``hint`` says what to do."""

    def __init__(self, limit: Limit, count: int) -> None:
        super().__init__(limit.exceeded(count))
        self.hint = limit.hint


# Files ----------------------------------------------------------------------------------------------------------------

FOLDER_FILES: Final = Limit(
    100_000, "files in the folder", "about 1,000, documents included", "a folder that takes seconds to list"
)
SHARDS: Final = Limit(
    10_000,
    "shards",
    "about 200 (DeepSeek-V3, Llama 3.1 405B), 770 of other formats (Grok-1)",
    "an index of a million files, a name that ends in -of-999999",
)
TENSORS: Final = Limit(
    1_100_000,
    "tensors in the checkpoint",
    "497,220 (Kimi-K3; in NVFP4 it has 991,645)",
    "millions of names, each with its finding",
)
HEADER_BYTES: Final = Limit(
    50_000_000,
    "bytes of a shard's header",
    "under 5,000,000 (mixtures of experts in one file)",
    "headers of 100,000,000 bytes, which the format allows",
)
NAME_CHARACTERS: Final = Limit(
    512, "characters of a tensor's name", "about 150", "a name of megabytes, repeated in every message"
)
DIMS: Final = Limit(16, "dims of a tensor", "5 (convolutions over video)", "shapes of millions of numbers")
SIGNATURES: Final = Limit(
    20_000, "different dtypes and shapes", "about 100", "another shape for each of half a million tensors"
)
INDEX_BYTES: Final = Limit(
    140_000_000,
    "bytes of the index",
    "about 59,000,000 (Kimi-K3; in NVFP4 121,000,000)",
    "an index that fills the memory",
)
CONFIG_BYTES: Final = Limit(
    8_000_000, "bytes of the file", "about 2,000,000 (a quantisation told module by module)", "a config of gigabytes"
)
CONFIG_PARTS: Final = Limit(
    200_000, "lists and objects in the file", "about 10,000", "millions of empty lists, 20 times their text in memory"
)
CONFIG_DEPTH: Final = Limit(32, "objects or lists within one another", "8", "nesting that ends in a crash of a parser")

MANIFEST_BYTES: Final = Limit(
    16_000_000, "bytes of a manifest of SHA-256", "under 100,000", "a manifest that fills the memory"
)

# The model ------------------------------------------------------------------------------------------------------------

LAYERS: Final = Limit(1_000, "layers", "126 (Llama 3.1 405B)", "a billion layers")
DRAFT_LAYERS: Final = Limit(64, "MTP layers", "3 (MiMo)", "a billion MTP layers")
EXPERTS: Final = Limit(4_096, "experts", "2,048 (Switch-C), 512 of the families here (Qwen3-Next)", "a billion experts")
SIZE: Final = Limit(
    2**24,
    "of any other count or size",
    "262,208 (the vocabulary of Gemma 3)",
    "shapes whose products are no numbers of 64 bits",
)
ROWS: Final = Limit(
    2**32,
    "rows of a table of n-grams",
    "384,016,682 (DeepSeek-V4.1)",
    "shapes whose products are no numbers of 64 bits",
)
HASH_HEADS: Final = Limit(
    4_096, "hash heads of n-grams in all tables", "48 (DeepSeek-V4.1)", "seconds of looking for prime numbers"
)
ELEMENTS: Final = Limit(
    2**50, "elements in all tensors", "about 2^41 (2 trillion parameters)", "sums that are no numbers of 64 bits"
)
UNMET: Final = Limit(
    100_000,
    "tensors that config.json describes are missing, or not as it describes them",
    "about 70,000 (all weights of Kimi-K2)",
    "seconds of explaining what another model's config describes",
)
UNQUANTISED: Final = Limit(
    100_000, "modules left out of the quantisation", "about 10,000", "seconds of comparing names"
)
PATTERNS: Final = Limit(
    500,
    "patterns of modules left out of the quantisation, beside names that end in *",
    "about 20",
    "seconds of matching",
)
PATTERN_CHARACTERS: Final = Limit(512, "characters of a pattern", "about 100", "patterns that take long to compile")

# The layout -----------------------------------------------------------------------------------------------------------

RANKS: Final = Limit(
    65_536, "ranks of the layout", "about 16,000 (training of Llama 3.1 405B)", "a billion ranks, each with its figures"
)

LIMITS: Final[dict[str, tuple[Limit, ...]]] = {
    "Files": (
        FOLDER_FILES,
        SHARDS,
        TENSORS,
        HEADER_BYTES,
        NAME_CHARACTERS,
        DIMS,
        SIGNATURES,
        INDEX_BYTES,
        CONFIG_BYTES,
        CONFIG_PARTS,
        CONFIG_DEPTH,
        MANIFEST_BYTES,
    ),
    "The model": (
        LAYERS,
        DRAFT_LAYERS,
        EXPERTS,
        SIZE,
        ROWS,
        HASH_HEADS,
        ELEMENTS,
        UNMET,
        UNQUANTISED,
        PATTERNS,
        PATTERN_CHARACTERS,
    ),
    "The layout": (RANKS,),
}
"""All limits, by subject."""

OF_KEYS: Final[dict[str, Limit]] = {
    "num_hidden_layers": LAYERS,
    "num_layers": LAYERS,
    "num_layers_per_stack": LAYERS,
    "n_layer": LAYERS,
    "n_layers": LAYERS,
    "num_nextn_predict_layers": DRAFT_LAYERS,
    "num_mtp_layers": DRAFT_LAYERS,
    "num_mtp_modules": DRAFT_LAYERS,
    "n_routed_experts": EXPERTS,
    "num_experts": EXPERTS,
    "num_local_experts": EXPERTS,
    "moe_num_experts": EXPERTS,
    "n_experts": EXPERTS,
    "dspark_n_routed_experts": EXPERTS,
    "zero_expert_num": EXPERTS,
    "engram_num_embeddings": ROWS,
    "engram_vocab_size": ROWS,
    "ngram_vocab_size_base": ROWS,
}
"""Limits of a config's keys; all other counts and sizes have `SIZE`."""
