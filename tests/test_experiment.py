"""The comparison from shards to report, at the smallest size; and the command line around it."""

import json

import pytest
import torch
from safetensors.torch import load_file

from sat_ssvae.cli import main
from sat_ssvae.commands.compare import parse_arms
from sat_ssvae.comparison.experiment import compare
from sat_ssvae.comparison.results import ComparisonResults
from sat_ssvae.comparison.run_index import RunIndex
from sat_ssvae.comparison.settings import ClipSource, CompareConfig
from sat_ssvae.comparison.verdict import judge, summary_table
from sat_ssvae.config import load_config, packaged, parse_config, read_yaml
from sat_ssvae.diffusion.transformer import DiTConfig
from sat_ssvae.errors import UserError
from sat_ssvae.evaluation.degradations import Degradation
from sat_ssvae.evaluation.restore import RestoreConfig, Restorer, restore
from sat_ssvae.latents.latent_set import LatentSet
from sat_ssvae.training.trainer import TrainConfig
from sat_ssvae.vae.config import SSVAEConfig

from . import foreign_models
from .small_comparison import ARMS, configured, settings

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def finished(tiny_shards, tmp_path_factory):
    output = tmp_path_factory.mktemp("comparison")
    source = ClipSource.separate(tiny_shards, tiny_shards, "bars: made by the tests")
    return output, source, compare(configured(seeds=[0, 1]), output, CPU, "sat-ssvae compare", source)[0]


def modified(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}


def test_everything_is_measured_for_every_arm_and_seed(finished):
    _, _, results = finished
    assert [arm.name for arm in results.arms] == ["stock", "ssvae"]
    names = set(results.metrics)
    assert {"loss", "loss_above_floor"} <= names
    for kind in ("real", "reconstruction"):
        assert {f"kernel_distance_{kind}/{features}" for features in ("frame", "clip")} <= names
        assert {f"denoising_error_{kind}/{t:g}" for t in (0.3, 0.5, 0.7, 0.9)} <= names
    for arm in results.arms:
        assert {"psnr", "ssim", "stlpips"} <= set(arm.reconstruction)
        for metric in names:
            for seed in (0, 1):
                assert [point.step for point in results.curve(arm.name, seed, metric)] == [1, 3]
        assert [f for f, _ in arm.spatial_spectrum] == sorted({f for f, _ in arm.spatial_spectrum})
        assert arm.spatial_spectrum and all(0 < f < 0.5 and a > 0 for f, a in arm.spatial_spectrum)
        assert arm.dct_amplitude[0] == 1 and arm.explained_variance[-1] == pytest.approx(1)
        assert arm.floors["loss"].value > 0
    assert set(results.arm("ssvae").reconstruction_difference) == {"psnr", "ssim", "stlpips"}


def test_seeds_change_the_transformer_and_arms_see_equal_draws(finished):
    _, _, results = finished
    first, second = (results.curve("stock", seed, "loss")[0].value for seed in (0, 1))
    assert first != second


def test_the_report_is_complete(finished):
    output, _, results = finished
    report = output / "report"
    html = (report / "report.html").read_text()
    assert "bars: made by the tests" in html and "http" not in html.replace("http://www.w3.org", "")
    assert html.count(" dB</figcaption>") == 2 * results.configuration["scoring"]["shown_clips"]  # each arm's PSNR
    assert results.provenance.heldout
    assert sum(results.provenance.heldout.values()) == results.measurement["held-out clips"]
    assert ComparisonResults.from_json((report / "results.json").read_text()) == results
    assert (report / "curves.csv").read_text().startswith("arm,vae_seed,seed,metric,step,value")
    assert list((report / "samples").rglob("*.mp4"))


def test_arms_that_have_learned_nothing_are_not_judged(finished):
    """After two steps an autoencoder does not beat the clips' mean colour; the smoke preset says what it is worth."""
    output, _, results = finished
    verdict = judge(results)[0]
    assert verdict.conclusion == "not judgeable" and "explains less than half of the clips' variance" in verdict.text
    page = (output / "report" / "report.html").read_text()
    assert "not judgeable" in page and "proves nothing" in page
    summary = summary_table(results, [verdict])
    assert summary.startswith("The smoke preset shows that every stage runs and proves nothing")
    assert "speed-up" not in summary


