"""Will it fit, and where should it be cut: memory, KV cache, layouts and load times, from a plan. Runs without torch."""

from loadmaster.sizing.cache import Cache, LayerCache, Row, plan_cache

__all__ = ["Cache", "LayerCache", "Row", "plan_cache"]
