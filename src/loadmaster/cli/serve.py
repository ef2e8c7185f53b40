"""``loadmaster serve MODEL``: the OpenAI API over a model."""

from __future__ import annotations

import argparse

from loadmaster.cli.options import add_capacity_arguments, add_device_argument, add_model_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_model_arguments(parser)
    add_capacity_arguments(parser)
    add_device_argument(parser)
    parser.add_argument(
        "--max-model-len", type=int, metavar="N", help="tokens of prompt and answer (default: the model's)"
    )
    server = parser.add_argument_group("server")
    server.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    server.add_argument("--port", type=int, default=8000, help="port to listen on; 0 takes a free one (default: 8000)")
    server.add_argument("--served-model-name", nargs="+", metavar="NAME", help="what clients call it (default: MODEL)")
    server.add_argument("--api-key", metavar="KEY", help="the bearer token that clients must send (default: none)")


def run(args: argparse.Namespace) -> int:
    """Plan, open the port, load, serve until a signal; with ``--json`` say at the end what was served."""
    from loadmaster.cli.planning import proven_plan
    from loadmaster.runtime import Engine, Tokenizer, refuse_options, refuse_plan, require_run_extra

    require_run_extra()
    refuse_options(args.tensor_parallel_size, args.speculative_config, args.data_parallel_size)

    from loadmaster.server import Service, listen, serve

    plan = proven_plan(args)
    refuse_plan(plan)
    bound = listen(args.host, args.port)
    host, port = bound.getsockname()[:2]
    with Engine(plan, max_model_len=args.max_model_len, device=args.device) as engine:
        service = Service(engine, Tokenizer(plan.model_path), args.served_model_name or [args.model])
        serve(service, bound, api_key=args.api_key)
    if args.json:
        from loadmaster.report.json import dumps

        served = {"served": list(service.names), "host": host, "port": port, "num_requests": service.num_requests}
        print(dumps({**served, "plan_hash": plan.hash}))
    return 0
