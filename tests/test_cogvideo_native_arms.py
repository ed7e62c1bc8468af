"""The arms of a comparison on CogVideoX's own training: alike but for their latents, or refused by name."""

import pytest
import yaml

from sat_ssvae import UserError
from sat_ssvae.cli import main
from sat_ssvae.cogvideo.native_arms import differences, read_arms

from .stock_configurations import NETWORK, OVERLAYS, nested, stock_main, stock_v1

TRAINED = {"args.train_data": ["videos"], "args.valid_data": ["others"], "args.train_iters": 100, "args.load": None}


@pytest.fixture
def read(narrow_vae, tmp_path):
    """Arms of a stock configuration, with dotted changes in both and in the second alone."""

    def build(both=(), second=(), values=None, overlay="cogvideox_2b_5b", heldout=()):
        own = {"model.first_stage_config.params.ckpt_path": str(narrow_vae)}
        layers = [values or stock_v1(), nested(TRAINED | dict(both)), nested(own | dict(second))]
        files = [tmp_path / f"{number}.yaml" for number in range(3)]
        for file, layer in zip(files, layers, strict=True):
            file.write_text(yaml.safe_dump(layer))
        return read_arms(files[:2], [OVERLAYS / f"{overlay}.yaml", files[2]], heldout)

    return build


def test_an_overlay_makes_the_second_arm(read):
    stock, ssvae = read()
    assert (stock.name, ssvae.name) == ("stock", "ssvae")
    assert ssvae.files[: len(stock.files)] == stock.files
    assert [arm.settings.network("in_channels") for arm in (stock, ssvae)] == [16, 48]
    assert [str(path) for path in stock.data("train_data")] == ["videos"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (f"{NETWORK}.hidden_size", 128),
        (f"{NETWORK}.num_layers", 3),
        ("model.sampler_config.params.num_steps", 20),
        ("model.denoiser_config.params.num_idx", 500),
        ("deepspeed.optimizer.params.lr", 1e-3),
        ("args.train_iters", 200),
        ("args.seed", 3),
        ("args.train_data", ["elsewhere"]),
        ("data.params.video_size", [256, 256]),
        ("args.load", "transformer_48"),
    ],
)
def test_what_is_not_the_latents_doing_is_refused_by_name(read, key, value):
    with pytest.raises(UserError, match=f"^{key} is .* in stock and .* in ssvae, but") as caught:
        read(second={key: value})
    assert str(value) in str(caught.value) and "\n" not in str(caught.value)
    assert read(both={key: value}, second={key: value}) if "size" not in key and "load" not in key else True


def test_differences_name_missing_keys_too():
    assert list(differences({"a": {"b": 1}, "model": {"scale_factor": 1}}, {"c": []})) == [
        ("a.b", 1, None),
        ("c", None, []),
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"args.train_iters": None}, "stock: args.train_iters is None, must say how long"),
        ({"args.train_iters": "many"}, "stock: args.train_iters is many, must say how long .* whole number"),
        ({"args.train_iters": 8.0}, "stock: args.train_iters is 8.0, must say how long"),
        ({"args.train_iters": -1}, "stock: args.train_iters is -1, must say how long"),
        ({"args.epochs": 2}, "stock: args.epochs is 2, must be null"),
        ({"args.train_data": None}, "stock: args.train_data is None, must name"),
        ({"args.train_data": "videos"}, "stock: args.train_data is videos, must name .* a list"),
        ({"args.valid_data": ["videos"]}, r"stock: args.valid_data is \['videos'\], must name other videos.*--heldout"),
        ({"args.model_parallel_size": 2}, "stock: args.model_parallel_size is 2, must be 1"),
        ({"model.latent_input": True}, "stock: model.latent_input is True, must be false"),
        ({"model.noised_image_input": True}, "stock: model.noised_image_input is True, must be false"),
        ({"data.target": "sat_ssvae.cogvideo.LatentDataset"}, "stock: data.target is .*LatentDataset, must be"),
    ],
)
def test_a_training_that_cannot_be_compared_is_refused(read, changes, message):
    with pytest.raises(UserError, match=f"^{message}"):
        read(both=changes)


def test_a_training_as_long_as_sats_slow_start_is_warned_of(read, caplog):
    assert read(both={"args.train_iters": 1000}) and "5 %" not in caplog.text
    assert read(both={"args.train_iters": 100})
    assert "SAT runs the first 100 iterations of a finetuning at 5 % of the learning rate" in caplog.text


def test_heldout_videos_may_be_named_instead(read, tmp_path):
    assert read(both={"args.valid_data": ["videos"]}, heldout=[tmp_path])


def test_numbers_that_do_not_fit_the_latents_are_named(read):
    with pytest.raises(UserError, match=f"^ssvae: {NETWORK}.latent_width is 46, must be 45: .* given last to --ssvae$"):
        read(second={f"{NETWORK}.latent_width": 46})


def test_the_overlay_of_main_asks_for_its_sizes_in_both_arms(read):
    both = {
        "model.latent_input": False,
        "data.params": {"video_size": [768, 1360], "fps": 16, "max_num_frames": 85},
        f"{NETWORK}.num_frames": 85,
    }
    with pytest.raises(UserError, match=r"^data.params.fps is None in stock and 16 in ssvae \(and 3 more\)"):
        read(values=stock_main(), overlay="cogvideox1.5_5b")
    assert read(both=both, values=stock_main(), overlay="cogvideox1.5_5b")


@pytest.fixture
def checkout(tmp_path):
    sat = tmp_path / "CogVideo" / "sat"
    sat.mkdir(parents=True)
    for name in ("train_video.py", "diffusion_video.py"):
        (sat / name).write_text("")
    (sat / "sample_video.py").write_text("spatial_factor")
    return sat


def test_the_command_finds_cogvideo_and_its_patches(checkout, tmp_path, capsys, monkeypatch):
    def refused(*arguments):
        monkeypatch.chdir(tmp_path)  # which the command leaves
        with pytest.raises(SystemExit) as caught:
            main(["cogvideo", "compare", "--stock", "a.yaml", "--ssvae", "b.yaml", *arguments])
        assert caught.value.code == 2
        return capsys.readouterr().err

    assert "holds no sat/train_video.py" in refused("--cogvideo", "nowhere")
    assert "a.yaml: no such configuration file" in refused("--cogvideo", "CogVideo")
    for python, message in (("", "--python is empty"), ("python 'a", "--python python 'a: No closing quotation")):
        assert message in refused("--cogvideo", "CogVideo", "--python", python)
    for processes in ("0", "-2", "two"):
        assert "argument --processes: " in refused("--cogvideo", "CogVideo", f"--processes={processes}")
    assert "unknown key `seed`" in refused("--cogvideo", "CogVideo", "seed=3")
    assert "unknown key `steps`" in refused("--cogvideo", "CogVideo", "--ssvae", "b.yaml", "steps=3")
    (checkout / "sample_video.py").write_text("")
    assert "is not patched for SSVAE; run: bash scripts/install" in refused("--cogvideo", "CogVideo")
