"""SAT's transformers as pipelines of diffusers: their outputs are those that the real SAT code computed."""

import json
import subprocess
import sys

import diffusers
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import T5Config, T5EncoderModel

import sat_ssvae.diffusers
from sat_ssvae import SSVAE, UserError
from sat_ssvae.cli import main
from sat_ssvae.cogvideo.export import build_scheduler, build_transformer
from sat_ssvae.cogvideo.sat_config import SATConfig, merge_configs
from sat_ssvae.cogvideo.sat_transformer import write_transformer

from .processes import unmeasured
from .stock_configurations import OVERLAYS
from .test_project import ROOT
from .tiny_transformers import GRID, drawn, inputs, layer, stock_layer
from .tiny_transformers import OVERLAYS as OURS

RECORDED = ROOT / "tests" / "data" / "reference"
SPACE = 16
WITHOUT_TEXT = {"tokenizer": None, "text_encoder": None}  # diffusers asks for it when a folder has none


def recorded(stock):
    """What SAT computed, and the transformer's tensors by their names in SAT's checkpoint."""
    path = RECORDED / f"sat_{stock}.safetensors"
    with safe_open(path, "pt") as file:
        names = json.loads(file.metadata()["names"])
    tables = ("freqs_sin", "freqs_cos") if "i2v" in stock else ("freqs_sin", "freqs_cos", "pos_embedding")
    weights = {name: drawn(name, shape) for name, shape in names.items() if not name.endswith(tables)}
    return load_file(path), weights


@pytest.fixture
def training(narrow_vae, tmp_path):
    """The folder that a training left: the merged configuration, and a checkpoint with drawn weights."""

    def build(stock, more=None):
        vae = {"model": {"first_stage_config": {"params": {"ckpt_path": str(narrow_vae)}}}}
        files = [tmp_path / f"{number}.yaml" for number in range(3)]
        for file, values in zip(files, (stock_layer(stock), layer(stock), vae), strict=True):
            file.write_text(yaml.safe_dump(values))
        files[1:1] = [OVERLAYS / f"{overlay}.yaml" for overlay in OURS[stock]]
        _, weights = recorded(stock)
        folder = tmp_path / "run"
        write_transformer(weights | (more or {}), folder)
        values = merge_configs(files)
        (folder / "training_config.yaml").write_text(yaml.safe_dump(values))
        return folder, SATConfig(values), weights

    return build


def predict(transformer, config):
    """What a pipeline of diffusers asks of its transformer."""
    x, steps, text = inputs(config.required_network("in_channels"))
    rotary = None
    if transformer.config.use_rotary_positional_embeddings:
        pipeline = diffusers.CogVideoXPipeline(None, None, None, transformer, None)
        pipeline.vae_scale_factor_spatial = SPACE
        height, width = (SPACE * size for size in GRID)
        rotary = pipeline._prepare_rotary_positional_embeddings(height, width, x.shape[1], torch.device("cpu"))
    return transformer(x, text, steps, image_rotary_emb=rotary, return_dict=False)[0]


@torch.no_grad()
@pytest.mark.parametrize("stock", OURS)
def test_outputs_are_those_of_sat(training, stock):
    _, config, weights = training(stock)
    computed, _ = recorded(stock)
    output = predict(build_transformer(config, weights, SPACE), config)
    assert output.shape == computed["output"].shape
    assert computed["output"].std() > 0.1
    torch.testing.assert_close(output, computed["output"], rtol=2e-5, atol=2e-5 * float(computed["output"].abs().max()))


@pytest.mark.parametrize("stock", OURS)
def test_the_noise_schedule_is_sats(training, stock):
    _, config, _ = training(stock)
    signal = build_scheduler(config).alphas_cumprod.sqrt().float()
    torch.testing.assert_close(signal, recorded(stock)[0]["signal"], rtol=1e-4, atol=1e-5)


def export(folder, output, *more):
    return main(["cogvideo", "export", str(folder), str(output), *more])


def sample(pipeline, **more):
    """Two steps of a small video."""
    _, _, text = inputs(1)
    states = {"prompt_embeds": text[:1], "negative_prompt_embeds": 0 * text[:1], "max_sequence_length": text.shape[1]}
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipeline(**states, num_inference_steps=2, generator=generator, output_type="np", **more).frames


@pytest.mark.slow
@pytest.mark.parametrize("stock", ["cogvideox_2b", "cogvideox_5b", "cogvideox1.5_5b"])
def test_a_pipeline_opens_and_makes_videos_of_the_trained_size(training, narrow_vae, tmp_path, capsys, stock):
    folder, config, weights = training(stock)
    assert export(folder, tmp_path / "pipeline", "--text_encoder", "none") == 0
    assert "CogVideoXPipeline.from_pretrained(FOLDER, tokenizer=None, text_encoder=None)" in capsys.readouterr().out
    pipeline = diffusers.CogVideoXPipeline.from_pretrained(tmp_path / "pipeline", **WITHOUT_TEXT)
    assert isinstance(pipeline.vae, sat_ssvae.diffusers.AutoencoderSSVAE)
    assert torch.equal(pipeline.vae.ssvae.mask_token, SSVAE.from_pretrained(narrow_vae).mask_token)
    with torch.no_grad():
        own = predict(build_transformer(config, weights, SPACE), config)
        torch.testing.assert_close(predict(pipeline.transformer, config), own)
    assert sample(pipeline).shape == (1, 5, *(SPACE * size for size in GRID), 3)


