"""Strays: stored tensors that no parameter needs and no waiver names, gathered into the modules that are stray whole."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from loadmaster.checkpoint import Checkpoint
from loadmaster.findings import Finding
from loadmaster.plan.defects import TOP, Defect
from loadmaster.plan.names import Names, ancestors, layer_of, module_totals, whole_modules


def unexpected(names: Names, checkpoint: Checkpoint, num_layers: int) -> Iterator[Defect]:
    """Report what is left of the strays, once what was renamed is taken out."""
    strays, table = names.strays, checkpoint.table
    modules = {m for name in strays for m in ancestors(name)}
    module_of = whole_modules(strays, module_totals(table.names, modules)) if len(strays) > 1 else {}
    whole: dict[str, list[str]] = defaultdict(list)
    for name in strays:
        if name in module_of:
            whole[module_of[name]].append(name)
        else:
            signature = table.signatures[table.signature[strays[name]]]
            what = f"{signature.dtype} {list(signature.shape)} belongs to no parameter of this architecture"
            yield _defect(name, what, checkpoint, strays[name], num_layers)
    for module, inside in whole.items():
        what = f"{len(inside):,} tensors that belong to no parameter of this architecture"
        yield _defect(f"{module}.*", what, checkpoint, strays[inside[0]], num_layers)


def _defect(tensor: str, message: str, checkpoint: Checkpoint, number: int, num_layers: int) -> Defect:
    layer = layer_of(tensor)
    hint = "is config.json the one this checkpoint was published with?"
    if layer is not None and layer >= num_layers:
        hint = f"config.json describes {num_layers} layers; an MTP layer needs num_nextn_predict_layers. {hint.capitalize()}"
    hint += f" What is known to be surplus can be waived: --waive '{tensor}=REASON'"
    file = checkpoint.files[checkpoint.table.file[number]].name
    finding = Finding("tensor-unexpected", "error", message, tensor, file=file, hint=hint)
    alike = ".".join("#" if part.isdecimal() else part for part in tensor.split("."))
    return Defect(finding, (TOP if layer is None else layer,), alike)
