import re

import pytest

from loadmaster.report.page import inline_source, page_style
from loadmaster.server.page.document import Document, asset

STYLE, INDEX_STYLE, DOCS_STYLE = page_style() + asset("style.css"), asset("index.css"), asset("docs.css")
PAGES = {
    "index": Document(asset("index.html"), STYLE + INDEX_STYLE, asset("index.js")),
    "docs": Document(asset("docs.html"), STYLE + DOCS_STYLE),
}


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_a_page_needs_nothing_but_itself(page: Document) -> None:
    text = page.body.decode().replace("http://www.w3.org/2000/svg", "")  # a name of XML, which nobody fetches
    assert "://" not in text
    assert not re.search(r"""\b(src|srcset)=|@import|url\(|<link (?!rel="icon" href="data:)""", text)


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_the_policy_allows_what_is_inline_and_nothing_else(page: Document) -> None:
    policy = page.headers["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert policy.startswith("default-src 'none'")
    text = page.body.decode()
    for name in ("style", "script"):
        inline = re.findall(rf"<{name}>(.*?)</{name}>", text, re.DOTALL)
        expected = inline_source(inline[0]) if inline else "'none'"
        assert f"{name}-src {expected};" in policy
        assert len(inline) <= 1
    assert not re.search(r"<[^>]* (style|on\w+)=", text), "attributes that the policy blocks"


def test_the_page_is_small_and_inserts_text_alone() -> None:
    page = PAGES["index"]
    assert len(page.body) < 40_000
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|localStorage", page.script)


def luminance(color: str) -> float:
    """Relative luminance, WCAG 2.2."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_has_enough_contrast(scheme: int) -> None:
    blocks = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    assert len(blocks) == 4  # light and dark of all pages, then of this one
    colors = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[scheme] + blocks[scheme + 2]))
    text = [("ink", "ground"), ("ink", "panel"), ("muted", "ground"), ("muted", "panel"), ("accent", "ground")]
    text += [("accent", "panel"), ("on-accent", "accent"), ("bad", "panel"), ("ink", "bad-ground")]
    bars = [("busy", "panel"), ("busy", "track"), ("input", "panel")]
    for pairs, least in ((text, 4.5), (bars, 3.0)):
        for one, other in pairs:
            dark, light = sorted((luminance(colors[one]), luminance(colors[other])))
            assert (light + 0.05) / (dark + 0.05) >= least, (one, other)
