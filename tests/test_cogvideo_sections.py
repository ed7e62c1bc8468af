"""Sections of CogVideoX's configuration that name a class: whole, of classes that are there, with their parameters."""

import functools
import sys

import pytest

from sat_ssvae import UserError
from sat_ssvae.cogvideo.sat_config import EMBEDDERS, SATConfig, merge_configs
from sat_ssvae.cogvideo.sections import find_broken_sections, find_misspelt

from .stock_configurations import NETWORK, POSITIONS, check, latents

MODULES = f"{NETWORK}.modules"
TEXT_STATES = f"{MODULES}.patch_embed_config.params.text_hidden_size"


@pytest.mark.parametrize(
    ("name", "key", "wrong", "right", "sampling"),
    [
        ("cogvideox_2b_5b", f"{NETWORK}.num_attention_heads", 3, "a divisor of 64", False),
        ("cogvideox_2b_5b", f"{NETWORK}.num_attention_heads", 128, "a divisor of 64", True),
        ("cogvideox_2b_5b", f"{NETWORK}.hidden_size", 72, "a multiple of 16", False),
        ("cogvideox1.5_5b", f"{POSITIONS}.hidden_size_head", 64, "32", False),
        ("cogvideox1.5_5b", f"{POSITIONS}.hidden_size_head", None, "32", False),
        ("cogvideox1.5_5b", f"{NETWORK}.hidden_size", 96, "48", False),
        ("cogvideox1.5_5b_i2v", f"{NETWORK}.ofs_embed_dim", 32, "64", True),
        ("cogvideox_2b_5b", MODULES, None, "a mapping", False),
        ("cogvideox_2b_5b", f"{MODULES}.adaln_layer_config", None, "a mapping of target and params", False),
        ("cogvideox_2b_5b", f"{MODULES}.lora_config", {"params": {"r": 4}}, "module.Class", False),
        ("cogvideox_2b_5b", f"{MODULES}.pos_embed_config.target", "nope", "module.Class", False),
        ("cogvideox_2b_5b", f"{MODULES}.final_layer_config.params", None, "a mapping, or left out", False),
        ("cogvideox_2b_5b", "model.denoiser_config", None, "a mapping of target and params", False),
        ("cogvideox_2b_5b", "model.sampler_config.target", 3, "module.Class", False),
        ("cogvideox_2b_5b", "model.scale_factor", None, "a value, or no such line", False),
        ("cogvideox_2b_5b", "data.params.fps", None, "a value, or no such line", False),
        ("cogvideox_2b_5b", "args", "x", "a mapping", False),
        ("cogvideox_2b_5b", "deepspeed", None, "a mapping", False),
        ("cogvideox_2b_5b", "args.train_data", [], "[DATA]", False),
        ("cogvideox_5b_i2v", "model.sampler_config.params", {"guider_config": {}}, "module.Class", True),
    ],
)
def test_what_crashes_whatever_the_latents_is_named(configuration, name, key, wrong, right, sampling):
    found = check(configuration(name, {key: wrong}, sampling))
    assert found and found[0].expected == right and "\n" not in str(found[0])
    assert key == found[0].key or found[0].key.startswith((f"{key}.", POSITIONS))


def test_sections_of_the_text_encoder_are_whole(configuration, tmp_path):
    (tmp_path / "config.json").write_text('{"d_model": 48}')
    params = {"model_dir": str(tmp_path), "max_length": 226}
    embedder = {"target": "sgm.modules.encoders.modules.FrozenT5Embedder", "params": params}
    conditioner = {"target": "sgm.modules.GeneralConditioner", "params": {"emb_models": [embedder]}}
    changes = {"model.conditioner_config": conditioner, TEXT_STATES: 32}
    (mismatch,) = check(configuration("cogvideox_2b_5b", changes))
    assert (mismatch.key, mismatch.found, mismatch.expected) == (TEXT_STATES, 32, "48")
    assert check(configuration("cogvideox_2b_5b", changes | {TEXT_STATES: 48})) == []
    del params["max_length"]
    (mismatch,) = check(configuration("cogvideox_2b_5b", changes | {TEXT_STATES: 48}))
    assert (mismatch.key, mismatch.expected) == (f"{POSITIONS}.text_length", "77")  # CogVideoX's default
    params["max_length"] = "226"
    with pytest.raises(UserError, match=r"emb_models\[0\].params.max_length is '226': input should be a valid integer"):
        check(configuration("cogvideox_2b_5b", changes | {TEXT_STATES: 48}))
    for broken in (None, [], [{}], [None], "x"):
        conditioner["params"]["emb_models"] = broken
        (mismatch,) = check(configuration("cogvideox_2b_5b", changes))
        assert "emb_models" in mismatch.key and "\n" not in str(mismatch)


