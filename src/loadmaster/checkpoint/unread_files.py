"""Reports safetensors files in the folder that are not read: files that are not needed, and shards missing in the index."""

from __future__ import annotations

from loadmaster.checkpoint.header import HeaderError, check_header
from loadmaster.checkpoint.index import Index
from loadmaster.checkpoint.listing import NOT_SHARDS, Listing
from loadmaster.checkpoint.source import Source
from loadmaster.checkpoint.table import TensorTable
from loadmaster.findings import Finding, joined

NUM_HEADERS = 64
"""How many of their headers are read, at most. Shards that an index omits are few."""


def report_unread(
    source: Source, listing: Listing, index: Index | None, table: TensorTable
) -> tuple[list[Finding], dict[str, Finding]]:
    """Return the findings about unread files, and tensor → finding for tensors that only these files hold."""
    known = [n for n in listing.unread if NOT_SHARDS.fullmatch(n)]
    others = [n for n in listing.unread if not NOT_SHARDS.fullmatch(n)]
    findings = [_not_a_shard(n) for n in known]
    unindexed: list[Finding] = []
    strays: list[Finding] = []
    of_tensor: dict[str, Finding] = {}
    claimed = index.weight_map.keys() if index else set[str]()
    firsts = others[:NUM_HEADERS]
    for name, read in zip(firsts, source.headers(firsts, None), strict=True):
        try:
            names = check_header(name, read.text, read.canonical).names if not isinstance(read, HeaderError) else []
        except HeaderError:
            names = []
        only = [n for n in names if n not in table.ids and n not in claimed]
        if only:
            unindexed.append(_unindexed(name, only))
            of_tensor |= dict.fromkeys(only, unindexed[-1])
        else:
            strays.append(_stray(name))
    strays += map(_stray, others[NUM_HEADERS:])
    return [*joined(findings), *unindexed, *joined(strays)], of_tensor


def _not_a_shard(name: str) -> Finding:
    what = "an adapter" if name.startswith("adapter") else "the same weights in their publisher's own layout"
    hint = "it is not needed; leave it out of the next download"
    return Finding("shard-stray", "note", f"{what}, not a shard; ignored", file=name, hint=hint)


def _stray(name: str) -> Finding:
    message = "not listed in the index; ignored"
    return Finding("shard-stray", "warning", message, file=name, hint="if it is left over, remove it")


def _unindexed(name: str, only: list[str]) -> Finding:
    more = f" and {len(only) - 1:,} more tensor(s)" if len(only) > 1 else ""
    message = f"it holds {only[0]}{more} that no shard of the index has; ignored"
    hint = "the index is stale: fetch it again, or remove it and all shards are read; or move this file away"
    return Finding("shard-unindexed", "warning", message, file=name, hint=hint)
