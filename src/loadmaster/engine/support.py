"""Checks, before loading, that the packages, options, model and formats are ones that this version can run."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from loadmaster.architectures.aliases import architecture_of
from loadmaster.architectures.registry import FAMILIES, find_family
from loadmaster.arguments import expect_int, shown
from loadmaster.errors import ArgumentError, ConfigError, UnsupportedError
from loadmaster.layers.formats import RUNNABLE_FORMATS
from loadmaster.workers.launch import Launch

if TYPE_CHECKING:
    from loadmaster.parallel import ParallelLayout
    from loadmaster.plan import Plan

RUNNING = ("torch", "transformers", "tokenizers")
SERVING = ("fastapi", "jinja2", "llguidance", "prometheus_client", "uvicorn")

DEVICES = ("cpu", "cuda")

DRAFT_METHODS = ("mtp", "deepseek_mtp")


def require_run_extra(*, serving: bool = False) -> None:
    """Check that the packages of the ``run`` extra are installed; those of the server only if ``serving``.

    Raises:
        UnsupportedError: names the missing packages.
    """
    missing = [name for name in (*RUNNING, *(SERVING if serving else ())) if find_spec(name) is None]
    if missing:
        raise UnsupportedError(
            f"running a model needs packages that are not installed: {', '.join(missing)}",
            hint="pip install 'loadmaster[run]'",
        )


def require_device(device: str) -> None:
    """Check that stages can compute on a device.

    Raises:
        ArgumentError: names the devices.
    """
    if device not in DEVICES:
        raise ArgumentError(f"device is {shown(device)}, expected one of {', '.join(DEVICES)}")


def refuse_options(speculative_config: Mapping[str, Any] | None, data_parallel_size: int = 1) -> None:
    """Refuse options that `plan` and `load` support but running does not.

    Raises:
        UnsupportedError: names the option.
        ConfigError: the number of speculative tokens is none.
    """
    if data_parallel_size > 1:
        raise UnsupportedError(
            f"--data-parallel-size {data_parallel_size}: running with data parallelism is not supported yet; `plan` and "
            "`load` support it",
            hint="use --pipeline-parallel-size and --tensor-parallel-size",
        )
    speculative_tokens(speculative_config)
    for key in speculative_config or ():
        if key not in ("method", "num_speculative_tokens"):
            raise UnsupportedError(
                f"--speculative-config: {key} is not supported", hint="supported: method, num_speculative_tokens"
            )


def speculative_tokens(speculative_config: Mapping[str, Any] | None) -> int | None:
    """Return how many tokens the value of ``--speculative-config`` asks a draft model for; None: as many as it has layers.

    Raises:
        UnsupportedError: the method is not MTP.
        ConfigError: the number is none.
    """
    if speculative_config is None:
        return None
    method = speculative_config.get("method")
    if method not in DRAFT_METHODS:
        raise UnsupportedError(f"--speculative-config: method {method!r} is not supported", hint="supported: mtp")
    number = speculative_config.get("num_speculative_tokens")
    if number is not None and (type(number) is not int or number < 1):
        raise ConfigError(f"--speculative-config: num_speculative_tokens is {number!r}, expected at least 1")
    return number


def num_drafts(num_layers: int, num_speculative_tokens: int | None) -> int:
    """Return how many tokens a draft model of ``num_layers`` MTP layers proposes. One layer proposes any number.

    Raises:
        ArgumentError: a number is given for a plan without MTP layers, or it is less than 1.
        UnsupportedError: it is larger than the number of layers, and there are several.
    """
    if num_speculative_tokens is None:
        return num_layers
    expect_int("num_speculative_tokens", num_speculative_tokens, 1)
    if not num_layers:
        raise ArgumentError(
            f"num_speculative_tokens is {num_speculative_tokens}, and the plan has no MTP layer",
            hint="plan with ParallelLayout(num_draft_layers=1)",
        )
    if 1 < num_layers < num_speculative_tokens:
        raise UnsupportedError(
            f"num_speculative_tokens is {num_speculative_tokens}, and the model's {num_layers} MTP layers propose one token "
            "each",
            hint=f"ask for at most {num_layers}",
        )
    return num_speculative_tokens


def launch_of(layout: ParallelLayout, environment: Mapping[str, str]) -> Launch | None:
    """Return what a launcher says about this process, which must be one of as many as the layout has ranks; None: no launcher.

    Raises:
        ConfigError: a variable is not valid, or there are more processes or fewer.
    """
    launch = Launch.of(environment)
    num_ranks = layout.pipeline_parallel_size * layout.tensor_parallel_size
    if launch is not None and launch.num_ranks != num_ranks:
        raise ConfigError(
            f"the launcher started {launch.num_ranks} processes (WORLD_SIZE), and the layout has {num_ranks} ranks: "
            f"{layout.pipeline_parallel_size} stages of {layout.tensor_parallel_size}",
            hint="start one process for each rank (torchrun --nnodes, --nproc-per-node), or change --pipeline-parallel-size "
            "and --tensor-parallel-size",
        )
    return launch


def refuse_model(config: Mapping[str, Any]) -> None:
    """Refuse a model of a family that `plan` and `load` support but running does not. Needs only config.json.

    Raises:
        UnsupportedError: names the architecture and the families that run.
        InputError: the architecture is unknown.
    """
    family = find_family(config)
    if not family.runs:
        raise UnsupportedError(
            f"config.json: {architecture_of(config)} is of the family {family.name}; running it is not supported yet; "
            "`plan` and `load` support it",
            hint=f"use a family that runs: {', '.join(f.name for f in FAMILIES if f.runs)}; see docs/reference/models.md",
        )


def refuse_plan(plan: Plan) -> None:
    """Refuse a plan if running its family, or the format of a parameter, is not supported. Loads nothing.

    Raises:
        UnsupportedError: names the format, a parameter that has it, and the formats that run.
    """
    refuse_model(plan.config)
    if plan.layout.multimodal:
        raise UnsupportedError(
            "--multimodal: running with vision and audio is not supported yet; `plan` and `load` support it",
            hint="leave out --multimodal",
        )
    names_by_format: dict[str, list[str]] = {}
    for rank in range(plan.num_ranks):
        for spec in plan.rank(rank).specs:
            if spec.format not in RUNNABLE_FORMATS:
                names_by_format.setdefault(str(spec.format), []).append(spec.name)
    if names_by_format:
        format_, names = max(names_by_format.items(), key=lambda pair: len(pair[1]))
        more = f" and {len(names) - 1:,} more parameters" if len(names) > 1 else ""
        raise UnsupportedError(
            f"{names[0]}{more}: computing with weights stored as {format_} is not supported yet",
            hint="use --weights decoded, which takes more memory, or a checkpoint in a format that runs as stored: "
            + ", ".join(f or "plain" for f in RUNNABLE_FORMATS),
        )
