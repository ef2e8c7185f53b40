"""HTML documents that need nothing but themselves: style and script are inside, and the headers allow nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files

from fastapi import Request, Response

from loadmaster.report.page import inline_source


def asset(name: str) -> str:
    """Return the text of a file in ``assets``."""
    return (files(__package__) / "assets" / name).read_text(encoding="utf-8")


@dataclass(frozen=True)
class Document:
    """A page made of ``html``, in which ``{{style}}`` and ``{{script}}`` mark where its style and its script belong.

    Its headers let a browser run this script and apply this style alone, and send requests to this server alone.
    """

    html: str
    style: str
    script: str = ""

    @cached_property
    def body(self) -> bytes:
        """The document as it is sent."""
        return self.html.replace("{{style}}", self.style).replace("{{script}}", self.script).encode()

    @cached_property
    def headers(self) -> Mapping[str, str]:
        """The headers of the answer. Browsers ask each time whether the document has changed."""
        policy = {
            "default-src": "'none'",
            "style-src": inline_source(self.style),
            "script-src": inline_source(self.script) if self.script else "'none'",
            "connect-src": "'self'" if self.script else "'none'",
            "img-src": "data:",
            "base-uri": "'none'",
            "form-action": "'none'",
            "frame-ancestors": "'none'",
        }
        return {
            "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
            "Cache-Control": "no-cache",
            "ETag": f'"{hashlib.sha256(self.body).hexdigest()[:32]}"',
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Opener-Policy": "same-origin",
        }

    def answer(self, request: Request) -> Response:
        """Return the document, or 304 if the browser has it already."""
        if self.headers["ETag"] in [tag.strip() for tag in request.headers.get("if-none-match", "").split(",")]:
            return Response(status_code=304, headers=dict(self.headers))
        return Response(self.body, media_type="text/html", headers=dict(self.headers))
