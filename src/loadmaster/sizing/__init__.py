"""Will it fit, and where should it be cut: memory, KV cache, layouts and load times, from a plan. Runs without torch."""

from loadmaster.sizing.auto import auto_partition
from loadmaster.sizing.cache import Cache, LayerCache, Row, plan_cache
from loadmaster.sizing.memory import Memory, MemoryOptions, RankMemory, measure, measure_proof
from loadmaster.sizing.verdict import with_memory

__all__ = [
    "Cache",
    "LayerCache",
    "Memory",
    "MemoryOptions",
    "RankMemory",
    "Row",
    "auto_partition",
    "measure",
    "measure_proof",
    "plan_cache",
    "with_memory",
]
