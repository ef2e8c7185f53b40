"""Model families as tables, and the algebra that turns them into expressions over stored tensors.

A family is three tables: its schema (logical tensors), its spelling (how a checkpoint names them) and its target (what
the running engine makes of them). Nothing here imports torch, reads a file or sees a rank.

What an author of a family needs is imported from here; `loadmaster.architectures.blocks` has the parts that families share.
"""

from loadmaster.architectures.config import Config
from loadmaster.architectures.schema import (
    LANGUAGE_ONLY,
    Family,
    Param,
    Placement,
    Schema,
    Tensor,
    by_columns,
    by_rows,
    by_vocabulary,
    embedding,
    linear,
)
from loadmaster.architectures.spelling import Packed, Spelling, packed, respelled

__all__ = [
    "LANGUAGE_ONLY",
    "Config",
    "Family",
    "Packed",
    "Param",
    "Placement",
    "Schema",
    "Spelling",
    "Tensor",
    "by_columns",
    "by_rows",
    "by_vocabulary",
    "embedding",
    "linear",
    "packed",
    "respelled",
]
