"""``loadmaster describe MODEL --output FOLDER``: draft a family for a model whose architecture is not known."""

from __future__ import annotations

import argparse

from loadmaster.cli.options import ANYWHERE, add_source_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_source_arguments(
        parser, f"{ANYWHERE}; or a config.json, of which transformers' class, without weights, gives names and shapes"
    )
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        required=True,
        help="the folder of the plug-in package to write; it must not exist",
    )
    parser.add_argument(
        "--force", action="store_true", help="draft a family although the architecture is known, to compare the two"
    )
    parser.add_argument(
        "--no-transformers",
        action="store_true",
        help="do not compare the draft with transformers' class of the model, which takes seconds to import",
    )


def run(args: argparse.Namespace) -> int:
    """Write the draft, and list its questions and what it fails at."""
    from pathlib import Path

    from loadmaster.architectures.aliases import architecture_of
    from loadmaster.architectures.registry import known
    from loadmaster.cli.planning import open_model
    from loadmaster.describe import draft_family, judge, shapes_in_transformers, write_package
    from loadmaster.errors import CheckpointError, UsageError
    from loadmaster.synth.described import read_config_file

    folder = Path(args.output)
    if folder.exists():
        raise UsageError(f"--output {folder} exists", hint="give a folder that does not exist")
    checkpoint, config = None, None
    if args.model.endswith(".json"):
        config = read_config_file(Path(args.model))
    else:
        checkpoint = open_model(args)
        config = checkpoint.config
    if config is None:
        raise CheckpointError(
            "there is no config.json, from which sizes get their names", hint="give the model's folder"
        )
    name = architecture_of(config)
    if name in known() and not args.force:
        raise UsageError(
            f"{name} is known already",
            hint="`loadmaster plan` plans it; --force drafts it again, to compare, but such a package cannot replace it",
        )
    if checkpoint is None:
        tensors = shapes_in_transformers(config)
    else:
        table = checkpoint.table
        tensors = {n: table.signatures[s] for n, s in zip(table.names, table.signature, strict=True)}
    draft = draft_family(tensors, config)
    file = write_package(draft, args.model, config, folder)
    faults = judge(file, config, checkpoint, transformers=not args.no_transformers)
    kinds = ", ".join(f"{draft.layers.count(k) + draft.drafts.count(k)} {k}" for k in draft.kinds)
    print(f"{file}: {len(tensors):,} tensors of {draft.architecture}; layers: {kinds}")
    for number, question in enumerate(draft.questions, 1):
        print(f"question {number}: {question}")
    for fault in faults:
        print(f"fails: {fault}")
    if not faults and checkpoint is not None:
        print("the draft is planned and proven on this model, on one rank")
    print(f"next: answer the questions in {file.name}, then run: cd {folder} && python -m pytest")
    return 0
