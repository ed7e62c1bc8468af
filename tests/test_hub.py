"""Autoencoders on a hub: a server of this machine speaks the few endpoints that huggingface_hub asks."""

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
from http.server import BaseHTTPRequestHandler

import pytest
import torch

from sat_ssvae import SSVAE, UserError

from . import foreign_models
from .servers import serving
from .small_models import tiny_vae

pytest.importorskip("huggingface_hub")

COMMIT = "c0ffee" * 6 + "c0ff"
PUBLISHED = "ch48_256p_15w_512p_5w.ckpt"

READ = """
import json, logging, sys
from sat_ssvae import SSVAE, UserError
out = []
for name, revision in json.loads(sys.argv[1]):
    try:
        vae = SSVAE.from_pretrained(name, revision=revision)
        stats = vae.latent_stats
        out.append([vae.config.latent_channels, vae.mask_token.flatten().tolist(), stats and stats.mean.tolist()])
    except UserError as error:
        out.append(str(error))
print(json.dumps(out))
"""

READ_FOREIGN = """
import json, logging, sys
from sat_ssvae.autoencoders.specification import open_autoencoder
from sat_ssvae.errors import UserError
logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
out = []
for specification, _ in json.loads(sys.argv[1]):
    try:
        vae = open_autoencoder(specification)
        out.append([vae.name, sum(value.double().sum().item() for value in vae.state_dict().values())])
    except UserError as error:
        out.append(str(error))
print(json.dumps(out))
"""


READ_SHARDS = """
import json, sys
from sat_ssvae.data.settings import DataConfig
from sat_ssvae.data.shards import fixed_clips
from sat_ssvae.errors import UserError
out = []
for address, cache in json.loads(sys.argv[1]):
    try:
        config = DataConfig(path=address, cache=cache, num_frames=5, fps=8, resolution=32, num_workers=0)
        out.append([[clip.key, clip.caption, float(clip.video.sum())] for clip in fixed_clips(config, stride=0.5)])
    except UserError as error:
        out.append(str(error))
print(json.dumps(out))
"""


