"""Pages in a real headless Chromium: they render, load and log nothing, and nothing overflows."""

from __future__ import annotations

import pytest

import nnabla_dqa as dqa
from nnabla_dqa.reporting import write_report
from tests.reporting.browser import browser, find_browser
from tests.reporting.runs import FAILURE, epoch, write_run
from tests.training.files import write_console

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_browser() is None,
        reason="no Chromium on the PATH (apt-get install chromium), nor in NNABLA_DQA_BROWSER",
    ),
]
LONG = "encoder/stage_with_a_name_that_does_not_end/block_17/convolution_of_three_by_three/conv"
OPEN = "document.querySelectorAll('details').forEach(d => { d.open = true })"
WIDE = "document.documentElement.scrollWidth"
BROKEN = """[...document.querySelectorAll('svg')].filter(s => {
  const box = s.getBoundingClientRect(); return !(box.width > 20 && box.height > 5)
}).length"""
UNSEEN = """[...document.querySelectorAll('svg[role=img] text')].filter(t => {
  const box = t.getBoundingClientRect(), own = t.closest('svg').getBoundingClientRect();
  return box.left < own.left - 2 || box.right > own.right + 2
}).map(t => t.textContent).slice(0, 5).join('; ')"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def a_run(folder):
    return [write_run(folder / "run")]


def a_large_run(folder):
    """100 layers, 60 epochs."""
    return [write_run(folder / "run", layers=100, epochs=60)]


def a_run_with_nan(folder):
    records = [epoch(1, ["fc0/affine", "fc1/affine"])]
    failure = {"failure": FAILURE, "command": "nnabla-dqa train " + 40 * "--set model.width=0.25 "}
    return [write_run(folder / "run", result=False, records=records, start=failure)]


def long_names(folder):
    records = [epoch(i + 1, [LONG, "fc0/affine"]) for i in range(8)]
    return [write_run(folder / "a_run_with_a_rather_long_name", records=records, messages=[LONG])]


def several_runs(folder):
    more = [write_run(folder / "d", recipe={"quantizers": "sawb:2,4,8"})]
    return [*(write_run(folder / f"r{seed}", seed=seed) for seed in range(3)), *more]


def a_deployed_file(folder):
    write_console(folder / "float.nnp")
    dqa.convert_file(folder / "float.nnp", folder / "dqa.nnp", [dqa.Rule("*", "minmax:2,4")])
    dqa.deploy_file(folder / "dqa.nnp", folder / "small.nnp", allow_untrained=True)
    return [folder / "small.nnp"]


@pytest.mark.parametrize(
    "make", [a_run, a_large_run, a_run_with_nan, long_names, several_runs, a_deployed_file]
)
def test_it_renders_and_fits(make, page, tmp_path):
    path = write_report(make(tmp_path), tmp_path / "report.html")
    page.logged.clear()
    page.requests.clear()
    for width in (400, 1400):
        for dark in (False, True):
            page.open(path, width, dark=dark)
            assert page.evaluate(WIDE) <= width
            page.evaluate(OPEN)
            assert page.evaluate(WIDE) <= width
            assert page.evaluate(BROKEN) == 0
            assert page.evaluate(UNSEEN) == ""
            page.screenshot(tmp_path / f"{width}-{'dark' if dark else 'light'}.png", 3000)
    assert page.logged == []
    assert set(page.requests) == {path.resolve().as_uri()}


def test_light_and_dark_differ_and_both_have_contrast(page, tmp_path):
    path = write_report(a_run(tmp_path), tmp_path / "report.html")
    ink = "getComputedStyle(document.querySelector('svg[role=img] text')).fill"
    ground = "getComputedStyle(document.body).backgroundColor"
    for dark in (False, True):
        page.open(path, 1400, dark=dark)
        shades = [
            sum(int(part) for part in page.evaluate(colour)[4:-1].split(","))
            for colour in (ink, ground)
        ]
        assert (shades[0] > shades[1]) == dark
        assert abs(shades[0] - shades[1]) > 500


def test_everything_is_reached_by_keyboard(page, tmp_path):
    path = write_report(several_runs(tmp_path), tmp_path / "report.html")
    page.open(path, 1400)
    seen = []
    for _ in range(60):
        page.press("Tab")
        seen.append(page.evaluate("document.activeElement.tagName"))
        if seen[-1] == "SUMMARY":
            break
    assert {"A", "SUMMARY", "DIV"} <= set(seen)
    opened = "document.activeElement.parentElement.open"
    assert page.evaluate(opened) is False
    page.press("Enter")
    assert page.evaluate(opened) is True
