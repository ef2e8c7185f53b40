"""``loadmaster diff A B`` compares checkpoints, ``loadmaster diff MODEL --to LAYOUT`` two layouts of one.

Exit codes as those of `diff` and `cmp`: 0 equal, 1 different, 2 not comparable (a model cannot be read, or a layout is
impossible for it).
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from loadmaster.cli.options import add_engine_argument, add_layout_arguments, add_model_arguments, positive
from loadmaster.cli.planning import open_model, plan_checkpoint, target_of
from loadmaster.errors import InputError, UsageError

if TYPE_CHECKING:
    from loadmaster.checkpoint import Checkpoint
    from loadmaster.findings import Finding
    from loadmaster.plan import Plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.set_defaults(input_error_code=2)
    add_model_arguments(parser)
    parser.add_argument(
        "other",
        metavar="OTHER",
        nargs="?",
        help="the checkpoint to compare MODEL with; either can be MODEL@REVISION of the hub",
    )
    parser.add_argument(
        "--from",
        dest="before",
        metavar="LAYOUT",
        help="""the layout before, as options in quotes: "-pp 8" (default: that of the command line)""",
    )
    parser.add_argument(
        "--to",
        dest="after",
        metavar="LAYOUT",
        help="""compare layouts of MODEL: this is the one after, such as "-pp 2 -tp 4"; of one word with =, as in --to=-ep""",
    )
    parser.add_argument(
        "--ranks-per-host",
        type=positive,
        metavar="N",
        help="ranks 0 to N-1 are on the first host, and so on (default: all on one)",
    )
    parser.add_argument("--html", metavar="FILE", help="write the difference as one HTML file to look at")
    add_engine_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Print what differs; exit 1 if anything does.

    Raises:
        UsageError: there is nothing to compare MODEL with.
    """
    if args.after is not None and args.other is None:
        return _layouts(args)
    if args.other is None:
        raise UsageError('give a second checkpoint, or --to LAYOUT, as in --from "-pp 8" --to "-pp 2 -tp 4"')
    if args.after is not None or args.before is not None or args.ranks_per_host is not None:
        raise UsageError("--from, --to and --ranks-per-host are for two layouts of one model: leave out OTHER")
    return _checkpoints(args)


def _checkpoints(args: argparse.Namespace) -> int:
    from loadmaster.checkpoint.difference import compare_checkpoints

    before, after = (open_model(_of_model(args, model)) for model in (args.model, args.other))
    difference = compare_checkpoints(before, after, (_findings(args, before), _findings(args, after)))
    if args.html is not None:
        from loadmaster import __version__
        from loadmaster.report.html import checkpoint_difference_html

        page = checkpoint_difference_html(before, after, difference, __version__)
        Path(args.html).write_text(page, encoding="utf-8")
    if args.json:
        from loadmaster.report.difference import checkpoint_difference_object

        _print_json(checkpoint_difference_object(before, after, difference))
    else:
        from loadmaster.cli.streams import console
        from loadmaster.report.difference import print_checkpoint_difference

        print_checkpoint_difference(console(), before, after, difference)
    return 0 if difference.is_equal else 1


def _layouts(args: argparse.Namespace) -> int:
    from loadmaster.plan.difference import compare_layouts

    checkpoint = open_model(_of_model(args, args.model))
    before = _plan(args, checkpoint, "--from", args.before or "")
    after = _plan(args, checkpoint, "--to", args.after)
    difference = compare_layouts(before, after, args.ranks_per_host)
    if args.html is not None:
        from loadmaster import __version__
        from loadmaster.report.html import layout_difference_html

        Path(args.html).write_text(layout_difference_html(checkpoint, difference, __version__), encoding="utf-8")
    if args.json:
        from loadmaster.report.difference import layout_difference_object

        _print_json(layout_difference_object(difference))
    else:
        from loadmaster.cli.streams import console
        from loadmaster.report.difference import print_layout_difference

        print_layout_difference(console(), difference)
    return 0 if difference.is_equal else 1


def _of_model(args: argparse.Namespace, model: str) -> argparse.Namespace:
    """Return the options for one of the models; of ``owner/name@revision``, the revision is what follows the ``@``."""
    name, at, revision = model.rpartition("@")
    if not at or "://" in model or Path(model).exists():
        name, revision = model, args.revision
    return argparse.Namespace(**{**vars(args), "model": name, "revision": revision})


def _findings(args: argparse.Namespace, checkpoint: Checkpoint) -> tuple[Finding, ...]:
    """Return what a proof on the layout finds; where nothing can be planned, why not."""
    from loadmaster.plan import prove
    from loadmaster.report.json import findings_of

    try:
        return prove(plan_checkpoint(args, checkpoint, target=target_of(args.engine))).findings
    except InputError as error:
        return findings_of(error)


class _LayoutParser(argparse.ArgumentParser):
    """Parses a layout that is the value of an option."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}")


def _plan(args: argparse.Namespace, checkpoint: Checkpoint, option: str, text: str) -> Plan:
    """Return the plan on the layout that is the value of ``option``, over that of the command line.

    Raises:
        UsageError: it is not a layout.
        InputError: it cannot be planned; the message names the option.
    """

    parser = _LayoutParser(prog=option, add_help=False)
    add_layout_arguments(parser)
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from error
    layout = parser.parse_args(words, argparse.Namespace(**vars(args)))
    try:
        return plan_checkpoint(layout, checkpoint, target=target_of(args.engine))
    except InputError as error:
        message = f"{option} {shlex.quote(text)}: {error.message}"
        raise type(error)(message, hint=error.hint, code=error.code) from error


def _print_json(value: dict[str, Any]) -> None:
    from loadmaster.report.json import dumps

    print(dumps(value))
