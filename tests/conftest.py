"""Every test starts from the same random state; property tests get the time that a busy machine needs."""

import functools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from sat_ssvae import SSVAE, SSVAEConfig
from sat_ssvae.data.pack import PackConfig, pack
from sat_ssvae.data.video_io import write_video
from sat_ssvae.vae.statistics import LatentStats

from .chat_server import serve
from .judged import gray_videos
from .object_store import CREDENTIALS, fresh_clients, moto_server, new_bucket

settings.register_profile("project", deadline=None, derandomize=True)
settings.load_profile("project")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_videos(tmp_path_factory) -> Path:
    """Five videos of moving coloured bars, 64x80 pixels, 24 fps, 1.5 to 3.5 s; one has a caption."""
    folder = tmp_path_factory.mktemp("tiny_videos")
    for number in range(5):
        frames = 36 + 12 * number
        time = torch.arange(frames).view(frames, 1, 1) / 24
        y, x = torch.arange(64).view(1, 64, 1) / 64, torch.arange(80).view(1, 1, 80) / 80
        phases = (x * 2 + time + 0.3 * number, y * 2 - time, x + y + 0.5 * time)
        video = torch.stack([torch.sin(2 * torch.pi * phase).expand(frames, 64, 80) for phase in phases])
        write_video(folder / f"bars{number}.mp4", 0.8 * video, fps=24)
    (folder / "bars1.txt").write_text("coloured bars\n")
    return folder


@pytest.fixture(scope="session")
def tiny_shards(tiny_videos, tmp_path_factory) -> Path:
    """`tiny_videos` as three shards of at most two samples."""
    folder = tmp_path_factory.mktemp("tiny_shards")
    pack(tiny_videos, folder, PackConfig(samples_per_shard=2, workers=1))
    return folder


@pytest.fixture(scope="session")
def thousand_videos(tmp_path_factory) -> Path:
    """A thousand small files, of which 25 are different videos and one is none; one has a caption."""
    folder = tmp_path_factory.mktemp("many")
    for number in range(25):
        generator = torch.Generator().manual_seed(number)
        coarse = torch.rand(1, 3, 4, 4, 4, generator=generator) * 2 - 1
        write_video(folder / f"{number:04d}.mp4", torch.nn.functional.interpolate(coarse, (8, 32, 32))[0], fps=8)
    for number in range(25, 1000):
        shutil.copy(folder / f"{number % 25:04d}.mp4", folder / f"{number:04d}.mp4")
    (folder / "0001.txt").write_text("noise\n")
    (folder / "0777.mp4").write_bytes(b"no video")
    return folder


@pytest.fixture(scope="session")
def thousand_packed(thousand_videos, tmp_path_factory) -> Path:
    """What the local engine makes of them: 20 shards."""
    output = tmp_path_factory.mktemp("local") / "shards"
    report = pack(thousand_videos, output, PackConfig(samples_per_shard=50))
    assert report.samples == 999 and report.skipped == {"not a video": 1} and len(report.shards) == 20
    return output


@pytest.fixture
def tiny_video(tiny_videos) -> bytes:
    """The bytes of a video of `tiny_videos`, 1.5 s long."""
    return (tiny_videos / "bars0.mp4").read_bytes()


@pytest.fixture(scope="session")
def narrow_vae(tmp_path_factory) -> Path:
    """An autoencoder of the published 48 channels at 4x16x16, as narrow as can be, with statistics."""
    config = SSVAEConfig(base_channels=1, channel_multipliers=(1, 1, 1, 1, 1), num_res_blocks=1, num_mid_blocks=1)
    vae = SSVAE(config)
    vae.latent_stats = LatentStats(torch.zeros(48), torch.ones(48))
    folder = tmp_path_factory.mktemp("narrow_vae")
    vae.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def judging() -> Iterator[Any]:
    """A server that answers as a judge of videos does."""
    with serve() as server:
        yield server


@pytest.fixture
def judge(judging) -> Any:
    """The same, with no trouble planned."""
    judging.plan([])
    return judging


@pytest.fixture
def gray(tmp_path) -> Path:
    """Five gray videos with prompts, from dark to bright."""
    return gray_videos(tmp_path / "videos", [-0.6, -0.3, 0.0, 0.3, 0.6])


@pytest.fixture(scope="session")
def moto(tmp_path_factory) -> Iterator[str]:
    """The address of a server that speaks S3's API."""
    with moto_server(tmp_path_factory.mktemp("moto") / "log") as address:
        yield address


@pytest.fixture
def store(moto, monkeypatch) -> Iterator[str]:
    """The address of an empty bucket in S3, which the environment's credentials open."""
    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": moto}.items():
        monkeypatch.setenv(name, value)
    fresh_clients()
    yield new_bucket()
    fresh_clients()


@pytest.fixture(scope="module")  # while it is open, its thread has an event loop that tests of asyncio cannot have
def browser():
    """Chromium, Debian's package of that name, without a window."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium here; apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright; pip install 'sat-ssvae[test]'")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser):
    """Opens a file in a window of the browser; any error on the page, or a request that leaves it, fails the test."""
    errors, requests, pages = [], [], []

    def open_(path, *, width=1300, scheme="light", motion="reduce"):
        window = {"width": width, "height": 900}
        page = browser.new_page(viewport=window, color_scheme=scheme, reduced_motion=motion)
        page.on("console", lambda message: errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        pages.append(page)
        return page

    yield open_
    for page in pages:
        page.close()
    assert errors == [] and all(url.startswith(("file:", "data:")) for url in requests)


@pytest.fixture
def configuration(narrow_vae, tmp_path):
    """Writes CogVideoX's stock files, our overlay for a tiny autoencoder, and changes; returns their paths."""
    from .stock_configurations import write_files

    return functools.partial(write_files, tmp_path, narrow_vae)
