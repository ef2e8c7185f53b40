"""``loadmaster synth FAMILY OUT``, or ``--config FILE OUT``: write a checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from loadmaster.cli.options import whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    positionals = (
        parser.add_argument(
            "family",
            metavar="FAMILY",
            help="such as glm-5.1-fp8, deepseek-v3, qwen3; a wrong one lists all; left out with --config",
        ),
        parser.add_argument("out", metavar="OUT", help="the folder to write, which must not exist or be empty"),
    )
    for action in positionals:
        action.required = False  # one is enough with --config: `run` counts them
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="a config.json in place of FAMILY, of any architecture that is described, also by another package; its "
        "quantization_config gives the format; with --full-size",
    )
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

    from loadmaster.errors import UsageError
    from loadmaster.report.json import dumps

    out = args.family if args.config else args.out
    if args.config and args.out:
        raise UsageError(f"FAMILY ({args.family}) and --config both say what to make", hint="leave one of them out")
    if out is None:
        raise UsageError("the folder to write is missing", hint="loadmaster synth FAMILY OUT, or --config FILE OUT")
    overrides = {}
    for setting in args.set:
        key, equals, value = setting.partition("=")
        try:
            overrides[key] = json.loads(value)
        except ValueError as error:
            raise UsageError(f"--set {setting}: {value if equals else 'the value'} is not JSON") from error
    if args.config:
        made = _of_config(Path(args.config), Path(out), overrides, tiny=args.tiny)
    else:
        made = _of_preset(args.family, Path(out), overrides, tiny=args.tiny, seed=args.seed)
    if args.json:
        print(dumps({"path": out, **made}))
    else:
        print(f"{out}: {made['num_tensors']:,} tensors in {made['num_files']} file(s), {made['payload_bytes']:,} bytes")
        for note in made.get("notes", ()):
            print(f"note: {note}")
    return 0


def _of_preset(name: str, out: Path, overrides: dict[str, Any], *, tiny: bool, seed: int) -> dict[str, Any]:
    from loadmaster.errors import InputError
    from loadmaster.synth import PRESETS, write_full_size, write_tiny

    preset = PRESETS.get(name)
    if preset is None:
        hint = f"known: {', '.join(PRESETS)}; for a config.json of another model: --config FILE"
        raise InputError(f"{name!r} is not a family that can be made", hint=hint)
    if tiny:
        return write_tiny(preset, out, seed=seed, overrides=overrides)
    return write_full_size(preset, out, overrides=overrides)


def _of_config(file: Path, out: Path, overrides: dict[str, Any], *, tiny: bool) -> dict[str, Any]:
    from loadmaster.errors import UsageError
    from loadmaster.synth import read_config_file, write_described

    if tiny:
        raise UsageError(
            "--tiny makes a model of the list small; with --config the sizes are those of the file",
            hint="give --full-size: its bodies are sparse, and take no disk",
        )
    return write_described({**read_config_file(file), **overrides}, out)