class Hub(BaseHTTPRequestHandler):
    """Answers for `repositories`, {name: {file: bytes}}, each with a branch `main` and a tag `v1`; `asked` lists paths.

    Names of models, or of data sets, which begin with `datasets/`.
    """

    repositories: dict[str, dict[str, bytes]] = {}  # noqa: RUF012
    asked: list[str] = []  # noqa: RUF012

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self):
        self.asked.append(self.path)
        if found := re.match(r"/api/(models/|datasets/)([^/?]+/[^/?]+)(?:/(revision|tree)/([^/?]+))?", self.path):
            kind, name, what, revision = found.groups()
            return self.tell_of(name if kind == "models/" else kind + name, what, revision or "main")
        if found := re.match(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/([^?]+)", self.path):
            data = self.repositories[found[1]][found[3]]
            return self.answer(200, data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit=COMMIT)
        return self.answer(404)

    do_HEAD = do_GET

    def tell_of(self, name, what, revision):
        if name not in self.repositories:
            return self.answer(404, X_Error_Code="RepoNotFound")
        if revision not in ("main", "v1", COMMIT):
            return self.answer(404, X_Error_Code="RevisionNotFound")
        tree = [
            {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for path, data in self.repositories[name].items()
        ]
        body = tree if what == "tree" else {"id": name, "sha": COMMIT, "siblings": []}
        return self.answer(200, json.dumps(body).encode(), Content_Type="application/json")


def hub_of(repositories):
    """A handler for these repositories alone."""
    return type("OwnHub", (Hub,), {"repositories": repositories, "asked": []})


def read(tmp_path, endpoint, *names, code=READ, **environment):
    """What a process of its own gets for each (name, revision)."""
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(names)],
        env=os.environ | settings | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return json.loads(done.stdout)


@pytest.fixture
def repositories(tmp_path):
    vae = tiny_vae()
    vae.save_pretrained(tmp_path / "folder")
    torch.save({"state_dict": vae.state_dict()}, tmp_path / PUBLISHED)
    folder = {path.name: path.read_bytes() for path in (tmp_path / "folder").iterdir()}
    return {
        "lab/folder": folder
        | {"README.md": b"text", "latent_stats.json": b'{"mean": [1, 2, 3, 4], "std": [1, 1, 1, 1]}'},
        "lab/published": {PUBLISHED: (tmp_path / PUBLISHED).read_bytes(), "other.bin": b"x" * 100},
        "lab/nothing": {"README.md": b"text"},
    }


@pytest.mark.slow
def test_repositories_of_a_hub(tmp_path, repositories):
    hub = hub_of(repositories)
    token = tiny_vae().mask_token.flatten().tolist()
    with serving(hub) as endpoint:
        folder, tag, published, nothing, branch, missing = read(
            tmp_path,
            endpoint,
            ("lab/folder", None),
            ("lab/folder", "v1"),
            ("lab/published", None),
            ("lab/nothing", None),
            ("lab/folder", "v2"),
            ("lab/missing", None),
        )
    assert folder == tag == [4, token, [1, 2, 3, 4]]
    assert published == [4, token, None]
    assert "has neither config.json with model.safetensors nor ch48_256p_15w_512p_5w.ckpt" in nothing
    assert branch == "lab/folder: the Hugging Face hub has it, but no revision v2"
    assert missing.startswith("lab/missing: no such checkpoint on this machine, nor on the Hugging Face hub")
    assert not [path for path in hub.asked if path.endswith(("README.md", "other.bin"))], "only what is needed"

    # Offline, what was fetched is still there, and anything else is one line.
    again, other = read(tmp_path, endpoint, ("lab/folder", None), ("lab/other", None), HF_HUB_OFFLINE="1")
    assert again == folder
    assert (
        other.startswith("lab/other: no such checkpoint on this machine, and the Hugging Face hub")
        and "\n" not in other
    )


@pytest.mark.slow
def test_a_hub_that_does_not_answer_is_one_line(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (message,) = read(tmp_path, f"http://127.0.0.1:{port}", ("lab/folder", None))
    assert message.startswith(
        "lab/folder: no such checkpoint on this machine, and the Hugging Face hub cannot be reached"
    )
    assert "\n" not in message


def files_below(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_autoencoders_of_diffusers_on_a_hub(tmp_path):
    """Whole, in shards, of a variant alone; only the weights that are read are fetched."""
    model = foreign_models.modelscope()
    model.save_pretrained(tmp_path / "whole" / "vae")
    model.save_pretrained(tmp_path / "whole" / "vae", variant="fp16", safe_serialization=False)
    model.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    model.save_pretrained(tmp_path / "variant", variant="fp16")
    names = ("whole", "shards", "variant")
    hub = hub_of({f"lab/{name}": files_below(tmp_path / name) for name in names} | {"lab/nothing": {"README.md": b"x"}})
    asked = [(f"modelscope:lab/{name}", None) for name in names]
    with serving(hub) as endpoint:
        more = [("modelscope:lab/nothing", None), ("modelscope:lab/missing", None)]
        *found, nothing, missing = read(tmp_path, endpoint, *asked, *more, code=READ_FOREIGN)
    total = sum(value.double().sum().item() for value in model.state_dict().values())
    assert found == [["AutoencoderKL", pytest.approx(total)]] * 3
    assert nothing == "lab/nothing: no autoencoder of diffusers there (neither config.json nor vae/config.json)"
    assert missing.startswith("lab/missing: no such checkpoint on this machine, nor on the Hugging Face hub")
    assert not [path for path in hub.asked if "whole" in path and path.endswith(".bin")]
    assert read(tmp_path, endpoint, asked[0], code=READ_FOREIGN) == found[:1], "fetched once, the server is gone"


@pytest.mark.slow
def test_a_hub_out_of_order_is_asked_once_for_a_foreign_autoencoder(tmp_path):
    class OutOfOrder(Hub):
        asked = []  # noqa: RUF012

        def do_GET(self):
            self.asked.append(self.path)
            self.answer(503)

        do_HEAD = do_GET

    with serving(OutOfOrder) as endpoint:
        (message,) = read(tmp_path, endpoint, ("wan2.1:lab/name", None), code=READ_FOREIGN)
    assert message.startswith(
        "lab/name: no such checkpoint on this machine, and the Hugging Face hub cannot be reached"
    )
    about_it = [path for path in OutOfOrder.asked if "lab/name" in path]  # huggingface_hub has other questions, too
    assert "\n" not in message and len(about_it) == 1


def test_without_huggingface_hub_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        UserError, match=r"lab/folder: no such checkpoint on this machine.*pip install 'sat-ssvae\[hub\]'"
    ):
        SSVAE.from_pretrained("lab/folder")


@pytest.mark.parametrize("name", ["folder/weights.pth", "a/b/c", "/lab/folder", "./folder", "weights"])
def test_paths_are_not_taken_for_names_of_a_hub(monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=f"{name.removeprefix('./')}: no such checkpoint; give a folder"):
        SSVAE.from_pretrained(name)


def test_a_folder_of_this_machine_comes_first(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    vae = tiny_vae()
    vae.save_pretrained("lab/folder")
    assert torch.equal(SSVAE.from_pretrained("lab/folder").mask_token, vae.mask_token)


@pytest.mark.slow
def test_shards_in_a_data_set_of_a_hub(tmp_path, tiny_shards):
    files = {f"shards/{path.name}": path.read_bytes() for path in tiny_shards.glob("clips-*")}
    hub, cache = hub_of({"datasets/lab/videos": files}), str(tmp_path / "shards")
    with serving(hub) as endpoint:
        local, found, missing = read(
            tmp_path,
            endpoint,
            (str(tiny_shards), None),
            ("hf://datasets/lab/videos/shards", cache),
            ("hf://datasets/lab/nothing/shards", cache),
            code=READ_SHARDS,
        )
    assert found == local and len(found) > 5
    assert "hf://datasets/lab/nothing/shards" in missing and "\n" not in missing
