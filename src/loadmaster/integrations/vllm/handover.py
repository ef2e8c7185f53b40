"""Hands a proven model over to vLLM's server: its command line, its environment, and what cannot be handed over."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from loadmaster.errors import UnsupportedError, UsageError
from loadmaster.integrations.vllm.carried import forwarded

if TYPE_CHECKING:
    from loadmaster.integrations.vllm.carried import Carried
    from loadmaster.integrations.vllm.installed import Installed
    from loadmaster.plan import Plan, WaiverRequest
    from loadmaster.plan.stages import DividedLayers

_PARTITION: Final = "VLLM_PP_LAYER_PARTITION"
_PROVEN: Final = frozenset(
    {
        *("--model", "--revision", "--dtype", "--load-format"),
        *("--pipeline-parallel-size", "-pp", "--tensor-parallel-size", "-tp", "--data-parallel-size", "-dp"),
        *("--enable-expert-parallel", "-ep", "--expert-placement-strategy", "--eplb-config", "--engram-config"),
        *("--host", "--port", "--served-model-name", "--max-model-len", "--api-key"),
    }
)
"""Options that must come before ``--``: the proof depends on them, or `vllm_command` writes them."""


_GIVEN: Final = (
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "kv_cache_memory_bytes",
    "block_size",
    "num_gpu_blocks_override",
    "shutdown_timeout",
    "max_log_len",
    "disable_access_log_for_endpoints",
    "tool_call_parser",
    "reasoning_parser",
    "download_dir",
)
"""Options that are passed to vLLM if they were given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """The options of ``loadmaster serve`` that vLLM's server needs, by the names that they have there.

    ``server_arguments`` are those of access and of limits. ``carried`` are options of vLLM that stand before ``--``,
    ``passed_on`` the arguments after it.
    """

    model: str
    pipeline_parallel_size: int
    tensor_parallel_size: int
    data_parallel_size: int
    enable_expert_parallel: bool
    expert_placement_strategy: str
    eplb_config: Mapping[str, Any]
    engram_config: Mapping[str, Any]
    layer_partition: Sequence[int] | None
    speculative_config: Mapping[str, Any] | None
    dtype: str
    waive: Sequence[WaiverRequest]
    json: bool
    max_model_len: int | None
    max_num_seqs: int | None
    max_num_batched_tokens: int | None
    kv_cache_memory_bytes: int | None
    block_size: int | None
    num_gpu_blocks_override: int | None
    enable_prefix_caching: bool | None
    shutdown_timeout: float | None
    host: str
    port: int
    served_model_name: Sequence[str] | None
    server_arguments: Sequence[str]
    log_format: str
    log_level: str
    enable_log_requests: bool
    enable_log_outputs: bool
    max_log_len: int | None
    disable_access_log_for_endpoints: str | None
    carried: Sequence[Carried]
    passed_on: Sequence[str]
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None
    download_dir: str | None = None
    enable_auto_tool_choice: bool = False
    strict: bool = False


def refuse_for_vllm(options: ServeOptions, environment: Mapping[str, str] = os.environ) -> None:
    """Refuse options that cannot be handed over.

    Raises:
        UsageError: names the option.
    """
    if options.json:
        raise UsageError(
            "--json: vLLM writes its log to standard output, where only one JSON object may be; use --engine native"
        )
    if options.strict:
        raise UsageError("--strict: vLLM's server has no such option; use --engine native")
    if options.port == 0:
        raise UsageError("--port 0: vLLM does not report which port it chose; give a port number")
    for argument in options.passed_on:
        name = argument.partition("=")[0].replace("_", "-")
        if name == "--model-loader-extra-config" and options.waive:
            written = json.dumps({"waive": _waivers(options)})
            raise UsageError(f"--waive and {name} after --: give only {name}, with {written} among its keys")
        if name in _PROVEN:
            raise UsageError(f"{argument} is given after --, where the proof does not see it; give it before --")
    if _PARTITION in environment and options.layer_partition is None:
        raise UsageError(f"{_PARTITION} is set, but the proof does not read it; give --layer-partition instead")