def test_finished_stages_are_not_redone(finished, caplog):
    output, source, results = finished
    before = modified(output)
    caplog.set_level("INFO")
    again, _ = compare(configured(seeds=[0, 1]), output, CPU, "sat-ssvae compare", source)
    (plan,) = (message for message in caplog.messages if message.startswith("plan: 9 stages, about 1 min left in all"))
    assert plan.count(" (done)") == 8 and plan.endswith("\n  9. report (about 1 min)")
    assert "stage 9 of 9: report; about 1 min left in all" in caplog.messages
    assert modified(output) == before
    assert again.curves == results.curves


def test_a_changed_transformer_keeps_the_autoencoders(finished):
    output, source, _ = finished
    before = modified(output)
    transformer = settings()["transformer"] | {"width": 48, "heads": 1, "evaluation_steps": [3]}
    compare(configured(transformer=transformer), output, CPU, "sat-ssvae compare", source)
    after = modified(output)
    assert {path: after[path] for path in before} == before
    new = {path.relative_to(output).parts[0] for path in set(after) - set(before)}
    assert new == {"transformer"}


def test_existing_weights_are_an_arm(finished, tmp_path):
    output, source, results = finished
    (weights,) = (output / "vae").glob("ssvae-*/vae")
    arms = {"stock": ARMS["stock"], "mine": {"checkpoint": str(weights)}}
    again, _ = compare(configured(arms=arms), tmp_path, CPU, "sat-ssvae compare", source)
    assert again.arm("mine").reconstruction == results.arm("ssvae").reconstruction
    assert again.measurement["autoencoders"] == "one per arm that is trained here and seed: 0"
    assert [path.name.split("-")[0] for path in (tmp_path / "vae").iterdir()] == ["stock"]


def test_finished_transformers_are_listed_for_restoring(finished, tiny_videos, tmp_path):
    output, _, _ = finished
    listed = {(one.arm, one.seed) for one in RunIndex.read(output).transformers}  # of the last run there
    assert listed >= {("stock", 0), ("ssvae", 0)}
    restorer = Restorer.open(output, "ssvae", 0, CPU)
    assert restorer.model.config.text_dim == 384 and restorer.clips.num_frames == 5
    latents = LatentSet.load(next((output / "latents").glob("ssvae-*")) / "train.safetensors")
    torch.testing.assert_close(restorer.stats.mean, latents.statistics.mean)
    config = RestoreConfig(perceptual="none", steps=1)
    noise = Degradation.parse("noise:20")
    report = restore(restorer, tiny_videos / "bars1.mp4", tmp_path, config, noise)
    (video,) = report.videos
    assert video.frames == 16 and video.scores["degraded"]["psnr"] > video.scores["strength 0.3"]["psnr"]


def assert_only_the_decoder_learned(folder, label):
    """In the second of two stages."""
    files = (next(folder.glob(f"{label}-stage{n}-*")) / "vae" / "model.safetensors" for n in (1, 2))
    one, two = map(load_file, files)
    same = {name: torch.equal(one[name], two[name]) for name in one}
    assert all(same[name] for name in one if name.startswith("encoder."))
    assert not all(same[name] for name in one if name.startswith("decoder."))


