"""The site builds strictly and soon, its links lead somewhere, and a browser shows it well."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import nnabla_dqa as dqa
from tests.reporting.browser import browser, find_browser

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow
for module in ("mkdocs", "material", "mkdocstrings_handlers.python"):
    pytest.importorskip(module, reason=f"{module} is not installed: the extra docs has it")


def children_seconds():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    begun = children_seconds()
    done = subprocess.run(
        # Not --quiet: it would hide warnings from the strict mode too.
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    # Processor time: other tests run beside this one.
    assert children_seconds() - begun < 60
    return folder


class Links(HTMLParser):
    """The anchors of a page, its links, and what it loads."""

    def __init__(self, text):
        super().__init__()
        self.anchors, self.links, self.loads = set(), set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.anchors |= {given.get("id"), given.get("name") if tag == "a" else None}
        if tag == "a" and given.get("href"):
            self.links.add(given["href"])
        elif tag in ("script", "img", "iframe"):
            self.loads.add(given.get("src"))
        elif tag == "link" and given.get("rel") not in ("prev", "next", "canonical"):
            self.loads.add(given.get("href"))


def test_all_is_there_and_links_lead_somewhere(site):
    pages = {path: Links(path.read_text("utf-8")) for path in site.rglob("*.html")}
    for source in (ROOT / "docs").glob("*.md"):
        assert site / f"{source.stem}.html" in pages
    reference = set().union(*(pages[path].anchors for path in (site / "api").glob("*.html")))
    assert {f"nnabla_dqa.{name}" for name in dqa.__all__} <= reference
    assert "nnabla_dqa.parametric_functions.dqa_convolution" in reference
    for path, page in pages.items():
        for link in page.links | (page.loads - {None}):
            to = urlsplit(link)
            if to.scheme or to.netloc:
                assert link not in page.loads, f"{path}: loads {link}"
                continue
            base = site if path.name == "404.html" else path.parent
            target = (base / unquote(to.path).lstrip("/")).resolve() if to.path else path
            if target.is_dir():
                target /= "index.html"
            assert target.exists(), f"{path}: {link}"
            if to.fragment and to.fragment != "__skip" and target in pages:
                assert unquote(to.fragment) in pages[target].anchors, f"{path}: {link}"


WIDE = "document.documentElement.scrollWidth - innerWidth"
FOUND = "document.querySelectorAll('.md-search-result__item').length"
SEARCH = """(() => {
  const field = document.querySelector('.md-search__input')
  field.focus()
  field.value = 'temperature'
  field.dispatchEvent(new KeyboardEvent('keyup', {bubbles: true}))
})()"""


@pytest.mark.skipif(find_browser() is None, reason="no Chromium on the PATH")
def test_a_browser_shows_it_from_the_disk(site, tmp_path):
    names = ("index", "method", "questions", "api/layers", "api/quantizers")
    with browser(tmp_path / "profile") as page:
        for name in names:
            for width in (400, 1400):
                for dark in (False, True):
                    page.open(site / f"{name}.html", width, dark=dark)
                    assert page.evaluate(WIDE) <= 0, (name, width)
                    assert page.evaluate("document.querySelector('h1').innerText")
        page.evaluate(SEARCH)
        end = time.monotonic() + 20
        while not page.evaluate(FOUND) and time.monotonic() < end:
            time.sleep(0.1)
        assert page.evaluate(FOUND) > 3
        assert page.logged == []
        assert [url for url in page.requests if url.startswith("http")] == []
