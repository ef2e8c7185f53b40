"""``loadmaster synth FAMILY OUT``, or ``--config FILE OUT``: write a test checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from loadmaster.cli.options import add_json_argument, whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    positionals = (
        parser.add_argument(
            "family",
            metavar="FAMILY",
            help="a preset such as glm-5.1-fp8, deepseek-v3 or qwen3 (an unknown name lists all); leave it out with --config",
        ),
        parser.add_argument("out", metavar="OUT", help="the folder to write; it must be empty or not exist"),
    )
    for action in positionals:
        action.required = False  # one is enough with --config: `run` counts them
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="a config.json instead of FAMILY, of any supported architecture, including those of plug-ins; its "
        "quantization_config gives the format; needs --full-size",
    )
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--tiny", action="store_true", help="a small model with random weights and a working tokenizer")
    size.add_argument("--full-size", action="store_true", help="real sizes; the files are sparse and read as zeros")
    parser.add_argument("--seed", type=whole, default=0, help="seed of the random weights (default: 0)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=JSON", help="override a config value; repeatable"
    )
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Write the checkpoint and report what was written."""
    import json

    from loadmaster.errors import UsageError
    from loadmaster.report.json import dumps

    out = args.family if args.config else args.out
    if args.config and args.out:
        raise UsageError(f"both FAMILY ({args.family}) and --config are given", hint="leave one of them out")
    if out is None:
        raise UsageError(
            "OUT, the folder to write, is missing", hint="loadmaster synth FAMILY OUT, or --config FILE OUT"
        )
    overrides = {}
    for setting in args.set:
        key, equals, value = setting.partition("=")
        try:
            overrides[key] = json.loads(value)
        except ValueError as error:
            raise UsageError(f"--set {setting}: {value if equals else 'the value'} is not JSON") from error
    if args.config:
        written = _of_config(Path(args.config), Path(out), overrides, tiny=args.tiny)
    else:
        written = _of_preset(args.family, Path(out), overrides, tiny=args.tiny, seed=args.seed)
    if args.json:
        print(dumps({"path": out, **written}))
    else:
        print(
            f"{out}: {written['num_tensors']:,} tensors in {written['num_files']} file(s), {written['payload_bytes']:,} bytes"
        )
        for note in written.get("notes", ()):
            print(f"note: {note}")
    return 0


def _of_preset(name: str, out: Path, overrides: dict[str, Any], *, tiny: bool, seed: int) -> dict[str, Any]:
    from loadmaster.errors import InputError
    from loadmaster.synth import PRESETS, write_full_size, write_tiny

    preset = PRESETS.get(name)
    if preset is None:
        hint = f"known: {', '.join(PRESETS)}; for another model's config.json use --config FILE"
        raise InputError(f"unknown family {name!r}", hint=hint)
    if tiny:
        return write_tiny(preset, out, seed=seed, overrides=overrides)
    return write_full_size(preset, out, overrides=overrides)


def _of_config(file: Path, out: Path, overrides: dict[str, Any], *, tiny: bool) -> dict[str, Any]:
    from loadmaster.errors import UsageError
    from loadmaster.synth import read_config_file, write_described

    if tiny:
        raise UsageError(
            "--tiny cannot be used with --config, whose file gives the sizes",
            hint="give --full-size: its files are sparse and take no disk space",
        )
    return write_described({**read_config_file(file), **overrides}, out)
