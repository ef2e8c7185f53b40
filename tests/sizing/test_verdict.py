"""What is said where ranks have room for their own part of a request, and the engine as a whole has not."""

from loadmaster.sizing.cache import Cache, Group, LayerCache, Row
from loadmaster.sizing.memory import Memory, RankMemory, Workload
from loadmaster.sizing.verdict import findings


def rank(number: int, *, layers: int, device_bytes: int) -> RankMemory:
    """A rank that needs nothing but its KV cache: a byte for each token and layer."""
    return RankMemory(number, 0, 0, layers, 0, 10 * layers, 0, 0, 0, 0, 0, device_bytes, 0, 0)


def test_the_least_room_is_divided_by_the_largest_block() -> None:
    cache = Cache((LayerCache((Row("key", 1, 1, 1),)),) * 4, 4, 1, (Group((0, 1, 2, 3)),))
    workload = Workload("native", 10, 1, 10, 0.92, asked_seqs=False)
    ranks = rank(0, layers=3, device_bytes=1000), rank(1, layers=1, device_bytes=20)
    small = Memory(workload, ranks, cache, None, 17 // 3)  # 85 % of 20 bytes; its own part of a request takes 10
    (finding,) = findings(small)
    assert (finding.code, finding.severity, finding.ranks) == ("memory-capacity", "error", (1,))
    assert "rank 0 needs" in finding.message and str(finding.hint).startswith("--max-model-len 5,")
    assert list(findings(Memory(workload, ranks, cache, None, 10))) == []