def vllm_command(options: ServeOptions, plan: Plan, installed: Installed) -> list[str]:
    """Return the command line of vLLM's server, for this interpreter.

    A model from the hub is named with the commit that was proven, one from a URL by its copy on disk. Where the metadata is
    missing that ``vllm serve`` looks for, the same server is started by its module.
    """
    model, revision = options.model, []
    if "://" in model:
        model = str(plan.model_path)
    elif Path(model).expanduser().exists():
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
        *_arguments(options),
        *forwarded(options.carried),
        *options.passed_on,
    ]


def _arguments(options: ServeOptions) -> list[str]:
    arguments = ["--host", options.host, "--port", str(options.port)]
    arguments += ["--served-model-name", *(options.served_model_name or [options.model])]
    for name in ("pipeline_parallel_size", "tensor_parallel_size", "data_parallel_size"):
        if getattr(options, name) > 1:
            arguments += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    if options.enable_expert_parallel:
        arguments.append("--enable-expert-parallel")
    if options.expert_placement_strategy != "linear":
        arguments += ["--expert-placement-strategy", options.expert_placement_strategy]
    for name in ("eplb_config", "engram_config"):
        if value := getattr(options, name):
            arguments += [f"--{name.replace('_', '-')}", json.dumps(value)]
    if options.speculative_config is not None:
        arguments += ["--speculative-config", json.dumps(options.speculative_config)]
    if options.dtype != "auto":
        arguments += ["--dtype", options.dtype]
    for name in _GIVEN:
        if (value := getattr(options, name)) not in (None, "none"):
            arguments += [f"--{name.replace('_', '-')}", f"{value:g}" if isinstance(value, float) else str(value)]
    if options.enable_prefix_caching is not None:
        arguments.append(f"--{'' if options.enable_prefix_caching else 'no-'}enable-prefix-caching")
    if options.waive:
        arguments += ["--model-loader-extra-config", json.dumps({"waive": _waivers(options)})]
    if options.log_format != "text":
        arguments += ["--logging-config.formatter", options.log_format]
    if options.log_level != "INFO":
        arguments += ["--log-level", options.log_level]
    for name in ("enable_log_requests", "enable_log_outputs"):
        if getattr(options, name):
            arguments.append(f"--{name.replace('_', '-')}")
    if options.enable_auto_tool_choice:
        arguments.append("--enable-auto-tool-choice")
    return [*arguments, *options.server_arguments]


def _waivers(options: ServeOptions) -> list[str]:
    return [f"{w.pattern}={w.reason}" for w in options.waive]


def divided_for_vllm(plan: Plan, layer_partition: Sequence[int] | str | None, installed: Installed) -> DividedLayers:
    """Return the layers of vLLM's stages for a plan of the native engine: vLLM cannot begin a stage everywhere.

    ``layer_partition`` is the one that was asked for. Of a model whose class in vLLM is not described, only what holds for every
    engine is known.

    Raises:
        LayoutError: vLLM cannot begin a stage where it was asked for; the hint has the nearest partition.
    """
    from loadmaster.architectures.targets import find_target, newest_target
    from loadmaster.plan.stages import divide_layers

    asked = None if layer_partition is None or isinstance(layer_partition, str) else tuple(layer_partition)
    try:
        target = find_target(installed.target or newest_target("vllm"), plan.family, plan.family.describe(plan.config))
    except UnsupportedError:
        target = plan.target
    return divide_layers(plan.schema, target, replace(plan.layout, layer_partition=asked))


def vllm_environment(options: ServeOptions, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment of vLLM's server, which reads the number of layers of each stage from it."""
    if options.layer_partition is None:
        return dict(environment)
    return {**environment, _PARTITION: ",".join(map(str, options.layer_partition))}


def hand_over(command: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """Replace this process with another program, which then receives its signals and sets its exit code."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(command[0], list(command), dict(environment))
