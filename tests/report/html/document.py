"""A page as tests read it: its elements and texts, and that it needs and allows nothing but itself."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

VOID = {"meta", "link"}


class Document(HTMLParser):
    """Collects elements and their texts, and checks that each one is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.ids: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def assert_complete(text: str) -> None:
    """Check that a page asks for nothing, and that its policy allows its own style and script alone."""
    page = Document(text)
    assert not [e for e in page.elements if e[0] in ("img", "iframe", "object", "embed", "base")]
    assert [attrs.get("href") for tag, attrs in page.elements if tag == "link"] == ["data:,"]
    assert all("style" not in attrs and not any(a.startswith("on") for a in attrs) for _, attrs in page.elements)
    assert len(page.ids) == len(set(page.ids))
    policy = next(attrs["content"] for tag, attrs in page.elements if attrs.get("http-equiv"))
    for name, inside in (("style", r"<style>(.*?)</style>"), ("script", r"<script>(.*?)</script>")):
        (content,) = re.findall(inside, text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in str(policy)
    assert str(policy).startswith("default-src 'none'; ")
    links = [attrs["href"] for tag, attrs in page.elements if tag == "a"]
    assert all(link and link[0] == "#" and link[1:] in page.ids for link in links)
