"""Every bash, console and python block of the documents runs, or says why not: ``<!-- not run: reason -->``."""

import time
from pathlib import Path

import psutil
import pytest

from tests.docs import markdown
from tests.docs.markdown import ROOT, Block, parse
from tests.docs.session import BlockError, Session

PAGES = [pytest.param(page, id=str(page.relative_to(ROOT))) for page in markdown.pages()]
SLOW = ("docs/guides/tutorial.md",)


@pytest.mark.parametrize("page", PAGES)
def test_page_has_sound_fences_and_marks(page: Path) -> None:
    assert markdown.read(page).faults == ()


@pytest.mark.parametrize(
    "page", [pytest.param(*p.values, id=p.id, marks=pytest.mark.slow) if p.id in SLOW else p for p in PAGES]
)
def test_blocks_of_page_run(page: Path, tmp_path: Path) -> None:
    with Session.open(tmp_path) as session:
        for block in markdown.read(page).blocks:
            if block.language in markdown.RUN and block.reason is None:
                try:
                    session.run(block)
                except BlockError as failure:
                    pytest.fail(f"{page.relative_to(ROOT)}:{block.line}: {failure}", pytrace=False)


def test_mark_needs_a_reason_and_a_block() -> None:
    marked = parse("<!-- not run: downloads 750 GB -->\n\n```bash\ncurl …\n```\n")
    assert marked.faults == ()
    assert marked.blocks == (Block("bash", "curl …\n", line=3, reason="downloads 750 GB"),)
    assert len(parse("<!-- not run: -->\n```bash\n```\n").faults) == 1
    assert len(parse("<!-- not run -->\n```bash\n```\n").faults) == 1
    assert len(parse("<!-- not run: why -->\ntext\n").faults) == 1
    assert len(parse("<!-- not run: why -->\n```json\n{}\n```\n").faults) == 1


def test_a_block_cannot_escape_by_its_spelling() -> None:
    assert parse("```sh\nfalse\n```\n").faults == ("line 1: write bash instead of sh, so that it is run",)
    assert len(parse("```bash\nfalse\n").faults) == 1


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("bash", "false\ntrue\n"),
        ("python", "raise SystemExit(3)\n"),
        ("python", "raise ValueError\n"),
        ("python", "import os\nos._exit(0)\n"),
        ("python", ">>> 1 + 1\n3\n"),
        ("console", "$ echo one\ntwo\n"),
        ("console", "$ false\n"),
        ("console", "$ false\n$ echo $?\n0\n"),
        ("console", "$ exit 0\n$ true\n"),
    ],
)
def test_a_block_that_does_otherwise_than_shown_fails(language: str, text: str, tmp_path: Path) -> None:
    with Session.open(tmp_path) as session, pytest.raises(BlockError):
        session.run(Block(language, text, line=1, reason=None))


def test_blocks_of_python_share_nothing_but_files(tmp_path: Path) -> None:
    with Session.open(tmp_path) as session:
        for language, text in (
            ("bash", "echo 'SIZE = 1' > sizes.py; mkdir inside\n"),
            ("python", "import os, sizes\nassert sizes.SIZE == 1\nos.chdir('inside')\n"),
            ("bash", "echo 'SIZE = 22' > sizes.py\n"),
            ("python", "from sizes import SIZE\nassert SIZE == 22\nassert 'os' not in globals()\n"),
        ):
            session.run(Block(language, text, line=1, reason=None))


def test_blocks_share_a_folder_and_a_server_lasts_until_the_end(tmp_path: Path) -> None:
    with Session.open(tmp_path) as session:
        for language, text in (
            ("bash", "echo 'one two' > words\nsleep 100000 > log & echo $! > pid\n"),
            ("python", "assert open('words').read() == 'one two\\n'\n"),
            ("python", ">>> open('words').read()\n'one ...'\n"),
            ("console", "$ cat \\\n>   words\none ...\n$ test -e nothing\n$ echo $?\n1\n"),
            ("bash", "kill -0 $(cat pid)\n"),
        ):
            session.run(Block(language, text, line=1, reason=None))
        server = psutil.Process(int((tmp_path / "pid").read_text()))
    until = time.monotonic() + 300
    while server.is_running() and server.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until
        time.sleep(0.01)
