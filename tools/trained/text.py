"""The texts that the model learns: the King James Bible and the novels of Jane Austen, both in the public domain.

They come from two Debian packages, unpacked side by side into one folder::

    apt-get download bible-kjv-text r-cran-janeaustenr
    for package in *.deb; do dpkg-deb --extract "$package" texts; done

The Bible is one stream of ``compress`` behind a table of offsets, with one verse in a line; `gzip` unpacks it. The novels
are lines in R's serialised form. Nothing else of the packages is used.
"""

from __future__ import annotations

import random
import re
import subprocess
import zlib
from dataclasses import dataclass
from pathlib import Path

from tools.trained.config import ASSISTANT, END, USER

BIBLE = "usr/lib/bible.data"
NOVELS = "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"

BOOKS = {
    "Ge": "Genesis", "Exo": "Exodus", "Lev": "Leviticus", "Num": "Numbers", "Deu": "Deuteronomy", "Josh": "Joshua",
    "Jdgs": "Judges", "1Sm": "1 Samuel", "2Sm": "2 Samuel", "1Ki": "1 Kings", "2Ki": "2 Kings", "1Chr": "1 Chronicles",
    "2Chr": "2 Chronicles", "Neh": "Nehemiah", "Est": "Esther", "Psa": "Psalm", "Prv": "Proverbs", "Eccl": "Ecclesiastes",
    "SSol": "Song of Solomon", "Isa": "Isaiah", "Jer": "Jeremiah", "Lam": "Lamentations", "Eze": "Ezekiel", "Dan": "Daniel",
    "Hos": "Hosea", "Obad": "Obadiah", "Mic": "Micah", "Hab": "Habakkuk", "Zep": "Zephaniah", "Hag": "Haggai",
    "Zec": "Zechariah", "Mal": "Malachi", "Mat": "Matthew", "Rom": "Romans", "1Cor": "1 Corinthians",
    "2Cor": "2 Corinthians", "Gal": "Galatians", "Eph": "Ephesians", "Phi": "Philippians", "Col": "Colossians",
    "1Th": "1 Thessalonians", "2Th": "2 Thessalonians", "1Tim": "1 Timothy", "2Tim": "2 Timothy", "Phmn": "Philemon",
    "Heb": "Hebrews", "Jas": "James", "1Pet": "1 Peter", "2Pet": "2 Peter", "1Jn": "1 John", "2Jn": "2 John",
    "3Jn": "3 John", "Rev": "Revelation",
}  # fmt: skip
"""The file's short names of books; the others are written in full."""

HELD_OUT = 60_000
"""Characters at the end of the Bible, and of the last novel, that are never trained on: two contexts of 8,192 tokens each."""


@dataclass(frozen=True)
class Texts:
    """``documents`` and ``held_out`` are whole texts of paragraphs; ``conversations`` are a user's words and the answer."""

    documents: list[str]
    held_out: list[str]
    conversations: list[str]


def read_texts(folder: Path, *, rounds: int = 2, seed: int = 0) -> Texts:
    """Return the texts in ``folder``; each passage makes ``rounds`` conversations, cut at different words.

    A user begins a passage and the assistant ends it: that is all the model knows of conversations.
    """
    sources = [bible(folder / BIBLE), novels(folder / NOVELS)]
    held_out = [documents[-1][-HELD_OUT:] for documents in sources]
    for documents in sources:
        documents[-1] = documents[-1][:-HELD_OUT]
    documents = [text for source in sources for text in source]
    draw = random.Random(seed)
    conversations = [_conversation(p, draw) for _ in range(rounds) for d in documents for p in _passages(d)]
    draw.shuffle(conversations)
    return Texts(documents, held_out, conversations)


def bible(path: Path) -> list[str]:
    """Return the text of each book, a chapter's name before its verses, one verse in a paragraph."""
    stored = path.read_bytes()
    packed = stored[stored.index(b"\x1f\x9d\x90") :]
    lines = (
        subprocess.run(["gzip", "-dc"], input=packed, stdout=subprocess.PIPE, check=True).stdout.decode().splitlines()
    )
    books: dict[str, list[str]] = {}
    chapter = ""
    for line in lines[1:]:  # the first names the edition
        found = re.fullmatch(r"(\d?[A-Za-z]+)(\d+):\d+ (.*)", line)
        if found is None:
            raise ValueError(f"{path}: not a verse: {line!r}")
        book = BOOKS.get(found[1], found[1])
        paragraphs = books.setdefault(book, [])
        if chapter != (chapter := f"{book} {found[2]}"):
            paragraphs.append(chapter)
        paragraphs.append(found[3].strip())
    return ["\n\n".join(paragraphs) + "\n" for paragraphs in books.values()]


def novels(path: Path) -> list[str]:
    """Return the text of each novel, its lines joined to paragraphs, without the underscores around emphasis."""
    stored = path.read_bytes()
    texts, at = [], 0
    while at < len(stored):  # each object: the length of its serialised form in four bytes, then that, compressed
        unpacker = zlib.decompressobj()
        serialised = unpacker.decompress(stored[at + 4 :])
        at = len(stored) - len(unpacker.unused_data)
        lines = b"\n".join(_strings(serialised)).decode().replace("_", "").split("\n\n")
        texts.append("\n\n".join(p for p in (" ".join(lines_.split()) for lines_ in lines) if p) + "\n")
    return texts


def _strings(serialised: bytes) -> list[bytes]:
    """Return the strings of one serialised character vector: each has the type 9 in the last of four bytes, then its length."""
    strings, at = [], serialised.index(b"\x00\x00\x00\x10") + 8  # the vector's type and length
    while at < len(serialised):
        length = int.from_bytes(serialised[at + 4 : at + 8], "big")
        if serialised[at + 3] != 9:
            raise ValueError(f"no string at byte {at} of the serialised vector")
        strings.append(serialised[at + 8 : at + 8 + length])
        at += 8 + length
    return strings


def _passages(document: str) -> list[str]:
    """Return pieces of one or more paragraphs with at least 120 characters, none of them a heading."""
    passages: list[str] = []
    current = ""
    for paragraph in document.strip().split("\n\n"):
        if len(paragraph) < 25 or len(paragraph) > 900:
            current = ""
            continue
        current = f"{current}\n\n{paragraph}" if current else paragraph
        if len(current) >= 120:
            passages.append(current)
            current = ""
    return passages


def _conversation(passage: str, draw: random.Random) -> str:
    """Return ``passage`` as a conversation: the user has its first 3 to 10 words."""
    cut = list(re.finditer(r"\s+", passage))[draw.randrange(2, 10)]
    return f"{USER}{passage[: cut.start()]}{ASSISTANT}{passage[cut.end() :]}{END}"
