"""One page as Markdown and as HTML: what comes from outside stays text in both."""

from __future__ import annotations

from html.parser import HTMLParser

from loadmaster.audit.page import Heading, Items, Table, Text, code, html, markdown

EVIL = "<script>alert('`x`')</script> | a_b *c* [d](e)\nnext & \"more\""
PAGE = [
    Heading(1, "A <page>"),
    Text(f"Said: {code(EVIL)}, and 3 < 4 of `x|y`."),
    Items((("cause", "a *guess* in `f.py: g`"),)),
    Table(("case", "seen"), (("one", code(EVIL)), ("two", "a|b"))),
]


class Reader(HTMLParser):
    """Collects tags and text, and holds that each tag that begins ends."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_html_escapes_everything_and_is_whole_and_alone() -> None:
    made = html('Of "<b>"', PAGE)
    read = Reader(made)
    assert read.open == []
    assert {"script", "b", "link", "img"} & set(read.tags) == {"b"}  # that of the list's names
    assert "alert(''x'')" in read.text
    assert "A <page>" in read.text
    assert "http" not in made
    assert made.startswith("<!doctype html>")
    assert read.tags.count("tr") == 3
    assert read.tags.count("code") == 5 - 1


def test_markdown_keeps_a_row_on_a_line_and_text_from_being_markup() -> None:
    lines = markdown(PAGE).splitlines()
    assert lines[0] == "# A <page>"
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 4
    assert rows[1] == "| --- | --- |"
    assert rows[3] == "| two | a\\|b |"
    assert "`<script>alert(''x'')</script> \\| a_b *c* [d](e) next & \"more\"`" in rows[2]
    assert "3 \\< 4 of `x|y`." in lines[2]
    assert "- **cause**: a \\*guess\\* in `f.py: g`" in lines


def test_code_is_one_line_and_has_no_backticks() -> None:
    assert code("a\n  b `c`") == "`a b 'c'`"
