"""The overlays over configurations with the stock files' numbers, and every number put wrong once."""

import re
import subprocess
import sys

import pytest

from sat_ssvae import UserError
from sat_ssvae.cli import main
from sat_ssvae.cogvideo.sat_config import SATConfig, merge_configs

from .stock_configurations import NETWORK, OVERLAYS, POSITIONS, STOCKS, check, latents


@pytest.mark.parametrize("sampling", [False, True])
@pytest.mark.parametrize("name", STOCKS)
def test_the_overlays_fit(configuration, name, sampling):
    assert check(configuration(name, sampling=sampling)) == []


def test_encoded_latents_fit_or_are_named(configuration, tmp_path):
    def keys(name, changes):
        return [mismatch.key for mismatch in check(configuration(name, changes, more=["latents"]))]

    assert keys("cogvideox_2b_5b", latents(tmp_path / "a", 49, (480, 720))) == []
    assert keys("cogvideox1.5_5b", latents(tmp_path / "b", 85, (768, 1360))) == []
    assert keys("cogvideox1.5_5b", latents(tmp_path / "c", 81, (768, 1360))) == ["args.train_data's frames"]
    assert keys("cogvideox_2b_5b", latents(tmp_path / "d", 49, (480, 736))) == [f"{NETWORK}.latent_width"]
    assert keys("cogvideox_2b_5b", latents(tmp_path / "e", 49, (480, 720), mean=1.0)) == ["args.train_data"]
    both = (480, 720), (720, 480)
    assert keys("cogvideox1.5_5b", latents(tmp_path / "f", 85, *both)) == []  # its table has room
    assert keys("cogvideox_2b_5b", latents(tmp_path / "g", 49, *both)) == [
        f"{NETWORK}.latent_height",
        f"{NETWORK}.latent_width",
    ]
    assert keys("cogvideox_2b_5b", {}) == ["args.train_data"]  # the overlay's folder is not there


def test_latents_before_an_overlay_that_switches_to_videos(configuration, tmp_path):
    *others, own = configuration("cogvideox1.5_5b", latents(tmp_path / "a", 85, (768, 1360)))
    (mismatch,) = check([others[0], OVERLAYS / "latents.yaml", *others[1:], own])
    assert (mismatch.key, mismatch.expected) == ("model.latent_input", "True")
    assert mismatch.reason.endswith("LatentDataset; to train on latents give latents.yaml last")


def test_the_lora_overlay_fits(configuration):
    frozen = {"model.not_trainable_prefixes": ["all"]}
    (mismatch,) = check(configuration("cogvideox_2b_5b", frozen))
    assert mismatch.key == "model.not_trainable_prefixes"
    for name, lora in (("cogvideox1.5_5b", "cogvideox1.5_lora"), ("cogvideox_2b_5b", "cogvideox_lora")):
        files = configuration(name, more=[lora])
        assert check(files) == []
    assert "all" not in merge_configs(files)["model"]["not_trainable_prefixes"]


def test_a_lora_overlay_without_lora_is_noted(configuration):
    """The overlay for v1.0 freezes the transformer; the LoRA itself comes from CogVideoX's own configuration."""
    lora = {f"{NETWORK}.modules.lora_config": {"params": {"r": 4}}}

    def notes(*arguments, **more):
        return SATConfig(merge_configs(configuration(*arguments, **more))).notes()

    (note,) = notes("cogvideox_2b_5b", more=["cogvideox_lora"])
    assert "only the first and last layer learn" in note
    assert notes("cogvideox_2b_5b", lora, more=["cogvideox_lora"]) == notes("cogvideox_2b_5b") == []
    assert notes("cogvideox1.5_5b", more=["cogvideox1.5_lora"]) == []
    assert notes("cogvideox_2b_5b", sampling=True, more=["cogvideox_lora"]) == []


def test_every_overlay_is_checked_here():
    checked = {*STOCKS, "cogvideox_lora", "cogvideox1.5_lora", "latents", "copied"}
    assert {path.stem for path in OVERLAYS.glob("*.yaml")} == checked


