"""The memory of ranks as bars against their devices: parameters, KV cache, a batch, CUDA, and what is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from loadmaster.findings import Finding, gib
from loadmaster.plan.anatomy import KINDS, Anatomy, Kind
from loadmaster.report.html.bars import WIDTH, Part, by_kind, drawing, kind_class, stacked
from loadmaster.report.html.document import section
from loadmaster.report.html.markup import Markup, element
from loadmaster.report.html.tables import key_entry, mark, table
from loadmaster.report.memory import alike, memory_table, summary
from loadmaster.report.ranks import numbers
from loadmaster.sizing.memory import Memory, RankMemory

COLOURS = {
    "k-parameters": "parameters",
    **{kind_class(kind): kind for kind in KINDS},
    "m-cache": "KV cache",
    "m-index": "keys of indexers",
    "m-batch": "batch ~",
    "m-cuda": "CUDA ~",
    "ground": "left",
}
"""The class of each colour and what it stands for, in the order of the key."""


def memory_section(memory: Memory, anatomy: Anatomy, findings: Sequence[Finding]) -> Markup:
    """Return the panel of all ranks' memory: a bar for ranks that are alike, how many tokens fit, what is wrong, the table."""
    scale = scale_of(memory)
    bars, drawn = [], set[str]()
    for ranks in alike(memory):
        parts = parts_of(ranks[0], memory, anatomy.sizes[ranks[0].rank])
        drawn |= {class_ for class_, _, num_bytes in parts if num_bytes}
        bars.append(labelled(f"rank {numbers([r.rank for r in ranks])}", ranks[0], memory, parts, scale))
    fits, *about = summary(memory)
    wrong = [mark(number, f) for number, f in enumerate(findings) if f.code.startswith("memory-")]
    content = [
        *bars,
        memory_key(drawn, memory),
        element("p", fits, class_="words"),
        *wrong,
        table(*memory_table(memory)),
    ]
    legend = [element("p", words, class_="muted words") for words in about]
    return section("Memory of a device, whole", [*content, *legend], "memory")


def labelled(label: str, r: RankMemory, memory: Memory, parts: Sequence[Part], scale: int) -> Markup:
    """Return a rank's bar between what it is and what it needs."""
    figures = element("span", in_words(r, memory), class_="muted")
    return element("div", [element("span", label), bar(r, parts, scale), figures], class_="change rank-memory")


def memory_key(drawn: set[str], memory: Memory) -> Markup:
    """Return what the colours in ``drawn`` stand for, and what is left where devices are known."""
    shown = drawn | ({"ground"} if memory.ranks[0].device_bytes is not None else set())
    return element(
        "ul", [key_entry(class_, words) for class_, words in COLOURS.items() if class_ in shown], class_="key"
    )


def parts_of(r: RankMemory, memory: Memory, sizes: Mapping[Kind, int] | None = None) -> list[Part]:
    """Return the parts of a rank's bar. ``sizes`` are its parameters by kind; without them MTP layers alone are told apart.

    The KV cache is the one that the engine allocates; where that has no room for one request, the one that a request needs.
    """
    if sizes is None:
        rest = r.parameters_bytes - r.draft_bytes
        sizes_of = [("k-parameters", f"parameters: {gib(rest)}", rest), *by_kind({"MTP": r.draft_bytes})]
    else:
        sizes_of = by_kind(sizes)
    cache, name = _cache(r, memory)
    index = r.index_bytes(cache)
    batch, cuda = r.activations_bytes + r.logits_bytes, r.runtime_bytes + r.graphs_bytes
    return [
        *sizes_of,
        ("m-cache", f"{name}: {gib(cache - index)}", cache - index),
        ("m-index", f"{name}, keys of indexers: {gib(index)}", index),
        ("m-batch", f"a batch, estimated: {gib(batch)}", batch),
        ("m-cuda", f"CUDA and graphs, estimated: {gib(cuda)}", cuda),
    ]


def bar(r: RankMemory, parts: Sequence[Part], scale: int, height: float = 16) -> Markup:
    """Return a rank's bar, where ``scale`` bytes are the whole width; a line marks the end of the device, if it is exceeded."""
    used = sum(num_bytes for _, _, num_bytes in parts)
    ground = r.device_bytes if r.device_bytes is not None else used
    shapes = [element("rect", class_="ground", x=0, y=0, width=WIDTH * ground / max(scale, 1), height=height)]
    shapes += stacked(parts, scale, 0, height)
    if r.device_bytes is not None and r.device_bytes < used:
        at = WIDTH * r.device_bytes / scale
        shapes.append(element("line", class_="limit", x1=at, x2=at, y1=0, y2=height))
    return drawing(shapes, height, f"memory of rank {r.rank}", "memory")


def needs(r: RankMemory, memory: Memory) -> tuple[str, str]:
    """Return in words what a rank needs of its device, and what is left, or that one request does not fit."""
    cache, _ = _cache(r, memory)
    used = gib(r.fixed_bytes + cache)
    unknown = "without the KV cache, which is not known" if r.cache_bytes is None else ""
    if r.device_bytes is None:
        return used, unknown
    used = f"{used} of {gib(r.device_bytes)}"
    if not memory.holds_a_request:
        return used, f"needed with one request of {memory.workload.max_model_len:,} tokens"
    left = r.left_bytes or 0
    rest = f"{gib(left)} left ~" if left >= 0 else f"{gib(-left)} too little ~"
    return used, f"{rest} {unknown}".strip()


def in_words(r: RankMemory, memory: Memory) -> str:
    """Return what a rank needs and what is left, on one line."""
    return ", ".join(words for words in needs(r, memory) if words)


def scale_of(memory: Memory) -> int:
    """Return the bytes that are the whole width of a bar: the largest device, or what the fullest rank needs."""
    return max(max(r.fixed_bytes + _cache(r, memory)[0], r.device_bytes or 0) for r in memory.ranks)


def _cache(r: RankMemory, memory: Memory) -> tuple[int, str]:
    """Return the bytes of a rank's KV cache as it is drawn, and what it is."""
    if memory.holds_a_request:
        return r.cache_bytes or 0, "KV cache"
    return r.request_bytes or 0, f"KV cache of one request of {memory.workload.max_model_len:,} tokens"
