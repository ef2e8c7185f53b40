"""Finds the rule for the kinds of layers: a list in the config, or a count of first layers, or an interval.

A rule is Python over ``i``, the number of a layer, and the config ``c``. Only keys whose names say that they are about layers
are tried.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from loadmaster.describe.dims import NAMES

ABOUT_LAYERS = re.compile(r"layer|dense|interval|freq|period|step|pattern|moe|every|block|idx|attn_type")


@dataclass(frozen=True, slots=True)
class Rule:
    """``text`` is an expression over ``i`` that gives one of ``kinds``' keys: `kinds` maps its values to the kind of a layer."""

    text: str
    kinds: Mapping[object, str]


def find_rule(kinds: Sequence[str], config: Mapping[str, Any]) -> tuple[Rule | None, tuple[str, ...]]:
    """Return the rule that gives ``kinds`` (one of each layer), and other rules that give the same; None where none does."""
    features = list(_features(len(kinds), config))
    found: list[Rule] = []
    for group in (*((f,) for f in features), *combinations(features, 2)):
        if len(group) == 2 and found:
            break
        values = list(zip(*(f[1] for f in group), strict=True))
        mapping: dict[object, str] = {}
        if all(mapping.setdefault(v, k) == k for v, k in zip(values, kinds, strict=True)):
            if len(group) == 1:
                found.append(Rule(group[0][0], {v[0]: k for v, k in mapping.items() if isinstance(v, tuple)}))
            else:
                found.append(Rule(f"({group[0][0]}, {group[1][0]})", mapping))
    return (found[0] if found else None), tuple(r.text for r in found[1:4])


def _features(count: int, config: Mapping[str, Any]) -> Iterator[tuple[str, list[object]]]:
    """Yield expressions with their values for each layer: lists first, for they say it themselves."""
    about = {
        k: v for k, v in config.items() if ABOUT_LAYERS.search(k) and k.isidentifier() and k not in NAMES["layers"]
    }
    for key, value in about.items():
        if (
            isinstance(value, list)
            and len(value) >= count
            and all(isinstance(v, str) for v in value)
            and len(set(value)) > 1
        ):
            yield f'c.strings("{key}")[i]', list(value[:count])
        elif isinstance(value, list) and value and all(type(v) is int for v in value) and len(value) < count:
            yield f'i in c.sizes("{key}")', [i in value for i in range(count)]
    for key, value in about.items():
        if type(value) is int and 0 < value < count:
            yield f'i < c.size("{key}", least=0)', [i < value for i in range(count)]
        if type(value) is int and 2 <= value <= count:
            yield f'(i + 1) % c.size("{key}") == 0', [(i + 1) % value == 0 for i in range(count)]
            yield f'i % c.size("{key}") == 0', [i % value == 0 for i in range(count)]
