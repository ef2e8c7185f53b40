"""Adapters that put `loadmaster.needed` in front of other loaders of safetensors files, one module for each loader.

Each yields the stored tensors that a rank needs something of, whole, and reads little else. Filters that are made from names
alone get this wrong: they have dropped copies of experts, or scales beside packed values. A plan knows what a rank's parameters
are made of.
"""

from itertools import groupby

from loadmaster.plan import NeededTensor, Plan, needed


def needed_by_shard(plan: Plan, rank: int) -> dict[str, list[NeededTensor]]:
    """Return the stored tensors that a rank needs, by shard, both in order.

    Raises:
        ArgumentError: the layout has no such rank.
    """
    return {shard: list(of) for shard, of in groupby(needed(plan, rank).values(), key=lambda t: t.shard)}
