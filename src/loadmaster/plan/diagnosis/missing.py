"""Missing tensors: explained by a file, found under another name, or grouped into missing modules, experts and layers.

The order matters: a tensor that is stored in a missing shard is reported with that shard; one stored under another name was
renamed; of the rest, a module without any tensor is one defect.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from loadmaster.architectures.items import Item
from loadmaster.checkpoint.causes import Causes
from loadmaster.findings import Finding, Severity, ranges
from loadmaster.plan.binding import Defect, MissingTensor
from loadmaster.plan.classes import TOP
from loadmaster.plan.diagnosis.names import Names, Rename, ancestors, whole_modules

UNTIED = "is the head the embedding? tie_word_embeddings in config.json says that it is not"
SINGLY = 4
"""Up to this many tensors renamed in one way are reported one by one."""
HINTS = 16
"""Up to this many missing tensors get the nearest name as a hint; the others are alike."""


def explain(
    missing: Sequence[MissingTensor],
    names: Names,
    causes: Causes,
    stored: Mapping[int, Sequence[Item]],
    suffixes: Sequence[str],
    num_layers: int,
) -> tuple[list[Defect], list[int]]:
    """Return the defects that missing tensors amount to, and the ids of those that belong to layers that are not enabled.

    ``stored`` are the items of each layer, ``suffixes`` those of all components; layers from ``num_layers`` on are MTP's.
    """
    defects: list[Defect] = []
    unasked: list[int] = []
    unexplained = []
    renamed: dict[Rename, list[tuple[MissingTensor, int]]] = defaultdict(list)
    for m in missing:
        if (cause := causes.explain(m.name)) is not None:
            defects.append(m.defect(cause=cause))
        elif (match := names.take(m.name, m.shape)) is not None:
            renamed[match[1]].append((m, match[0]))
        else:
            unexplained.append(m)
    for how, pairs in renamed.items():
        pairs_by_name = [(m, names.table.names[number]) for m, number in pairs]
        defects += _renamed(how, pairs_by_name)
        along = names.follow(how, [new for _, new in pairs_by_name], suffixes, all_alike=len(pairs) > SINGLY)
        needed = any(m.finding.severity == "error" for m, _ in pairs)
        unasked += [number for m, number in pairs if m.finding.severity != "error"] + ([] if needed else along)
    if (cause := causes.suspect) is not None:
        return [*defects, *(m.defect(cause=cause) for m in unexplained)], unasked
    hinted: dict[tuple[str, str], int] = defaultdict(int)
    for missed in _gathered(unexplained, stored, num_layers):
        if isinstance(missed, Defect):
            defects.append(missed)
            continue
        key = missed.item.key, missed.finding.code
        hinted[key] += 1
        near = names.nearest(missed.name) if hinted[key] <= 2 and len(hinted) <= HINTS else None
        hint = f"nearest: {near}" if near else None
        defects.append(missed.defect(hint=UNTIED if (missed.layer, missed.item.key) == (TOP, "head") else hint))
    return defects, unasked


def _renamed(how: Rename, pairs: Sequence[tuple[MissingTensor, str]]) -> Iterator[Defect]:
    """One renaming is one defect, however many tensors it touches; up to four are reported one by one."""
    if len(pairs) <= SINGLY:
        yield from (m.defect(hint=f"nearest: {stray}") for m, stray in pairs)
        return
    first, stray = next((p for p in pairs if p[0].finding.severity == "error"), pairs[0])
    layers = tuple(dict.fromkeys(m.layer for m, _ in pairs))
    old, new = ".".join(how.old), ".".join(how.new)
    message = f"{first.finding.message} (and {len(pairs) - 1:,} more renamed in the same way)"
    put = f"{new!r} in place of {old!r}" if old and new else f"{new!r} added" if new else f"{old!r} left out"
    hint = f"nearest: {stray}; all have {put}"
    yield Defect(replace(first.finding, message=message, hint=hint), layers, first.item.key)


def _gathered(
    missing: Sequence[MissingTensor], stored: Mapping[int, Sequence[Item]], num_layers: int
) -> Iterator[Defect | MissingTensor]:
    """Yield the layers, experts and modules that are missing whole, and what is missing besides."""
    by_layer: dict[int, list[MissingTensor]] = defaultdict(list)
    for m in missing:
        if m.layer == TOP or m.finding.code != "tensor-missing":
            yield m
        else:
            by_layer[m.layer].append(m)
    totals: dict[int, dict[str, int]] = {}  # by the identity of a kind's items
    layers: list[tuple[int, list[MissingTensor]]] = []
    modules: dict[tuple[str, int, Severity], list[list[MissingTensor]]] = defaultdict(list)
    experts: dict[tuple[int, str, Severity], list[MissingTensor]] = defaultdict(list)
    for layer, lost in by_layer.items():
        items = stored[layer]
        expected = totals.setdefault(id(items), _totals(items))
        if len(lost) == expected[""]:
            layers.append((layer, lost))
            continue
        module_of = whole_modules([m.path for m in lost], expected)
        whole: dict[str, list[MissingTensor]] = defaultdict(list)
        for m in lost:
            if m.path in module_of:
                whole[module_of[m.path]].append(m)
            else:
                yield m
        for module, gone in whole.items():
            if all(m.item.by_expert for m in gone):
                family = module[: len(module) - len(str(gone[0].member))] if module.endswith(_number(gone)) else module
                experts[layer, family.rstrip("."), gone[0].finding.severity] += gone
            else:
                modules[module, len(gone), gone[0].finding.severity].append(gone)
    yield from _layers(layers, num_layers)
    yield from _experts(experts)
    for (module, _, _), groups in modules.items():
        yield _module(module, groups)


def _number(gone: Sequence[MissingTensor]) -> str:
    return f".{gone[0].member}" if len({m.member for m in gone}) == 1 else "\0"


def _totals(items: Sequence[Item]) -> dict[str, int]:
    """Return how many tensors (values, not scales) each module of a layer has; ``""`` stands for the layer."""
    totals: dict[str, int] = defaultdict(int)
    for item in items:
        for expert in range(item.members or 1):
            totals[""] += 1
            for module in ancestors(item.path(expert)):
                totals[module] += 1
    return totals


def _prefix(m: MissingTensor) -> str:
    return m.item.layer_name(m.layer)


def _layers(gone: Sequence[tuple[int, list[MissingTensor]]], num_layers: int) -> Iterator[Defect]:
    groups: dict[tuple[bool, Severity], list[tuple[int, list[MissingTensor]]]] = defaultdict(list)
    for layer, lost in gone:
        groups[layer >= num_layers, lost[0].finding.severity].append((layer, lost))
    for (draft, severity), some in groups.items():
        numbers = [layer for layer, _ in some]
        what = "MTP layer" if draft else "layer"
        count = sum(len(lost) for _, lost in some)
        plural = "s" if len(some) > 1 else ""
        message = f"no shard holds any tensor of {what}{plural} {ranges(numbers)}: {count:,} weights are missing"
        hint = (
            "many conversions omit the MTP layer: remove --speculative-config"
            if draft and severity == "error"
            else "many conversions omit the MTP layer; only --speculative-config needs it"
            if draft
            else "does config.json (num_hidden_layers) belong to this checkpoint?"
        )
        tensor = f"{_prefix(some[0][1][0])}*"
        yield Defect(Finding("layer-missing", severity, message, tensor, hint=hint), tuple(numbers), "")


def _experts(gone: Mapping[tuple[int, str, Severity], list[MissingTensor]]) -> Iterator[Defect]:
    """One finding for the experts that the same layers lack."""
    alike: dict[tuple[tuple[int, ...], str, Severity], list[list[MissingTensor]]] = defaultdict(list)
    for (_, family, severity), lost in gone.items():
        alike[tuple(sorted({m.member for m in lost if m.member is not None})), family, severity].append(lost)
    for (ids, family, severity), groups in alike.items():
        first = groups[0][0]
        layers = [lost[0].layer for lost in groups]
        total = first.item.members
        of = f"of layer{'s' if len(layers) > 1 else ''} {ranges(layers)}"
        which = f"expert {ids[0]}" if len(ids) == 1 else f"experts {ranges(ids)}"
        message = (
            f"{which} (of {total}) {of} {'is' if len(ids) == 1 else 'are'} in no shard"
            if len(ids) < total
            else f"no shard holds any of the {total} experts {of}"
        )
        hint = "the config's number of experts must be the number stored, with ids from 0"
        tensor = f"{_prefix(first)}{family}.{ids[0]}.*"
        yield Defect(
            Finding("expert-incomplete", severity, message, tensor, hint=hint), tuple(layers), first.item.key, ids
        )


def _module(module: str, groups: Sequence[Sequence[MissingTensor]]) -> Defect:
    first = groups[0][0]
    layers = tuple(lost[0].layer for lost in groups)
    more = f", and the same in layers {ranges(layers[1:])}" if len(layers) > 1 else ""
    leaves = ", ".join(m.path.removeprefix(module + ".").removesuffix(".weight") for m in groups[0][:6])
    message = f"no shard holds any tensor of it: {len(groups[0])} weights are missing ({leaves}){more}"
    hint = "does config.json belong to this checkpoint?"
    finding = replace(first.finding, message=message, tensor=f"{_prefix(first)}{module}.*", hint=hint)
    return Defect(finding, layers, first.item.key)
