"""Checks that a file has content: it is not empty, and not a Git LFS pointer."""

from __future__ import annotations

from loadmaster.findings import Finding

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"
"""How a Git LFS pointer begins; https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md."""


def check_content(file: str, first: bytes, size: int) -> Finding | None:
    """Return a finding if ``file`` is empty or a Git LFS pointer. ``size`` is in bytes, ``first`` are its first bytes.

    >>> check_content("config.json", b"", 0).code
    'file-empty'
    """
    if size == 0:
        hint = "the download or copy did not start; fetch the file again"
        return Finding("file-empty", "error", "the file has no bytes", file=file, hint=hint)
    if first.startswith(LFS_POINTER):
        message = f"the file is a Git LFS pointer of {size} bytes, not the content itself{_stated(first)}"
        hint = "run `git lfs pull` in this folder, or `hf download` the model"
        return Finding("file-lfs-pointer", "error", message, file=file, hint=hint)
    return None


def _stated(pointer: bytes) -> str:
    """Return the size that a pointer states, in parentheses; empty if it states none."""
    words = (line.split() for line in pointer.decode("utf-8", "replace").splitlines())
    size = next((w[1] for w in words if len(w) == 2 and w[0] == "size" and w[1].isdigit()), None)
    return f" ({int(size):,} bytes)" if size and len(size) < 20 else ""
