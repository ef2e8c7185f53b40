"""Before the first tensor is read, all ranks compare their plans."""

from __future__ import annotations

from loadmaster.distributed.group import HASH_BYTES, PipelineGroup
from loadmaster.distributed.mesh import Mesh
from loadmaster.errors import LoadError


def agree(plan_hash: str, pipeline: PipelineGroup, mesh: Mesh | None = None) -> None:
    """Compare the hash of this rank's plan, a SHA-256 in hexadecimal, with those of all other ranks.

    The ranks of one slot compare along the stages, then all ranks of a stage (``mesh``, if there are several) what they have
    collected.

    Raises:
        LoadError: ranks have different plans; names the ranks.
        PeerLostError: another rank ended.
    """
    own_hash = bytes.fromhex(plan_hash)
    assert len(own_hash) == HASH_BYTES, plan_hash
    collected = pipeline.collect(own_hash)
    by_slot = [collected] if mesh is None else mesh.all_gather(collected)
    hashes = [
        by_stage[stage * HASH_BYTES : (stage + 1) * HASH_BYTES].hex()
        for stage in range(pipeline.num_stages)
        for by_stage in by_slot
    ]
    if set(hashes) == {plan_hash}:
        return
    ranks_by_hash: dict[str, list[str]] = {}
    for rank, rank_hash in enumerate(hashes):
        ranks_by_hash.setdefault(rank_hash[:16], []).append(str(rank))
    shown = ", ".join(f"{h} on rank {' '.join(ranks)}" for h, ranks in ranks_by_hash.items())
    raise LoadError(
        f"the ranks have different plans: {shown}",
        hint="give all ranks the same files and the same version of loadmaster; no tensor was read",
    )