def test_classes_and_their_parameters_are_looked_for_in_the_checkout(configuration, tmp_path):
    sat = tmp_path / "sat"
    (sat / "sgm").mkdir(parents=True)
    classes = [
        f"class {name}:\n    def __init__(self, hidden_size, text_length=0{more}):\n        pass\n"
        for name, more in (
            ("DiffusionTransformer", ", **others"),
            ("Basic3DPositionEmbeddingMixin", ", height_interpolation=1.0, width_interpolation=1.0"),
            ("ImagePatchEmbeddingMixin", ""),
            ("AdaLNMixin", ""),
            ("FinalLayerMixin", ""),
        )
    ]
    (sat / "dit_video_concat.py").write_text("\n".join(classes))
    (sat / "sgm" / "__init__.py").write_text(
        "from .denoiser import Denoiser as Known\n"
        "try:\n    class Tried: pass\nexcept ImportError:\n    Other: type = object\n"
    )
    (sat / "open.py").write_text("from sgm import *\n")
    (sat / "broken.py").write_text("class X(:\n")
    (sat / "data_video.py").write_text("class SFTDataset:\n    pass\n")

    elsewhere = {f"model.{name}_config.target": "torch.nn.Identity" for name in ("denoiser", "sampler", "conditioner")}
    elsewhere[EMBEDDERS] = [{"target": "torch.nn.Identity"}]

    def keys(changes):
        config = SATConfig(merge_configs(configuration("cogvideox_2b_5b", elsewhere | changes)))
        return [(found.key, str(found)) for found in find_broken_sections(config, sat)]

    assert keys({}) == []  # classes of other packages are not looked for
    for target in ("sgm.Known", "sgm.Tried", "sgm.Other", "open.Any", "broken.X"):
        assert keys({"model.denoiser_config.target": target}) == []
    for target in ("sgm.Nope", "sgm.nope.X", "dit_video_concat.FinalMixin"):
        ((key, text),) = keys({"model.denoiser_config.target": target})
        assert key == "model.denoiser_config.target" and "\n" not in text
    assert "did you mean `FinalLayerMixin`?" in text
    ((key, text),) = keys({f"{POSITIONS}.hight_interpolation": 1.0})
    assert key == f"{POSITIONS}.hight_interpolation" and "did you mean `height_interpolation`?" in text


CLASSES = """
import torch
from sat.model.base_model import BaseModel
class DiffusionTransformer(BaseModel):
    def __init__(self, hidden_size, num_layers, **kwargs):
        kwargs.pop("dtype", None)
        super().__init__(args=None, **kwargs)
class Sampler:
    def __init__(self, num_steps, guider_config=None):
        pass
class Fast(Sampler):
    def __init__(self, speed=1, **kwargs):
        super().__init__(**kwargs)
class Faster(Fast):
    pass
class Anything(Sampler):
    def __init__(self, **others):
        super().__init__(1)
class Foreign(torch.nn.Module):
    def __init__(self, **others):
        super().__init__(**others)
class Guider:
    def __init__(self, scale):
        pass
"""