@pytest.mark.parametrize(
    ("name", "key", "wrong", "right", "sampling"),
    [
        ("cogvideox_2b_5b", "model.scale_factor", 0.7, "1.0", False),
        ("cogvideox_2b_5b", f"{NETWORK}.in_channels", 16, "48", False),
        ("cogvideox_5b_i2v", f"{NETWORK}.in_channels", 48, "96", False),
        ("cogvideox_2b_5b", f"{NETWORK}.out_channels", 96, "48", False),
        ("cogvideox_2b_5b", f"{NETWORK}.time_compressed_rate", 8, "4", False),
        ("cogvideox_2b_5b", "args.latent_channels", 16, "48", True),
        ("cogvideox_2b_5b", f"{NETWORK}.latent_width", 90, "45", False),
        ("cogvideox_2b_5b", f"{NETWORK}.latent_height", 60, "30", True),
        ("cogvideox1.5_5b", f"{NETWORK}.latent_width", 80, "at least 85", False),
        ("cogvideox1.5_5b", f"{NETWORK}.latent_width", None, "at least 85", False),
        ("cogvideox_2b_5b", f"{POSITIONS}.height_interpolation", 1.0, "1.875", False),
        ("cogvideox_2b_5b", "data.params.video_size", [482, 720], "[480, 720]", False),
        ("cogvideox1.5_5b", "args.sampling_image_size", [768, 1352], "[768, 1344]", True),
        ("cogvideox_2b_5b", "data.params.max_num_frames", 48, "49", False),
        ("cogvideox1.5_5b", "data.params.max_num_frames", 81, "85", False),
        ("cogvideox_2b_5b", f"{NETWORK}.num_frames", 33, "at least 49", False),
        ("cogvideox1.5_5b", "args.sampling_num_frames", 21, "20", True),
        ("cogvideox1.5_5b", "args.sampling_num_frames", 42, "at most 22", True),
        ("cogvideox_2b_5b", "args.sampling_num_frames", 12, "11", True),
        ("cogvideox_2b_5b", "args.sampling_num_frames", 1, "3", True),
        ("cogvideox1.5_5b", "model.latent_input", True, "False", False),
        ("cogvideox1.5_5b_i2v", "data.target", "x.LatentDataset", "data_video.SFTDataset", False),
        ("cogvideox_5b_i2v", "args.image2video", False, "True", True),
        ("cogvideox_5b_i2v", "args.image2video", None, "True", True),
        ("cogvideox1.5_5b_i2v", "args.image2video", False, "True", True),
        ("cogvideox1.5_5b", "args.image2video", True, "False", True),
        ("cogvideox_2b_5b", "args.image2video", True, "False", True),
        ("cogvideox1.5_5b_i2v", f"{NETWORK}.ofs_embed_dim", 512, "None", False),
        ("cogvideox_2b_5b", "args.train_data", "DATA", "[DATA]", False),
        ("cogvideox_2b_5b", "data.target", None, "data_video.SFTDataset", False),
        (
            "cogvideox_2b_5b",
            "args.load",
            "/nowhere",
            "a transformer's folder, or null to start at random",
            False,
        ),
    ],
)
def test_a_wrong_number_is_named_with_the_right_one(configuration, name, key, wrong, right, sampling):
    mismatchs = check(configuration(name, {key: wrong}, sampling))
    assert [(mismatch.key, mismatch.found, mismatch.expected) for mismatch in mismatchs] == [(key, wrong, right)]
    assert "\n" not in str(mismatchs[0])


def test_the_file_of_a_wrong_value_is_named(configuration, capsys):
    for key, value, message in (
        ("model.scale_factor", 0.7, "model.scale_factor is 0.7, must be 1.0"),
        (f"{NETWORK}.num_layers", 0, f"{NETWORK}.num_layers is 0: input should be greater"),
    ):
        files = configuration("cogvideox_2b_5b", {key: value})
        with pytest.raises(SystemExit):
            main(["cogvideo", "check", "--base", *map(str, files)])
        printed = capsys.readouterr()
        (line,) = [line for line in (printed.out + printed.err).splitlines() if message in line]
        assert line.endswith(f"(in {files[-1]})")


