"""The published recipe, number by number and as it runs; and the article's form, where it differs on purpose."""

import itertools
import json
import operator
import sys
from pathlib import Path

import pytest
import torch

from sat_ssvae.config import load_config, packaged
from sat_ssvae.engine.optimization import build_engine
from sat_ssvae.errors import UserError
from sat_ssvae.metrics.perceptual import build_perceptual
from sat_ssvae.training import trainer
from sat_ssvae.training.discriminator import AdversarialConfig, Discriminator
from sat_ssvae.training.losses import ADVERSARIAL_LIMIT, LCR_LIMIT
from sat_ssvae.training.settings import TrainConfig

from .test_trainer import CPU, configured, details

DATA = Path(__file__).parent / "data"
RECIPE = json.loads((DATA / "published_recipe.json").read_text())
PLACES = ["data.sources.0.path=videos", "data.sources.1.path=images", "resume_from=x"]


def published(name, *changes):
    return load_config(TrainConfig, packaged(f"{name}.yaml"), [*PLACES, *changes])


def mask_table(lmr):
    return dict(zip(lmr["ratios"], lmr["probabilities"], strict=True))


@pytest.mark.parametrize(
    ("name", "stage"), [("published_256p", "stage_256p"), ("published_512p", "stage_512p_decoder")]
)
def test_both_stages_hold_the_published_numbers(name, stage):
    config, stage, first = published(name), RECIPE[stage], RECIPE["stage_256p"]
    assert config.lr == stage["autoencoder_lr"]
    optimizer = config.optimizer
    assert optimizer.warmup_steps == stage["warmup_steps"]
    assert optimizer.min_lr == stage["lr_start"] == stage["lr_min"]
    assert optimizer.schedule == "cosine" and optimizer.decay_steps == stage["cosine_horizon_steps"]
    assert (optimizer.accumulation_steps, optimizer.clip_norm) == (1, 0)
    assert config.max_steps == stage["max_steps"]
    assert config.adversarial.start_step == max(stage["discriminator_start_step"], 1)  # the first step is number 1 here
    assert config.adversarial.weight == stage["discriminator_weight"]
    assert config.lmr_mask_ratio == mask_table(stage["lmr"])
    assert config.lmr.kind == "block" and list(config.lmr.block) == stage["lmr"]["block"]
    assert config.reconstruction.kl_weight == first["kl_weight"]
    assert config.reconstruction.perceptual == "lpips-vgg" and "VGG16" in first["perceptual"]
    assert config.reconstruction.perceptual_weight == 1
    assert (config.reconstruction.error, config.reconstruction.reduction) == ("l1", "sum")
    assert config.reconstruction.learned_variance == first["learned_logvar"]
    assert config.precision == "float32" and "the autoencoder runs float32" in first["precision"]
    assert config.batch_size == first["data"]["video_batch_size"]
    assert config.ema_decay == 0 and config.model.latent_channels == 48


def test_the_first_stage_has_the_published_regulariser_and_data():
    config, stage = published("published_256p"), RECIPE["stage_256p"]
    lcr, data = stage["lcr"], stage["data"]
    assert config.lcr_weight == pytest.approx(lcr["weight"] * lcr["hidden_factor"])
    assert (config.lcr.threshold, list(config.lcr.window)) == (lcr["threshold"], lcr["window"])
    assert (config.lcr.weighting, config.lcr.tiling) == ("gradient", "tiled")
    assert lcr["gradient_ratio_limit"] == LCR_LIMIT
    assert not config.freeze_encoder
    videos, images = config.data.streams()
    assert list(videos.config.size) == list(images.config.size) == data["image_size"]
    assert (videos.config.num_frames, videos.config.fps) == (data["num_frames"], data["fps"])
    assert images.config.num_frames == 1 and images.batch_size == data["image_batch_size"]
    assert [images.weight, videos.weight] == data["image_to_video_draw"]
    assert (config.data.drop_black, config.data.drop_frozen, config.data.filters) == (0, 0, {})


def test_the_second_stage_trains_the_decoder_alone():
    config = published("published_512p")
    assert RECIPE["stage_512p_decoder"]["encoder"] == "frozen" and config.freeze_encoder
    assert RECIPE["stage_512p_decoder"]["lcr"] is None and config.lcr_weight == 0
    assert all(stream.config.size == (512, 512) for stream in config.data.streams())


@pytest.mark.parametrize("name", ["published_256p", "published_512p"])
def test_both_stages_have_the_published_discriminators(name):
    config, adversarial = published(name), published(name).adversarial
    assert adversarial.architecture == "published" and adversarial.alternate and adversarial.schedule == "constant"
    assert adversarial.lr == pytest.approx(config.lr / 10)  # "autoencoder_lr / 10"
    assert adversarial.betas == config.optimizer.betas == (0.9, 0.999)  # "torch defaults"
    assert config.optimizer.weight_decay == 0 and ADVERSARIAL_LIMIT == 1e4
    critic = Discriminator(adversarial, config.precision)
    widths = [module.out_channels for module in critic.frames if hasattr(module, "out_channels")]
    assert widths == [64, 128, 256, 512, 512, 1]
    assert [module.out_channels for module in critic.video if hasattr(module, "out_channels")] == widths
    normalised = [
        [hasattr(module, "parametrizations") for module in part][::2] for part in (critic.frames, critic.video)
    ]
    assert normalised == [[True] * 5 + [False], [True] * 6]


