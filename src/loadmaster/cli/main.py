"""``loadmaster COMMAND …``: the parser, and how errors are reported.

Exit codes: 0 proven or done; 1 something is wrong with checkpoint, config or layout; 2 something is wrong with the command
line; 3 a failure while loading or running, or a failed write to standard output; 70 a bug of this program; 130 after Ctrl-C.
As for other programs that compare, 1 of ``diff`` says that something differs, and 2 also that a model cannot be compared.
With ``--json`` one object is printed on standard output for 0, 1, 3 and 70. ``LOADMASTER_TRACEBACK=1`` in the environment
adds the traceback of a failure or a bug.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import gc
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from loadmaster import __version__
from loadmaster.cli import (
    audit,
    describe,
    diff,
    explain,
    fit,
    generate,
    inspect,
    load,
    plan,
    pull,
    serve,
    streams,
    synth,
    verify,
)
from loadmaster.cli.interrupt import INTERRUPTED
from loadmaster.errors import InputError, LoadError, LoadmasterError, RunError, UsageError
from loadmaster.integrations.vllm import carried

COMMANDS = {
    "inspect": (inspect, "show the contents of a checkpoint"),
    "plan": (plan, "plan a checkpoint on a parallel layout and prove it, from headers alone"),
    "fit": (fit, "list the layouts that fit a number of devices, best first, and the smallest machine that would do"),
    "explain": (explain, "say what a parameter is computed from, or who reads a stored tensor"),
    "diff": (diff, "compare two checkpoints, or two layouts of one"),
    "pull": (pull, "download what some ranks read, into a folder that loads like the whole for them"),
    "verify": (verify, "read every byte, and check values, scales, copies and recorded SHA-256 hashes"),
    "load": (load, "load a plan into host memory or onto GPUs, and report"),
    "generate": (generate, "generate answers to prompts, computed together"),
    "serve": (serve, "serve a model over the OpenAI API"),
    "audit": (audit, "test an engine's own loaders with sound and defective checkpoints, and report"),
    "describe": (describe, "draft a family for an unknown architecture: a plug-in package, with its guesses marked"),
    "synth": (synth, "write a test checkpoint: tiny with random weights, or full size without data"),
}


BRIEF = {"diff", "explain", "fit", "inspect", "plan"}
"""Commands too short for garbage collection, which took 5 % of their time."""

WITH_TORCH = {"load", "generate", "serve"}
"""Commands that load torch, whose libraries end the process if the current directory was removed."""

BUG_EXIT_CODE = 70
"""EX_SOFTWARE of sysexits.h."""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage text before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\ntry `{self.prog} --help`\n")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = _Parser(
        prog="loadmaster", description="Put any checkpoint on any parallel layout: proven before launch. Then run it."
    )
    parser.add_argument("--version", action="version", version=f"loadmaster {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def _commands(parser: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser]:
    return next(dict(a.choices) for a in parser._actions if isinstance(a, argparse._SubParsersAction))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    given, passed_on = serve.split_arguments(sys.argv[1:] if argv is None else argv)
    collects = gc.isenabled()
    try:
        try:
            args = _parse(given, passed_on)
            if args.command in BRIEF:
                gc.disable()
            code = _run(args)
        finally:
            streams.flush()  # of --help too
        return code
    except UsageError as error:
        print(f"loadmaster {given[0]}: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except (streams.OutputError, BrokenPipeError) as error:
        streams.give_up_output()
        if error.errno != errno.EPIPE:  # EPIPE: the reader closed the pipe on purpose
            print(f"loadmaster: error: cannot write standard output: {error.strerror}", file=sys.stderr)
        return LoadError.exit_code
    except MemoryError:  # too little memory for the usual report
        print("loadmaster: error: host memory ran out", file=sys.stderr)
        return LoadError.exit_code
    finally:
        if collects:
            gc.enable()


def _parse(given: Sequence[str], passed_on: Sequence[str]) -> argparse.Namespace:
    """Return the options of a command line, and list ignored options of vLLM on standard error.

    Raises:
        UsageError: an option is unknown or refused.
    """
    parser = build_parser()
    remaining, of_vllm = carried.carry_over(given, _commands(parser))
    args = parser.parse_args(remaining, argparse.Namespace(passed_on=passed_on, carried=of_vllm))
    if args.command != "serve" and (note := carried.note(of_vllm, args.command)):
        print(note, file=sys.stderr)
    return args


def _run(args: argparse.Namespace) -> int:
    begin = time.perf_counter()
    try:
        if args.command in WITH_TORCH:
            _refuse_without_folder()
        code: int = args.run(args)
    except (UsageError, streams.OutputError, BrokenPipeError):  # for `main`
        raise
    except LoadmasterError as error:
        _print_failure(error, time.perf_counter() - begin, as_json=getattr(args, "json", False))
        return getattr(args, "input_error_code", 1) if isinstance(error, InputError) else error.exit_code
    except Exception as error:
        if os.environ.get("LOADMASTER_TRACEBACK"):
            traceback.print_exc()
        failure, code = _failure(error)
        _print_failure(failure, time.perf_counter() - begin, as_json=getattr(args, "json", False))
    return code


def _refuse_without_folder() -> None:
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise LoadError("the current directory was removed", hint="change to a directory that exists") from error


def _failure(error: Exception) -> tuple[LoadmasterError, int]:
    """Return the report and the exit code of an error that this package did not raise itself."""
    from loadmaster.host_memory import is_out_of_memory

    text = str(error).partition("\n")[0]
    if is_out_of_memory(error):
        words = f"host memory ran out: {text or type(error).__name__}"
        return LoadError(words, hint="free memory, or raise the process's memory limit"), LoadError.exit_code
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename is not None else ""
        return LoadError(f"{where}{os.strerror(error.errno)}"), LoadError.exit_code
    frames = traceback.extract_tb(error.__traceback__)
    at = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    bug = RunError(
        f"this is a bug of loadmaster {__version__}: {type(error).__name__}: {text}{at}",
        hint="please report it; LOADMASTER_TRACEBACK=1 in the environment shows the traceback",
    )
    return bug, BUG_EXIT_CODE


def _print_failure(error: LoadmasterError, elapsed_s: float, *, as_json: bool) -> None:
    from loadmaster.report.json import dumps, failure_object, findings_of

    if as_json:
        print(dumps(failure_object(error, elapsed_s)))
        return
    from loadmaster.report.text import print_error, print_proof

    console = streams.console(stderr=True)
    proof = getattr(error, "proof", None)
    if proof is not None:
        print_proof(console, proof, elapsed_s)
    else:
        print_error(console, error, findings_of(error))


def entry() -> None:
    """Run as the ``loadmaster`` script."""
    streams.open_streams()
    try:
        code = main()
    except KeyboardInterrupt:
        code = INTERRUPTED
    if code == INTERRUPTED or any(thread.daemon for thread in threading.enumerate()):
        # At once: the interpreter's shutdown can crash if a thread is importing.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    entry()
