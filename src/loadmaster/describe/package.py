"""Writes a draft as a plug-in package with a test, and judges it: the kit's tables, a plan of the model itself, transformers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from loadmaster.architectures.config import Config
from loadmaster.architectures.mlx import KEYS
from loadmaster.architectures.schema import Family
from loadmaster.checkpoint import Checkpoint, Signature
from loadmaster.describe.dims import NAMES
from loadmaster.describe.draft import Draft
from loadmaster.describe.source import family_source
from loadmaster.errors import ConfigError, InputError, LoadmasterError, UsageError
from loadmaster.findings import errors
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.testing.faults import FamilyFaults
from loadmaster.testing.modelling import compare_with_transformers, has_model, published_shapes
from loadmaster.testing.placements import compare_placements
from loadmaster.testing.plans import described
from loadmaster.testing.tables import check_tables

PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "loadmaster-{dashed}"
version = "0.1"
dependencies = ["loadmaster"]

[project.entry-points."loadmaster.families"]
{name} = "loadmaster_{name}:FAMILY"

[tool.hatch.build.targets.wheel]
include = ["loadmaster_{name}.py"]
"""

TEST = '''\
"""Checks the family with loadmaster's test kit; add a config to CHANGES for each switch that adds or removes tensors."""

import json
from pathlib import Path

import pytest
from loadmaster.testing import check_family
from loadmaster_{name} import FAMILY

CONFIG = json.loads((Path(__file__).parent / "tiny.json").read_text())
CHANGES = [{{}}]


@pytest.mark.parametrize("change", CHANGES)
def test_the_tables_are_right(change, tmp_path):
    check_family(FAMILY, CONFIG | change, tmp_path)
'''


def write_package(draft: Draft, model: str, config: Mapping[str, Any], folder: Path) -> Path:
    """Write the package into ``folder``, which must not exist; return the family's file.

    Raises:
        UsageError: the folder exists.
    """
    if folder.exists():
        raise UsageError(f"{folder} exists", hint="give --output a folder that does not exist")
    folder.mkdir(parents=True)
    name = draft.name
    file = folder / f"loadmaster_{name}.py"
    file.write_text(family_source(draft, model), encoding="utf-8")
    (folder / f"test_{name}.py").write_text(TEST.format(name=name), encoding="utf-8")
    (folder / "pyproject.toml").write_text(PROJECT.format(name=name, dashed=name.replace("_", "-")), encoding="utf-8")
    (folder / "tiny.json").write_text(json.dumps(tiny_config(draft, config), indent=1) + "\n", encoding="utf-8")
    return file


def load_family(file: Path) -> Family:
    """Return the family of a drafted file. It runs the file, which `write_package` wrote."""
    module = ModuleType(file.stem)
    exec(compile(file.read_text(encoding="utf-8"), str(file), "exec"), module.__dict__)
    family = module.__dict__["FAMILY"]
    assert isinstance(family, Family)
    return family


def shapes_in_transformers(config: Mapping[str, Any]) -> dict[str, Signature]:
    """Return the tensors that transformers' class of a model would save, without a checkpoint: plain, in the config's dtype.

    Raises:
        ConfigError: transformers is not installed, has no such class, or cannot build it from this config.
    """
    if not config.get("architectures") or not has_model(config):
        raise ConfigError(
            "transformers is not installed, or has no class of the architecture in this config.json",
            hint="give a model with its shards: their headers have names and shapes",
        )
    try:
        shapes = published_shapes(config)
    except Exception as error:  # a class can raise anything on a config that is not its own
        text = str(error).partition("\n")[0]
        raise ConfigError(f"transformers cannot build the model: {type(error).__name__}: {text}") from error
    dtype = Config(config).dtype or "BF16"
    return {name: Signature(dtype, shape) for name, shape in shapes.items()}


def judge(
    file: Path, config: Mapping[str, Any], checkpoint: Checkpoint | None = None, *, transformers: bool = True
) -> tuple[str, ...]:
    """Return what the drafted file fails at on the model that it was drafted from; empty where it fails at nothing.

    The tables are checked against one another, the ``checkpoint`` is planned and proven on one rank, and with
    ``transformers`` names, shapes and placements are compared with the class of the architecture, where it has one.
    """
    family = load_family(file)
    faults: list[str] = []
    checks: list[Callable[[Family, Mapping[str, Any]], object]] = [check_tables]
    if transformers and has_model(config):
        checks += [compare_with_transformers, compare_placements]
    for check in checks:
        try:
            check(family, config)
        except FamilyFaults as error:
            faults += [line.strip() for line in str(error).splitlines()[1:] if line.strip()]
        except LoadmasterError as error:
            faults.append(error.message)
        except Exception as error:  # transformers can raise anything on a config that is not its own
            faults.append(f"transformers: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
    if checkpoint is None:
        return tuple(dict.fromkeys(faults))
    try:
        proof = prove(build_plan(described(checkpoint, family), ParallelLayout()))
        faults += [f"plan: {f.code}: {f.tensor or f.param or ''} {f.message}" for f in errors(proof.findings)]
    except InputError as error:
        faults.append(f"plan: {error.message}")
    return tuple(dict.fromkeys(faults))


def tiny_config(draft: Draft, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config of the same model with small sizes, for tests; unquantised.

    Sizes that differ stay different, heads and experts divide over 4 ranks, and each kind of layer is there.
    """
    values = dict(config[draft.section]) if draft.section else dict(config)
    for key in KEYS:
        values.pop(key, None)
    hidden = next((values[k] for k in NAMES["hidden"] if type(values.get(k)) is int), 0)
    if hidden > 512:
        _shrink(values, draft)
    result = {**config, draft.section: values} if draft.section else values
    return {k: v for k, v in result.items() if k not in ("transformers_version", *KEYS)}


def _shrink(values: dict[str, Any], draft: Draft) -> None:
    layers_key, drafts_key = draft.count_keys
    count = max([draft.layers.index(k) + 1 for k in set(draft.layers)] + [2])
    for key, value in list(values.items()):
        if isinstance(value, list) and len(value) == len(draft.layers):
            values[key] = value[:count]
    if layers_key:
        values[layers_key] = count
    if drafts_key:
        values[drafts_key] = 1
    heads = next((values[k] for k in NAMES["heads"] if type(values.get(k)) is int), 4)
    fresh, dims = iter(range(160, 4096, 32)), iter((32, 16, 48, 64, 24, 40))
    for key in draft.keys:
        value = values.get(key)
        if type(value) is not int:
            continue
        if key in NAMES["hidden"]:
            values[key] = 128
        elif re.search(r"head_dim|channels", key):
            values[key] = next(dims)
        elif "head" in key or "group" in key:
            values[key] = 4 if value >= heads else min(value, 2)
        elif "expert" in key and "size" not in key:
            values[key] = 8 if value >= 8 else value
        elif "vocab" in key:
            values[key] = 320
        elif value > 64:
            values[key] = next(fresh)
    for key, most in (("num_experts_per_tok", 2), ("moe_topk", 2), ("n_group", 2), ("topk_group", 1)):
        if type(values.get(key)) is int:
            values[key] = min(values[key], most)
