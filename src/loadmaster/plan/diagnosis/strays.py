"""Strays: stored tensors that no parameter needs and no waiver names, grouped into modules of which every tensor is stray."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from loadmaster.checkpoint import Checkpoint
from loadmaster.findings import Finding
from loadmaster.plan.binding import Defect
from loadmaster.plan.classes import TOP
from loadmaster.plan.diagnosis.names import Names, layer_of

SINGLY = 10_000
"""Up to this many groups of strays are one finding each; one finding counts more."""


def unexpected(names: Names, checkpoint: Checkpoint, num_layers: int) -> Iterator[Defect]:
    """Report what is left of the strays, without the renamed tensors."""
    strays, table = names.strays, checkpoint.table
    groups: list[tuple[str | None, Sequence[str]]] = [(None, [*strays])]
    if len(strays) > 1:
        groups = list(_groups(sorted(strays), sorted(name for name in table.names if name not in strays)))
    firsts = sorted(
        (min(map(strays.__getitem__, inside)), number) for number, (_, inside) in enumerate(groups) if inside
    )
    reported = firsts if len(firsts) <= SINGLY else firsts[:1]
    for first, number in reported:
        module, inside = groups[number]
        if module is None:
            tensor, signature = table.names[first], table.signatures[table.signature[first]]
            what = f"{signature.dtype} {list(signature.shape)} belongs to no parameter of this architecture"
        else:
            tensor, what = f"{module}.*", f"{len(inside):,} tensors that belong to no parameter of this architecture"
        if len(reported) == len(firsts):
            yield _defect(tensor, what, checkpoint, first, num_layers)
        else:
            stray_layers = set(map(layer_of, strays))
            layers = tuple(sorted({TOP if n is None else min(n, num_layers) for n in stray_layers}))
            what += f" (and {len(strays) - len(inside):,} more tensors like it)"
            yield _defect(tensor, what, checkpoint, first, num_layers, layers)


def _groups(strays: Sequence[str], others: Sequence[str]) -> Iterator[tuple[str | None, Sequence[str]]]:
    """Yield each outermost module of at least two tensors that is stray whole, and each stray in none (module None).

    Both sequences are sorted, so that the tensors of a module lie together; a module is looked at once.
    """
    at, open_modules = 0, [("", len(strays))]  # modules around the place that are not whole, with where they end
    while at < len(strays):
        while open_modules[-1][1] <= at:
            open_modules.pop()
        name, stop = strays[at], at + 1
        dot = name.find(".", len(open_modules[-1][0]) + 1)
        while dot >= 0 and at + 1 < len(strays) and strays[at + 1].startswith(name[: dot + 1]):
            module = name[:dot]
            end = bisect_left(strays, module + "/")  # "/" follows "."
            if not _has(others, module):
                stop = end
                break
            open_modules.append((module, end))
            dot = name.find(".", dot + 1)
        yield (name[:dot], strays[at:stop]) if stop > at + 1 else (None, [name])
        at = stop


def _has(ordered: Sequence[str], module: str) -> bool:
    """Whether a module has a tensor among these."""
    at = bisect_left(ordered, module + ".")
    return at < len(ordered) and ordered[at].startswith(module + ".")


def _defect(
    tensor: str, message: str, checkpoint: Checkpoint, number: int, num_layers: int, layers: tuple[int, ...] = ()
) -> Defect:
    layer = layer_of(tensor)
    hint = "is config.json the one this checkpoint was published with?"
    if layer is not None and layer >= num_layers:
        hint = f"config.json describes {num_layers} layers; an MTP layer needs num_nextn_predict_layers. {hint.capitalize()}"
    hint += f" To ignore tensors that are not needed: --waive '{tensor}=REASON'"
    file = checkpoint.files[checkpoint.table.file[number]].name
    finding = Finding("tensor-unexpected", "error", message, tensor, file=file, hint=hint)
    alike = ".".join("#" if part.isdecimal() else part for part in tensor.split("."))
    return Defect(finding, layers or (TOP if layer is None else layer,), alike)