@pytest.mark.slow
@pytest.mark.parametrize("stock", ["cogvideox_5b_i2v", "cogvideox1.5_5b_i2v"])
def test_image_to_video_has_its_own_pipeline(training, tmp_path, capsys, stock):
    folder, _, _ = training(stock)
    assert export(folder, tmp_path / "pipeline", "--text_encoder", "none") == 0
    assert "CogVideoXImageToVideoPipeline" in capsys.readouterr().out
    pipeline = diffusers.CogVideoXImageToVideoPipeline.from_pretrained(tmp_path / "pipeline", **WITHOUT_TEXT)
    height, width = (SPACE * size for size in GRID)
    frames = sample(pipeline, image=Image.new("RGB", (width, height), (200, 40, 40)), num_frames=5)
    assert frames.shape == (1, 5, height, width, 3)
    if "1.5" in stock:  # as docs/cogvideox.md says: the table of positions has room for other forms
        pipeline.transformer.register_to_config(sample_height=8, sample_width=8)
        portrait = {"height": width, "width": height}
        frames = sample(pipeline, image=Image.new("RGB", (height, width)), num_frames=5, **portrait)
        assert frames.shape == (1, 5, width, height, 3)


WORDS = "a red bar moves over blue sea while green hills shine and birds fly in the light of evening"


@pytest.mark.slow
def test_the_text_encoder_is_the_configurations(training, tmp_path):
    import sentencepiece

    folder, _, _ = training("cogvideox_2b")
    t5 = tmp_path / "t5"
    T5EncoderModel(T5Config(vocab_size=128, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)).save_pretrained(t5)
    words = WORDS.split()
    texts = iter([" ".join(words[i:] + words[:i]) for i in range(len(words))])
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    sizes = {"vocab_size": 60, "hard_vocab_limit": False, "minloglevel": 2}
    trainer = sentencepiece.SentencePieceTrainer
    trainer.train(sentence_iterator=texts, model_prefix=str(t5 / "spiece"), **sizes, **ids)
    embedder = {"target": "sgm.modules.encoders.modules.FrozenT5Embedder", "params": {"model_dir": str(t5)}}
    named = tmp_path / "named.yaml"
    named.write_text(yaml.safe_dump({"model": {"conditioner_config": {"params": {"emb_models": [embedder]}}}}))
    base = ["--base", str(folder / "training_config.yaml"), str(named)]
    assert export(folder / "release", tmp_path / "pipeline", *base) == 0  # the folder of one iteration
    pipeline = diffusers.CogVideoXPipeline.from_pretrained(tmp_path / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline("a red bar", max_sequence_length=3, num_inference_steps=1, output_type="np").frames
    assert made.shape == (1, 5, *(SPACE * size for size in GRID), 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.diffusion_model.mixins.swiglu.w2.0.weight": (4, 4)}, "has no such part; it cannot be exported"),
        ({"model.diffusion_model.mixins.pos_embed.pos_embedding": (1, 3 + 2 * 24, 32)}, "is not the table that"),
        ({"model.diffusion_model.transformer.layers.2.attention.dense.weight": (32, 32)}, "does not fit the config"),
        (
            {"model.diffusion_model.mixins.final_layer.linear.bias": (64,)},
            "proj_out.bias does not fit the config",
        ),
    ],
)
def test_what_diffusers_cannot_have_is_refused_in_one_line(training, tmp_path, change, message):
    _, config, weights = training("cogvideox_2b")
    wrong = weights | {name: torch.randn(shape) for name, shape in change.items()}
    with pytest.raises(UserError, match=message) as caught:
        build_transformer(config, wrong, SPACE)
    assert "\n" not in str(caught.value)


def test_names_of_another_form_are_told_apart_from_another_configuration(training):
    _, config, weights = training("cogvideox_2b")
    with pytest.raises(
        UserError, match=r"no transformer: no tensor's name begins with model.diffusion_model\. \(one is"
    ):
        build_transformer(config, {f"module.{name}": value for name, value in weights.items()}, SPACE)


@pytest.mark.parametrize(
    ("stock", "name", "change", "message"),
    [
        ("cogvideox_2b", "attention.dense.weight", torch.Tensor.char, r"weight holds torch\.int8; give weights in"),
        ("cogvideox_2b", "adaLN_modulations.0.1.bias", lambda value: value[1:], "bias has 383 rows, must have those"),
        ("cogvideox_2b_lora", "dense.matrix_A.0", lambda value: value[1:], "dense: its LoRA matrices do not fit its"),
        ("cogvideox_2b_lora", "dense.matrix_B.0", lambda value: value[1:], "dense: its LoRA matrices do not fit its"),
    ],
)
def test_tensors_of_another_form_are_one_line(training, stock, name, change, message):
    _, config, weights = training(stock)
    found = next(key for key in weights if key.endswith(name))
    with pytest.raises(UserError, match=message):
        build_transformer(config, weights | {found: change(weights[found])}, SPACE)