def chirp(shape):
    """Numbers in [-1, 1] that look random and are the same everywhere."""
    count = torch.Size(shape).numel()
    return torch.sin(torch.arange(count, dtype=torch.float64) ** 2 / 7).reshape(shape).float()


@torch.no_grad()
def with_recorded_weights(critic):
    """The weights that the published discriminators were given when their logits were recorded."""
    for conv in (module for module in critic.modules() if isinstance(module, torch.nn.Conv2d | torch.nn.Conv3d)):
        normalised = getattr(conv, "parametrizations", None)
        weight = conv.weight if normalised is None else normalised.weight.original
        weight.copy_(chirp(weight.shape))
        if conv.bias is not None:
            conv.bias.copy_(torch.cos(torch.arange(conv.bias.numel(), dtype=torch.float64) ** 2 / 7))
        if normalised is not None:
            u, _, v = torch.linalg.svd(weight.flatten(1).double(), full_matrices=False)
            normalised.weight[0]._u.copy_(u[:, 0])
            normalised.weight[0]._v.copy_(v[0])
    return critic.eval()


@pytest.mark.parametrize("frames", [1, 17])
@torch.no_grad()
def test_logits_equal_those_of_the_published_discriminators(frames):
    """Recorded with weights and a video of sines, at an eighth of the width; the frames' with time in the batch."""
    expected = json.loads((DATA / "reference" / "discriminators.json").read_text())[str(frames)]
    adversarial = published("published_256p").adversarial.model_copy(update={"base_channels": 8})
    critic = with_recorded_weights(Discriminator(adversarial, "float32"))
    video = chirp((1, 3, frames, 64, 64))
    for name, logits in zip(("frames", "video"), critic(video), strict=True):
        assert list(logits.shape) == expected[f"{name}_shape"]
        reference = torch.tensor(expected[name])
        assert (logits.flatten() - reference).abs().max() <= 1e-3 * reference.std()


@pytest.mark.parametrize("frames", [1, 17])
def test_both_published_discriminators_judge_images_and_video(frames):
    critic = Discriminator(published("published_256p").adversarial, "float32")
    on_frames, on_video = critic(torch.randn(2, 3, frames, 64, 64))
    assert on_frames.shape == (2 * frames, 1, 2, 2)
    assert on_video.shape == (2, 1, {1: 1, 17: 5}[frames], 4, 4)


def test_the_video_discriminator_is_causal():
    torch.manual_seed(0)
    critic = Discriminator(AdversarialConfig(architecture="published", base_channels=8, num_layers=4), "float32").eval()
    video = torch.randn(1, 3, 17, 64, 64)
    changed = video.clone()
    changed[:, :, 12:] = 0
    with torch.no_grad():
        (_, before), (_, after) = critic(video), critic(changed)
    assert torch.equal(before[:, :, :3], after[:, :, :3]) and not torch.equal(before[:, :, 3:], after[:, :, 3:])


RATES = {  # min + (peak - min) * (step / 1000 in warm-up, then half a cosine to the horizon), by hand
    "published_256p": {0: 2e-6, 500: 2.6e-5, 1000: 5e-5, 75_000: 4.82150e-5, 150_000: 4.30372e-5},
    "published_512p": {0: 2e-6, 500: 2.6e-5, 1000: 5e-5, 25_000: 4.95728e-5, 50_000: 4.82359e-5},
}


@pytest.mark.parametrize("name", RATES)
def test_learning_rates_as_they_run(name):
    config = published(name)
    optimizer = config.optimizer.model_copy(update={"lr": config.lr, "zero_stage": 0})
    engines = [
        build_engine(torch.nn.Linear(1, 1), settings, max_steps=config.max_steps, micro_batch_size=1, device=CPU)
        for settings in (optimizer, config.adversarial.optimizer(optimizer))
    ]
    for step, rate in RATES[name].items():
        for engine in engines if step else ():
            engine.lr_scheduler.last_epoch = step - 1  # as if so many steps had been taken before this one
            engine.backward(engine(torch.ones(1, 1)).sum())
            engine.step()
        assert engines[0].get_lr()[0] == pytest.approx(rate, rel=1e-5)
        assert engines[1].get_lr()[0] == pytest.approx(5e-6)
    last = {"published_256p": "stage_256p", "published_512p": "stage_512p_decoder"}[name]
    assert RATES[name][config.max_steps] == pytest.approx(RECIPE[last]["lr_at_the_last_step"], rel=1e-3)
    adam = getattr(engines[0].optimizer, "optimizer", engines[0].optimizer)
    assert adam.defaults["betas"] == (0.9, 0.999) and adam.defaults["eps"] == 1e-8


TINY = {"weight": 1.0, "architecture": "published", "alternate": True, "schedule": "constant", "lr": 5e-6}
TINY |= {"base_channels": 8, "num_layers": 2}


