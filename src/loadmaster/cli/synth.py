"""``loadmaster synth FAMILY OUT``: write a checkpoint."""

from __future__ import annotations

import argparse

from loadmaster.cli.options import whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "family", metavar="FAMILY", help="such as glm-5.1-fp8, deepseek-v3, qwen3; a wrong one lists all"
    )
    parser.add_argument("out", metavar="OUT", help="the folder to write, which must not exist or be empty")
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--tiny", action="store_true", help="random weights, real layout, with a working tokenizer")
    size.add_argument("--full-size", action="store_true", help="true headers, sparse bodies that read as zeros")
    parser.add_argument("--seed", type=whole, default=0, help="of the random weights (default: 0)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=JSON", help="override a config value; may be repeated"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")


def run(args: argparse.Namespace) -> int:
    """Write the checkpoint and say what was written."""
    import json
    from pathlib import Path

    from loadmaster.errors import InputError, UsageError
    from loadmaster.report.json import dumps
    from loadmaster.synth import PRESETS, write_full_size, write_tiny

    preset = PRESETS.get(args.family)
    if preset is None:
        raise InputError(f"{args.family!r} is not a family that can be made", hint=f"known: {', '.join(PRESETS)}")
    overrides = {}
    for setting in args.set:
        key, equals, value = setting.partition("=")
        try:
            overrides[key] = json.loads(value)
        except ValueError as error:
            raise UsageError(f"--set {setting}: {value if equals else 'the value'} is not JSON") from error
    if args.tiny:
        made = write_tiny(preset, Path(args.out), seed=args.seed, overrides=overrides)
    else:
        made = write_full_size(preset, Path(args.out), overrides=overrides)
    if args.json:
        print(dumps({"path": args.out, **made}))
    else:
        print(
            f"{args.out}: {made['num_tensors']:,} tensors in {made['num_files']} file(s), {made['payload_bytes']:,} bytes"
        )
    return 0