def test_learned_positions_on_main_count_the_text_too(configuration):
    embedder = {"target": "a.B", "params": {"max_length": 300}}
    changes = {"model.conditioner_config": {"target": "a.B", "params": {"emb_models": [embedder]}}}
    assert check(configuration("cogvideox1.5_5b", changes)) == []
    (mismatch,) = check(configuration("cogvideox1.5_5b", changes | {f"{POSITIONS}.learnable_pos_embed": True}))
    assert (mismatch.key, mismatch.expected) == (f"{POSITIONS}.text_length", "300")


@pytest.mark.parametrize(
    ("name", "key", "wrong", "message"),
    [
        ("cogvideox_2b_5b", f"{NETWORK}.num_frames", "49", "is '49': input should be a valid integer"),
        ("cogvideox_2b_5b", f"{NETWORK}.num_frames", 49.5, "is 49.5: input should be a valid integer"),
        ("cogvideox_2b_5b", f"{NETWORK}.time_compressed_rate", 0, "is 0: input should be greater than or equal to 1"),
        ("cogvideox_2b_5b", f"{NETWORK}.patch_size", 1.5, "is 1.5: input should be a valid integer"),
        ("cogvideox1.5_5b", f"{NETWORK}.patch_size", [1, 1], r"is \[1, 1\]: "),
        ("cogvideox1.5_5b", f"{NETWORK}.latent_width", "wide", "is 'wide': input should be a valid integer"),
        ("cogvideox_2b_5b", "data.params.video_size", 480, "is 480: input should be a valid array"),
        ("cogvideox_2b_5b", "data.params.video_size", [480, "720"], r"\[1\] is '720': input should be a valid integer"),
        ("cogvideox_2b_5b", "data.params.max_num_frames", True, "is True: input should be a valid integer"),
        ("cogvideox_2b_5b", f"{POSITIONS}.height_interpolation", "x", "is 'x': input should be a valid number"),
        ("cogvideox_2b_5b", "model.not_trainable_prefixes", "all", "is 'all': input should be a valid array"),
        ("cogvideox_5b_i2v", "args.image2video", "False", "is 'False': input should be a valid boolean"),
        ("cogvideox_5b_i2v", "model.noised_image_input", "true", "is 'true': input should be a valid boolean"),
        ("cogvideox_2b_5b", "model.latent_input", 1, "is 1: input should be a valid boolean"),
        ("cogvideox_2b_5b", "args.load", [1], r"is \[1\]: input should be a valid string"),
        ("cogvideox_2b_5b", "args.train_iters", "100", "is '100': input should be a valid number"),
        ("cogvideox_2b_5b", "args.mode", "finetne", "is 'finetne': input should be 'pretrain', 'finetune' or"),
    ],
)
def test_values_of_a_wrong_form_are_one_line(configuration, name, key, wrong, message):
    with pytest.raises(UserError, match=rf"^{re.escape(key)} ?{message}") as caught:
        check(configuration(name, {key: wrong}, sampling=key == "args.image2video"))
    assert "\n" not in str(caught.value)


def test_a_patch_that_does_not_divide_the_grid_is_named(configuration):
    mismatchs = check(configuration("cogvideox_2b_5b", {f"{NETWORK}.patch_size": 2}))
    assert mismatchs[0].key == "data.params.video_size"
    assert mismatchs[0].expected == "[480, 704]"


def test_rotary_positions_of_v1_train_on_normalised_queries_alone(configuration):
    changes = {
        f"{POSITIONS.removesuffix('.params')}.target": "dit_video_concat.Rotary3DPositionEmbeddingMixin",
        f"{POSITIONS}.hidden_size_head": 32,
        f"{POSITIONS}.height_interpolation": None,
        f"{POSITIONS}.width_interpolation": None,
        f"{NETWORK}.modules.adaln_layer_config.params": {"qk_ln": False},
    }
    (mismatch,) = check(configuration("cogvideox_2b_5b", changes))
    assert (mismatch.key.rpartition(".")[2], mismatch.expected) == ("qk_ln", "True")
    assert check(configuration("cogvideox_2b_5b", changes, sampling=True)) == []


