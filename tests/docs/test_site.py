"""The documentation's site: what is put into it, and how broken links are found. ``make site`` builds it."""

from pathlib import Path

from tests.docs.markdown import ROOT
from tools.site import broken, linked, menu, stage


def test_every_page_is_in_the_menu_once_and_files_that_it_links_to_lie_beside_it() -> None:
    stage()
    listed = [
        page for entry in menu() for pages in entry.values() for page in ([pages] if isinstance(pages, str) else pages)
    ]
    assert len(listed) == len(set(listed))
    assert {str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md")} | {"README.md"} <= set(listed)
    staged = ROOT / ".cache" / "site-pages"
    for page in (p for p in listed if (ROOT / p).exists()):  # pages of folders are made
        for target in linked(ROOT / page):
            to = staged / target.relative_to(ROOT)
            assert to.is_file() or (to / "index.md").is_file() or (to / "README.md").is_file(), f"{page}: {target}"


def test_links_that_lead_nowhere_are_found(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "index.html").write_text('<h1 id="a">A</h1>')
    (tmp_path / "index.html").write_text(
        '<a href="folder/">1</a><a href="folder/#a">2</a><a href="https://example.org/x">3</a><a href="#top">4</a>'
        '<a href="folder/#b">5</a><a href="gone.html">6</a><p id="top">'
    )
    assert broken(tmp_path) == ["index.html: folder/#b (no such heading)", "index.html: gone.html"]