def test_parameters_that_a_class_passes_to_its_base_are_looked_for_too(tmp_path):
    (tmp_path / "mine.py").write_text(CLASSES)

    def keys(section, target, **params):
        values = {"model": {section: {"target": f"mine.{target}", "params": params}}, "args": {"mode": "inference"}}
        found = find_broken_sections(SATConfig(values), tmp_path)
        keys = [mismatch.key for mismatch in found if mismatch.key.startswith(f"model.{section}.params.")]
        return [key for key in keys if ".modules." not in key]

    transformer = functools.partial(keys, "network_config", "DiffusionTransformer", hidden_size=64)
    assert transformer(dtype="bf16", init_method_std=0.02) == []
    assert transformer(num_layer=3) == [f"{NETWORK}.num_layer"]
    sampler = functools.partial(keys, "sampler_config")
    assert sampler("Faster", num_steps=3, speed=2) == sampler("Anything", x=1) == sampler("Foreign", x=1) == []
    assert sampler("Faster", num_step=3) == ["model.sampler_config.params.num_step"]
    guider = {"target": "mine.Guider", "params": {"scale": 6}}
    assert sampler("Fast", guider_config=guider) == []
    for wrong, key in (
        ({"target": "mine.Guide"}, "target"),
        ({"params": {"scal": 6}}, "params.scal"),
        ({"target": 1}, "target"),
    ):
        assert sampler("Fast", guider_config=guider | wrong) == [f"model.sampler_config.params.guider_config.{key}"]


@pytest.mark.parametrize("target", ["cogvideo.LatentDataset", "latents.dataset.LatentDataset", "x.LatentDataset"])
def test_classes_of_this_package_are_looked_for(configuration, tmp_path, target):
    changes = {"data.target": f"sat_ssvae.{target}", "model.latent_input": True}
    files = configuration("cogvideox_2b_5b", changes | latents(tmp_path / "a", 49, (480, 720)))
    assert [str(found.reason) for found in check(files)] == (
        ["sat_ssvae.x has no LatentDataset"] if "x." in target else []
    )


def test_a_copy_in_sgm_is_not_found_by_the_name_of_the_installed_package(configuration, monkeypatch):
    config = SATConfig(merge_configs(configuration("cogvideox_2b_5b")))
    assert find_broken_sections(config, None) == []
    monkeypatch.setitem(sys.modules, "sat_ssvae", None)  # as where it is not installed
    (found,) = find_broken_sections(config, None)
    assert (found.key, found.expected) == (
        "model.first_stage_config.target",
        "sgm.sat_ssvae.cogvideo.SSVAEFirstStage",
    )
    assert "give copied.yaml last" in found.reason


def test_misspelt_keys_that_cogvideox_ignores_are_noted(tmp_path):
    (tmp_path / "diffusion_video.py").write_text('scale_factor = model_config.get("scale_factor", 1.0)')
    values = {"modle": {}, "model": {"scale_factr": 0.7, "mine": 1}, "args": None}
    notes = find_misspelt(SATConfig(values), tmp_path)
    assert [note.split(" ")[0] for note in notes] == ["modle", "model.scale_factr"]
    assert "did you mean `scale_factor`?" in notes[1]
    assert find_misspelt(SATConfig(values), None) == []


def test_another_transformer_has_parts_of_its_own(configuration):
    changes = {
        "model.network_config.target": "mine.Transformer",
        f"{NETWORK}.num_attention_heads": 7,
        f"{NETWORK}.modules.final_layer_config": None,
    }
    assert check(configuration("cogvideox_2b_5b", changes)) == []


@pytest.mark.parametrize("target", ["x.SSVAEFirstStage", "sat_ssvae.SSVAEFirstStage", "sat_ssvae.cogvideo.Other"])
def test_a_first_stage_from_elsewhere_is_refused(configuration, target):
    with pytest.raises(UserError, match=r"first_stage_config.target is .* give an overlay"):
        check(configuration("cogvideox_2b_5b", {"model.first_stage_config.target": target}))


def test_parameters_of_the_first_stage_are_a_mapping(configuration, tmp_path):
    files = configuration("cogvideox_2b_5b")
    files[-1].write_text("model: {first_stage_config: {params: text}}")
    with pytest.raises(UserError, match=r"first_stage_config.params is 'text', must be a mapping"):
        check(files)
