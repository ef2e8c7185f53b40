"""Names and shapes of a model's class in transformers, without weights, against those that the tables give.

The class is built on the meta device, which takes no memory, so a full-size config can be compared as well as a tiny one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any

from loadmaster.architectures.faults import spelling_labels
from loadmaster.architectures.schema import Family
from loadmaster.testing.faults import expect_none
from loadmaster.testing.tables import Shapes, check_tables, stored_shapes


def compare_with_transformers(family: Family, config: Mapping[str, Any]) -> None:
    """Hold the tables against the class that ``config`` names in ``architectures``.

    Some spelling of the family has to be that of the checkpoints which transformers saves, or of the names inside its
    model, with equal shapes. MTP layers, which transformers does not build, and waived names are left out.

    Raises:
        FamilyFaults: none is; the sentences are about the spelling that comes nearest.
        ImportError: transformers is not installed, or has no such class.
    """
    check_tables(family, config)
    model = build_model(config)
    waived = (*family.waived, *family.schema(family.describe(config)).waived)
    theirs = [_without(waived, names) for names in (names_saved(model), names_inside(model))]
    candidates: list[tuple[str, ...]] = [
        tuple(_differences(label, stored_shapes(family, config, number, drafts=False), names))
        for number, label in enumerate(spelling_labels(family))
        for names in theirs
    ]
    fewest = min(len(faults) for faults in candidates)
    expect_none(family.name, next(faults for faults in candidates if len(faults) == fewest))


def has_model(config: Mapping[str, Any]) -> bool:
    """Return whether transformers is installed and has the class that ``config`` names."""
    if find_spec("transformers") is None:
        return False
    try:
        class_of(config)
    except ImportError:
        return False
    return True


def published_shapes(config: Mapping[str, Any]) -> Shapes:
    """Return the names and shapes of a checkpoint of ``config`` as transformers saves it: what the tables have to say.

    Raises:
        ImportError: transformers is not installed, or has no class of this name.
    """
    return names_saved(build_model(config))


def names_inside(model: Any) -> Shapes:
    """Return every parameter and buffer of a model that is saved, under its name in the model."""
    return {name: tuple(t.shape) for name, t in model.state_dict().items()}


def names_saved(model: Any) -> Shapes:
    """Return the same as transformers writes them to a checkpoint: experts one by one where they are published so."""
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # before transformers 5, what is inside is what is saved
        return names_inside(model)
    return {name: tuple(t.shape) for name, t in revert_weight_conversion(model, model.state_dict()).items()}


def class_of(config: Mapping[str, Any]) -> Any:
    """Return transformers' class of the name in ``architectures``; ImportError where there is none."""
    import transformers

    name = config["architectures"][0]
    found = getattr(transformers, name, None)
    if found is None:
        raise ImportError(f"transformers {transformers.__version__} has no class {name}")
    return found


def build_model(config: Mapping[str, Any]) -> Any:
    """Return transformers' model for ``config``, on the meta device: names and shapes, no memory."""
    import torch

    found = class_of(config)
    values = {k: v for k, v in config.items() if k not in ("architectures", "model_type", "quantization_config")}
    with torch.device("meta"):
        return found(found.config_class(**values))


def _without(waived: tuple[tuple[str, str], ...], names: Shapes) -> Shapes:
    patterns = [re.compile(pattern) for pattern, _ in waived]
    return {name: shape for name, shape in names.items() if not any(p.fullmatch(name) for p in patterns)}


def _differences(label: str, ours: Shapes, theirs: Shapes) -> Iterator[str]:
    """Yield sentences about the first layer that differs of each kind of tensor; layers are mostly alike."""
    missing = _first_of_a_kind(theirs.keys() - ours.keys())
    surplus = _first_of_a_kind(ours.keys() - theirs.keys())
    for name in missing:
        near = get_close_matches(name, surplus, 1, 0.8)
        nearest = f"; nearest: {near[0]}" if near else ""
        yield f"{label}: transformers has {name} {list(theirs[name])}, which no table names{nearest}"
    for name in surplus:
        yield f"{label}: {name} {list(ours[name])} is named, and transformers has no such tensor"
    for name in _first_of_a_kind({n for n in ours.keys() & theirs.keys() if ours[n] != theirs[n]}):
        yield f"schema: {name} is {list(ours[name])}, and in transformers {list(theirs[name])}"


def _first_of_a_kind(names: set[str]) -> list[str]:
    """Return one name for all that differ in their numbers alone, that of the first layer and expert."""
    kinds: dict[str, str] = {}
    for name in sorted(names, key=lambda n: [int(part) if part.isdigit() else 0 for part in n.split(".")]):
        kinds.setdefault(re.sub(r"\d+", "#", name), name)
    return sorted(kinds.values())
