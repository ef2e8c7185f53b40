"""``loadmaster serve MODEL``: serve the OpenAI API, by the native engine or by vLLM."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING

from loadmaster.cli.interrupt import Interruptible
from loadmaster.cli.launched import run_member
from loadmaster.cli.options import (
    Engines,
    add_capacity_arguments,
    add_device_argument,
    add_download_dir_argument,
    add_engine_arguments,
    add_model_arguments,
    add_weights_argument,
    capacity,
    tokens,
)
from loadmaster.cli.server_options import add_server_arguments, seconds, server_settings, vllm_arguments

if TYPE_CHECKING:
    import socket

    from loadmaster.errors import UnsupportedError
    from loadmaster.integrations.engines import Choice
    from loadmaster.integrations.vllm.handover import ServeOptions
    from loadmaster.integrations.vllm.installed import Installed
    from loadmaster.plan import Plan, ProvenPlan
    from loadmaster.server.settings import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_model_arguments(parser)
    add_download_dir_argument(parser)
    add_capacity_arguments(parser)
    add_device_argument(parser)
    add_weights_argument(parser)
    parser.set_defaults(device=None)  # the default depends on the engine
    parser.add_argument(
        "--max-model-len", type=tokens, metavar="N", help="most tokens of prompt and answer (default: the model's)"
    )
    engine = parser.add_argument(
        "--engine",
        default="auto",
        help="the engine that runs the proven model: native; vllm; or auto (default): vLLM if it is installed and has a "
        "device, otherwise native",
    )
    engine.choices = Engines("auto")
    add_engine_arguments(parser)
    server = parser.add_argument_group("server")
    server.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    server.add_argument(
        "--port",
        type=_port,
        metavar="PORT",
        default=8000,
        help="port to listen on; 0 chooses a free one (default: 8000)",
    )
    server.add_argument(
        "--served-model-name", nargs="+", metavar="NAME", help="the model's names in the API (default: MODEL)"
    )
    server.add_argument(
        "--shutdown-timeout",
        type=seconds,
        metavar="S",
        help="seconds that running requests may take to finish after SIGTERM or SIGINT (default: 5)",
    )
    server.add_argument(
        "--strict",
        action="store_true",
        help="refuse requests with fields that the server does not know; without it, the header X-Loadmaster-Ignored-Fields "
        "of the answer names them",
    )
    log = parser.add_argument_group("log and metrics")
    log.add_argument("--log-format", choices=("text", "json"), default="text", help="form of the log (default: text)")
    log.add_argument(
        "--log-level",
        type=str.upper,
        choices=("CRITICAL", "ERROR", "WARNING", "INFO", "DEBUG"),
        default="INFO",
        help="the least important messages that are logged (default: INFO)",
    )
    log.add_argument(
        "--enable-log-requests",
        action="store_true",
        help="log the parameters of each request, and with --log-level DEBUG its prompt (default: nothing of it)",
    )
    log.add_argument(
        "--enable-log-outputs",
        action="store_true",
        help="log the answers too; needs --enable-log-requests (default: nothing of them)",
    )
    log.add_argument(
        "--max-log-len",
        type=tokens,
        metavar="N",
        help="most characters or token ids of a prompt or an answer in the log (default: all)",
    )
    log.add_argument(
        "--disable-access-log-for-endpoints",
        metavar="PATHS",
        help="paths, separated by commas, whose requests are logged at DEBUG only (default: /health,/live,/metrics,/status)",
    )
    log.add_argument(
        "--metrics-prefix",
        choices=("loadmaster", "vllm"),
        default="loadmaster",
        help="what the names in /metrics begin with; vllm: the names of vLLM's metrics (default: loadmaster)",
    )
    formats = parser.add_argument_group("tool calls and reasoning")
    formats.add_argument(
        "--tool-call-parser",
        metavar="NAME",
        help="the format of the model's tool calls, by vLLM's name, or none (default: what its chat template shows)",
    )
    formats.add_argument(
        "--reasoning-parser",
        metavar="NAME",
        help="the format of the model's reasoning, by vLLM's name, or none (default: what its chat template shows)",
    )
    formats.add_argument(
        "--enable-auto-tool-choice",
        action="store_true",
        help="as in vLLM, which needs it to parse tool calls; the native engine always does if it has a parser",
    )
    add_server_arguments(parser)
    parser.epilog = (
        "If vLLM serves, its other options are passed to it, and so are the ARGUMENTS after a final --, unchanged. Batches, KV "
        "cache and shutdown then have vLLM's defaults."
    )


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 5 and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text[:50]!r} is not a port, expected 0 to 65535")
    return int(text)


def split_arguments(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divide a command line at ``--``: what is read here, and what is passed to vLLM unchanged.

    >>> split_arguments(["serve", "m", "--", "--seed", "7"]), split_arguments(["inspect", "--", "-odd"])
    ((['serve', 'm'], ['--seed', '7']), (['inspect', '--', '-odd'], []))
    """
    if argv[:1] != ["serve"] or "--" not in argv:
        return list(argv), []
    at = argv.index("--")
    return list(argv[:at]), list(argv[at + 1 :])


