"""Lists a folder by file names: its shards, missing shards, safetensors files that are not read, unfinished downloads.

Other files (tokenizers, documents, folders such as ``original/`` and ``.git/``) are ignored. Only where there is no shard, they
show what the folder is instead.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from loadmaster.checkpoint.index import Index
from loadmaster.checkpoint.lookalike import ADAPTER, base_model, foreign_file, instead, printable, recognise, some
from loadmaster.checkpoint.small_files import UnreadableError
from loadmaster.checkpoint.source import Source, beyond, no_checkpoint
from loadmaster.findings import Finding
from loadmaster.limits import CONFIG_BYTES, FOLDER_FILES, SHARDS, LimitError

PARTIAL = (".incomplete", ".part", ".partial", ".aria2", ".crdownload")
"""Suffixes of unfinished downloads: huggingface_hub, wget and browsers, aria2's control files, Chrome."""
HUB_PARTIALS = Path(".cache", "huggingface", "download")
"""Where ``hf download --local-dir`` keeps files until they are complete."""
NOT_SHARDS = re.compile(r"(consolidated|adapter)[^/]*\.safetensors")
"""Files that are not part of the checkpoint: the weights in the publisher's own layout (Mistral), and adapters."""
NUMBERED = re.compile(r"(.*?)(\d{1,18})(-of-)(\d{1,18})(.*\.safetensors)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Listing:
    """Names of a folder's files: ``shards`` to read, ``missing`` shards, other safetensors files, which stay ``unread``, and
    ``partial`` downloads.

    ``unnamed`` are safetensors files whose names are not UTF-8, or have control characters; they are not read.
    """

    shards: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    partial: tuple[str, ...] = ()
    unnamed: tuple[str, ...] = ()


def list_shards(source: Source, every: Sequence[str], index: Index | None) -> Listing:
    """List ``every`` file of ``source``: by the index where there is one, else by the numbers in the shards' names.

    Raises:
        CheckpointError: there is no safetensors file; says what there is.
    """
    folder = source.path if source.origin.is_local else None
    files = [n for n in every if not n.startswith(".")]
    names = [n for n in files if n.endswith(".safetensors")]
    partial = _partial(folder, files)
    if not names and index is None:
        raise no_checkpoint(
            f"{source.shown} holds no .safetensors file", instead(files, partial, folder, base_model_of(source))
        )
    if index is None and ADAPTER in files and all(n.startswith("adapter") for n in names):
        lookalike = recognise(files, base_model_of(source))
        assert lookalike is not None
        raise no_checkpoint(f"{source.shown} is {lookalike.what}", lookalike.remedy)
    if len(names) > SHARDS.value:
        raise beyond(f"{source.shown} holds {SHARDS.exceeded(len(names))}", SHARDS)
    unnamed = tuple(sorted(n for n in names if not n.isprintable()))
    names = [n for n in names if n.isprintable()]
    if index is not None:
        listed = set(index.files)
        shards = listed.intersection(names)
        missing = listed.difference(names)
    else:
        shards = _likely(names)
        missing = set(_absent_numbers(shards))
    return Listing(_ordered(shards), _ordered(missing), _ordered(set(names) - shards), partial, unnamed)


def likely_shards(every: Sequence[str]) -> tuple[str, ...]:
    """Return the shards that `list_shards` gives where an index names what is there; the index is not read."""
    names = [n for n in every if n.endswith(".safetensors") and not n.startswith(".") and n.isprintable()]
    return _ordered(_likely(names)) if len(names) <= SHARDS.value else ()


def _likely(names: Sequence[str]) -> set[str]:
    return {n for n in names if not NOT_SHARDS.fullmatch(n)} or set(names)


def base_model_of(source: Source) -> str | None:
    """Return the base model that the source's adapter_config.json names; None without that file or name."""
    if not source.has(ADAPTER):
        return None
    try:
        return base_model(source.read(ADAPTER, CONFIG_BYTES))
    except (UnreadableError, LimitError):
        return None


def refuse_foreign(path: Path) -> None:
    """Refuse a file that was given as a checkpoint and is not one.

    Raises:
        CheckpointError: says what it is, and what to give instead.
    """
    if message_and_hint := foreign_file(path):
        raise no_checkpoint(*message_and_hint)


def _ordered(names: Iterable[str]) -> tuple[str, ...]:
    """Return names in natural order: 2 before 10."""
    return tuple(sorted(names, key=lambda n: [int(t) if t.isdecimal() else t for t in re.split(r"(\d+)", n)]))


def _partial(folder: Path | None, files: Sequence[str]) -> tuple[str, ...]:
    """Return the unfinished downloads, on disk including those in the folder of the hub's client."""
    partial = [printable(n) for n in files if n.endswith(PARTIAL)]
    if folder is not None and (folder / HUB_PARTIALS).is_dir():
        inside = (p.name for p in islice((folder / HUB_PARTIALS).iterdir(), FOLDER_FILES.value))
        partial += [f"{HUB_PARTIALS}/{printable(n)}" for n in inside if n.endswith(PARTIAL)]
    return tuple(sorted(partial))


def _absent_numbers(shards: set[str]) -> list[str]:
    """Return the names that are missing in a numbered set (``model-00003-of-00142.safetensors``).

    >>> _absent_numbers({"model-1-of-3.safetensors", "model-3-of-3.safetensors"})
    ['model-2-of-3.safetensors']
    """
    sets: dict[tuple[str, str, str, int], set[int]] = defaultdict(set)
    for name in shards:
        if m := NUMBERED.fullmatch(name):
            sets[m[1], m[4], m[5], len(m[2])].add(int(m[2]))
    absent: list[str] = []
    for (before, total, after, width), numbers in sets.items():
        first = 0 if 0 in numbers else 1
        if (count := len(absent) + int(total)) > SHARDS.value:
            example = f"{before}{min(numbers):0{width}d}-of-{total}{after}"
            raise beyond(f"by the names of shards, such as {example}, there should be {SHARDS.exceeded(count)}", SHARDS)
        expected = range(first, first + int(total))
        absent += [f"{before}{i:0{width}d}-of-{total}{after}" for i in expected if i not in numbers]
    return absent


def report_missing(listing: Listing, index: Index | None) -> list[Finding]:
    """Report each missing shard; an unfinished download, if there is one, is the likely cause."""
    counts: Mapping[str, int] = Counter(index.weight_map.values()) if index and listing.missing else {}
    resume = f"a download is unfinished ({some(listing.partial)}): resume it" if listing.partial else "fetch it again"
    return [
        Finding(
            "shard-missing",
            "error",
            f"it is not in the folder; by the index it holds {counts[name]:,} tensor(s)"
            if counts
            else "it is not in the folder; the numbers of the other shards include it",
            file=name,
            hint=resume,
        )
        for name in listing.missing
    ]


def report_unnamed(listing: Listing) -> list[Finding]:
    """Report safetensors files that are not read because of their names."""
    message = "its name is not UTF-8, or has control characters; it is not read"
    hint = "rename it, or remove it if it does not belong to the checkpoint"
    return [Finding("shard-unreadable", "error", message, file=printable(n), hint=hint) for n in listing.unnamed]


def report_partial(listing: Listing) -> list[Finding]:
    """Report unfinished downloads where no shard is missing."""
    if listing.missing:
        return []  # reported with the missing shards
    findings = []
    for name in listing.partial:
        whole = name.removesuffix(".aria2")
        message, hint = "a download is unfinished, but no shard is missing", "remove it, or finish the download"
        if name.endswith(".aria2") and whole in listing.shards:
            message = f"aria2 did not finish {whole}: the file has its full size from the start, but may have holes"
            hint = "resume the download with aria2c -c"
        findings.append(Finding("download-partial", "warning", message, file=name, hint=hint))
    return findings