@pytest.mark.parametrize(("start_step", "expected"), [(1, "ABAB"), (2, "A-AB")])
def test_autoencoder_and_discriminators_take_turns(tiny_shards, tmp_path, monkeypatch, start_step, expected):
    """What each of four batches moved: the Autoencoder, the discriminators (B) or, before they join, nothing."""
    engines, snapshots = [], []
    build, batches = trainer.build_engine, trainer.training_batches

    def weights():
        return [torch.cat([p.detach().flatten() for p in engine.module.parameters()]).clone() for engine in engines]

    def watched(*arguments, **options):
        for batch in batches(*arguments, **options):
            snapshots.append(weights())
            yield batch

    monkeypatch.setattr(trainer, "build_engine", lambda *a, **k: engines.append(build(*a, **k)) or engines[-1])
    monkeypatch.setattr(trainer, "training_batches", watched)
    adversarial = {**TINY, "start_step": start_step}
    config = configured(tiny_shards, max_steps=2, batch_size=1, adversarial=adversarial)
    assert config.batches_per_step == 2
    trainer.train(config, tmp_path, CPU)
    snapshots.append(weights())
    moved = []
    for before, after in itertools.pairwise(snapshots):
        pairs = zip("AB", before, after, strict=False)  # an engine that has just been built has not moved
        moved.append("".join(name for name, old, new in pairs if not torch.equal(old, new)) or "-")
    assert "".join(moved) == expected
    assert ("critic" in details(tmp_path)[0]) == (start_step == 1) and "critic" in details(tmp_path)[1]


def test_a_run_that_takes_turns_continues_bit_for_bit(tiny_shards, tmp_path):
    config = configured(
        tiny_shards, max_steps=4, batch_size=1, adversarial={**TINY, "start_step": 2}, checkpoint_every=3
    )
    for name in ("whole", "cut"):
        trainer.train(config, tmp_path / name, CPU)
    (tmp_path / "cut" / "done").unlink()
    trainer.train(config, tmp_path / "cut", CPU)  # from step 3
    whole, cut = (torch.load(tmp_path / name / "latest.pth", weights_only=True) for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert (tmp_path / "whole" / "train.csv").read_text() == (tmp_path / "cut" / "train.csv").read_text()


def test_without_the_published_perceptual_network_one_line_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    config = published("published_256p")
    with pytest.raises(UserError, match=r"pip install lpips.*reconstruction\.perceptual=st-lpips-vgg"):
        build_perceptual(config.reconstruction.perceptual)


ARTICLE = {
    "lr": 1e-4, "model.latent_channels": 48, "lmr.kind": "channel", "lmr_mask_ratio": 0.2,
    "reconstruction.error": "mse", "reconstruction.kl_weight": 5e-4, "reconstruction.reduction": "mean",
}  # fmt: skip
ARTICLE_256 = ARTICLE | {
    "max_steps": 150_000, "data.resolution": 256, "freeze_encoder": False, "batch_size": 8, "lcr_weight": 0.1,
    "lcr.window": (3, 3, 3), "lcr.threshold": 1, "lcr.weighting": "fixed",
}  # fmt: skip


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("256p", ARTICLE_256),
        ("256p_low_data", ARTICLE_256 | {"lcr_weight": 0.05, "lmr_mask_ratio": 0.1}),
        ("512p", ARTICLE | {"max_steps": 50_000, "data.resolution": 512, "freeze_encoder": True}),
        ("1080p", ARTICLE | {"max_steps": 30_000, "data.num_frames": 5, "freeze_encoder": True}),
    ],
)
def test_the_articles_form_under_both_names(size, expected):
    configs = [
        load_config(TrainConfig, packaged(f"{name}{size}.yaml"), ["data.path=x", "resume_from=y"])
        for name in ("article_", "ch48_LCR_LMR_")
    ]
    assert configs[0] == configs[1]
    assert {place: operator.attrgetter(place)(configs[0]) for place in expected} == expected


def test_the_published_recipe_runs_at_a_small_size(tiny_shards, tmp_path):
    """Videos and images, discriminators in the second of two steps; without the perceptual network."""
    sizes = ["model.base_channels=4", "model.channel_multipliers=[1,2,2]", "model.temporal_downsample=[true,true]"]
    sizes += ["model.num_res_blocks=1", "model.num_mid_blocks=1", "resolution=64", "data.num_frames=5"]
    short = ["max_steps=2", "log_every=1", "adversarial.start_step=2", "adversarial.base_channels=8"]
    places = [f"data.sources.{number}.path={tiny_shards}" for number in (0, 1)]
    changes = [*sizes, *short, *places, "data.num_workers=0", "reconstruction.perceptual_weight=0"]
    config = load_config(TrainConfig, packaged("published_256p.yaml"), changes)
    trainer.train(config, tmp_path, CPU)
    first, second = details(tmp_path)
    assert first["lr"] == pytest.approx(2e-6 + 4.8e-8) and "critic" not in first and second["critic"] > 0
    assert (tmp_path / "done").exists()
