"""Compares the names and shapes that the tables give with those of the model's class in transformers, without weights.

The class is built on the meta device, which takes no memory, so a full-size config works as well as a tiny one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from typing import Any

from loadmaster.architectures.faults import spelling_labels
from loadmaster.architectures.schema import Family
from loadmaster.testing.faults import expect_none
from loadmaster.testing.tables import Shapes, check_tables, stored_shapes


def compare_with_transformers(family: Family, config: Mapping[str, Any]) -> None:
    """Compare the tables with the class that ``config`` names in ``architectures``.

    One of the family's spellings must have the names and shapes of the checkpoints that transformers saves, or of the
    parameters of its model. MTP layers, which transformers does not build, and waived names are not compared; tensors that a
    checkpoint may lack may be missing.

    Raises:
        FamilyFaults: none of them has; the sentences are about the closest spelling.
        ImportError: transformers is not installed, or has no such class.
    """
    check_tables(family, config)
    model = build_model(config)
    waived = (*family.waived, *family.schema(family.describe(config)).waived)
    theirs = [_without(waived, names) for names in (names_saved(model), names_inside(model))]
    candidates: list[tuple[str, ...]] = []
    for number, label in enumerate(spelling_labels(family)):
        ours, least = (stored_shapes(family, config, number, drafts=False, optional=o) for o in (True, False))
        for names in theirs:
            if names in (ours, least):
                return
            candidates.append(tuple(_differences(label, ours, names)))
    closest = min(candidates, key=len)
    expect_none(family.name, closest)


def has_model(config: Mapping[str, Any]) -> bool:
    """Return whether transformers is installed and has the class that ``config`` names."""
    return find_spec("transformers") is not None and config["architectures"][0] in _classes()


@cache
def _classes() -> frozenset[str]:
    """Return the names that transformers has, without importing what they name."""
    import transformers

    return frozenset(dir(transformers))


def published_shapes(config: Mapping[str, Any]) -> Shapes:
    """Return the names and shapes of a checkpoint of ``config`` as transformers saves it: what the tables must give.

    Raises:
        ImportError: transformers is not installed, or has no class of this name.
    """
    return names_saved(build_model(config))


def names_inside(model: Any) -> Shapes:
    """Return every saved parameter and buffer of a model, under its name in the model."""
    return {name: tuple(t.shape) for name, t in model.state_dict().items()}


def names_saved(model: Any) -> Shapes:
    """Return them under their names in a checkpoint that transformers writes; experts may be separate there."""
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # before transformers 5 the names are the same
        return names_inside(model)
    return {name: tuple(t.shape) for name, t in revert_weight_conversion(model, model.state_dict()).items()}


def class_of(config: Mapping[str, Any]) -> Any:
    """Return transformers' class of the name in ``architectures``; ImportError where there is none."""
    import transformers

    name = config["architectures"][0]
    model_class = getattr(transformers, name, None)
    if model_class is None:
        raise ImportError(f"transformers {transformers.__version__} has no class {name}")
    return model_class


def build_model(config: Mapping[str, Any]) -> Any:
    """Return transformers' model for ``config``, on the meta device: names and shapes, no memory."""
    import torch

    model_class = class_of(config)
    left_out = ("architectures", "model_type", "quantization_config")
    values = {k: deepcopy(v) for k, v in config.items() if k not in left_out}  # some classes change the sections
    with torch.device("meta"):
        return model_class(model_class.config_class(**values))


def _without(waived: tuple[tuple[str, str], ...], names: Shapes) -> Shapes:
    patterns = [re.compile(pattern) for pattern, _ in waived]
    return {name: shape for name, shape in names.items() if not any(p.fullmatch(name) for p in patterns)}


def _differences(label: str, ours: Shapes, theirs: Shapes) -> Iterator[str]:
    """Yield sentences about differences, for each kind of tensor only in the first layer that differs."""
    missing = _first_of_a_kind(theirs.keys() - ours.keys())
    surplus = _first_of_a_kind(ours.keys() - theirs.keys())
    for name in missing:
        near = get_close_matches(name, surplus, 1, 0.8)
        nearest = f"; nearest: {near[0]}" if near else ""
        yield f"{label}: transformers has {name} {list(theirs[name])}, but no table names it{nearest}"
    for name in surplus:
        yield f"{label}: it names {name} {list(ours[name])}, but transformers has no such tensor"
    for name in _first_of_a_kind({n for n in ours.keys() & theirs.keys() if ours[n] != theirs[n]}):
        yield f"schema: {name} is {list(ours[name])}, but {list(theirs[name])} in transformers"


def _first_of_a_kind(names: set[str]) -> list[str]:
    """Return one of all names that differ only in their numbers: that of the first layer and expert."""
    kinds: dict[str, str] = {}
    for name in sorted(names, key=lambda n: [int(part) if part.isdigit() else 0 for part in n.split(".")]):
        kinds.setdefault(re.sub(r"\d+", "#", name), name)
    return sorted(kinds.values())
