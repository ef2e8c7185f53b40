"""Safetensors files that lie in a folder and are not read: strays, which nobody misses, and shards that the index forgot."""

from __future__ import annotations

from pathlib import Path

from loadmaster.checkpoint.columns import read_headers
from loadmaster.checkpoint.header import HeaderError, parse_header
from loadmaster.checkpoint.index import Index
from loadmaster.checkpoint.listing import ASIDE, Listing
from loadmaster.checkpoint.table import TensorTable
from loadmaster.findings import Finding, joined

NUM_HEADERS = 64
"""As many are read: a folder with more strays than that is another thing than a checkpoint with a forgotten shard."""


def report_aside(
    folder: Path, listing: Listing, index: Index | None, table: TensorTable
) -> tuple[list[Finding], dict[str, Finding]]:
    """Return what is to be said of the files that are not read, and tensor → finding of those that only they hold."""
    known = [n for n in listing.aside if ASIDE.fullmatch(n)]
    others = [n for n in listing.aside if not ASIDE.fullmatch(n)]
    findings = [_apart(n) for n in known]
    unindexed: list[Finding] = []
    strays: list[Finding] = []
    of_tensor: dict[str, Finding] = {}
    claimed = index.weight_map.keys() if index else set[str]()
    for name, read in zip(others[:NUM_HEADERS], read_headers(folder, others[:NUM_HEADERS]), strict=True):
        try:
            names = parse_header(name, read.text).names if not isinstance(read, HeaderError) else []
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


def _apart(name: str) -> Finding:
    what = "an adapter" if name.startswith("adapter") else "the same weights in their publisher's own layout"
    hint = "none of its bytes are needed; leave it out of the next download"
    return Finding("shard-stray", "note", f"{what}, beside the shards; it is not read", file=name, hint=hint)


def _stray(name: str) -> Finding:
    message = "it lies in the folder, the index does not name it, it is not read"
    return Finding("shard-stray", "warning", message, file=name, hint="it adds nothing; a leftover may be removed")


def _unindexed(name: str, only: list[str]) -> Finding:
    more = f" and {len(only) - 1:,} more tensor(s)" if len(only) > 1 else ""
    message = f"it holds {only[0]}{more} that no shard of the index has; it is not read"
    hint = "the index is stale: fetch it again, or remove it, and all shards are read; or move this file away"
    return Finding("shard-unindexed", "warning", message, file=name, hint=hint)
