"""Compares each tensor with its peers in other layers and experts: copies, outliers, factors never written.

Peers have the same name except for numbers; their sketches are compared. Reported is what no trained and quantised model is
known to have: as a warning where a model could still be correct (layers repeated on purpose, an untrained model), as an
error where the values must be wrong.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Final

import numpy as np

from loadmaster.checkpoint import LocalStore
from loadmaster.findings import Finding, Severity, joined
from loadmaster.payload.modules import Module, is_encoded, part_of, place_of
from loadmaster.payload.roles import Role
from loadmaster.payload.sketch import Sketch
from loadmaster.payload.survey import CHUNK, Survey

FEWEST: Final = 3
"""Fewest peers that are compared with their median."""

LEAST_BITS: Final = 5.0
"""Powers of two from the median that are not an outlier: published models stay within a factor of 32."""

SPREADS: Final = 8.0
"""Standard deviations, estimated by the median absolute deviation, that are not an outlier."""

_DEVIATION: Final = 1.4826
"""Standard deviation of a normal distribution in median absolute deviations."""

_LEAST_COPY: Final = 256
"""Fewest bytes of a tensor that count as a copy and not as a coincidence."""

_LOWEST_EXPONENT: Final = 2.0**-127


def compare_peers(survey: Survey, sketches: Mapping[int, Sketch], reported: Sequence[Finding]) -> Iterator[Finding]:
    """Yield the findings of comparing sketches, by id.

    A tensor whose values or factors are ``reported`` already is not reported again as an outlier.
    """
    zeros = _all_zero(survey, sketches)
    if zeros is not None:
        yield zeros
        return
    yield from joined(list(_copies(survey, sketches)))
    unset, indices = list(_unset(survey, sketches)), list(_indices(survey, sketches))
    for severity in ("error", "warning"):
        yield from joined([f for f in unset if f.severity == severity])
        yield from joined([f for f in indices if f.severity == severity])
    known = {f.tensor for f in (*reported, *unset)}
    yield from joined(list(_outliers(survey, sketches, known)))


def _is_zero(survey: Survey, number: int, sketch: Sketch) -> bool:
    return sketch.hole is not None and sketch.hole[1] >= survey.signature(number).num_bytes


def _all_zero(survey: Survey, sketches: Mapping[int, Sketch]) -> Finding | None:
    sizes = np.where(survey.roles.column == Role.WEIGHT, survey.checkpoint.table.nbytes, 0).tolist()
    weights = [i for i in sketches if sizes[i]]
    holes = (sketches[i].hole for i in weights)
    if not weights or not all(hole is not None and hole[1] >= sizes[i] for i, hole in zip(weights, holes, strict=True)):
        return None
    message = (
        f"every value of all {len(weights):,} weights is zero: the files have a model's headers but not its values"
    )
    hint = "the files are sparse (`loadmaster synth --full-size` writes such files) or were copied without data: fetch them again"
    return Finding("value-all-zero", "error", message, hint=hint)


# Copies ---------------------------------------------------------------------------------------------------------------


def _copies(survey: Survey, sketches: Mapping[int, Sketch]) -> Iterator[Finding]:
    """Yield a finding for each layer, expert or tensor with the same bytes as another."""
    intended = {t.copy for t in survey.roles.twins}
    names = survey.checkpoint.table.names
    alike: dict[tuple[int, str], list[int]] = defaultdict(list)
    for number, sketch in sorted(sketches.items()):
        signature = survey.signature(number)
        if (
            survey.roles.column[number] == Role.WEIGHT
            and not sketch.uniform
            and number not in intended
            and len(signature.shape) > 1
            and signature.num_bytes >= _LEAST_COPY
            and place_of(names[number])[1]
        ):
            alike[int(survey.checkpoint.table.signature[number]), sketch.mark].append(number)
    copied: dict[tuple[str, str], list[int]] = defaultdict(list)
    with LocalStore(survey.checkpoint.path) as store:
        for numbers in alike.values():
            first, *others = sorted(numbers)
            for other in others:
                if _same_bytes(survey, store, first, other):
                    copied[_until_different(names[other], names[first])].append(other)
    for (copy, original), numbers in copied.items():
        name = names[numbers[0]] if len(numbers) == 1 else f"{copy}.*"
        what = "it has" if len(numbers) == 1 else f"{len(numbers):,} of its tensors have"
        message = f"{what} exactly the same bytes as {original}: {_listed([names[n] for n in numbers], copy)}"
        hint = "fetch it again, or convert the model again; in a model that repeats layers on purpose this is correct"
        yield Finding("tensor-copied", "warning", message, name, file=survey.file_of(numbers[0]), hint=hint)


def _until_different(name: str, other: str) -> tuple[str, str]:
    """Return two names, each cut after the first part that differs.

    >>> _until_different("layers.4.mlp.up_proj.weight", "layers.3.mlp.up_proj.weight")
    ('layers.4', 'layers.3')
    """
    a, b = name.split("."), other.split(".")
    end = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)) - 1) + 1
    return ".".join(a[:end]), ".".join(b[:end])


def _listed(names: list[str], prefix: str) -> str:
    short = [n.removeprefix(prefix).removeprefix(".") or n for n in names[:3]]
    return ", ".join(short) + (", …" if len(names) > 3 else "")


def _same_bytes(survey: Survey, store: LocalStore, first: int, other: int) -> bool:
    table = survey.checkpoint.table
    size = int(table.nbytes[first])
    for at in range(0, size, CHUNK):
        length = min(CHUNK, size - at)
        a, b = (store.read_range(survey.file_of(n), int(table.start[n]) + at, length) for n in (first, other))
        if a != b:
            return False
    return True


# Factors and indices --------------------------------------------------------------------------------------------------


def _scaled(survey: Survey, sketches: Mapping[int, Sketch]) -> Iterator[Module]:
    """Yield the modules whose values need factors."""
    names = survey.checkpoint.table.names
    for module in survey.roles.modules.values():
        if module.values in sketches and is_encoded(names[module.values], survey.signature(module.values)):
            yield module


def _unset(survey: Survey, sketches: Mapping[int, Sketch]) -> Iterator[Finding]:
    """Yield factors that seem never to have been written: all of them 1, or all exponents 0."""
    names = survey.checkpoint.table.names
    for module in _scaled(survey, sketches):
        zero = _is_zero(survey, module.values, sketches[module.values])
        for number in module.factors:
            sketch = sketches.get(number)
            if sketch is None or sketch.greatest is None or zero:
                continue
            shape, file = survey.signature(number).shape, survey.file_of(number)
            total = int(np.prod(shape, dtype=np.int64))
            if survey.roles.column[number] == Role.EXPONENT and sketch.greatest <= _LOWEST_EXPONENT:
                message = f"all {total:,} exponents are 0, a factor of 2^-127, but {names[module.values]} is not zero"
                yield Finding("scale-unset", "error", message, names[number], file=file, hint=_UNSET)
            elif sketch.least == sketch.greatest == 1.0:
                dtype = survey.signature(module.values).dtype
                message = f"each of its {total:,} factors is exactly 1, but {names[module.values]} is {dtype}"
                yield Finding("scale-unset", "warning", message, names[number], file=file, hint=_UNSET)


_UNSET: Final = "the factors may never have been written: quantise again, or fetch the shard again"


def _indices(survey: Survey, sketches: Mapping[int, Sketch]) -> Iterator[Finding]:
    """Yield indices that name groups which do not exist, or that belong to another tensor."""
    names = survey.checkpoint.table.names
    seen: dict[tuple[str, str], int] = {}
    for number, sketch in sorted(sketches.items()):  # by id: they come as threads finish
        if survey.roles.column[number] != Role.INDEX or sketch.least is None or sketch.greatest is None:
            continue
        groups, size = survey.roles.groups.get(number, (0, 0))
        index, file, name = sketch.groups, survey.file_of(number), names[number]

        def say(severity: Severity, message: str, hint: str, name: str = name, file: str = file) -> Finding:
            return Finding("index-implausible", severity, message, name, file=file, hint=hint)

        low, high = int(sketch.least), int(sketch.greatest)
        if low < 0 or (groups and high >= groups):
            limit = f"0 to {groups - 1}" if groups else "0 or more"
            message = f"it names groups {low} to {high}, but the groups are {limit}"
            yield say("error", message, "factors would be read from outside their tensor: fetch the shard again")
        elif index is not None and size and (index.fewest != size or index.most != size):
            message = f"its groups have {index.fewest} to {index.most} inputs each, but a group should have {size}"
            yield say("warning", message, "it may be the index of another tensor: fetch the shard again")
        elif index is not None and number in survey.roles.ordered and not index.ordered:
            message = (
                "its groups are not in the order of the inputs, but the config (desc_act, actorder) says that they are"
            )
            yield say(
                "warning", message, "inputs are divided over ranks as the config says: correct the config or the index"
            )
        elif index is not None and size and not index.ordered and not sketch.uniform:
            pattern, _ = place_of(name)
            first = seen.setdefault((pattern, sketch.mark), number)
            if first != number:
                message = f"it has exactly the same bytes as {names[first]}, but each tensor should have its own order of inputs"
                yield say("warning", message, "it may be the index of another tensor: fetch the shard again")


# Outliers -------------------------------------------------------------------------------------------------------------


def _outliers(survey: Survey, sketches: Mapping[int, Sketch], known: Set[str | None]) -> Iterator[Finding]:
    """Yield weights whose amplitude (values times factors) is far from that of their peers."""
    peers: dict[tuple[str, str], list[tuple[int, float, float]]] = defaultdict(list)
    for name, module in survey.roles.modules.items():
        pattern, numbers = place_of(name)
        sketch = sketches.get(module.values)
        if sketch is None or not numbers or survey.roles.column[module.values] != Role.WEIGHT:
            continue
        signature = survey.signature(module.values)
        factors = _amplitude(survey, sketches, module)
        values = 1.0 if sketch.amplitude is None and module.factors else sketch.amplitude
        if len(signature.shape) > 1 and values and factors:
            peers[pattern, signature.dtype].append((module.values, float(np.log2(values)), float(np.log2(factors))))
    for group in peers.values():
        if len(group) >= FEWEST:
            yield from _far(survey, group, known)


def _amplitude(survey: Survey, sketches: Mapping[int, Sketch], module: Module) -> float | None:
    """Return the geometric mean of a module's factors; None where one is not known."""
    product = 1.0
    for number in module.factors:
        sketch = sketches.get(number)
        if sketch is None or not sketch.amplitude:
            return None
        product *= 1 / sketch.amplitude if survey.roles.column[number] == Role.DIVISOR else sketch.amplitude
    return product


