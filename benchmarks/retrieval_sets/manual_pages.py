"""The manual pages of this machine's Debian packages, and a query for each of them.

A page's query is the description in its NAME section, without the page's own name.
"""

from __future__ import annotations

import gzip
import random
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

MANUAL = Path("/usr/share/man")
SECTIONS = "15678"
"""Commands, files, overviews; without the functions of libraries, whose pages are alike."""

MIN_WORDS = 3
"""Words of a query; a shorter one names no page."""

_HEADING = re.compile(r"^(?P<name>[A-Z][A-Z -]+)$", re.MULTILINE)
_MACRO = re.compile(r"^['.].*?(?: |$)|\\f.|\\\".*$", re.MULTILINE)
_OVERSTRIKE = re.compile(r".\x08|\x1b\[[0-9;]*m")
_NAME_LINE = re.compile(r"^\s+(?P<names>\S.*?)\s+[-\u2010-\u2014]+\s+(?P<description>.+)$", re.S)


class ManualPage(NamedTuple):
    """A page, and the query whose answer it is."""

    name: str
    """Name and section, such as `ls.1`."""
    text: str
    query: str


def manual_pages(num_pages: int, seed: int, max_characters: int) -> list[ManualPage]:
    """A random choice of pages with distinct queries; fewer if the machine has fewer.

    `max_characters` of each page's text are taken: its name, synopsis, and what follows.
    """
    files = [
        path
        for section in SECTIONS
        for path in sorted((MANUAL / f"man{section}").glob("*.gz"))
        if not path.is_symlink()
    ]
    random.Random(seed).shuffle(files)
    with ThreadPoolExecutor(2) as threads:
        pages = [
            page
            for page in threads.map(_read, files[: num_pages + num_pages // 2])
            if page is not None
        ]
    times = Counter(page.query.lower() for page in pages)
    distinct = [page for page in pages if times[page.query.lower()] == 1][:num_pages]
    return [page._replace(text=page.text[:max_characters]) for page in distinct]


def unrendered_pages(seed: int, max_characters: int) -> Iterator[ManualPage]:
    """All pages in random order, with the words of their source, and their descriptions as queries.

    Fast, for measurements of time: nothing is rendered, so that some markup remains.
    """
    files = [
        path
        for section in SECTIONS
        for path in sorted((MANUAL / f"man{section}").glob("*.gz"))
        if not path.is_symlink()
    ]
    random.Random(seed).shuffle(files)
    for path in files:
        source = gzip.decompress(path.read_bytes()).decode(errors="replace")
        query = next((line for line in source.splitlines() if r" \- " in line), "")
        text = _MACRO.sub("", source).replace("\\", "")
        paragraphs = [" ".join(block.split()) for block in re.split(r"\n\s*\n", text)]
        description = query.partition(r" \- ")[2].replace("\\", "")
        whole = "\n\n".join(filter(None, paragraphs))[:max_characters]
        if len(description.split()) >= MIN_WORDS and whole:
            yield ManualPage(path.name.removesuffix(".gz"), whole, description)


def _read(path: Path) -> ManualPage | None:
    source = gzip.decompress(path.read_bytes())
    if len(source) > 1_000_000 or source.lstrip().startswith(b".so "):
        return None
    command = ["groff", "-mandoc", "-Tutf8", "-P-cbou", "-rHY=0", "-rLL=10000n", "-Kutf8"]
    rendered = subprocess.run(
        command, input=source, capture_output=True, timeout=60, check=False
    ).stdout
    text = _OVERSTRIKE.sub("", rendered.decode(errors="replace"))
    sections = dict(_sections(text))
    found = _NAME_LINE.match(" ".join(sections.get("NAME", "").split()).join([" ", ""]))
    if not found:
        return None
    own = {name.strip().lower() for name in found["names"].split(",")} | {path.name.split(".")[0]}
    words = [word for word in found["description"].split() if word.strip(".,()").lower() not in own]
    if len(words) < MIN_WORDS:
        return None
    return ManualPage(path.name.removesuffix(".gz"), _as_text(sections), " ".join(words))


def _sections(text: str) -> Iterator[tuple[str, str]]:
    found = list(_HEADING.finditer(text))
    for one, following in zip(found, [*found[1:], None], strict=False):
        yield one["name"], text[one.end() : following.start() if following else None]


def _as_text(sections: dict[str, str]) -> str:
    paragraphs = (
        " ".join(block.split())
        for section in sections.values()
        for block in re.split(r"\n\s*\n", section)
    )
    return "\n\n".join(filter(None, paragraphs))
