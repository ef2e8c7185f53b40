"""Recognises folders and files that are not a checkpoint: adapters, pipelines, caches, other formats; says what to do.

A folder is recognised by its file names, so a listing of a repository on the hub works as well. Only the first bytes of
other files are read.
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
from loadmaster.limits import HEADER_BYTES

CONFIG = "config.json"
ADAPTER, PIPELINE, PUBLISHERS = "adapter_config.json", "model_index.json", "params.json"
"""The files that mark a LoRA adapter (peft), a diffusers pipeline, and weights in their publisher's own layout."""
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
FOREIGN = {".gguf": "GGUF", ".h5": "TensorFlow", ".msgpack": "Flax", ".onnx": "ONNX", ".npz": "NumPy"}
TOKENIZERS = ("tokenizer", "vocab.", "merges.", "spiece.", "tekken.", "special_tokens_map.", "added_tokens.")
"""Prefixes of tokenizer files."""
MOST_FOLDERS = 256
"""How many subfolders are searched, at most."""


@dataclass(frozen=True, slots=True)
class Lookalike:
    """``what`` it is, to follow "it is", and ``remedy``: what to give instead."""

    what: str
    remedy: str


def recognise(names: Collection[str], base: str | None = None) -> Lookalike | None:
    """Return what a folder of files ``names`` is if it is not a model; ``base`` is an adapter's base model, if known."""
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
            "only language models can be read: give a folder with config.json and its shards",
        )
    if PUBLISHERS in names:
        return Lookalike(
            f"a model in its publisher's own layout ({PUBLISHERS})",
            f"give the same model in the layout of transformers, with {CONFIG}; of {PUBLISHERS}, only Mistral's is read, "
            "of dense models and of those with latent attention and shared experts (Mistral-Large-3), on disk or on the hub",
        )
    return None


def base_model(text: bytes) -> str | None:
    """Return the base model that an adapter_config.json names; None where it names none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    name = value.get("base_model_name_or_path") if isinstance(value, dict) else None
    return printable(name) if isinstance(name, str) and name else None


def printable(text: str, most: int = 200) -> str:
    """Return text from a file made safe to print: cut short, control characters and lone surrogates escaped.

    >>> printable("a\\x1bb")
    'a\\\\x1bb'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:most])


def instead(
    names: Collection[str], partial: Sequence[str] = (), folder: Path | None = None, base: str | None = None
) -> str:
    """Say what a folder without safetensors files holds, and what to do.

    ``folder`` is its path, if it is on disk; ``base`` is an adapter's base model, if known.
    """
    pickled = [n for n in names if n.endswith(PICKLED)]
    gguf = [n for n in names if n.endswith(".gguf")]
    foreign = sorted({FOREIGN[s] for n in names if (s := Path(n).suffix) in FOREIGN})
    if partial:
        return f"a download is unfinished ({some(partial)}); resume it"
    if lookalike := recognise(names, base):
        return f"it is {lookalike.what}; {lookalike.remedy}"
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
        return f"it holds {' and '.join(foreign)} weights, which are not read; fetch a revision with safetensors"
    if folder is not None and (deeper := _deeper(folder)):
        return deeper
    if any(n.startswith(TOKENIZERS) for n in names):
        what = "a config and a tokenizer" if CONFIG in names else "a tokenizer"
        return f"it holds {what}, but no weights ({some(names)}); give the model's folder"
    return f"it holds {some(names)}" if names else "the folder is empty"


def _deeper(folder: Path) -> str | None:
    """Say which folder to give, where checkpoints are in the hub's cache or in subfolders."""
    cache = folder.parent if folder.name == "snapshots" else folder
    if (cache / "snapshots").is_dir() and cache.name.startswith("models--"):
        model = printable(cache.name.removeprefix("models--").replace("--", "/"))
        commits = _folders(cache / "snapshots")
        give = f", or the folder of a commit: {cache / 'snapshots' / commits[0]}" if commits else ""
        return f"it is the hub cache of {model}; give {model} as MODEL{give}"
    below = _folders(folder)
    if any(n.startswith("models--") for n in below):
        return "it is the hub cache; give a hub id, such as owner/name, as MODEL"
    models = [n for n in below if (folder / n / CONFIG).is_file() and any((folder / n).glob("*.safetensors"))]
    if models:
        which = "it" if len(models) == 1 else "one of them"
        return f"checkpoints are in its subfolders ({some(models)}); give {which}, such as {folder / models[0]}"
    return None


def _folders(folder: Path) -> list[str]:
    """Return the names of subfolders, at most `MOST_FOLDERS`."""
    try:
        with os.scandir(folder) as entries:
            return sorted(e.name for e in islice((e for e in entries if e.is_dir()), MOST_FOLDERS))
    except OSError:
        return []


def foreign_file(path: Path) -> tuple[str, str] | None:
    """Return what a file given as a checkpoint is, and what to give instead; None where it may be a shard.

    A file named ``*.safetensors`` is read as a shard, and checked like all others.
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
