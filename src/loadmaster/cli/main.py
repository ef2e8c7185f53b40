"""``loadmaster COMMAND …``: the parser, and what an error becomes.

Exit codes: 0 proven or done; 1 something is wrong with checkpoint, config or layout; 2 the command line alone; 3 a
failure while loading or running; 130 interrupted. With ``--json`` one object is printed on standard output for 0, 1 and 3.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import sys
import threading
import time
from collections.abc import Sequence

from loadmaster import __version__
from loadmaster.cli import audit, generate, inspect, load, plan, serve, synth, verify
from loadmaster.cli.interrupt import INTERRUPTED
from loadmaster.errors import LoadmasterError, UsageError

COMMANDS = {
    "inspect": (inspect, "show what a checkpoint holds"),
    "plan": (plan, "plan a checkpoint on a parallel layout and prove it, from headers alone"),
    "verify": (verify, "read every byte, and check values, scales, copies and recorded SHA-256"),
    "load": (load, "carry a plan out in host memory, and report"),
    "generate": (generate, "generate from one prompt"),
    "serve": (serve, "serve the OpenAI API"),
    "audit": (audit, "run an engine's own loaders on sound and defective checkpoints, and report"),
    "synth": (synth, "write a checkpoint: tiny with random weights, or full size without bytes"),
}


BRIEF = {"inspect", "plan"}
"""Commands that end before garbage matters: looking for it took a twentieth of their time."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="loadmaster", description="Put any checkpoint on any parallel layout: proven before launch. Then run it."
    )
    parser.add_argument("--version", action="version", version=f"loadmaster {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    given, passed_on = serve.split_arguments(sys.argv[1:] if argv is None else argv)
    args = build_parser().parse_args(given, argparse.Namespace(passed_on=passed_on))
    collects = gc.isenabled()
    if args.command in BRIEF:
        gc.disable()
    try:
        return _run(args)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    finally:
        if collects:
            gc.enable()


def _run(args: argparse.Namespace) -> int:
    begin = time.perf_counter()
    try:
        code: int = args.run(args)
    except UsageError as error:
        print(f"loadmaster {args.command}: error: {error}", file=sys.stderr)
        return error.exit_code
    except LoadmasterError as error:
        _print_failure(error, time.perf_counter() - begin, as_json=getattr(args, "json", False))
        return error.exit_code
    return code


def _print_failure(error: LoadmasterError, elapsed_s: float, *, as_json: bool) -> None:
    from loadmaster.report.json import dumps, failure_object, findings_of

    if as_json:
        print(dumps(failure_object(error, elapsed_s)))
        return
    from rich.console import Console

    from loadmaster.report.text import print_error, print_proof

    console = Console(stderr=True)
    proof = getattr(error, "proof", None)
    if proof is not None:
        print_proof(console, proof, elapsed_s)
    else:
        print_error(console, error, findings_of(error))


def entry() -> None:
    """Run as the ``loadmaster`` script."""
    try:
        code = main()
    except KeyboardInterrupt:
        code = INTERRUPTED
    if code == INTERRUPTED or any(thread.daemon for thread in threading.enumerate()):
        # At once: the interpreter's own end can crash on a thread that is in the midst of an import.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    entry()
