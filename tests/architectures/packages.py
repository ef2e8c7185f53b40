"""Other packages, installed without pip: a module and its metadata in a folder that is put on the path."""

from __future__ import annotations

from pathlib import Path

GROUP = "loadmaster.families"


def install(folder: Path, name: str, source: str, value: str, *, version: str = "1.0") -> None:
    """Install the distribution ``name``, whose one module has ``source``, with the entry point ``family = value``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(source)
    metadata = folder / f"{name}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (metadata / "entry_points.txt").write_text(f"[{GROUP}]\nfamily = {value}\n")
