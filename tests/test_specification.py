"""Autoencoders opened by one specification, against the real classes of diffusers at random small size."""

import json
import sys

import pytest
import torch

from sat_ssvae.autoencoders.specification import KINDS, open_autoencoder
from sat_ssvae.cli import main
from sat_ssvae.diffusers import AutoencoderSSVAE
from sat_ssvae.errors import UserError
from sat_ssvae.training.run_folder import LOCK
from sat_ssvae.vae.statistics import LatentStats

from . import foreign_models
from .small_models import random_video, tiny_vae


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return foreign_models.save_all(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_every_kind_opens_as_the_model_that_was_saved(folders, kind):
    vae, own = open_autoencoder(f"{kind}:{folders / kind}"), foreign_models.KINDS[kind]()
    assert vae.describe()["class"] == type(own).__name__ and not vae.training
    weights = own.state_dict()
    assert all(torch.equal(value, weights[name.removeprefix("vae.")]) for name, value in vae.state_dict().items())
    assert {parameter.dtype for parameter in vae.parameters()} == {torch.float32}


@torch.no_grad()
def test_ssvae_opens_from_its_folder_and_brings_its_statistics(tmp_path):
    own = tiny_vae()
    own.latent_stats = LatentStats(torch.arange(4.0), torch.full((4,), 2.0))
    own.save_pretrained(tmp_path)
    vae = open_autoencoder(str(tmp_path))
    video = random_video(5)
    torch.testing.assert_close(vae.encode(video).mode(), own.encode(video).mode())
    assert torch.equal(vae.latent_stats.mean, own.latent_stats.mean)
    assert vae.latent_channels == 4 and vae.describe() == own.describe() and not vae.training


@torch.no_grad()
def test_ssvae_opens_from_what_diffusers_saved(tmp_path):
    own = tiny_vae()
    own.latent_stats = LatentStats(torch.arange(4.0), torch.full((4,), 2.0))
    AutoencoderSSVAE.from_ssvae(own).save_pretrained(tmp_path / "vae")
    vae = open_autoencoder(f"diffusers:{tmp_path}")
    video = random_video(5)
    torch.testing.assert_close(vae.encode(video).mode(), own.encode(video).mode())
    assert torch.equal(vae.latent_stats.std, own.latent_stats.std) and vae.describe() == own.describe()


def test_weights_of_a_variant_alone(tmp_path):
    foreign_models.dc().save_pretrained(tmp_path, variant="fp16")
    assert open_autoencoder(f"diffusers:{tmp_path}").latent_channels == 4
    foreign_models.dc().save_pretrained(tmp_path / "sharded", variant="fp16", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    assert open_autoencoder(f"diffusers:{tmp_path / 'sharded'}").latent_channels == 4


SHARDS = {"max_shard_size": "20KB"}


@pytest.mark.parametrize("save", [{"safe_serialization": False}, {}, SHARDS, {"safe_serialization": False, **SHARDS}])
def test_the_finest_weights_of_a_folder_are_read(tmp_path, save):
    def first(model):
        return next(model.parameters()).flatten()[0].item()

    model = foreign_models.dc()
    kept = {"bf16": torch.bfloat16, "fp16": torch.float16, None: torch.float32}
    for variant, dtype in kept.items():
        foreign_models.dc().to(dtype).save_pretrained(tmp_path, variant=variant, **save)
        found = first(open_autoencoder(f"diffusers:{tmp_path}"))
        assert found == torch.tensor(first(model)).to(dtype).item(), variant
    assert len({torch.tensor(first(model)).to(dtype).item() for dtype in kept.values()}) == 3


def test_a_folder_without_weights_and_one_of_the_home(tmp_path, monkeypatch):
    foreign_models.dc().save_pretrained(tmp_path / "model")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_autoencoder("diffusers:~/model").latent_channels == 4
    weights = tmp_path / "model" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    weights.symlink_to(tmp_path / "gone")  # as in a cache that was cleaned
    with pytest.raises(
        UserError, match=r"no weights of its AutoencoderDC \(expected as diffusion_pytorch_model\*\.safe"
    ):
        open_autoencoder(f"diffusers:{tmp_path / 'model'}")


def test_weights_of_another_name_are_a_folder_of_diffusers_too(tmp_path, capsys):
    foreign_models.wan21().save_pretrained(tmp_path)
    for name in ("diffusion_pytorch_model.safetensors", "model.safetensors"):
        weights = next(tmp_path.glob("*.safetensors")).rename(tmp_path / name)
        for place, said in ((tmp_path, "a folder of diffusers"), (weights, "a file in a folder of diffusers")):
            with pytest.raises(UserError, match=rf"^{place}: {said}; write diffusers:{tmp_path}$"):
                open_autoencoder(str(place))
        with pytest.raises(SystemExit):
            main(["stats", str(tmp_path), "--data", "videos"])
        assert "statistics are measured of an SSVAE only" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"no weights of its AutoencoderKLWan \(expected as diffusion_pytorch_model\*"):
        open_autoencoder(f"wan2.1:{tmp_path}")


@pytest.mark.parametrize("build", [foreign_models.cogvideox, foreign_models.hunyuan, foreign_models.wan21])
def test_a_file_of_diffusers_alone_is_no_ssvae(tmp_path, build):
    build().save_pretrained(tmp_path / "model")
    weights = (tmp_path / "model" / "diffusion_pytorch_model.safetensors").rename(tmp_path / "vae.safetensors")
    message = rf"^{weights}: not an SSVAE checkpoint, it has no tensor .* given as diffusers:FOLDER$"
    with pytest.raises(UserError, match=message):
        open_autoencoder(str(weights))


def cached(home, commits, main=None):
    """Folders of snapshots in a repository's folder of the hub's cache."""
    repository = home / "models--lab--name"
    (repository / "refs").mkdir(parents=True)
    if main:
        (repository / "refs" / "main").write_text(main)
    return repository, [repository / "snapshots" / commit for commit in commits]


def test_a_folder_of_the_hubs_cache_is_its_snapshot(tmp_path):
    repository, (old, new) = cached(tmp_path / "foreign", ["1a", "2b"], main="2b")
    old.mkdir(parents=True)
    foreign_models.dc().save_pretrained(new / "vae")
    for place in (repository, repository / "snapshots"):
        assert open_autoencoder(f"diffusers:{place}").describe()["class"] == "AutoencoderDC"
    with pytest.raises(UserError, match="models--lab--name: a folder of diffusers; write diffusers:"):
        open_autoencoder(str(repository))
    (repository / "refs" / "main").unlink()
    message = "models--lab--name: has 2 snapshots, none of its main branch; give one, such as .*/snapshots/1a$"
    with pytest.raises(UserError, match=message):
        open_autoencoder(f"diffusers:{repository}")
    old.rmdir()
    assert open_autoencoder(f"diffusers:{repository}").latent_channels == 4
    repository, (only,) = cached(tmp_path / "own", ["3c"], main="3c")
    tiny_vae().save_pretrained(only)
    assert open_autoencoder(str(repository)).latent_channels == 4
    (only / "model.safetensors").unlink()
    torch.save(tiny_vae().state_dict(), only / "ch48_256p_15w_512p_5w.ckpt")
    assert open_autoencoder(str(repository)).latent_channels == 4


def test_statistics_are_measured_of_an_ssvae_only(folders, capsys):
    for place in (f"wan2.1:{folders / 'wan2.1'}", str(folders / "wan2.1")):
        with pytest.raises(SystemExit):
            main(["stats", place, "--data", "videos"])
        assert "wan2.1: statistics are measured of an SSVAE only" in capsys.readouterr().err


def test_an_ssvae_or_a_file_that_is_given_with_a_kind(tmp_path):
    tiny_vae().save_pretrained(tmp_path)
    for place, message in (
        (tmp_path, "names no class of diffusers; an SSVAE is given by its path alone"),
        (
            tmp_path / "model.safetensors",
            "a file; expected the folder that diffusers wrote",
        ),
    ):
        with pytest.raises(UserError, match=message):
            open_autoencoder(f"wan2.1:{place}")


@torch.no_grad()
def test_weights_saved_in_half_precision_open_in_float32(tmp_path):
    foreign_models.ltx().to(torch.bfloat16).save_pretrained(tmp_path)
    vae = open_autoencoder(f"ltx:{tmp_path}")
    assert vae.decode(vae.encode(random_video(9, 32, 32)).mode()).dtype == torch.float32
    assert vae.latent_stats.mean.dtype == torch.float32


@pytest.mark.parametrize(
    ("specification", "message"),
    [
        ("nowhere", "nowhere: no such checkpoint"),
        ("hunyuan2:somewhere", "expected the path of an SSVAE, or KIND:PATH_OR_ID with a KIND of cogvideox, wan2.1"),
        ("cogvideox:", "expected the path of an SSVAE"),
        ("{folders}/wan2.2", "wan2.2: a folder of diffusers; write diffusers:"),
        ("{folders}/wan2.1", "wan2.1: a folder of diffusers; write diffusers:"),
        ("cogvideox", "cogvideox: expected the path of an SSVAE, or KIND:PATH_OR_ID"),
        ("cogvideox:/nowhere", "/nowhere: no such folder, and not the name of a repository on a hub"),
        ("cogvideox:./no/where", r"\./no/where: no such folder"),
        ("cogvideox:no/where/at_all", "no/where/at_all: no such folder"),
        ("cogvideox:nowhere", "nowhere: no such folder"),
        ("cogvideox:no/where at all", "no/where at all: no such folder"),
        ("cogvideox:lab/wan.safetensors", "lab/wan.safetensors: no such folder"),
        ("cogvideox:{folders}", r"models\d+: no autoencoder of diffusers there"),
        ("cogvideos:lab/name", "expected the path of an SSVAE, or KIND:PATH_OR_ID with a KIND of cogvideox, wan2.1"),
        ("cogvideox:{folders}/wan2.2", "holds a residual AutoencoderKLWan, which is not cogvideox"),
        ("wan2.1:{folders}/wan2.2", "holds a residual AutoencoderKLWan, which is not wan2.1"),
        ("wan2.2:{folders}/wan2.1", "holds a AutoencoderKLWan, which is not wan2.2"),
        ("hunyuan:{folders}/hunyuan1.5", "holds a AutoencoderKLHunyuanVideo15, which is not hunyuan; try diffusers:"),
    ],
)
def test_specifications_that_open_nothing(folders, monkeypatch, specification, message):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # so nothing is asked of a hub
    with pytest.raises(UserError, match=message):
        open_autoencoder(specification.format(folders=folders))


def test_damaged_models(tmp_path):
    model = foreign_models.modelscope()
    model.save_pretrained(tmp_path / "damaged")
    (tmp_path / "damaged" / "diffusion_pytorch_model.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match="not a readable AutoencoderKL"):
        open_autoencoder(f"modelscope:{tmp_path / 'damaged'}")
    config = json.loads((tmp_path / "damaged" / "config.json").read_text())
    (tmp_path / "damaged" / "config.json").write_text(json.dumps(config | {"_class_name": "AutoencoderOfTomorrow"}))
    with pytest.raises(UserError, match=r"diffusers .* has no class AutoencoderOfTomorrow"):
        open_autoencoder(f"diffusers:{tmp_path / 'damaged'}")
    (tmp_path / "damaged" / "config.json").write_text(json.dumps(config | {"_class_name": "AutoModel"}))
    with pytest.raises(UserError, match=r"damaged: diffusers \S+ has no class AutoModel of models$"):
        open_autoencoder(f"diffusers:{tmp_path / 'damaged'}")
    model.save_pretrained(tmp_path / "deeper")
    for changes, message in [
        ({"layers_per_block": 2}, r"tensors of AutoencoderKL are missing, the first is"),
        ({"norm_num_groups": 3}, "not a readable AutoencoderKL"),
        ({"act_fn": "unheard of"}, "not a readable AutoencoderKL"),
        ({"block_out_channels": None}, "not a readable AutoencoderKL"),
    ]:
        (tmp_path / "deeper" / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(UserError, match=message) as caught:
            open_autoencoder(f"modelscope:{tmp_path / 'deeper'}")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[1]", "{", "", "3"])
def test_a_configuration_that_is_none_is_one_line(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r": unreadable config\.json \(") as caught:
        open_autoencoder(f"diffusers:{tmp_path}")
    assert "\n" not in str(caught.value)


def test_models_that_are_no_autoencoders_of_pictures_are_one_line(tmp_path):
    foreign_models.unet().save_pretrained(tmp_path / "unet")
    foreign_models.allegro().save_pretrained(tmp_path / "allegro")
    for name, message in [
        ("unet", "UNet2DModel: cannot encode a video"),
        ("allegro", "wrong for smaller clips"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            open_autoencoder(f"diffusers:{tmp_path / name}")
        assert str(caught.value).startswith(f"{tmp_path / name}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("build", "used"),
    [
        (foreign_models.ltx091, "9 frames at a time, decodes at time step 0, injects noise of seed 0"),
        (foreign_models.hunyuan, "9 frames at a time, whole passes, by default the class tiles time"),
    ],
)
def test_reconstruct_says_how_a_class_was_used(build, used, tiny_videos, tmp_path, capsys):
    build().save_pretrained(tmp_path / "model")
    places = ["--input", str(tiny_videos / "bars1.mp4"), "--output", str(tmp_path / "out")]
    command = ["reconstruct", "--checkpoint", f"diffusers:{tmp_path / 'model'}", *places, "perceptual=none"]
    assert main([*command, "chunk_frames=9"]) == 0
    assert used in capsys.readouterr().out
    document = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert used in document["measured"] and document["total"]["psnr"] > 0


@pytest.mark.parametrize("command", ["compare", "spectrum", "reconstruct", "encode"])
def test_a_class_that_cannot_be_used_ends_each_command_before_anything_is_done(command, tmp_path, capsys):
    foreign_models.allegro().save_pretrained(tmp_path / "model")
    place, out = f"diffusers:{tmp_path / 'model'}", str(tmp_path / "out")
    arguments = {
        "compare": ["--vae", "mine=stock", "--vae", f"theirs={place}", "--output", out],
        "spectrum": ["--vae", f"theirs={place}", "--data", "videos", "--output", out],
        "reconstruct": ["--checkpoint", place, "--input", "videos", "--output", out],
        "encode": [place, "videos", out],
    }[command]
    with pytest.raises(SystemExit):
        main([command, *arguments])
    assert capsys.readouterr().err.splitlines()[-1].endswith("wrong for smaller clips; it cannot be used here")
    assert {path.name for path in (tmp_path / "out").rglob("*")} <= {LOCK}  # compare's, which shows that it runs