@pytest.mark.slow
def test_stages_autoencoder_seeds_and_shifts(tiny_shards, tmp_path):
    """Two stages, the second for the decoder alone; two autoencoders an arm; each arm chooses its shift."""
    source = ClipSource.separate(tiny_shards, tiny_shards)
    small = settings(vae_seeds=[0, 7], shifts=[1.0, 3.0], shift_seed=99)
    small["scoring"] |= {"samples": 4, "denoising_clips": 2, "noise_levels": [0.5]}
    small["arms"] = {
        "stock": ARMS["stock"] | {"stages": [{}, {"max_steps": 1, "freeze_encoder": True, "lr": 1e-2}]},
        "ssvae": {"stages": [{}, {"max_steps": 1, "freeze_encoder": True, "lr": 1e-2, "lmr_mask_ratio": 0.0}]},
    }
    config = parse_config(CompareConfig, small)
    results, _ = compare(config, tmp_path, CPU, "sat-ssvae compare", source)
    assert results.runs == ((0, 0), (7, 0)) and results.budget["autoencoder steps"] == {"stock": 3, "ssvae": 3}
    for arm in ("stock", "ssvae"):
        first, second = (results.curve(arm, 0, "loss", vae_seed) for vae_seed in (0, 7))
        assert [point.step for point in first] == [point.step for point in second] == [1, 3] and first != second
        chosen = results.arm(arm).training["timestep shift"]
        assert chosen in (1.0, 3.0)
        listed = [one for one in RunIndex.read(tmp_path).transformers if one.arm == arm]
        assert {(one.vae_seed, one.seed, one.diffusion.shift) for one in listed} == {(0, 0, chosen), (7, 0, chosen)}
        for vae_seed in (0, 7):
            assert_only_the_decoder_learned(tmp_path / "vae", f"{arm}-vae{vae_seed}")
        own = ComparisonResults.from_json((tmp_path / f"report/shifts-{arm}/results.json").read_text())
        assert [one.name for one in own.arms] == [f"{arm}, shift 1", f"{arm}, shift 3"]
        assert (own.seeds, own.vae_seeds) == ((99,), (0,))
        assert own.curve(own.arms[0].name, 99, "loss") != own.curve(own.arms[1].name, 99, "loss")
    searched = list((tmp_path / "transformer").glob("*-seed99-*"))
    assert len(searched) == 4  # two shifts of each arm's first autoencoder
    before = modified(tmp_path)
    again, _ = compare(config, tmp_path, CPU, "sat-ssvae compare", source)
    assert again.curves == results.curves
    assert modified(tmp_path) == before
    fewer, _ = compare(config.model_copy(update={"vae_seeds": (0,)}), tmp_path, CPU, "sat-ssvae compare", source)
    assert fewer.curves == tuple(point for point in results.curves if point.vae_seed == 0)
    assert modified(tmp_path) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vae_seeds": [0, 1], "arms": ARMS | {"given": {"checkpoint": "x"}}}, "arm given is not trained here"),
        ({"arms": ARMS | {"third": {"settings": {"seed": 3}}}}, "`seed` is given by vae_seeds"),
        ({"seeds": [5], "shifts": [1, 2], "shift_seed": 5}, "shift_seed = 5 is one of `seeds`"),
        ({"shifts": [0]}, "shifts"),
    ],
)
def test_seeds_and_shifts_that_do_not_fit(changes, message):
    with pytest.raises(UserError, match=message):
        configured(**changes)


def test_shifts_are_those_of_flow_matching():
    transformer = settings()["transformer"] | {"diffusion": {"kind": "v_prediction"}}
    with pytest.raises(UserError, match="shifts are those of flow matching"):
        configured(shifts=[1, 2], transformer=transformer)


def with_given_arms(places):
    """A comparison of the stock autoencoder with given ones."""
    small = settings()
    small["data"] |= {"num_frames": 9, "heldout_stride": 0.2, "max_heldout": 10}
    small["transformer"] |= {"evaluation_steps": [3]}
    small["scoring"] |= {"samples": 4, "denoising_clips": 2, "noise_levels": [0.5]}
    arms = {"stock": ARMS["stock"]} | {kind: {"checkpoint": place} for kind, place in places.items()}
    return parse_config(CompareConfig, small | {"arms": arms})


@pytest.mark.slow
def test_autoencoders_of_other_kinds_are_arms(tiny_shards, tmp_path):
    """Of other compression in space and in time; nothing is redone but what another model at its place changes."""
    foreign_models.save_all(tmp_path / "models")
    places = {kind: f"{kind}:{tmp_path / 'models' / kind}" for kind in ("cogvideox", "wan2.2", "modelscope")}
    output, source = tmp_path / "run", ClipSource.separate(tiny_shards, tiny_shards)
    config = with_given_arms(places)
    results, _ = compare(config, output, CPU, "sat-ssvae compare", source)
    for kind, place in places.items():
        arm = results.arm(kind)
        assert set(arm.reconstruction) >= {"psnr", "ssim", "stlpips"} and arm.dct_amplitude and arm.explained_variance
        assert arm.vae["class"].startswith("Autoencoder") and arm.training == {
            "checkpoint": place,
            "autoencoder": place,
        }
        for metric in results.metrics:
            assert [point.step for point in results.curve(kind, 0, metric)] == [3]
    assert results.budget["autoencoder steps"] == {"stock": 2}
    assert any("wan2.2 3x2x2 in patches of 1x1x1" in warning for warning in results.warnings)
    by_arm = {verdict.candidate: verdict for verdict in judge(results)}
    assert by_arm["wan2.2"].conclusion == "not judgeable"  # random weights, whatever the distances say
    page = (output / "report" / "report.html").read_text()
    assert "Not trained here: cogvideox, wan2.2, modelscope" in page and "latents differ in size" in page
    saved = [json.loads(path.read_text()) for path in (output / "transformer").glob("*/dit.yaml")]
    assert {tuple(DiTConfig(**sizes).grid) for sizes in saved} == {(3, 2, 2)}
    assert ComparisonResults.from_json((output / "report" / "results.json").read_text()) == results
    restorer = Restorer.open(output, "wan2.2", None, CPU)
    assert restorer.model.config.latent_size == (3, 2, 2)
    before = modified(output)
    model = foreign_models.modelscope()
    model.decoder.conv_out.weight.data.mul_(0.5)
    model.save_pretrained(tmp_path / "models" / "modelscope")
    with pytest.raises(UserError, match="not the weights that the transformer of arm modelscope"):
        Restorer.open(output, "modelscope", None, CPU)
    again, _ = compare(config, output, CPU, "sat-ssvae compare", source)
    after = modified(output)
    assert {path: after[path] for path in before} == before
    assert {path.relative_to(output).parts[1].split("-")[0] for path in set(after) - set(before)} == {"modelscope"}
    assert again.arm("wan2.2") == results.arm("wan2.2") and again.arm("modelscope") != results.arm("modelscope")


