"""The pages of spectrum, reconstruct, restore, reward and train in a real browser, as their commands write them.

Screenshots go to $SAT_SSVAE_SCREENSHOTS where that is set.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sat_ssvae.cli import main
from sat_ssvae.training.trainer import train

from .chat_server import serve
from .judged import gray_videos
from .small_models import tiny_vae
from .test_reconstruct import waves
from .test_restore import run, videos  # noqa: F401  (fixtures)
from .test_trainer import CPU, configured

pytestmark = pytest.mark.slow

PAGES = {
    "spectrum": "spectrum/spectrum.html",
    "reconstruct": "reconstruct/gallery.html",
    "restore": "restore/gallery.html",
    "reward": "brighter/unified_reward_v2.html",
    "reward-pairs": "brighter/unified_reward_v2_pairs.html",
    "run": "run/run.html",
}


@pytest.fixture(scope="module")
def written(run, videos, tiny_videos, tiny_shards, tmp_path_factory):  # noqa: F811
    """A folder with a page of each command."""
    home = tmp_path_factory.mktemp("pages")
    tiny_vae().save_pretrained(home / "vae")
    tiny_vae(latent_channels=8).save_pretrained(home / "other")
    (home / "clips").mkdir()
    for number in range(3):
        waves(home / "clips" / f"wave{number}.mp4", 12 + number, 64, 96)
    small = ["data.num_frames=5", "data.resolution=32", "data.num_workers=0", "max_clips=4", "disturbed_clips=2"]
    vaes = ["--vae", f"one={home / 'vae'}", "--vae", f"two={home / 'other'}"]
    assert main(["spectrum", *vaes, "--data", str(tiny_videos), "--output", str(home / "spectrum"), *small]) == 0
    places = ["--checkpoint", str(home / "vae"), "--input", str(home / "clips"), "--output", str(home / "reconstruct")]
    assert main(["reconstruct", *places, "perceptual=none"]) == 0
    places = [str(run), "--arm", "stock", "--input", str(videos), "--output", str(home / "restore")]
    assert main(["restore", *places, "degrade=noise:40", "perceptual=none", "strengths=[0.1,0.5]"]) == 0
    folders = [gray_videos(home / name, levels) for name, levels in (("base", [-0.6, 0.0]), ("brighter", [-0.4, 0.1]))]
    with serve() as server:
        words = ["reward", "--video_dir", str(folders[1]), "--against", str(folders[0]), f"url={server.url}"]
        with ThreadPoolExecutor(1) as thread:  # this one may have the browser's event loop
            assert thread.submit(main, words).result() == 0
    monitor = {"every": 2, "path": str(tiny_shards), "clips": 2}
    train(configured(tiny_shards, monitor=monitor), home / "run", CPU)
    return {name: home / path for name, path in PAGES.items()}


@pytest.mark.parametrize(("width", "scheme"), [(1300, "light"), (700, "dark"), (360, "light")])
@pytest.mark.parametrize("name", PAGES)
def test_fits_the_window_without_errors(open_page, written, name, width, scheme, tmp_path):
    page = open_page(written[name], width=width, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator(".film:visible, .chart:visible").count() >= 2
    facts = page.locator(".facts td:visible")
    assert all(facts.nth(n).bounding_box()["width"] > 60 for n in range(facts.count()))
    for table in page.locator(".stacked:visible").all() if width < 500 else ():
        assert table.evaluate("(table) => table.scrollWidth <= table.parentNode.clientWidth"), "no hidden columns"
    shot = Path(os.environ.get("SAT_SSVAE_SCREENSHOTS", tmp_path)) / f"{name}-{width}-{scheme}.png"
    page.screenshot(path=shot, full_page=True)
    assert shot.stat().st_size > 10_000


@pytest.mark.parametrize("name", ["reconstruct", "restore"])
def test_the_edge_between_two_views_moves(open_page, written, name):
    page = open_page(written[name])
    wipe = page.locator(".wipe").first
    place = "(wipe) => wipe.querySelector('.edge').getBoundingClientRect().left - wipe.getBoundingClientRect().left"
    before = wipe.evaluate(place)
    wipe.locator("input").fill("10")
    assert wipe.evaluate(place) < 0.5 * before
    assert page.locator(".scale i").first.bounding_box()["width"] > 40


def test_the_slider_of_a_training_shows_the_pictures_of_a_step(open_page, written):
    page = open_page(written["run"])
    first, last = page.locator("img[data-step='0']").first, page.locator("img[data-step='2']").first
    assert last.is_visible() and not first.is_visible() and page.locator("output").inner_text() == "6"
    page.locator("input.step").fill("0")
    assert first.is_visible() and not last.is_visible() and page.locator("output").inner_text() == "2"


def test_a_click_sorts_the_videos(open_page, written):
    page = open_page(written["reconstruct"])
    names = "[...document.querySelectorAll('table tbody tr')].map((row) => row.cells[0].textContent)"
    head = page.locator("th[data-sort]").first
    head.click()
    up = [name for name in page.evaluate(names) if name.startswith("wave")]
    head.click()
    down = [name for name in page.evaluate(names) if name.startswith("wave")]
    assert up == ["wave0", "wave1", "wave2"] and down == up[::-1]