def test_a_portrait_grid_keeps_the_interpolation(configuration):
    """2B's table of 45 x 30 tokens is the transpose of that of 30 x 45: the short side decides."""
    portrait = {"data.params.video_size": [720, 480], f"{NETWORK}.latent_height": 45, f"{NETWORK}.latent_width": 30}
    assert check(configuration("cogvideox_2b_5b", portrait)) == []
    square = {"data.params.video_size": [512, 512], f"{NETWORK}.latent_height": 32, f"{NETWORK}.latent_width": 32}
    keys = [mismatch.key for mismatch in check(configuration("cogvideox_2b_5b", square))]
    assert keys == [f"{POSITIONS}.height_interpolation", f"{POSITIONS}.width_interpolation"]


@pytest.mark.parametrize(("era", "command"), [("v1.0", "git checkout main"), ("main", "git checkout v1.0")])
def test_the_checkout_tells_the_era(configuration, tmp_path, monkeypatch, capsys, era, command):
    """1.5 in a checkout of v1.0, and 2B in one of main, whether the command runs there or the stock files lie there."""
    sat = tmp_path / "CogVideo" / "sat"
    (sat / "configs").mkdir(parents=True)
    (sat / "diffusion_video.py").write_text("fake_cp_size = 10" if era == "main" else "")
    files = configuration("cogvideox_2b_5b" if era == "main" else "cogvideox1.5_5b")
    there = sat / "configs" / files[0].name
    files[0].rename(there)
    with pytest.raises(SystemExit):
        main(["cogvideo", "check", "--base", *map(str, [there, *files[1:]])])
    assert command in capsys.readouterr().out
    monkeypatch.chdir(sat)
    there.rename(files[0])
    with pytest.raises(SystemExit):
        main(["cogvideo", "check", "--base", *map(str, files)])
    assert command in capsys.readouterr().out


@pytest.mark.parametrize("sampling", [False, True])
@pytest.mark.parametrize(
    ("stock", "other"), [("cogvideox1.5_5b", "cogvideox_2b_5b"), ("cogvideox_5b_i2v", "cogvideox1.5_5b_i2v")]
)
def test_an_overlay_over_stock_files_of_the_other_era_is_refused(configuration, stock, other, sampling):
    """Without a checkout the stock files alone tell it: every number of the latents fits."""
    files = [
        OVERLAYS / f"{other}.yaml" if file.stem == stock else file for file in configuration(stock, sampling=sampling)
    ]
    (mismatch,) = check(files)
    assert mismatch.key == f"{NETWORK}.patch_size" and f"{stock}.yaml" in mismatch.expected
    assert "the stock configuration is that of CogVideoX" in str(mismatch) and "\n" not in str(mismatch)


def test_image_to_video_of_1_5_is_known_by_its_input(configuration):
    """Its `ofs`, whatever the length of the text; the overlay of 1.5 takes it away."""
    changes = {f"{NETWORK}.ofs_embed_dim": 512, f"{POSITIONS}.text_length": 100}
    (mismatch,) = check(configuration("cogvideox_5b_i2v", changes, sampling=True))
    assert mismatch.expected == "that of cogvideox1.5_5b.yaml or cogvideox1.5_5b_i2v.yaml"


def test_the_text_is_as_long_as_the_encoder_makes_it(configuration):
    encoder = {"model.conditioner_config.params.emb_models": [{"target": "a.B", "params": {"max_length": 300}}]}
    (mismatch,) = check(configuration("cogvideox_2b_5b", encoder))
    assert (mismatch.key, mismatch.found, mismatch.expected) == (f"{POSITIONS}.text_length", 226, "300")
    assert check(configuration("cogvideox_2b_5b", encoder | {f"{POSITIONS}.text_length": 300})) == []
    assert check(configuration("cogvideox1.5_5b", encoder)) == []  # main counts them itself