def test_arms_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    arms = parse_arms(
        ["a=stock", "b=own", "c=ssvae:w.pth", "d=wan2.2:Wan-AI/x", "e=gone.safetensors", "f=modelscope:own"]
    )
    assert {name: arm["checkpoint"] for name, arm in arms.items()} == {
        "a": None, "b": "own", "c": "w.pth", "d": "wan2.2:Wan-AI/x", "e": "gone.safetensors", "f": "modelscope:own",
    }  # fmt: skip
    assert arms["c"]["settings"]["lcr_weight"] == 0.05 and "settings" not in arms["d"]


def test_stages_in_an_arms_own_file(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("lcr_weight: 0.1\nstages:\n  - {max_steps: 3}\n  - {max_steps: 2, freeze_encoder: true}\n")
    arms = parse_arms(["stock=stock", f"own={own}"])
    assert arms["own"]["settings"] == {"lcr_weight": 0.1}
    config = configured(arms=arms)
    assert [dict(stage) for stage in config.arms["own"].stages] == [
        {"max_steps": 3},
        {"max_steps": 2, "freeze_encoder": True},
    ]
    assert config.arms["stock"].stages == ()


def test_captions_condition_the_transformer(finished):
    """`tiny_shards` has one caption, so text is on; without any, the transformer has no text."""
    output, _, _ = finished
    models = list((output / "transformer").glob("*/dit.yaml"))
    assert models and all(json.loads(model.read_text())["text_dim"] == 384 for model in models)


def test_every_preset_and_packaged_arm_is_valid():
    for preset in ("smoke", "default", "full"):
        arms = {path.stem: {"settings": read_yaml(path)} for path in packaged("arms").glob("*.yaml")}
        config = load_config(CompareConfig, packaged(f"compare_{preset}.yaml"), replace={"arms": arms})
        for name, arm in config.arms.items():
            data = {"path": "x", **config.data.model_dump(include={"num_frames", "fps", "resolution"})}
            training = parse_config(TrainConfig, {**config.vae, **arm.settings, "data": data}, source=name)
            assert training.max_steps == config.vae.get("max_steps", TrainConfig.model_fields["max_steps"].default)
    stages = {"ch48_LCR_LMR_256p": 150_000, "ch48_LCR_LMR_512p": 50_000, "ch48_LCR_LMR_1080p": 30_000}
    stages |= {"published_256p": 150_000, "published_512p": 50_000, "ch48_LCR_LMR_256p_low_data": 150_000}
    for name, steps in stages.items():
        first = "256p" in name
        given = [] if first else ["resume_from=runs/stage1/latest.pth"]
        published = name.startswith("published")
        given += ["data.sources.0.path=x", "data.sources.1.path=y"] if published else ["data.path=x"]
        config = load_config(TrainConfig, packaged(f"{name}.yaml"), given)
        assert config.model == SSVAEConfig() and config.max_steps == steps and config.freeze_encoder != first
        for size in config.data.sizes:
            assert size[0] % 16 == size[1] % 16 == 0
    places = ["data.path=x", "monitor.path=y"]
    first_stage = load_config(TrainConfig, packaged("tiny_48p.yaml"), places)
    second_stage = load_config(TrainConfig, packaged("tiny_96p.yaml"), [*places, "resume_from=z"])
    assert second_stage.model == first_stage.model and second_stage.freeze_encoder


@pytest.mark.parametrize("name", ["data.resolution", "resolution"])
@pytest.mark.parametrize("written", ["resolution: 96", "data: {resolution: 96}"])
def test_what_is_typed_counts_whichever_of_two_names_the_file_has(tmp_path, name, written):
    path = tmp_path / "run.yaml"
    path.write_text(written)
    config = load_config(TrainConfig, path, ["data.path=x", f"{name}=64", "model.latent_channels=8"])
    assert config.data.resolution == 64 and config.model.latent_channels == 8
    with pytest.raises(UserError, match=r"settings: `data.resolution.int` = 'much'"):
        load_config(TrainConfig, path, ["data.path=x", f"{name}=much"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "--data", "nowhere"], "nowhere: no such folder of videos or shards"),
        (["compare", "--vae", "stock"], "expected NAME=CONFIG[:CHECKPOINT]"),
        (["compare", "--vae", "a=stock"], "a comparison needs two arms or more"),
        (["compare", "--vae", "a=stock", "--vae", "b=nothing.yaml"], "nothing.yaml: no such configuration file"),
        (["compare", "transformer.widht=3"], "unknown key `transformer.widht`, did you mean `transformer.width`?"),
        (["compare", "seeds"], "`seeds` is a setting, settings are key=value: seeds=..."),
        (["compare", "--vae", "a=stock", "--vae", "b=stock:gone.pth", "--data", "."], "arm b: gone.pth: no such ch"),
        (["compare", "--vae", "a=stock", "--vae", "b=someone:x"], "`someone` is no file and not packaged, config"),
        (["compare", "--vae", "a=stock", "--vae", "b=wan2.1:/gone"], "arm b: /gone: no such folder"),
        (
            ["train", "--config", "ch48_LCR_LMR_256p", "--name", "x"],
            "`data.path` must be given, for example data.path=...",
        ),
        (["train", "--config", "published_512p", "--name", "x", "data.path=x"], "`resume_from` must be given"),
        (
            ["train", "--config", "tiny_48", "--name", "x"],
            "tiny_48: no such configuration file; did you mean `tiny_48p`?",
        ),
        (["pack", "nothing.mp4", "--output", "out"], "nothing.mp4"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert message in error and error.count("error:") == 1 and "Traceback" not in error


def test_unknown_training_keys_of_an_arm_are_named_before_anything_is_trained(tiny_shards, tmp_path):
    source = ClipSource.separate(tiny_shards, tiny_shards)
    arms = ARMS | {"ssvae": {"settings": {"lcr_wieght": 0.1}}}
    with pytest.raises(UserError, match=r"arm ssvae: unknown key `lcr_wieght`, did you mean `lcr_weight`"):
        compare(configured(arms=arms), tmp_path, CPU, "sat-ssvae compare", source)
    assert not (tmp_path / "vae").exists()


def test_too_few_heldout_clips_are_noticed_before_anything_is_trained(tiny_shards, tmp_path):
    source = ClipSource.separate(tiny_shards, tiny_shards)
    few = settings()["data"] | {"heldout_stride": 100.0}
    with pytest.raises(UserError, match="5 held-out clips, a comparison needs 8 at least"):
        compare(configured(data=few), tmp_path, CPU, "sat-ssvae compare", source)
    assert not (tmp_path / "vae").exists()


def test_user_data_is_split_by_sample_or_by_folder(tiny_videos, tmp_path):
    assert ClipSource.of_user(tiny_videos).part == {"train": "train", "heldout": "heldout"}
    for split in ("train", "heldout"):
        (tmp_path / split).mkdir()
    source = ClipSource.of_user(tmp_path)
    assert source.path["heldout"] == tmp_path / "heldout" and source.part["heldout"] == "all"


def test_pack_and_train_from_the_command_line(tiny_videos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["pack", str(tiny_videos), "--output", "shards", "samples_per_shard=3"]) == 0
    assert capsys.readouterr().out == "shards: 5 samples, 1 with a caption, in 2 shards; skipped: nothing\n"
    assert len(list((tmp_path / "shards").glob("*.tar"))) == 2
    config = tmp_path / "tiny.yaml"
    config.write_text(
        "resolution: 32\nchannels: 4\nbatch_size: 2\n"
        "model: {base_channels: 4, channel_multipliers: [1, 2, 2], temporal_downsample: [true, true]}\n"
        "data: {path: shards, num_frames: 5, num_workers: 0}\nreconstruction: {perceptual_weight: 0}\n"
    )
    assert main(["train", "--config", str(config), "--name", "mine", "max_steps=1"]) == 0
    assert (tmp_path / "runs" / "mine" / "vae" / "model.safetensors").exists()
    assert "autoencoder: runs/mine/vae" in capsys.readouterr().out
