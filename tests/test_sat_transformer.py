"""Transformers of CogVideoX: their shapes, copies for other latents, and damaged ones."""

from pathlib import Path

import numpy
import pytest
import torch

from sat_ssvae import UserError
from sat_ssvae.cli import main
from sat_ssvae.cogvideo.sat_config import SATConfig, merge_configs
from sat_ssvae.cogvideo.sat_transformer import adapt, read_transformer

from .stock_configurations import NETWORK, OVERLAYS, POSITIONS, check


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


def test_the_adapt_command(configuration, transformer, tmp_path, capsys):
    files = map(str, configuration("cogvideox_2b_5b"))
    assert main(["cogvideo", "adapt", str(transformer), str(tmp_path / "out"), "--base", *files]) == 0
    assert "left out model.diffusion_model.mixins.patch_embed.proj.weight: (64, 16, 2, 2)" in capsys.readouterr().out


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
    torch.save({"module": {"w": torch.zeros(9)}}, path)
    whole = path.read_bytes()
    for damaged in (b"PK damaged", whole[: len(whole) // 2], b"", b"abc" * 9):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"^[^(]*: not a readable checkpoint of SAT, damaged or incomplete"):
            read_transformer(tmp_path)
    torch.save({"weights": {}}, path)
    with pytest.raises(UserError, match="under `module`"):
        read_transformer(tmp_path)
    torch.save({"module": {}}, path)
    (tmp_path / "1" / "mp_rank_01_model_states.pt").touch()
    with pytest.raises(UserError, match="split by model parallelism"):
        read_transformer(tmp_path)
    (tmp_path / "1" / "mp_rank_01_model_states.pt").unlink()
    torch.save({"module": {}, "np_rng_state": numpy.ones(2)}, path)
    with pytest.raises(UserError, match=r"train with args\.no_save_rng: true"):
        read_transformer(tmp_path)


def test_torchs_older_format_is_read_as_sat_reads_it(transformer):
    path = transformer / "1" / "mp_rank_00_model_states.pt"
    expected = {name: value.clone() for name, value in read_transformer(transformer).items()}
    torch.save({"module": expected}, path, _use_new_zipfile_serialization=False)
    torch.testing.assert_close(read_transformer(transformer), expected)
    whole = path.read_bytes()
    for size in (len(whole) // 2, 300, 40):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"not a readable checkpoint of SAT, damaged or incomplete; copy it again$"):
            read_transformer(transformer)


@pytest.mark.parametrize("written", [b"7", b"", "1".encode("utf-16"), b"\xef\xbb\xbf1", b"1\n2\n"])
def test_an_iteration_that_is_not_there_is_named_with_those_that_are(transformer, written):
    (transformer / "latest").write_bytes(written)
    with pytest.raises(UserError, match=r"/latest names '.*', which is not there; there is 1$"):
        read_transformer(transformer)


def test_checkpoints_that_sat_does_not_load_until_they_are_copied(configuration, transformer, tmp_path):
    """SAT takes a number from `latest`: it loads no iteration's folder, and no 1-ema, the average of the weights."""
    sizes = SATConfig(merge_configs(configuration("cogvideox_2b_5b"))).transformer()
    adapt(transformer, tmp_path / "adapted", sizes)
    (tmp_path / "adapted" / "release").rename(tmp_path / "adapted" / "1-ema")
    (tmp_path / "adapted" / "latest").write_text("1-ema")
    for number, folder in enumerate(["adapted", "adapted/1-ema"]):
        (mismatch,) = check(configuration("cogvideox_2b_5b", {"args.load": str(tmp_path / folder)}))
        assert f"it takes a copy: sat-ssvae cogvideo adapt {tmp_path / folder} NEW --base FILES" in mismatch.reason
        adapt(tmp_path / folder, tmp_path / f"copy{number}", sizes)
        assert not check(configuration("cogvideox_2b_5b", {"args.load": str(tmp_path / f"copy{number}")}))


def test_what_is_no_transformer_of_sat_says_what_to_give(tmp_path):
    weights = {"model.diffusion_model.time_embed.0.weight": torch.zeros(2)}
    lora = {"model.diffusion_model.transformer.layers.0.attention.dense.matrix_A.0": torch.zeros(2, 2)}

    def refused(name, saved, given="", tensors=weights):
        path = tmp_path / name / saved
        path.parent.mkdir(parents=True)
        (tmp_path / name / "latest").write_text("1")
        torch.save({"module": tensors}, path)
        with pytest.raises(UserError) as raised:
            read_transformer(tmp_path / name / given)
        return str(raised.value)

    assert "ZeRO stage 3 has split" in refused("zero", "1/zero_pp_rank_0_mp_rank_00_model_states.pt")
    assert "these are diffusers' files" in refused("pipeline", "transformer/model.safetensors")
    assert "give the folder that holds `latest`" in refused("file", "1/mp_rank_00_model_states.pt", "latest")
    assert "LoRA matrices without the layers" in refused("lora", "1/mp_rank_00_model_states.pt", tensors=lora)
    dense = "model.diffusion_model.transformer.layers.0.attention.dense"
    half = {f"{dense}.original.weight": torch.zeros(2, 2), f"{dense}.matrix_B.0": torch.zeros(2, 2)}
    message = f"holds {dense}.matrix_B.0 without {dense}.matrix_A.0; give the whole model's"
    assert message in refused("half", "1/mp_rank_00_model_states.pt", tensors=half)
    named = refused("named", "1/mp_rank_00_model_states.pt", tensors={1: torch.zeros(2)})
    assert named.endswith("1 is no name of a tensor, as SAT writes it")
    number = refused("number", "1/mp_rank_00_model_states.pt", tensors=weights | {"step": 5})
    assert number.endswith("step is of type int, must be a tensor, as SAT writes it")
    assert "holds no tensors" in refused("empty", "1/mp_rank_00_model_states.pt", tensors={})


def test_a_checkpoint_in_which_sat_would_find_no_transformer(configuration, transformer, tmp_path):
    """Finetuning passes over names that it does not know, and would start at random."""
    path = transformer / "1" / "mp_rank_00_model_states.pt"
    module = torch.load(path, weights_only=True)["module"]
    torch.save({"module": {f"module.{name}": value for name, value in module.items()}}, path)
    files = configuration("cogvideox_2b_5b", {"args.load": str(transformer)})
    message = r"no tensor's name there begins with model\.diffusion_model\. \(one is module\.model\."
    with pytest.raises(UserError, match=message):
        adapt(transformer, tmp_path / "adapted", SATConfig(merge_configs(files)).transformer())
    assert [mismatch.key for mismatch in check(files)] == ["args.load"]


def test_a_relative_folder_that_is_not_there_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"there is no ckpts in {tmp_path}"):
        read_transformer(Path("ckpts"))


def test_an_adapted_transformer_starts_any_training_at_its_first_step(configuration, transformer, tmp_path):
    """SAT counts a folder named by a number as so many iterations of a pretraining; this name it does not."""
    adapt(transformer, tmp_path / "adapted", SATConfig(merge_configs(configuration("cogvideox_2b_5b"))).transformer())
    assert (tmp_path / "adapted" / "latest").read_text() == "release"
    assert read_transformer(tmp_path / "adapted").keys() < read_transformer(transformer).keys()
