"""What this version runs: the packages, options, models and formats that it needs or refuses, each before loading."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from loadmaster.architectures.registry import FAMILIES, find_family
from loadmaster.errors import UnsupportedError
from loadmaster.layers.formats import RUNNABLE_FORMATS

if TYPE_CHECKING:
    from loadmaster.plan import Plan

RUNNING = ("torch", "transformers", "tokenizers")
SERVING = ("fastapi", "jinja2", "uvicorn")

DRAFT_METHODS = ("mtp", "deepseek_mtp")


def require_run_extra(*, serving: bool = False) -> None:
    """Refuse to go on without it, before anything is planned; only ``serving`` needs the server's packages.

    Raises:
        UnsupportedError: names what is missing.
    """
    missing = [name for name in (*RUNNING, *(SERVING if serving else ())) if find_spec(name) is None]
    if missing:
        raise UnsupportedError(
            f"running a model needs {', '.join(missing)}, which this environment lacks",
            hint="pip install 'loadmaster[run]'",
        )


def refuse_options(
    tensor_parallel_size: int, speculative_config: Mapping[str, Any] | None, data_parallel_size: int = 1
) -> None:
    """Refuse what can be planned and loaded, but not run, from the command line alone.

    Raises:
        UnsupportedError: names the option.
    """
    sizes = {"tensor": tensor_parallel_size, "data": data_parallel_size}
    for axis, size in sizes.items():
        if size > 1:
            raise UnsupportedError(
                f"--{axis}-parallel-size {size}: such a layout is planned, proven and loaded by `plan` and `load`, but "
                f"running {axis}-parallel is not supported yet",
                hint="divide the model by --pipeline-parallel-size alone",
            )
    if speculative_config is not None and speculative_config.get("method") in DRAFT_METHODS:
        raise UnsupportedError(
            "--speculative-config: drafting with mtp is not supported yet; the MTP layer is planned, proven and loaded "
            "by `plan` and `load`",
            hint="leave out --speculative-config",
        )


def refuse_launcher(environment: Mapping[str, str]) -> None:
    """Refuse to be one of several processes of a launcher: each would start all stages of a model of its own.

    Raises:
        UnsupportedError: the environment is what torchrun gives to one of several processes.
    """
    size = environment.get("WORLD_SIZE", "1")
    if "RANK" in environment and "MASTER_ADDR" in environment and size != "1":
        raise UnsupportedError(
            f"this is process {environment['RANK']} of {size} of a launcher (RANK, WORLD_SIZE), and running over several "
            "hosts is not supported yet: one process starts the workers of all stages, on its own host",
            hint="start the command once, without torchrun",
        )


def refuse_model(config: Mapping[str, Any]) -> None:
    """Refuse a model of a family that can be planned and loaded, but not run, from its config.json alone.

    Raises:
        UnsupportedError: names the architecture and the families that run.
        InputError: the architecture is not known.
    """
    family = find_family(config)
    if not family.runs:
        raise UnsupportedError(
            f"config.json: {config['architectures'][0]} is of the family {family.name}, which `plan` and `load` take, but "
            "which this version does not compute",
            hint=f"families that run: {', '.join(f.name for f in FAMILIES if f.runs)}; see docs/reference/models.md",
        )


def refuse_plan(plan: Plan) -> None:
    """Refuse a plan whose model or whose weights' format the layers do not compute with; nothing is loaded for it.

    Raises:
        UnsupportedError: names the format, a weight that is stored in it, and the formats that run.
    """
    refuse_model(plan.config)
    met: dict[str, list[str]] = {}
    for rank in range(plan.num_ranks):
        for spec in plan.rank(rank).specs:
            if spec.format not in RUNNABLE_FORMATS:
                met.setdefault(str(spec.format), []).append(spec.name)
    if met:
        format_, names = max(met.items(), key=lambda pair: len(pair[1]))
        more = f" and {len(names) - 1:,} more weights are" if len(names) > 1 else " is"
        raise UnsupportedError(
            f"{names[0]}{more} stored in the format {format_}, which `plan` and `load` take, but which the layers do not "
            "compute with",
            hint=f"formats that run: {', '.join(f or 'plain' for f in RUNNABLE_FORMATS)}; see docs/reference/models.md",
        )
