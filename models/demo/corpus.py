"""The training texts: clean sentences from the documentation in Debian's packages.

Downloads the packages with `apt-get download` without installing them, extracts the prose from
their HTML, and keeps runs of consecutive sentences that are readable on their own.
"""

from __future__ import annotations

import gzip
import html
import json
import random
import re
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from orchestrator.search.grounding.sentences import split_sentences

TRAINING_PACKAGES = """
    anarchism apache2-doc asciidoctor-doc aspell-doc bash-doc bind9-doc borgbackup-doc
    buildbot-doc bup-doc cmake-doc csound-doc debian-edu-doc-en debian-faq debian-handbook
    debian-policy debian-reference-en developers-reference dolfin-doc doxygen-doc dpdk-doc
    erlang-doc exim4-doc-html festival-doc fontforge-doc frr-doc ganeti-doc gap-doc gbrainy
    ghc-doc gimp-help-en git-doc gnome-user-docs gnugo grass-doc grisbi-common haproxy-doc
    harden-doc homebank-data hugin-data imagemagick-6-doc knot-doc krb5-doc krita-data
    lava-server-doc ledger libreoffice-help-en-us lilypond-doc-html linux-doc-6.1
    llvm-15-doc mailman3-doc maint-guide neutron-doc nodejs-doc nova-doc ntpsec-doc
    octave-doc openshot-qt-doc pgpool2 pitivi postgis-doc postgresql-doc-15 pyqso
    python-astropy-doc python-biopython-doc python-dask-doc python-distributed-doc
    python-django-doc python-ipython-doc python-mdanalysis-doc python-mpmath-doc
    python-pint-doc python-pygame-doc python-scipy-doc python-simpy3-doc python-sklearn-doc
    python-sqlalchemy-doc python-statsmodels-doc python-whoosh-doc python3.11-doc r-doc-html
    rsyslog-doc rust-doc shorewall-doc slony1-2-doc subversion swift-doc tor
    user-mode-linux-doc valgrind xapian-doc yorick-doc zsh-doc
""".split()

HELD_OUT_PACKAGES = """
    freedombox-doc-en kea-doc postfix-doc python-celery-doc sqlite3-doc varnish-doc
""".split()
"""Excluded from training; `evaluate.py` uses them."""

MAX_FILES = 1500
MAX_FILE_BYTES = 600_000
MAX_SENTENCES = 9000
"""Most sentences of a package, so that no subject dominates."""

_PARAGRAPH = re.compile(r"<(?:p|dd)\b[^>]*>(.*?)</(?:p|dd)>", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(r"<[^>]+>")
_SKIPPED = re.compile(r"<(script|style|pre)\b.*?</\1>", re.DOTALL | re.IGNORECASE)
_TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.DOTALL | re.IGNORECASE)
_SENTENCE = re.compile(r"^[A-Z][\w ,;:'\"()\-–—/.’“”%&+]*[.!?]$")
_PLAIN_WORD = re.compile(r"[A-Za-z][a-z’'\-]*[,;:.!?]?")
# Sentences with references make no sense on their own.
_POINTS_ELSEWHERE = re.compile(
    r"\b(see|See|below|above|following|click|Figure|Table|Chapter|section)\b"
)
_CODE = re.compile(r"[A-Za-z]\.[A-Za-z]|_|::|\.\.")


class Run(NamedTuple):
    """Consecutive good sentences of one document."""

    package: str
    title: str
    sentences: list[str]


def build(folder: Path) -> list[Run]:
    """All runs of all packages; cached in `folder`/runs.jsonl."""
    path = folder / "runs.jsonl"
    if not path.is_file():
        archives = [download(name, folder) for name in [*TRAINING_PACKAGES, *HELD_OUT_PACKAGES]]
        with ProcessPoolExecutor() as pool, path.with_suffix(".tmp").open("w") as out:
            for runs in pool.map(extract, archives):
                out.writelines(json.dumps(run) + "\n" for run in runs)
        path.with_suffix(".tmp").rename(path)
    return [Run(*json.loads(line)) for line in path.open()]


def download(package: str, folder: Path) -> Path:
    """The path of the package's archive in `folder`, downloaded if it is missing."""
    found = sorted(folder.glob(f"{package}_*.deb"))
    if not found:
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", package], cwd=folder, check=True)
        found = sorted(folder.glob(f"{package}_*.deb"))
    return found[0]


def extract(archive: Path) -> list[Run]:
    """The runs of a package's HTML files, without repeated sentences."""
    package = archive.name.partition("_")[0]
    runs: list[Run] = []
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(["dpkg", "-x", str(archive), scratch], check=True, capture_output=True)
        pages = sorted(
            path
            for path in Path(scratch).rglob("*")
            if path.is_file() and re.search(r"\.(html?|xhtml|page)(\.gz)?$", path.name)
        )
        random.Random(0).shuffle(pages)
        for page in pages[:MAX_FILES]:
            runs += _runs_of_page(package, page)
            if sum(len(run.sentences) for run in runs) > MAX_SENTENCES:
                break
    return list(_without_repeats(runs))


def is_good(sentence: str) -> bool:
    """Whether a sentence is plain prose and readable on its own."""
    words = sentence.split()
    if not _SENTENCE.match(sentence) or not 6 <= len(words) <= 34:
        return False
    if sentence.count("(") != sentence.count(")") or sentence.count('"') % 2:
        return False
    if sum(1 for word in words if _PLAIN_WORD.fullmatch(word)) < 0.8 * len(words):
        return False
    return not _POINTS_ELSEWHERE.search(sentence) and not _CODE.search(sentence)


def _runs_of_page(package: str, page: Path) -> Iterator[Run]:
    content = page.read_bytes()
    if page.suffix == ".gz":
        content = gzip.decompress(content)
    text = _SKIPPED.sub(" ", content[:MAX_FILE_BYTES].decode(errors="ignore"))
    title = _title(text)
    current: list[str] = []
    for match in _PARAGRAPH.finditer(text):
        paragraph = " ".join(html.unescape(_TAG.sub("", match[1])).split())
        for sentence in split_sentences(paragraph) if len(paragraph) >= 40 else []:
            if is_good(sentence):
                current.append(sentence)
            else:
                yield Run(package, title, current)
                current = []
    yield Run(package, title, current)


def _title(text: str) -> str:
    found = _TITLE.search(text)
    title = " ".join(html.unescape(_TAG.sub(" ", found[1])).split()) if found else ""
    return re.sub(r"^[\d.]+\s*", "", re.split(r"\s[—–|·]\s|\s-\s", title)[0])[:60].strip()


def _without_repeats(runs: list[Run]) -> Iterator[Run]:
    seen: set[str] = set()
    for run in runs:
        fresh = [s for s in run.sentences if not (s in seen or seen.add(s))]  # type: ignore[func-returns-value]
        if len(fresh) >= 2:
            yield run._replace(sentences=fresh)
