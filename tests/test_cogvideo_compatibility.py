"""The overlays over configurations with the stock files' numbers, and every number put wrong once."""

import copy
import subprocess
import sys

import numpy
import pytest
import torch
import yaml

from sat_ssvae import UserError
from sat_ssvae.cli import main
from sat_ssvae.cogvideo.compatibility import find_mismatches
from sat_ssvae.cogvideo.first_stage import build_first_stage
from sat_ssvae.cogvideo.sat_config import SATConfig, merge_configs
from sat_ssvae.cogvideo.sat_transformer import adapt, read_transformer
from sat_ssvae.latents.dataset import LatentInfo

from .test_project import ROOT

OVERLAYS = ROOT / "cogvideo_configs"
NETWORK = "model.network_config.params"
POSITIONS = f"{NETWORK}.modules.pos_embed_config.params"
SFT = {"args": {"mode": "finetune"}, "data": {"target": "data_video.SFTDataset"}}


def check(files, era=None):
    config = SATConfig(merge_configs(files))
    return find_mismatches(config, build_first_stage(config).latent_format, era)


def network(**params):
    return {"params": {"hidden_size": 64, "time_compressed_rate": 4, "num_frames": 49, **params}}


def stock_v1(**model):
    """The numbers of cogvideox_2b.yaml and sft.yaml that have to do with latents."""
    positions = {"text_length": 226, "height_interpolation": 1.875, "width_interpolation": 1.875}
    modules = {"pos_embed_config": {"target": "dit_video_concat.Basic3DPositionEmbeddingMixin", "params": positions}}
    sizes = {"latent_width": 90, "latent_height": 60, "patch_size": 2, "in_channels": 16, "out_channels": 16}
    stage = {"target": "vae_modules.autoencoder.VideoAutoencoderInferenceWrapper", "params": {"cp_size": 1}}
    values = {
        "model": {
            "scale_factor": 1.15258426,
            "network_config": network(modules=modules, **sizes),
            "first_stage_config": stage,
            **model,
        }
    }
    return (
        values
        | copy.deepcopy(SFT)
        | {"data": SFT["data"] | {"params": {"video_size": [480, 720], "max_num_frames": 49}}}
    )


def stock_main(**model):
    """Those of cogvideox1.5_5b.yaml."""
    values = stock_v1(latent_input=True, **model)
    params = values["model"]["network_config"]["params"]
    params |= {"num_frames": 81, "latent_width": 300, "latent_height": 300, "patch_size": [2, 2, 2]}
    target = "dit_video_concat.Rotary3DPositionEmbeddingMixin"
    params["modules"] = {"pos_embed_config": {"target": target, "params": {"text_length": 224}}}
    return values


STOCKS = {
    "cogvideox_2b_5b": stock_v1(),
    "cogvideox_5b_i2v": stock_v1(noised_image_input=True),
    "cogvideox1.5_5b": stock_main(),
    "cogvideox1.5_5b_i2v": stock_main(noised_image_input=True),
}
STOCKS["cogvideox1.5_5b_i2v"]["model"]["latent_input"] = False
INFERENCE = {
    "v1.0": {"args": {"mode": "inference", "latent_channels": 16, "sampling_num_frames": 13}},
    "main": {
        "args": {
            "mode": "inference",
            "latent_channels": 16,
            "sampling_num_frames": 22,
            "sampling_image_size": [768, 1360],
        }
    },
}


@pytest.fixture
def configuration(narrow_vae, tmp_path):
    """(name, changes..., sampling) -> the stock numbers, the overlay, and dotted changes, merged from files."""

    def build(name, changes=None, sampling=False, more=()):
        era = "main" if "1.5" in name else "v1.0"
        layers = [STOCKS[name], *([INFERENCE[era], {"args": {"image2video": "i2v" in name}}] if sampling else [])]
        own = {"model.first_stage_config.params.ckpt_path": str(narrow_vae)} | (changes or {})
        files = []
        for number, values in enumerate([*layers, nested(own)]):
            files.append(tmp_path / f"{number}.yaml")
            files[-1].write_text(yaml.safe_dump(values))
        files[-1:-1] = [OVERLAYS / f"{overlay}.yaml" for overlay in (name, *more)]
        return files

    return build