def run(args: argparse.Namespace) -> int:
    """Plan, prove, choose the engine and report which; then serve, or become vLLM's server."""
    with Interruptible(always=True) as interruptible:
        return _run(args, interruptible)


def _run(args: argparse.Namespace, interruptible: Interruptible) -> int:
    from loadmaster.cli.planning import proven_plan, run_plan
    from loadmaster.errors import UsageError
    from loadmaster.integrations.engines import choose
    from loadmaster.integrations.vllm.carried import note
    from loadmaster.integrations.vllm.handover import (
        divided_for_vllm,
        hand_over,
        refuse_for_vllm,
        vllm_command,
        vllm_environment,
    )
    from loadmaster.integrations.vllm.installed import find_vllm
    from loadmaster.server.address import bind
    from loadmaster.workers.launch import Launch

    if args.enable_log_outputs and not args.enable_log_requests:
        raise UsageError("--enable-log-outputs needs --enable-log-requests")
    launch = None if args.engine == "vllm" else Launch.of(os.environ)  # vLLM reads a launcher's variables itself
    if launch is not None:
        args.engine = "native"
        if launch.rank > 0:
            return run_member(args, launch)
    installed = None if args.engine == "native" else find_vllm()
    if args.engine == "vllm":
        refuse_for_vllm(_serve_options(args))
    if args.engine == "vllm" or installed is None:  # refuse without a plan what can be refused without one
        choice = choose(args.engine, installed, num_ranks=1, device=args.device, native_error=_native_error(args))
        _refuse_for_native(args, choice)
    if installed is None and args.engine != "vllm":  # before planning, which may take a while
        settings = _settings(args)
    with bind(args.host, args.port) as bound:
        run = None if args.engine == "vllm" else run_plan(args, lambda plan: _ranks_here(args, plan, installed))
        plan = proven_plan(args) if run is None else run.plan
        if "://" in args.model:  # which may have a password
            args.served_model_name = args.served_model_name or [plan.checkpoint.origin.name]
        choice = _choose(args, plan, installed)
        if choice.engine == "vllm" or run is None:
            assert installed is not None
            plan = plan if run is None else proven_plan(args)
            options = _serve_options(args)
            refuse_for_vllm(options)
            divided = divided_for_vllm(plan, args.layer_partition, installed)
            if divided.stages != plan.stages:
                args.layer_partition = divided.layout.layer_partition
                plan = proven_plan(args)
            bound.close()
            print(choice, file=sys.stderr)
            for finding in divided.findings:
                print(f"{finding.severity}: {finding.message}", file=sys.stderr)
            options = replace(options, layer_partition=divided.layout.layer_partition)
            interruptible.restore()
            hand_over(vllm_command(options, plan, installed), {**vllm_environment(options), **vllm_arguments(args)[1]})
        print(choice, file=sys.stderr)
        if ignored := note(args.carried, "serve"):
            print(ignored, file=sys.stderr)
        print(run.choice, file=sys.stderr)
        return _serve(args, run.plan, bound, _settings(args) if installed is not None else settings)


def _quiet_endpoints(paths: str | None) -> tuple[str, ...]:
    from loadmaster.server.settings import QUIET_ENDPOINTS

    if paths is None:
        return QUIET_ENDPOINTS
    return tuple(path for part in paths.split(",") if (path := part.strip()))


def _serve_options(args: argparse.Namespace) -> ServeOptions:
    from loadmaster.integrations.vllm.handover import ServeOptions

    given = {f.name: getattr(args, f.name) for f in fields(ServeOptions) if f.name != "server_arguments"}
    return ServeOptions(**given, server_arguments=vllm_arguments(args)[0])