def test_configurations_of_the_other_era_are_told_apart(configuration):
    mismatchs = check(configuration("cogvideox_2b_5b"), era="main")
    assert [(mismatch.key, mismatch.expected) for mismatch in mismatchs] == [
        (f"{NETWORK}.patch_size", "[1, 1, 1]"),
        (f"{POSITIONS}.height_interpolation", f"under {NETWORK}"),
    ]
    assert check(configuration("cogvideox1.5_5b"), era="v1.0")[0].key == f"{NETWORK}.patch_size"


def test_the_command_prints_what_does_not_fit(configuration, capsys):
    files = [str(file) for file in configuration("cogvideox_2b_5b", {"model.scale_factor": 0.7})]
    with pytest.raises(SystemExit) as ended:
        main(["cogvideo", "check", "--base", *files])
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert printed.out.startswith("model.scale_factor is 0.7, must be 1.0: ")
    assert "error: 1 of the settings" in printed.err
    assert main(["cogvideo", "check", "--base", *map(str, configuration("cogvideox_2b_5b"))]) == 0
    assert "everything fits" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["/nowhere.yaml"], "/nowhere.yaml: no such configuration file"),
        (["{broken"], "not readable YAML"),
        (["model: {}"], "give an overlay of cogvideo_configs/"),
        (["[a, b]"], "not readable YAML"),
        (["model: {}", "[a, b]"], "not readable YAML"),
        (["3"], "not readable YAML"),
        (["model: {}", "model: [a]", "model: {}"], r"1.yaml: not readable YAML .* a list and a mapping do not merge"),
        (["model: {a: 1, b: '${model.a}'}"], r"model.b: Interpolation key 'model.a' not found; write the value there"),
        (["model: {b: '${oc.env:NOWHERE_SET}'}"], "Environment variable 'NOWHERE_SET' not found"),
    ],
)
def test_unusable_configurations_are_one_line(files, message, tmp_path):
    paths = []
    for number, text in enumerate(files):
        paths.append(text if text.startswith("/") else tmp_path / f"{number}.yaml")
        if not text.startswith("/"):
            paths[-1].write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        check(paths)
    assert "\n" not in str(caught.value)


def test_references_are_followed_as_cogvideox_does(tmp_path):
    """It takes `args` out of the merged files, then `model`, and follows the references that are in them later."""
    files = [tmp_path / f"{number}.yaml" for number in range(2)]
    files[0].write_text(
        "args: {load: '${model.folder}', save: '${oc.env:HOME}'}\nmodel: {folder: a, same: '${.folder}'}"
    )
    files[1].write_text("model: {folder: b}")
    assert merge_configs(files)["model"]["same"] == merge_configs(files)["args"]["load"] == "b"
    config = SATConfig(merge_configs(files), files)
    assert config.origin("model.folder") == f" (in {files[1]})" and config.origin("model.same") == f" (in {files[0]})"


SCRIPT = """
import sys
import diffusion_video
from sat_ssvae import UserError
from sat_ssvae.cogvideo import SSVAEFirstStage
try:
    SSVAEFirstStage(ckpt_path={vae!r}, **{params})
except UserError as error:
    sys.exit(str(error))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "params", "message"),
    [
        ({}, {}, ""),
        ({f"{NETWORK}.in_channels": 16}, {}, "in_channels is 16, must be 48: the latents' channels"),
        ({f"{NETWORK}.in_channels": 16, "model.scale_factor": 0.7}, {}, "(and 1 more: sat-ssvae cogvideo check --base"),
        ({f"{NETWORK}.in_channels": 16}, {"check_configuration": False}, ""),
    ],
)
def test_a_script_of_cogvideox_stops_at_a_wrong_number(configuration, narrow_vae, tmp_path, changes, params, message):
    """What train_video.py does when only the first stage's target was edited."""
    (tmp_path / "diffusion_video.py").write_text("")
    (tmp_path / "sample_video.py").write_text("spatial_factor")
    (tmp_path / "train_video.py").write_text(SCRIPT.format(vae=str(narrow_vae), params=params))
    files = configuration("cogvideox_2b_5b", changes)
    command = [sys.executable, "train_video.py", "--base", *files, "--seed", "0"]
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode != 0) == bool(message), done.stderr
    assert message in done.stderr and done.stderr.count("\n") == (1 if message else 0)
