"""``loadmaster fit MODEL``: which layouts fit a number of devices, best first, and the smallest machine that would do."""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from loadmaster.cli.options import (
    ANYWHERE,
    DTYPES,
    add_dtype_argument,
    add_engine_argument,
    add_json_argument,
    add_source_arguments,
    add_speculative_argument,
    add_waive_argument,
    device_memory,
    positive,
)
from loadmaster.cli.planning import num_draft_layers, open_model, target_of
from loadmaster.cli.sizing import add_memory_arguments, memory_options
from loadmaster.errors import UsageError

if TYPE_CHECKING:
    from loadmaster.sizing.fit import Machine

MOST_ASKED = 4096
"""More devices than that are a slip."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_source_arguments(parser, ANYWHERE)
    parser.add_argument(
        "--devices",
        metavar="N|KIND",
        help="number of devices, or a known kind and number, such as H100x8 (default: as many as --device-memory names, or one)",
    )
    parser.add_argument(
        "--device-memory",
        type=_sizes,
        metavar="SIZE[,SIZE…]",
        help="memory of each device as nvidia-smi shows it, such as 80GiB; of unequal ones in the order of the ranks",
    )
    parser.add_argument(
        "--devices-per-host", type=positive, default=8, metavar="N", help="devices that share a host (default: 8)"
    )
    add_engine_argument(parser)
    add_speculative_argument(parser)
    add_dtype_argument(parser)
    add_memory_arguments(parser)
    add_waive_argument(parser)
    parser.add_argument("--all", action="store_true", help="list every layout, not the first five of each kind")
    parser.add_argument("--html", metavar="FILE", help="write the layouts as one HTML file to look at")
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Print the layouts; exit 1 if none fits, or the best one is not proven."""
    from loadmaster.parallel import ParallelLayout
    from loadmaster.plan import build_plan, prove
    from loadmaster.sizing.fit import Fitter

    machine = machine_of(args)
    begin = time.perf_counter()
    checkpoint, target = open_model(args), target_of(args.engine)
    layout = ParallelLayout(num_draft_layers=num_draft_layers(args.speculative_config, checkpoint))
    dtype = DTYPES.get(args.dtype)
    plan = build_plan(checkpoint, layout, dtype=dtype, target=target, waive=args.waive)
    fit = Fitter(plan, args.engine, memory_options(args, ())).fit(machine)
    proof = None
    if fit.fitting:
        proof = prove(build_plan(checkpoint, fit.fitting[0].layout, dtype=dtype, target=target, waive=args.waive))
    proven = None if proof is None else proof.proven
    found = () if proof is None else proof.findings
    elapsed_s = time.perf_counter() - begin
    if args.html is not None:
        from loadmaster import __version__
        from loadmaster.report.html import fit_html

        page = fit_html(fit, plan, __version__, proven=proven, findings=found)
        Path(args.html).write_text(page, encoding="utf-8")
    if args.json:
        from loadmaster.report.fit import fit_object
        from loadmaster.report.json import dumps, finding_objects

        more = {"findings": finding_objects(found), "elapsed_s": round(elapsed_s, 4)}
        print(dumps(fit_object(fit, proven=proven) | more))
    else:
        from loadmaster.cli.streams import console
        from loadmaster.report.fit import print_fit
        from loadmaster.report.text import print_findings

        print_fit(console(), fit, everything=args.all, proven=proven)
        print_findings(console(), found)
    return 0 if proven else 1


def machine_of(args: argparse.Namespace) -> Machine:
    """Return the devices that a command line describes.

    Raises:
        UsageError: their number or their memory is missing, or the two do not go together.
        ConfigError: a kind of device is not known.
    """
    from loadmaster.sizing.devices import known_device
    from loadmaster.sizing.fit import Machine

    sizes: tuple[int, ...] = args.device_memory or ()
    count = max(1, len(sizes))
    if args.devices is not None and not args.devices.isdecimal():
        if sizes:
            raise UsageError(f"--devices {args.devices} has a known memory", hint="leave out --device-memory")
        count, device = known_device(args.devices)
        if not 1 <= count <= MOST_ASKED:
            raise UsageError(f"--devices {args.devices}: expected 1 to {MOST_ASKED} devices")
        return Machine((device.memory_bytes,) * count, args.devices_per_host, device.bytes_per_s)
    if not sizes:
        raise UsageError(
            "the memory of the devices is not known", hint="pass --devices H100x8, or --device-memory 80GiB"
        )
    if args.devices is not None:
        count = int(args.devices)
        if not 1 <= count <= MOST_ASKED:
            raise UsageError(f"--devices {args.devices}: expected 1 to {MOST_ASKED} devices")
        if len(sizes) not in (1, count):
            raise UsageError(f"--devices {count}, and --device-memory names {len(sizes)}")
    return Machine(sizes if len(sizes) == count else sizes * count, args.devices_per_host)


def _sizes(text: str) -> tuple[int, ...]:
    """Return the bytes of one device, or of each.

    >>> _sizes("80GiB,24GiB") == (80 * 2**30, 24 * 2**30)
    True
    """
    return tuple(device_memory(part) for part in re.split(r"\s*,\s*", text))
