"""Arms that are given, and token grids for latents of several sizes."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sat_ssvae.autoencoders.specification import open_autoencoder
from sat_ssvae.comparison.arms import (
    absolute,
    common_patches,
    given_identity,
    latent_sizes,
    open_given,
    shape_warning,
)
from sat_ssvae.comparison.settings import ArmConfig, ClipsConfig
from sat_ssvae.errors import UserError
from sat_ssvae.training.trainer import TrainConfig

from . import foreign_models
from .small_models import tiny_vae

PATCH = (1, 2, 2)


FOUR_FRAMES = ("cogvideox", "wan2.1", "wan2.2", "hunyuan", "qwenimage", "modelscope", "diffusers")
"""Kinds of 4 x 8 x 8 or 4 x 16 x 16, and one without compression in time."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return foreign_models.save_all(tmp_path_factory.mktemp("models"), FOUR_FRAMES)


def grid(size, patch):
    return tuple(n // step for n, step in zip(size, patch, strict=True))


sizes = st.tuples(st.integers(1, 9), st.integers(1, 16), st.integers(1, 16))


@given(st.lists(sizes, min_size=1, max_size=3))
def test_all_arms_get_one_grid_of_tokens_where_there_is_one(arms):
    named = {f"arm{number}": size for number, size in enumerate(arms)}
    try:
        patches = common_patches(named, PATCH)
    except UserError:
        return
    assert all(n % step == 0 for name, size in named.items() for n, step in zip(size, patches[name], strict=True))
    grids = {grid(size, patches[name]) for name, size in named.items()}
    assert len(grids) == 1
    fewest = min(math.prod(-(-n // step) for n, step in zip(size, PATCH, strict=True)) for size in arms)
    assert 2 * math.prod(grids.pop()) >= fewest
    if len(set(arms)) == 1:
        assert set(patches.values()) == {PATCH}


@pytest.mark.parametrize(
    ("arms", "tokens"),
    [
        ({"ssvae": (3, 12, 12), "cogvideox": (3, 6, 6)}, (3, 6, 6)),
        ({"ssvae": (3, 12, 12), "image": (9, 6, 6)}, (3, 6, 6)),
        ({"ssvae": (3, 12, 12), "wan2.2": (3, 3, 3)}, (3, 3, 3)),
        ({"wan2.2": (3, 3, 3), "ssvae": (3, 12, 12)}, (3, 3, 3)),
        ({"cogvideox": (3, 6, 6), "image": (9, 6, 6)}, (3, 3, 3)),
        ({"a": (3, 6, 6), "b": (3, 6, 6)}, (3, 3, 3)),
    ],
)
def test_grids_of_known_autoencoders(arms, tokens):
    patches = common_patches(arms, PATCH)
    assert {grid(size, patches[name]) for name, size in arms.items()} == {tokens}


def test_every_kind_has_tokens_beside_ssvae(folders):
    clips = ClipsConfig(num_frames=9, resolution=48)
    training = TrainConfig(data={"path": "x"}, model=tiny_vae(temporal_downsample=(True, True)).config)
    for kind in FOUR_FRAMES:
        given_arms = open_given({"theirs": ArmConfig(checkpoint=f"{kind}:{folders / kind}")})
        arms = latent_sizes({"ours": training, "theirs": training}, given_arms, clips)
        patches = common_patches(arms, PATCH)
        tokens = {grid(size, patches[name]) for name, size in arms.items()}
        assert tokens == {(3, 3, 3) if kind == "wan2.2" else (3, 6, 6)}


def test_what_cannot_be_divided_alike():
    with pytest.raises(UserError, match=r"ssvae 5x16x16, image 17x16x16.* only into 1x8x8; choose other data.num_fr"):
        common_patches({"ssvae": (5, 16, 16), "image": (17, 16, 16)}, PATCH)
    with pytest.raises(UserError, match="patch_size 1x2x2 does not divide the latents' 3x3x3"):
        common_patches({"a": (3, 3, 3), "b": (3, 3, 3)}, PATCH)


def test_the_report_is_told_of_different_latents():
    arms = {"ssvae": (3, 12, 12), "cogvideox": (3, 6, 6)}
    (warning,) = shape_warning(arms, common_patches(arms, PATCH))
    assert "ssvae 3x12x12 in patches of 1x2x2; cogvideox 3x6x6 in patches of 1x1x1" in warning
    assert shape_warning({"a": (3, 6, 6), "b": (3, 6, 6)}, {"a": PATCH, "b": PATCH}) == ()


def test_sizes_of_given_and_of_untrained_arms(folders):
    given_arms = open_given({"cog": ArmConfig(checkpoint=f"cogvideox:{folders / 'cogvideox'}"), "mine": ArmConfig()})
    assert list(given_arms) == ["cog"]
    training = TrainConfig(data={"path": "x"}, model=tiny_vae().config)
    clips = ClipsConfig(num_frames=9, resolution=(32, 48))
    trainings = {"cog": training, "mine": training}
    assert latent_sizes(trainings, given_arms, clips) == {"cog": (3, 4, 6), "mine": (5, 8, 12)}
    with pytest.raises(UserError, match=r"arm cog: 5 frames: AutoencoderKLCogVideoX takes 8k \+ 1.*data.num_frames"):
        latent_sizes(trainings, given_arms, ClipsConfig(num_frames=5, resolution=32))
    with pytest.raises(UserError, match=r"arm mine: height 30: SSVAE takes multiples of 4"):
        latent_sizes({"mine": training}, {}, ClipsConfig(num_frames=9, resolution=30))
    with pytest.raises(UserError, match="arm bad: /nowhere: no such folder"):
        open_given({"bad": ArmConfig(checkpoint="wan2.1:/nowhere")})


def test_another_model_at_the_same_place_is_another_identity(tmp_path):
    place = f"modelscope:{tmp_path}"
    model = foreign_models.modelscope()
    identities = []
    for change in (lambda: None, lambda: None, lambda: model.decoder.conv_out.weight.data.mul_(2)):
        change()
        model.save_pretrained(tmp_path)
        identities.append(given_identity(open_autoencoder(place)))
    assert identities[0] == identities[1] != identities[2]
    vae = tiny_vae()
    vae.save_pretrained(tmp_path / "own")
    before = given_identity(open_autoencoder(str(tmp_path / "own")))
    torch.nn.init.zeros_(vae.mask_token)
    vae.save_pretrained(tmp_path / "own")
    assert given_identity(open_autoencoder(str(tmp_path / "own"))) != before


def test_places_that_hold_in_every_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    assert absolute("own") == str(tmp_path / "own")
    assert absolute("wan2.1:own") == f"wan2.1:{tmp_path / 'own'}"
    assert absolute("wan2.1:Wan-AI/name-on-the-hub") == "wan2.1:Wan-AI/name-on-the-hub"


def test_descriptions_are_plain(folders):
    assert tiny_vae().describe()["latent_channels"] == 4
    described = open_autoencoder(f"wan2.2:{folders / 'wan2.2'}").describe()
    assert described["class"] == "AutoencoderKLWan" and described["latents_std"] == [1.5, 2.0, 0.5, 3.0]
    assert not any(name.startswith("_") for name in described)