def _ranks_here(args: argparse.Namespace, plan: ProvenPlan, installed: Installed | None) -> Sequence[int] | None:
    """Return the ranks that this host computes, None for vLLM, which opens all of the model; refuse what cannot be served."""
    from loadmaster.engine.launched import require_runnable

    if _choose(args, plan, installed).engine == "vllm":
        return None
    return require_runnable(plan, args.device or "cpu")


def _choose(args: argparse.Namespace, plan: Plan, installed: Installed | None) -> Choice:
    from loadmaster.integrations.engines import choose
    from loadmaster.integrations.vllm.cpu import unsupported_on_cpu

    choice = choose(
        args.engine,
        installed,
        num_ranks=plan.num_ranks,
        device=args.device,
        native_error=_native_error(args, plan),
        cpu_reason=unsupported_on_cpu(plan) if installed is not None and installed.build == "cpu" else None,
    )
    _refuse_for_native(args, choice)
    return choice


def _refuse_for_native(args: argparse.Namespace, choice: Choice) -> None:
    from loadmaster.errors import UsageError
    from loadmaster.integrations.vllm.carried import refuse

    if choice.engine != "native":
        return
    if args.passed_on:
        raise UsageError(f"arguments after -- are for vLLM, but the native engine serves this: {choice.reason}")
    for given in args.carried:
        refuse(given, "serve")
    _check_formats(args)


def _check_formats(args: argparse.Namespace) -> None:
    """Refuse the names of parsers that the native engine's server does not have."""
    from loadmaster.errors import UsageError
    from loadmaster.server.parsers import REASONING_FORMATS, TOOL_PARSERS

    for option, name, known in (
        ("--tool-call-parser", args.tool_call_parser, TOOL_PARSERS),
        ("--reasoning-parser", args.reasoning_parser, REASONING_FORMATS),
    ):
        if name is not None and name not in ("none", *known):
            raise UsageError(f"{option} {name[:50]!r} is not supported, expected none, {', '.join(sorted(known))}")


def _native_error(args: argparse.Namespace, plan: Plan | None = None) -> UnsupportedError | None:
    """Return why the native engine cannot run it: judged by the command line, and by the plan if there is one."""
    from loadmaster.engine import refuse_options, refuse_plan, require_run_extra
    from loadmaster.errors import UnsupportedError

    try:
        require_run_extra(serving=True)
        refuse_options(args.speculative_config, args.data_parallel_size)
        if plan is not None:
            refuse_plan(plan)
    except UnsupportedError as error:
        return error
    return None


def _settings(args: argparse.Namespace) -> Settings:
    from loadmaster.server.settings import SHUTDOWN_TIMEOUT_S

    timeout_s = SHUTDOWN_TIMEOUT_S if args.shutdown_timeout is None else args.shutdown_timeout
    return replace(
        server_settings(args, shutdown_timeout_s=timeout_s),
        strict=args.strict,
        quiet_endpoints=_quiet_endpoints(args.disable_access_log_for_endpoints),
        log_requests=args.enable_log_requests,
        log_outputs=args.enable_log_outputs,
        max_log_len=args.max_log_len,
        metrics_prefix=args.metrics_prefix,
        tool_call_parser=args.tool_call_parser,
        reasoning_parser=args.reasoning_parser,
    )


def _serve(args: argparse.Namespace, plan: ProvenPlan, bound: socket.socket, settings: Settings) -> int:
    """Open the port, load, serve until a signal; with ``--json`` print a summary at the end."""
    from loadmaster.engine import Engine, Tokenizer, speculative_tokens
    from loadmaster.server.address import start_listening
    from loadmaster.server.log import configure_logging
    from loadmaster.server.serve import listens, serve
    from loadmaster.server.service import Service
    from loadmaster.workers.launch import Launch

    start_listening(bound)
    configure_logging(args.log_format, args.log_level)
    host, port = bound.getsockname()[:2]
    for line in listens(bound, settings, Launch.of(os.environ)):
        print(line, file=sys.stderr, flush=True)
    with Engine(
        plan,
        max_model_len=args.max_model_len,
        capacity=capacity(args),
        device=args.device or "cpu",
        num_speculative_tokens=speculative_tokens(args.speculative_config),
    ) as engine:
        service = Service(engine, Tokenizer(plan.model_path), args.served_model_name or [args.model], settings)
        serve(service, bound)
    if args.json:
        from loadmaster.report.json import dumps

        served = {"served": list(service.names), "host": host, "port": port, "num_requests": service.num_requests}
        print(dumps({**served, "plan_hash": plan.hash}))
    return 0
