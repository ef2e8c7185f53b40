"""Writes tiny checkpoints of a family and proves their plans on a dozen layouts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from loadmaster.architectures.cuts import legal_starts
from loadmaster.architectures.faults import spelling_labels
from loadmaster.architectures.registry import DescribedConfig
from loadmaster.architectures.schema import Family, Schema
from loadmaster.architectures.target import Target
from loadmaster.architectures.targets import NATIVE
from loadmaster.checkpoint import Checkpoint, open_checkpoint
from loadmaster.errors import InputError, LayoutError
from loadmaster.findings import errors
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import Plan, build_plan, prove
from loadmaster.synth import Preset, write_tiny
from loadmaster.testing.faults import expect_none
from loadmaster.testing.tables import check_tables


def check_plans(
    family: Family, config: Mapping[str, Any], folder: Path, *, layouts: Sequence[ParallelLayout] | None = None
) -> None:
    """Write a tiny checkpoint in each spelling of the family, and prove it on each layout (`layouts_of`).

    ``config`` is written unchanged, so its sizes should be small: a few megabytes in all. With a ``quantization_config`` the
    weights are quantised. ``folder`` must be empty or not exist.

    Raises:
        FamilyFaults: the tables are wrong, or a plan is not proven.
    """
    check_tables(family, config)
    expect_none(family.name, _faults(family, config, folder, layouts))


def write_checkpoint(family: Family, config: Mapping[str, Any], folder: Path, *, spelling: int = 0) -> Checkpoint:
    """Write a checkpoint of ``config`` into ``folder``, with random weights and a tokenizer, and open it.

    The family is attached to it (`described`), so it can be planned whether or not the family is registered.
    """
    drafts = family.draft_spelling(spelling)
    spelled = replace(
        family, spelling=family.spellings[spelling], variants=(), drafts=() if drafts is None else (drafts,)
    )
    write_tiny(Preset(family.name, dict(config), {}, num_shards=1, tiny_shards=2, family=spelled), folder)
    return described(open_checkpoint(folder), family)


def described(checkpoint: Checkpoint, family: Family) -> Checkpoint:
    """Return the checkpoint with ``family`` attached: `build_plan` uses it, whatever architecture the config names."""
    return replace(checkpoint, config=DescribedConfig(checkpoint.config or {}, family))


def layouts_of(family: Family, config: Mapping[str, Any]) -> tuple[ParallelLayout, ...]:
    """Return about a dozen layouts over every axis that the model has: stages, ranks, replicas, experts, draft layers.

    Tensor-parallel sizes are 1, 2 and 4: sizes and number of experts of a tiny config should divide by 4.
    """
    schema = family.schema(family.describe(config))
    num_layers, starts = len(schema.layers), legal_starts(schema, Target(NATIVE, family.native))
    most = len(starts) + 1
    layouts = [ParallelLayout()]
    if starts:
        uneven = (starts[0], num_layers - starts[0])
        layouts += [ParallelLayout(2), ParallelLayout(2, layer_partition=uneven), ParallelLayout(2, 2)]
    if most > 2:
        layouts.append(ParallelLayout(min(most, 4)))
    layouts += [ParallelLayout(1, 2), ParallelLayout(1, 4), ParallelLayout(1, 2, data_parallel_size=2)]
    layouts.append(ParallelLayout(min(most, 2), 2, data_parallel_size=2))
    if _has_experts(schema):
        layouts += [
            ParallelLayout(1, 2, enable_expert_parallel=True),
            ParallelLayout(1, 4, enable_expert_parallel=True, expert_placement="round_robin"),
            ParallelLayout(1, 2, enable_expert_parallel=True, num_redundant_experts=2),
            ParallelLayout(min(most, 2), 2, enable_expert_parallel=True, data_parallel_size=2),
        ]
    if schema.drafts:
        layouts += [ParallelLayout(num_draft_layers=1), ParallelLayout(min(most, 2), 2, num_draft_layers=1)]
    return tuple(dict.fromkeys(layouts))


def name_of(layout: ParallelLayout) -> str:
    """Return a short name of a layout.

    >>> name_of(ParallelLayout(2, 4, enable_expert_parallel=True)), name_of(ParallelLayout())
    ('pp 2, tp 4, ep', 'one rank')
    """
    sizes = {
        "pp": layout.pipeline_parallel_size,
        "tp": layout.tensor_parallel_size,
        "dp": layout.data_parallel_size,
        "drafts": layout.num_draft_layers + 1,
    }
    words = [f"{name} {size - (name == 'drafts')}" for name, size in sizes.items() if size > 1]
    if layout.layer_partition:
        words.append(f"layers {'+'.join(map(str, layout.layer_partition))}")
    if layout.enable_expert_parallel:
        redundant = f" with {layout.num_redundant_experts} redundant" if layout.num_redundant_experts else ""
        words.append(f"ep{redundant}" + (" in turns" if layout.expert_placement == "round_robin" else ""))
    return ", ".join(words) or "one rank"


def _has_experts(schema: Schema) -> bool:
    return any(t.experts for kind in dict.fromkeys(schema.layers) for t in schema.kinds[kind])


def _faults(
    family: Family, config: Mapping[str, Any], folder: Path, layouts: Sequence[ParallelLayout] | None
) -> Iterator[str]:
    for number, label in enumerate(spelling_labels(family)):
        checkpoint = write_checkpoint(family, config, folder / label, spelling=number)
        for layout in layouts or layouts_of(family, config):
            where = f"{label}, {name_of(layout)}"
            plan = try_plan(checkpoint, layout)
            if isinstance(plan, str):
                yield f"{where}: {plan}"
                continue
            for finding in errors(prove(plan).findings):
                what = finding.tensor or finding.param
                yield f"{where}: {finding.code}: " + (f"{what}: " if what else "") + finding.message


def try_plan(checkpoint: Checkpoint, layout: ParallelLayout) -> Plan | str:
    """Return the plan, or a sentence on why planning failed."""
    try:
        return build_plan(checkpoint, layout)
    except LayoutError as error:
        hint = f" ({error.hint})" if error.hint else ""
        return f"{error.message}{hint}; if the placement is right, give a config whose sizes divide, or other `layouts`"
    except InputError as error:
        return f"{type(error).__name__}: {error.message}"
    except Exception as error:
        return f"planning fails: {type(error).__name__}: {error}"
