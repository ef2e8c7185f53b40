"""Folders and files that are taken for a checkpoint, and what they are instead: adapters, pipelines, caches, other formats.

A folder is recognised by the names in it, so that the hub's listing of a repository serves as well as a folder does. Of
other files no more is read than the first bytes, and who an adapter's base model is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from loadmaster.checkpoint.content import check_content
from loadmaster.checkpoint.header import OTHER_FORMATS
from loadmaster.checkpoint.regular import read_regular
from loadmaster.limits import CONFIG_BYTES, HEADER_BYTES, LimitError

CONFIG = "config.json"
ADAPTER, PIPELINE, PUBLISHERS = "adapter_config.json", "model_index.json", "params.json"
"""What tells a LoRA adapter (of peft), a pipeline of diffusers, and weights in their publisher's own layout."""
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
FOREIGN = {".gguf": "GGUF", ".h5": "TensorFlow", ".msgpack": "Flax", ".onnx": "ONNX", ".npz": "NumPy"}
TOKENIZERS = ("tokenizer", "vocab.", "merges.", "spiece.", "tekken.", "special_tokens_map.", "added_tokens.")
"""How the names of a tokenizer's files begin."""
MOST_FOLDERS = 256
"""As many subfolders are looked into."""


@dataclass(frozen=True, slots=True)
class Lookalike:
    """``what`` it is, as a sentence that goes on after "it is", and ``remedy``: what to give in its place."""

    what: str
    remedy: str


def recognise(names: Collection[str], base: str | None = None) -> Lookalike | None:
    """Return what the files ``names`` are where they are no model; ``base`` is an adapter's base model, where it is known."""
    if ADAPTER in names:
        of = f" of {base}" if base else ""
        base_model = f"the base model, {base}," if base else "its base model"
        return Lookalike(
            f"a LoRA adapter{of}, not a model",
            f"give {base_model} or the adapter merged into it: merge_and_unload() of peft, then "
            "save_pretrained(new_folder)",
        )
    if PIPELINE in names:
        return Lookalike(
            "a pipeline of diffusers, not a language model",
            "language models are read: a folder with config.json and its shards",
        )
    if PUBLISHERS in names:
        return Lookalike(
            f"a model in its publisher's own layout ({PUBLISHERS})",
            f"give the same model in the layout of transformers, with {CONFIG}",
        )
    return None


def base_model(folder: Path) -> str | None:
    """Return the base model that a folder's adapter_config.json names; None where there is no file, or no name in it."""
    try:
        value = json.loads(read_regular(folder / ADAPTER, CONFIG_BYTES))
    except (OSError, ValueError, RecursionError, LimitError):
        return None
    name = value.get("base_model_name_or_path") if isinstance(value, dict) else None
    return printable(name) if isinstance(name, str) and name else None


def printable(text: str, most: int = 200) -> str:
    """Return the text of a file as it can be printed: cut short, and without control characters and lone surrogates.

    >>> printable("a\\x1bb")
    'a\\\\x1bb'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:most])


def instead(names: Collection[str], partial: Sequence[str] = (), folder: Path | None = None) -> str:
    """Say what files without safetensors files are, and what to do about it; ``folder`` is where they are, if on disk."""
    pickled = [n for n in names if n.endswith(PICKLED)]
    gguf = [n for n in names if n.endswith(".gguf")]
    foreign = sorted({FOREIGN[s] for n in names if (s := Path(n).suffix) in FOREIGN})
    if partial:
        return f"a download is unfinished ({some(partial)}); resume it"
    if found := recognise(names, base_model(folder) if folder and ADAPTER in names else None):
        return f"it is {found.what}; {found.remedy}"
    if pickled:
        return (
            f"it holds pickled weights ({some(pickled)}), which are not read; convert them: "
            'AutoModelForCausalLM.from_pretrained(folder, dtype="auto").save_pretrained(new_folder) of transformers, '
            "or fetch a revision with safetensors"
        )
    if gguf:
        return (
            f"it holds GGUF files ({some(gguf)}), made for llama.cpp; fetch the model's safetensors repository instead, "
            "or AutoModelForCausalLM.from_pretrained(folder, gguf_file=…).save_pretrained(new_folder) of transformers"
        )
    if foreign:
        return f"it holds weights of {' and '.join(foreign)}, which are not read; fetch a revision with safetensors"
    if folder is not None and (deeper := _deeper(folder)):
        return deeper
    if any(n.startswith(TOKENIZERS) for n in names):
        what = "a config and a tokenizer" if CONFIG in names else "a tokenizer"
        return f"it holds {what}, and no weights ({some(names)}); give the folder of the model"
    return f"it holds {some(names)}" if names else "the folder is empty"


def _deeper(folder: Path) -> str | None:
    """Say which folder is meant, where checkpoints lie further down: in the hub's cache, or in subfolders."""
    cache = folder.parent if folder.name == "snapshots" else folder
    if (cache / "snapshots").is_dir() and cache.name.startswith("models--"):
        model = printable(cache.name.removeprefix("models--").replace("--", "/"))
        commits = _folders(cache / "snapshots")
        give = f", or the folder of a commit: {cache / 'snapshots' / commits[0]}" if commits else ""
        return f"it is the cache of the hub's client for {model}; give {model} itself as MODEL{give}"
    below = _folders(folder)
    if any(n.startswith("models--") for n in below):
        return "it is the cache of the hub's client; give the hub id of a model, such as owner/name, as MODEL"
    models = [n for n in below if (folder / n / CONFIG).is_file() and any((folder / n).glob("*.safetensors"))]
    if models:
        which = "it" if len(models) == 1 else "one of them"
        return f"checkpoints lie in subfolders of it ({some(models)}); give {which}, such as {folder / models[0]}"
    return None


def _folders(folder: Path) -> list[str]:
    """Return the names of subfolders, the first `MOST_FOLDERS` that the system tells."""
    try:
        with os.scandir(folder) as entries:
            return sorted(e.name for e in islice((e for e in entries if e.is_dir()), MOST_FOLDERS))
    except OSError:
        return []


def foreign_file(path: Path) -> tuple[str, str] | None:
    """Return what a file is that was given as a checkpoint, and what to give instead; None where it may be a shard.

    Under the name of a shard it is taken for one, and what is wrong with it is found as for all others.
    """
    if path.suffix == ".safetensors":
        return None
    try:
        with path.open("rb") as file:
            first = file.read(64)
        size = path.stat().st_size
    except OSError:
        return None
    length = int.from_bytes(first[:8], "little")
    if (first[8:9] == b"{" and length <= HEADER_BYTES.value) or check_content(path.name, first, size) is not None:
        return None
    if what := next((w for begins, w in OTHER_FORMATS.items() if first.startswith(begins)), None):
        return f"{path} is {what}, not a safetensors file", instead([path.name])
    folder = path.parent
    hint = "MODEL is a folder with config.json and its shards, one .safetensors file, or a hub id such as owner/name"
    if any(folder.glob("*.safetensors")):
        hint = f"give the folder: {folder}"
    what = "a JSON file" if first.decode("utf-8", "replace").lstrip()[:1] in ("{", "[") else "another kind of file"
    return f"{path} is {what}, not a safetensors file", hint


def some(names: Collection[str], most: int = 4) -> str:
    """Return the first few names, in order, and how many more there are.

    >>> some(["b", "a", "c"], most=2)
    'a, b and 1 more'
    """
    shown = ", ".join(map(printable, sorted(names)[:most]))
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