def nested(dotted):
    """{"a.b": 1} as {"a": {"b": 1}}."""
    values = {}
    for key, value in dotted.items():
        *parents, last = key.split(".")
        inner = values
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    return values


@pytest.mark.parametrize("sampling", [False, True])
@pytest.mark.parametrize("name", STOCKS)
def test_the_overlays_fit(configuration, name, sampling):
    assert check(configuration(name, sampling=sampling)) == []


def latents(folder, frames, height, width, mean=0.0):
    """A folder that says of itself what `sat-ssvae encode` would."""
    values = {"fingerprint": "x", "shapes": [(48, (frames - 1) // 4 + 1, height // 16, width // 16)], "fps": 8}
    statistics = {"latent_mean": [mean] * 48, "latent_std": [1.0] * 48}
    folder.mkdir()
    (folder / "latents.json").write_text(LatentInfo(num_frames=frames, **values, **statistics).model_dump_json())
    return {"args.train_data": [str(folder)]}


def test_encoded_latents_fit_or_are_named(configuration, tmp_path):
    def keys(name, changes):
        return [mismatch.key for mismatch in check(configuration(name, changes, more=["latents"]))]

    assert keys("cogvideox_2b_5b", latents(tmp_path / "a", 49, 480, 720)) == []
    assert keys("cogvideox1.5_5b", latents(tmp_path / "b", 85, 768, 1360)) == []
    assert keys("cogvideox1.5_5b", latents(tmp_path / "c", 81, 768, 1360)) == ["args.train_data's frames"]
    assert keys("cogvideox_2b_5b", latents(tmp_path / "d", 49, 480, 736)) == [f"{NETWORK}.latent_width"]
    assert keys("cogvideox_2b_5b", latents(tmp_path / "e", 49, 480, 720, mean=1.0)) == ["args.train_data"]
    assert keys("cogvideox_2b_5b", {}) == ["args.train_data"]  # the overlay's folder is not there


def test_the_lora_overlay_fits(configuration):
    frozen = {"model.not_trainable_prefixes": ["all"]}
    (mismatch,) = check(configuration("cogvideox_2b_5b", frozen))
    assert mismatch.key == "model.not_trainable_prefixes"
    for name, lora in (("cogvideox1.5_5b", "cogvideox1.5_lora"), ("cogvideox_2b_5b", "cogvideox_lora")):
        files = configuration(name, more=[lora])
        assert check(files) == []
    assert "all" not in merge_configs(files)["model"]["not_trainable_prefixes"]


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
        ("cogvideox_2b_5b", "args.load", "/nowhere", "a transformer's folder, or null to start afresh", False),
    ],
)
def test_a_wrong_number_is_named_with_the_right_one(configuration, name, key, wrong, right, sampling):
    mismatchs = check(configuration(name, {key: wrong}, sampling))
    assert [(mismatch.key, mismatch.found, mismatch.expected) for mismatch in mismatchs] == [(key, wrong, right)]
    assert "\n" not in str(mismatchs[0])


def test_a_patch_that_does_not_divide_the_grid_is_named(configuration):
    mismatchs = check(configuration("cogvideox_2b_5b", {f"{NETWORK}.patch_size": 2}))
    assert mismatchs[0].key == "data.params.video_size"
    assert mismatchs[0].expected == "[480, 704]"


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


def test_configurations_of_the_other_era_are_told_apart(configuration):
    mismatchs = check(configuration("cogvideox_2b_5b"), era="main")
    assert [(mismatch.key, mismatch.expected) for mismatch in mismatchs] == [
        (f"{NETWORK}.patch_size", "[1, 1, 1]"),
        (f"{POSITIONS}.height_interpolation", f"under {NETWORK}"),
    ]
    assert check(configuration("cogvideox1.5_5b"), era="v1.0")[0].key == f"{NETWORK}.patch_size"


@pytest.fixture
def transformer(tmp_path):
    """A stock transformer's first and last layer, its table of positions, and a layer between."""
    hidden, prefix = 64, "model.diffusion_model.mixins."
    module = {
        f"{prefix}patch_embed.proj.weight": torch.randn(hidden, 16, 2, 2),
        f"{prefix}patch_embed.text_proj.weight": torch.randn(hidden, 8),
        f"{prefix}final_layer.linear.weight": torch.randn(64, hidden),
        f"{prefix}final_layer.linear.bias": torch.randn(64),
        f"{prefix}pos_embed.pos_embedding": torch.randn(1, 226 + 13 * 30 * 45, hidden),
    }
    folder = tmp_path / "transformer"
    (folder / "1").mkdir(parents=True)
    (folder / "latest").write_text("1")
    torch.save({"module": module}, folder / "1" / "mp_rank_00_model_states.pt")
    return folder


def test_a_stock_transformer_is_named_and_adapted(configuration, transformer, tmp_path):
    files = configuration("cogvideox_2b_5b", {"args.load": str(transformer)})
    (mismatch,) = check(files)
    assert mismatch.key == "args.load"
    assert "(64, 16, 2, 2) instead of (64, 48, 1, 1); sat-ssvae cogvideo adapt" in mismatch.reason
    adapted = tmp_path / "adapted"
    left_out = adapt(transformer, adapted, SATConfig(merge_configs(files)).transformer())
    assert {name.split(".")[-2] for name, _, _ in left_out} == {"proj", "linear"}
    kept, before = read_transformer(adapted), read_transformer(transformer)
    assert len(kept) == 2  # text_proj and the positions
    assert all(torch.equal(kept[name], before[name]) for name in kept)
    assert check(configuration("cogvideox_2b_5b", {"args.load": str(adapted)})) == []
    with pytest.raises(UserError, match="exists already"):
        adapt(transformer, adapted, SATConfig(merge_configs(files)).transformer())


BODY = "model.diffusion_model."
SIZES = {f"{NETWORK}.num_layers": 2, f"{NETWORK}.num_attention_heads": 2, f"{NETWORK}.time_embed_dim": 32}


@pytest.mark.parametrize(
    ("name", "shape", "difference"),
    [
        ("transformer.layers.2.input_layernorm.weight", (64,), "it has 3 layers, the configuration 2"),
        ("transformer.layers.0.input_layernorm.weight", (96,), r"input_layernorm.weight there is \(96,\) instead of"),
        ("mixins.adaln_layer.query_layernorm_list.0.weight", (64,), r"\(64,\) instead of \(32,\)"),
        ("time_embed.0.weight", (64, 64), r"\(64, 64\) instead of \(32, 64\)"),
    ],
)
def test_a_transformer_of_another_size_is_named(configuration, transformer, tmp_path, name, shape, difference):
    """2B's for 5B, say: what is left of it after `adapt` would not fit, either."""
    path = transformer / "1" / "mp_rank_00_model_states.pt"
    module = {
        f"{BODY}transformer.layers.0.input_layernorm.weight": torch.ones(64),
        f"{BODY}transformer.layers.1.input_layernorm.weight": torch.ones(64),
        f"{BODY}mixins.adaln_layer.query_layernorm_list.0.weight": torch.ones(32),
        f"{BODY}time_embed.0.weight": torch.ones(32, 64),
    }
    torch.save({"module": module}, path)
    files = configuration("cogvideox_2b_5b", SIZES | {"args.load": str(transformer)})
    sizes = SATConfig(merge_configs(files)).transformer()
    assert check(files) == []
    torch.save({"module": module | {f"{BODY}{name}": torch.ones(shape)}}, path)
    (mismatch,) = check(files)
    assert (mismatch.key, mismatch.expected) == ("args.load", "a transformer of the configuration's size")
    with pytest.raises(UserError, match=f"is another model than the configuration's: .*{difference}"):
        adapt(transformer, tmp_path / "adapted", sizes)
    assert not (tmp_path / "adapted").exists()


def test_an_adapted_transformer_brings_no_first_stage(configuration, transformer, tmp_path):
    path = transformer / "1" / "mp_rank_00_model_states.pt"
    module = torch.load(path, weights_only=True)["module"]
    torch.save({"module": module | {"first_stage_model.encoder.weight": torch.ones(2)}}, path)
    sizes = SATConfig(merge_configs(configuration("cogvideox_2b_5b"))).transformer()
    adapt(transformer, tmp_path / "adapted", sizes)
    assert all(name.startswith("model.") for name in read_transformer(tmp_path / "adapted"))


def test_rotary_tables_of_another_grid_are_left_out(configuration, tmp_path):
    """v1.0's 5B keeps them among its weights; the model computes its own."""
    changes = {f"{POSITIONS}.hidden_size_head": 32, f"{POSITIONS}.text_length": 226}
    sizes = SATConfig(merge_configs(configuration("cogvideox_2b_5b", changes))).transformer()
    name = "model.diffusion_model.mixins.pos_embed.freqs_sin"
    assert sizes.misfits({name: torch.zeros(13 * 30 * 45, 32)}) == []
    assert sizes.misfits({name: torch.zeros(72, 32)}) == [(name, (72, 32), (13 * 30 * 45, 32))]


def test_the_patches_of_main_are_flat(configuration):
    shapes = SATConfig(merge_configs(configuration("cogvideox1.5_5b"))).transformer().shapes()
    assert shapes["patch_embed.proj.weight"] == (64, 96)
    assert shapes["final_layer.linear.weight"] == (96, 64)


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


def test_the_adapt_command(configuration, transformer, tmp_path, capsys):
    files = map(str, configuration("cogvideox_2b_5b"))
    assert main(["cogvideo", "adapt", str(transformer), str(tmp_path / "out"), "--base", *files]) == 0
    assert "left out model.diffusion_model.mixins.patch_embed.proj.weight: (64, 16, 2, 2)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["/nowhere.yaml"], "/nowhere.yaml: no such configuration file"),
        (["{broken"], "not readable YAML"),
        (["model: {}"], "give an overlay of cogvideo_configs/"),
        (["[a, b]"], "not readable YAML"),
        (["model: {}", "[a, b]"], "not readable YAML"),
        (["3"], "not readable YAML"),
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


MISSING = ("hidden_size", "num_frames", "time_compressed_rate", "latent_height", "in_channels", "patch_size")


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_number_is_one_line(configuration, transformer, name, tmp_path, capsys):
    files = list(map(str, configuration("cogvideox_2b_5b", {f"{NETWORK}.{name}": None})))
    with pytest.raises(SystemExit):
        main(["cogvideo", "adapt", str(transformer), str(tmp_path / "out"), "--base", *files])
    expected = f"error: {NETWORK}.{name} is missing; give the stock files before the overlay\n"
    assert capsys.readouterr().err == expected
    if name in ("num_frames", "patch_size"):  # others are named with the right number
        with pytest.raises(SystemExit):
            main(["cogvideo", "check", "--base", *files])
        assert capsys.readouterr().err.endswith(expected)


def test_overlays_without_the_stock_files_are_one_line(transformer, tmp_path, capsys):
    for overlay in ("latents", "cogvideox_2b_5b", "cogvideox1.5_5b"):
        files = str(OVERLAYS / f"{overlay}.yaml")
        with pytest.raises(SystemExit):
            main(["cogvideo", "adapt", str(transformer), str(tmp_path / "out"), "--base", files])
        assert "is missing; give the stock files before the overlay\n" in capsys.readouterr().err


def test_damaged_transformers_are_one_line(tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "latest").write_text("1")
    path = tmp_path / "1" / "mp_rank_00_model_states.pt"
    path.write_bytes(b"PK damaged")
    with pytest.raises(UserError, match="not a readable checkpoint"):
        read_transformer(tmp_path)
    torch.save({"weights": {}}, path)
    with pytest.raises(UserError, match="under `module`"):
        read_transformer(tmp_path)
    torch.save({"module": {}, "np_rng_state": numpy.ones(2)}, path)
    with pytest.raises(UserError, match=r"train with args\.no_save_rng: true"):
        read_transformer(tmp_path)


def test_an_adapted_transformer_starts_any_training_at_its_first_step(configuration, transformer, tmp_path):
    """SAT counts a folder named by a number as so many iterations of a pretraining; this name it does not."""
    adapt(transformer, tmp_path / "adapted", SATConfig(merge_configs(configuration("cogvideox_2b_5b"))).transformer())
    assert (tmp_path / "adapted" / "latest").read_text() == "release"
    assert read_transformer(tmp_path / "adapted").keys() < read_transformer(transformer).keys()


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