LIMITED = """
import resource, signal, sys
from sat_ssvae.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_leaves_nothing_behind(training, tmp_path):
    """What is half there would be refused as existing by the next run."""
    folder, _, _ = training("cogvideox_2b")
    output = tmp_path / "output"
    base = ["--base", str(folder / "training_config.yaml")]
    for command in (["export", "--text_encoder", "none"], ["adapt"]):
        arguments = [sys.executable, "-c", LIMITED, "cogvideo", command[0], folder, output, *base, *command[1:]]
        arguments = list(map(str, arguments))
        done = subprocess.run(arguments, capture_output=True, text=True, check=False, env=unmeasured())
        assert done.returncode == 2, done.stderr
        last = done.stderr.splitlines()[-1]
        assert last.startswith(f"error: {output}") and "cannot be written (" in last and last.endswith("; make room")
        assert not list(tmp_path.glob("output*"))


def test_weights_in_float8_are_taken(training):
    _, config, weights = training("cogvideox_2b")
    small = {name: value.to(torch.float8_e4m3fn) for name, value in weights.items()}
    assert build_transformer(config, small, SPACE).proj_out.weight.dtype == torch.float8_e4m3fn


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_training_that_diverged_is_not_exported(training, value):
    _, config, weights = training("cogvideox_2b")
    name = "model.diffusion_model.transformer.layers.1.attention.dense.bias"
    weights[name] = weights[name].index_fill(0, torch.tensor(3), value)
    with pytest.raises(UserError, match=r"attn1\.to_out\.0\.bias holds NaN or infinity, so the training diverged"):
        build_transformer(config, weights, SPACE)


VOCABULARY = [["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], ["\u2581", -1.0]]
TOKENIZER = json.dumps(
    {"version": "1.0", "added_tokens": [], "model": {"type": "Unigram", "vocab": VOCABULARY, "unk_id": 2}}
)


def test_wrong_folders_are_one_line(training, tmp_path, capsys):
    folder, _, _ = training("cogvideox_2b")

    def refused(*arguments):
        with pytest.raises(SystemExit):
            export(*arguments)
        return capsys.readouterr().err

    assert "holds `latest`" in refused(tmp_path, tmp_path / "pipeline")
    assert "nowhere: no such folder of T5" in refused(folder, tmp_path / "out", "--text_encoder", "nowhere")
    t5 = tmp_path / "t5"
    T5EncoderModel(T5Config(vocab_size=128, d_model=16, d_kv=4, d_ff=8, num_layers=1, num_heads=2)).save_pretrained(t5)
    assert "holds no spiece.model or tokenizer.json" in refused(folder, tmp_path / "out", "--text_encoder", str(t5))
    (t5 / "tokenizer.json").write_text("{}")
    assert "t5: not readable as a folder of T5" in refused(folder, tmp_path / "out", "--text_encoder", str(t5))
    (t5 / "tokenizer.json").write_text(TOKENIZER)
    message = "the text encoder's states have 16 channels, the transformer takes 8; give"
    assert message in refused(folder, tmp_path / "out", "--text_encoder", str(t5))
    assert f"{tmp_path}: exists already" in refused(folder, tmp_path, "--text_encoder", "none")
    (folder / "training_config.yaml").unlink()
    assert "training_config.yaml: no such configuration file" in refused(folder, tmp_path / "out")


@torch.no_grad()
def test_the_offset_embedding_of_image_to_video_1_5_is_taken_along(training):
    folder, config, weights = training("cogvideox1.5_5b")
    size = config.network("time_embed_dim") or config.required_network("hidden_size")
    names = [f"model.diffusion_model.ofs_embed.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")]
    offsets = {name: torch.randn((size, size) if name.endswith("weight") else (size,)) for name in names}
    with pytest.raises(UserError, match="does not fit the configuration"):
        build_transformer(config, weights | offsets, SPACE)
    offset = {"model": {"network_config": {"params": {"ofs_embed_dim": size}}}}
    (folder / "offset.yaml").write_text(yaml.safe_dump(offset))
    config = SATConfig(merge_configs([folder / "training_config.yaml", folder / "offset.yaml"]))
    transformer = build_transformer(config, weights | offsets, SPACE)
    assert torch.equal(transformer.ofs_embedding.linear_2.weight, offsets[names[2]])
    x, steps, text = inputs(config.required_network("in_channels"))
    pipeline = diffusers.CogVideoXPipeline(None, None, None, transformer, None)
    pipeline.vae_scale_factor_spatial = SPACE
    tables = pipeline._prepare_rotary_positional_embeddings(*(SPACE * side for side in GRID), x.shape[1], x.device)
    shown = [transformer(x, text, steps, ofs=torch.tensor([v]), image_rotary_emb=tables)[0] for v in (2.0, 7.0)]
    assert not torch.equal(*shown)