def _far(survey: Survey, group: list[tuple[int, float, float]], known: Set[str | None]) -> Iterator[Finding]:
    names, modules = survey.checkpoint.table.names, survey.roles.modules
    parts = np.array([(values, factors) for _, values, factors in group])
    bits = parts.sum(axis=1)
    middle = float(np.median(bits))
    spread = float(np.median(np.abs(bits - middle)))
    limit = max(LEAST_BITS, SPREADS * _DEVIATION * spread)
    usual = np.median(parts, axis=0)
    for i in np.flatnonzero(np.abs(bits - middle) > limit).tolist():
        number = group[i][0]
        if known & {names[number], *(names[n] for n in modules[part_of(names[number])[0]].factors)}:
            continue
        both = f"values {2 ** parts[i, 0]:.3g} and factors {2 ** parts[i, 1]:.3g}, usually {2 ** usual[0]:.3g} and "
        message = (
            f"its amplitude (mean |value| × factor) is {2 ** bits[i]:.3g}, {2 ** (bits[i] - middle):.3g} times the median of "
            f"{len(group):,} peers, {2**middle:.3g}, half of which are within a factor of {2**spread:.3g} of it"
            + (f": {both}{2 ** usual[1]:.3g}" if parts[i, 1] or usual[1] else "")
        )
        hint = "compare it with a known-good copy (--against); the tensor or its scale may be from another model"
        yield Finding("value-outlier", "warning", message, names[number], file=survey.file_of(number), hint=hint)
