"""What HTML files that need nothing but themselves have in common: their style, and the policy that allows what is inline."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files


def page_style() -> str:
    """Return the style that all pages begin with: colours for light and dark, text, links, panels."""
    return (files(__package__) / "assets" / "page.css").read_text(encoding="utf-8")


def inline_source(text: str) -> str:
    """Return the source expression of Content Security Policy 3 that allows one inline style or script.

    >>> inline_source("")
    "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='"
    """
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
