"""A proven command line under vLLM's names, and handing the process over to it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from loadmaster.cli.carried import forwarded
from loadmaster.errors import UsageError

if TYPE_CHECKING:
    from loadmaster.integrations.vllm.installed import Installed
    from loadmaster.plan import Plan

_PARTITION: Final = "VLLM_PP_LAYER_PARTITION"
_PROVEN: Final = frozenset(
    {
        *("--model", "--revision", "--dtype", "--load-format"),
        *("--pipeline-parallel-size", "-pp", "--tensor-parallel-size", "-tp", "--data-parallel-size", "-dp"),
        *("--enable-expert-parallel", "-ep", "--expert-placement-strategy", "--eplb-config"),
        *("--host", "--port", "--served-model-name", "--max-model-len", "--api-key"),
    }
)
"""Options that stand before ``--``: the proof must know of them, or `vllm_command` says them."""


def refuse_for_vllm(args: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> None:
    """Refuse what cannot be carried over.

    Raises:
        UsageError: names the option.
    """
    if args.json:
        raise UsageError(
            "--json: vLLM writes its log on standard output, where nothing but one object may be; use --engine native"
        )
    if args.port == 0:
        raise UsageError("--port 0: vLLM does not tell which port it took; choose one")
    for argument in args.passed_on:
        name = argument.partition("=")[0].replace("_", "-")
        if name == "--model-loader-extra-config" and args.waive:
            written = json.dumps({"waive": _waivers(args)})
            raise UsageError(f"--waive and {name} after --: say both in one, with {written} among the options there")
        if name in _PROVEN:
            raise UsageError(f"{argument} stands after --, where the proof does not see it; give it before")
    if _PARTITION in environment and args.layer_partition is None:
        raise UsageError(f"{_PARTITION} is set, which the proof does not see; give --layer-partition instead")


def vllm_command(args: argparse.Namespace, plan: Plan, installed: Installed) -> list[str]:
    """Return the command line of vLLM's server, for this interpreter.

    A model from the hub is named with the commit that was proven. Where the metadata is missing that ``vllm serve`` looks
    for, the same server is started by its module.
    """
    model, revision = args.model, []
    if Path(model).expanduser().exists():
        model = str(Path(model).expanduser())
    else:
        revision = ["--revision", plan.model_path.name]
    if installed.has_command:
        start = ["-m", "vllm.entrypoints.cli.main", "serve", model]
    else:
        start = ["-m", "vllm.entrypoints.launchers.api_server.entry", "--model", model]
    return [
        sys.executable,
        *start,
        *revision,
        "--load-format",
        "loadmaster",
        *_options(args),
        *forwarded(args.carried),
        *args.passed_on,
    ]


def _options(args: argparse.Namespace) -> list[str]:
    options = ["--host", args.host, "--port", str(args.port)]
    options += ["--served-model-name", *(args.served_model_name or [args.model])]
    for name in ("pipeline_parallel_size", "tensor_parallel_size", "data_parallel_size"):
        if getattr(args, name) > 1:
            options += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    if args.enable_expert_parallel:
        options.append("--enable-expert-parallel")
    if args.expert_placement_strategy != "linear":
        options += ["--expert-placement-strategy", args.expert_placement_strategy]
    if args.eplb_config:
        options += ["--eplb-config", json.dumps(args.eplb_config)]
    if args.speculative_config is not None:
        options += ["--speculative-config", json.dumps(args.speculative_config)]
    if args.dtype != "auto":
        options += ["--dtype", args.dtype]
    if args.max_model_len is not None:
        options += ["--max-model-len", str(args.max_model_len)]
    if args.waive:
        options += ["--model-loader-extra-config", json.dumps({"waive": _waivers(args)})]
    if args.api_key is not None:
        options += ["--api-key", args.api_key]
    return options


def _waivers(args: argparse.Namespace) -> list[str]:
    return [f"{w.pattern}={w.reason}" for w in args.waive]


def vllm_environment(args: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment of vLLM's server: it takes the layers of each stage from there."""
    if args.layer_partition is None:
        return dict(environment)
    return {**environment, _PARTITION: ",".join(map(str, args.layer_partition))}


def hand_over(command: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """Become another program: signals and the exit code are its own."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(command[0], list(command), dict(environment))
