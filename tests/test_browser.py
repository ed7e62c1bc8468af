"""The report in a real browser: no errors, and its sliders, toggles, zoom and folds do what they say.

Needs Chromium, Debian's package `chromium`. Screenshots go to $SAT_SSVAE_SCREENSHOTS where that is set.
"""

import dataclasses
import os
import re
from pathlib import Path

import pytest

from sat_ssvae.comparison.provenance import Provenance
from sat_ssvae.comparison.report.page import render
from sat_ssvae.comparison.verdict import judge

from .comparisons import SAMPLES, comparison, pictures

EIGHT = ("stock", "ssvae", "lcr", "lmr", "lcr05", "channels", "stock-kl", "long")

pytestmark = pytest.mark.slow


def report(names, folder):
    """A report of arms with these names, the first the baseline; some faster, some slower."""
    speeds = [2.6, 0.5, 1.0, 1.6, 1.9, 1.02, 0.9][: len(names) - 1]
    floors = {SAMPLES[0]: 0.02, SAMPLES[2]: 0.8}
    results = comparison(speeds, names=list(names), metrics=(SAMPLES[0], SAMPLES[2], "loss"), floors=floors)
    results = dataclasses.replace(results, provenance=Provenance({"beach.mp4": 12}, {"city.mp4": 240}))
    path = folder / f"report-{len(names)}.html"
    shown = pictures(tuple(names))
    path.write_text(render(results, judge(results), shown), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")
    return {len(names): report(names, folder) for names in (EIGHT[:2], EIGHT)}


@pytest.fixture
def opened(open_page, reports):
    """Opens the report of so many arms in a window; any error on the page fails the test."""
    return lambda arms, **window: open_page(reports[arms], **window)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1300, 700, 360])
@pytest.mark.parametrize("arms", [2, 8])
def test_fits_the_window(opened, arms, width, scheme, tmp_path):
    page = opened(arms, width=width, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    films = page.locator(".film:visible")
    assert films.count() >= 9 and all(films.nth(n).bounding_box()["width"] >= 160 for n in range(9))
    for place in page.locator(".box .scroll").all():  # the answer is in sight whole
        assert place.evaluate("(scroll) => scroll.scrollWidth <= scroll.clientWidth")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert light == (scheme == "light")
    folder = Path(os.environ.get("SAT_SSVAE_SCREENSHOTS", tmp_path))
    shot = folder / f"report-{arms}-{width}-{scheme}.png"
    page.screenshot(path=shot, full_page=True)
    assert shot.stat().st_size > 50_000


def test_all_columns_of_eight_arms_are_in_sight(opened):
    page = opened(8)
    assert page.evaluate(
        "(({scrollWidth, clientWidth}) => scrollWidth <= clientWidth)(document.querySelector('.matrix').parentNode)"
    )


def test_the_slider_shows_the_samples_of_a_step(opened):
    page = opened(2)
    first, last = page.locator(".film img[data-step='0']"), page.locator(".film img[data-step='1']")
    assert last.first.is_visible() and not first.first.is_visible()
    assert page.locator("output").inner_text() == "1,600"
    page.locator("input.step").fill("0")
    assert first.first.is_visible() and not last.first.is_visible()
    assert page.locator("output").inner_text() == "200"


def test_all_clips_play_together_and_stop_together(opened):
    page = opened(2, motion="no-preference")
    button = page.locator("button.play")
    shown = "['--x', '--y'].map((name) => film.style.getPropertyValue(name)).join('')"
    frames = f"[...document.querySelectorAll('.film')].map((film) => {shown})"
    page.locator(".player").scroll_into_view_if_needed()
    assert "pause" in button.inner_text()
    before = page.evaluate(frames)
    page.wait_for_function(f"({frames})[0] !== {before[0]!r}")
    button.click()
    assert "play" in button.inner_text()
    stopped = page.evaluate(frames)
    assert len(set(stopped)) == 1
    page.wait_for_timeout(400)
    assert page.evaluate(frames) == stopped
    page.locator("input.frame").fill("0")
    assert set(page.evaluate(frames)) == {"00"}


def test_a_toggle_hides_an_arm_everywhere(opened):
    page = opened(8)
    line = page.locator(".chart path.main[style*='series-1']")
    column = page.locator(".matrix td[data-series='1']").first
    clip = page.locator(".cell[data-series='1']").first
    assert line.count() and column.is_visible() and clip.is_visible()
    page.locator(".legend button", has_text="ssvae").click()
    assert line.count() == 0 and not column.is_visible() and not clip.is_visible()
    page.locator(".legend button", has_text="ssvae").click()
    assert line.count() and column.is_visible() and clip.is_visible()


def test_a_curve_tells_its_values_and_zooms(opened):
    page = opened(2)
    chart = page.locator(".chart").first
    chart.scroll_into_view_if_needed()
    box = chart.locator("svg").bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 0.6 * box["width"], middle)
    tip = chart.locator(".tip")
    assert tip.is_visible() and "transformer steps" in tip.inner_text() and "ssvae" in tip.inner_text()
    ticks = "[...document.querySelectorAll('.chart')[0].querySelectorAll('text')].map((text) => text.textContent)"
    before = page.evaluate(ticks)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.9 * box["width"], middle, steps=4)
    page.mouse.up()
    assert page.evaluate(ticks) != before and chart.locator(".unzoom").is_visible()
    chart.locator(".unzoom").click()
    assert page.evaluate(ticks) == before


def test_axes_have_no_more_digits_than_a_person_reads(opened):
    page = opened(2)
    page.locator("details").evaluate_all("(folds) => folds.forEach((fold) => { fold.open = true; })")
    ticks = [text for text in page.locator(".chart text").all_text_contents() if re.fullmatch(r"[\d.,]+", text)]
    assert len(ticks) > 20 and max(map(len, ticks)) <= 6


def test_what_counts_as_blur_unfolds(opened):
    page = opened(2)
    head = page.locator(".matrix .group button", has_text="blur")
    row = page.locator("tbody", has=page.locator("button", has_text="blur")).locator("tr:not(.group)").first
    assert not row.is_visible()
    head.click()
    assert row.is_visible() and head.get_attribute("aria-expanded") == "true"


def test_the_theme_switches(opened):
    page = opened(2, scheme="light")
    page.locator("button.theme").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"


def test_prints_light_and_unfolded(opened, tmp_path):
    page = opened(2, scheme="dark")
    printed = page.pdf(path=tmp_path / "report.pdf", format="A4", print_background=True)
    assert printed.startswith(b"%PDF") and len(printed) > 50_000
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("button.theme").is_visible()
    assert page.locator(".matrix tbody[data-folded=true] tr:not(.group)").first.is_visible()
