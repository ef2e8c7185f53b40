"""What is done to a checkpoint: each mutation is a kind and three numbers, so that a case is pure data.

The numbers choose a tensor, another, and a way; they are taken modulo what there is to choose from. A mutation returns
what it did, in words, or None where it does not apply. Whether the result is sound is not decided here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tools.fuzz import tensors
from tools.fuzz.shards import Draft
from tools.fuzz.values import change_value, key_paths

Mutation = tuple[str, int, int, int]


def _bytes(d: Draft, a: int, rewrite: Callable[[bytes], bytes | None]) -> str:
    file = sorted(d.shards)[a % len(d.shards)]
    d.rewrites.append((file, rewrite))
    return file


def _flip(d: Draft, a: int, b: int, c: int) -> str | None:
    """Change one byte of a header, or of its length."""

    def flip(content: bytes) -> bytes:
        end = min(8 + int.from_bytes(content[:8], "little"), len(content))
        if end == 0:
            return content
        at = b % end if b % 8 else (b // 8) % 8
        value = c % 256 if c % 3 else b'0123456789",:[]{} '[(c // 3) % 18]
        return content[:at] + bytes([value]) + content[at + 1 :]

    return f"change byte {b} of the header of {_bytes(d, a, flip)} to {c}"


def _cut(d: Draft, a: int, b: int, c: int) -> str | None:
    """Make a file shorter or longer, or something else altogether."""
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:%064x\nsize 1\n" % b
    ways: tuple[tuple[str, Callable[[bytes], bytes | None]], ...] = (
        ("truncate", lambda content: content[: len(content) - 1 - b % max(len(content), 1)]),
        ("truncate the header of", lambda content: content[: b % 4096]),
        ("extend", lambda content: content + b"\0" * (1 + b % 4096)),
        ("empty", lambda _: b""),
        ("remove", lambda _: None),
        ("make a Git LFS pointer of", lambda _: pointer),
        ("zero the beginning of", lambda content: bytes(min(64, len(content))) + content[64:]),
    )
    what, rewrite = ways[c % len(ways)]
    return f"{what} {_bytes(d, a, rewrite)} ({b})"


def _index(d: Draft, a: int, b: int, c: int) -> str | None:
    """Change the index."""
    if not isinstance(d.index, dict) or not isinstance(d.index.get("weight_map"), dict) or not d.index["weight_map"]:
        return None
    weight_map: dict[str, Any] = d.index["weight_map"]
    name = sorted(weight_map)[a % len(weight_map)]
    files = sorted(d.shards)
    values: tuple[Any, ...]
    match c % 10:
        case 0:
            del weight_map[name]
            return f"the index loses {name}"
        case 1:
            weight_map[name] = files[b % len(files)]
            return f"the index has {name} in {weight_map[name]}"
        case 2:
            weight_map[name + ".ghost"] = files[b % len(files)]
            return f"the index adds {name}.ghost"
        case 3:
            weight_map[name] = ("model-00009-of-00004.safetensors", "../x.safetensors", "", ".", "/etc/passwd")[b % 5]
            return f"the index has {name} in {weight_map[name]!r}"
        case 4:
            d.index = None
            return "no index"
        case 5:
            values = (0, -1, 10**40, "1", None, 1.5, [], True, 1e30)
            d.index["metadata"] = {"total_size": values[b % len(values)]}
            return f"the index states a total size of {values[b % len(values)]!r}"
        case 6:
            weight_map[name] = (1, None, ["a"], {}, True)[b % 5]
            return f"the index has {name} in {weight_map[name]!r}"
        case 7:
            d.index["weight_map"] = ([], None, {}, "x", 3)[b % 5]
            return f"the index's weight_map is {d.index['weight_map']!r}"
        case 8:
            d.index = ([], "x", 1, {}, True)[b % 5]
            return f"the index is {d.index!r}"
        case _:
            d.index["metadata"] = (None, [], "x", {}, 3)[b % 5]
            return f"the index's metadata is {d.index['metadata']!r}"


def _config(d: Draft, a: int, b: int, c: int) -> str | None:
    """Remove or change one value of the config, however deep."""
    paths = key_paths(d.config)
    if not paths:
        return None
    path = paths[a % len(paths)]
    holder: Any = d.config
    for key in path[:-1]:
        holder = holder[key]
    before = holder[path[-1]]
    name = ".".join(map(str, path))
    if c % 4 == 0:
        del holder[path[-1]]
        return f"the config loses {name} (was {json.dumps(before)[:60]})"
    after = change_value(before, b)
    if json.dumps(after) == json.dumps(before):
        return None
    holder[path[-1]] = after
    return f"the config has {name} = {json.dumps(after)[:60]} (was {json.dumps(before)[:60]})"


KINDS: dict[str, Callable[[Draft, int, int, int], str | None]] = {
    "drop": tensors.drop,
    "rename": tensors.rename,
    "duplicate": tensors.duplicate,
    "resize": tensors.resize,
    "retype": tensors.retype,
    "relabel": tensors.relabel,
    "transpose": tensors.transpose,
    "reshape": tensors.reshape,
    "swap": tensors.swap,
    "extra": tensors.extra,
    "reorder": tensors.reorder,
    "flip": _flip,
    "cut": _cut,
    "index": _index,
    "config": _config,
}
"""Name -> what is done to a draft, by three numbers."""


def mutate(draft: Draft, mutations: tuple[Mutation, ...]) -> list[str]:
    """Do all mutations, one after another; return what was done."""
    done = (KINDS[kind](draft, a, b, c) for kind, a, b, c in mutations)
    return [what for what in done if what]
