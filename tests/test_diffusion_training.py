"""Training of the transformer: equal draws, exact resumption, the loss log, and that it learns."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sat_ssvae.diffusion.process import FlowMatching, VPrediction
from sat_ssvae.diffusion.text import CaptionStates
from sat_ssvae.diffusion.training import (
    LOSS_COLUMNS,
    DiTTrainConfig,
    draw_step,
    load_dit,
    save_dit,
    train_dit,
)
from sat_ssvae.diffusion.transformer import build_dit
from sat_ssvae.engine.optimization import OptimizerConfig
from sat_ssvae.errors import UserError
from sat_ssvae.latents.latent_set import LatentSet, LatentStats

CPU = torch.device("cpu")
OPTIMIZER = OptimizerConfig(lr=3e-3, warmup_steps=4, schedule="constant", clip_norm=1.0)


def config(**changes):
    values = {"width": 32, "depth": 2, "heads": 2, "batch_size": 8, "max_steps": 12, "checkpoint_interval": 5}
    return DiTTrainConfig(**values | {"optimizer": OPTIMIZER} | changes)


def latent_set(count=40, channels=4, seed=0):
    """Latents with strong structure: each clip is one random vector over channels times one plane wave."""
    generator = torch.Generator().manual_seed(seed)
    vector = torch.randn(count, channels, 1, 1, 1, generator=generator)
    phase = torch.rand(count, 1, 1, 1, 1, generator=generator) * 6.28
    t, h, w = torch.meshgrid(torch.arange(2.0), torch.arange(4.0), torch.arange(4.0), indexing="ij")
    latents = 3 + vector * torch.cos(phase + 0.8 * h + 0.4 * w + t)
    keys = tuple(f"clip{i}@0" for i in range(count))
    return LatentSet(latents, keys, ("",) * count, LatentStats.measure(latents))


def train(folder, cfg=None, latents=None, seed=0, **options):
    return train_dit(cfg or config(), latents or latent_set(), folder, seed=seed, device=CPU, **options)


def rows(folder):
    with (folder / "loss.csv").open(newline="") as file:
        return list(csv.reader(file))


def assert_same_weights(first, second):
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@given(clips=st.integers(1, 30), batch=st.integers(1, 12), seed=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_every_clip_comes_once_in_each_epoch(clips, batch, seed):
    cfg = config(batch_size=batch)
    steps = -(-3 * clips // batch)
    order = torch.cat([draw_step(cfg, seed, step, clips, (1, 1, 1, 1)).clips for step in range(steps)]).tolist()
    for epoch in range(3):
        assert sorted(order[epoch * clips : (epoch + 1) * clips]) == list(range(clips))


def test_arms_see_equal_draws_and_other_seeds_and_steps_do_not():
    torch.manual_seed(1)
    first = draw_step(config(), 3, 7, 40, (4, 2, 4, 4))
    torch.manual_seed(2)
    second = draw_step(config(), 3, 7, 40, (4, 2, 4, 4))
    for name in ("clips", "t", "noise", "without_text"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    for other in (draw_step(config(), 4, 7, 40, (4, 2, 4, 4)), draw_step(config(), 3, 8, 40, (4, 2, 4, 4))):
        assert not torch.equal(first.noise, other.noise)
        assert not torch.equal(first.t, other.t)


def test_text_is_dropped_at_its_rate():
    cfg = config(text_dropout=0.25, batch_size=64)
    dropped = torch.cat([draw_step(cfg, 0, step, 40, (1, 1, 1, 1)).without_text for step in range(40)])
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.03)


def test_training_writes_what_it_says_and_repeats_itself(tmp_path):
    torch.manual_seed(1)
    first = train(tmp_path / "a")
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = train(tmp_path / "b")
    assert torch.equal(torch.get_rng_state(), state)
    assert_same_weights(first, second)
    assert_same_weights(first, load_dit(tmp_path / "a"))
    assert not load_dit(tmp_path / "a").training
    table = rows(tmp_path / "a")
    assert table == rows(tmp_path / "b")
    assert tuple(table[0]) == LOSS_COLUMNS
    assert [int(row[0]) for row in table[1:]] == list(range(1, 13))
    rates = [float(row[2]) for row in table[1:]]
    assert rates == pytest.approx([3e-3 * min(1, step / 5) for step in range(1, 13)])
    assert all(float(row[3]) > 0 for row in table[1:])


def test_first_loss_is_that_of_predicting_zero(tmp_path):
    cfg, latents = config(max_steps=1), latent_set()
    train(tmp_path, cfg, latents)
    first = draw_step(cfg, 0, 0, len(latents), latents.shape)
    x0 = latents.statistics.standardize(latents.latents[first.clips])
    expected = (first.noise - x0).square().mean().item()
    assert float(rows(tmp_path)[1][1]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("stop", [1, 5, 7])
def test_interrupted_training_continues_bit_for_bit(tmp_path, stop):
    reference = train(tmp_path / "whole")

    def interrupt(step, model):
        if step == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", config(evaluation_steps=(stop,)), on_checkpoint=interrupt)
    calls = []
    resumed = train(
        tmp_path / "parts",
        config(evaluation_steps=(stop, 12)),
        on_checkpoint=lambda step, model: calls.append(step),
    )
    assert calls == [stop, 12]
    assert_same_weights(reference, resumed)
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")


def test_finished_training_is_not_redone_but_can_go_on(tmp_path):
    calls = []
    first = train(tmp_path / "a", config(evaluation_steps=(0, 12)), on_checkpoint=lambda step, _: calls.append(step))
    again = train(tmp_path / "a", config(evaluation_steps=(0, 12)), on_checkpoint=lambda step, _: calls.append(step))
    assert calls == [0, 12]
    assert_same_weights(first, again)
    longer = train(tmp_path / "a", config(max_steps=15))
    assert_same_weights(longer, train(tmp_path / "b", config(max_steps=15)))


def test_evaluation_gets_averaged_weights_and_cannot_disturb_training(tmp_path):
    reference = train(tmp_path / "quiet")
    seen = {}

    def evaluate(step, model):
        assert not model.training
        assert not any(parameter.requires_grad for parameter in model.parameters())
        seen[step] = model(torch.ones(1, 4, 2, 4, 4), torch.tensor([0.5])).std().item()
        torch.manual_seed(step)
        torch.randn(100)

    disturbed = train(tmp_path / "loud", config(evaluation_steps=(0, 4, 12)), on_checkpoint=evaluate)
    assert list(seen) == [0, 4, 12]
    assert seen[0] == 0 and seen[4] > 0
    assert_same_weights(reference, disturbed)


def test_average_follows_its_formula(tmp_path):
    """Against the weights themselves, taken from runs that end at each step."""
    decay, steps = 0.5, 6
    cfg = config(ema_decay=0.0, precision="float32")
    average = None
    for step in range(1, steps + 1):
        weights = train(tmp_path / str(step), cfg.model_copy(update={"max_steps": step})).state_dict()
        if average is None:
            average = {name: value.clone() for name, value in weights.items()}
            continue
        keep = min(decay, step / (9 + step))
        average = {name: keep * average[name] + (1 - keep) * weights[name] for name in weights}
    averaged = train(tmp_path / "averaged", config(ema_decay=decay, max_steps=steps, precision="float32")).state_dict()
    for name, value in averaged.items():
        torch.testing.assert_close(value, average[name], atol=1e-6, rtol=1e-5)


def test_accumulated_batches_give_the_same_steps(tmp_path):
    whole = train(tmp_path / "a", config(precision="float32"))
    optimizer = OPTIMIZER.model_copy(update={"accumulation_steps": 4})
    parts = train(tmp_path / "b", config(precision="float32", optimizer=optimizer))
    for (name, a), b in zip(whole.state_dict().items(), parts.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3, msg=name)
    for first, second in zip(rows(tmp_path / "a")[1:], rows(tmp_path / "b")[1:], strict=True):
        assert float(first[1]) == pytest.approx(float(second[1]), rel=1e-4)
        assert float(first[3]) == pytest.approx(float(second[3]), rel=1e-3)


@pytest.mark.parametrize("process", [FlowMatching(), VPrediction()], ids=["flow", "v"])
def test_it_learns_a_simple_distribution(tmp_path, process):
    cfg = config(max_steps=120, batch_size=16, ema_decay=0.95, diffusion=process)
    latents, heldout = latent_set(400), latent_set(64, seed=1)
    model = train(tmp_path, cfg, latents)
    x0 = latents.statistics.standardize(heldout.latents)
    fresh = build_dit(model.config, 0)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    before, after = torch.zeros(3), torch.zeros(3)
    with torch.no_grad():
        for place, level in enumerate((0.2, 0.4, 0.6)):
            t = torch.full((64,), level)
            before[place] = process.loss(fresh, x0, noise, t).mean()
            after[place] = process.loss(model, x0, noise, t).mean()
        samples = process.sample(model, noise, steps=10)
    assert after.mean() < 0.7 * before.mean()
    assert samples.std().item() == pytest.approx(1, abs=0.35)


def test_text_reaches_the_transformer(tmp_path):
    """Clips whose caption says their sign: with text the noisiest level becomes predictable."""
    generator = torch.Generator().manual_seed(0)
    sign = torch.randint(2, (60,), generator=generator)
    latents = (2.0 * sign - 1)[:, None, None, None, None] + 0.1 * torch.randn(60, 4, 2, 4, 4, generator=generator)
    data = LatentSet(latents, ("k",) * 60, ("",) * 60, LatentStats.measure(latents))
    text = CaptionStates(torch.randn(2, 3, 8, generator=generator), sign, torch.zeros(3, 8))
    model = train(tmp_path, config(max_steps=60, ema_decay=0.9), data, text=text)
    x, t = torch.randn(16, 4, 2, 4, 4, generator=generator), torch.full((16,), 0.95)
    for value in (0, 1):
        states = text.states[value].expand(16, -1, -1)
        velocity = model(x, t, states)
        estimate = x - 0.95 * velocity
        assert (estimate.mean() * (2 * value - 1)).item() > 0.5


def test_another_training_in_the_folder_is_refused(tmp_path):
    train(tmp_path)
    for changed in (
        {"seed": 1},
        {"latents": latent_set(seed=5)},
        {"cfg": config(batch_size=4)},
    ):
        with pytest.raises(UserError, match="other latents, seed or configuration"):
            train(tmp_path, **changed)


def test_divergence_ends_with_advice_and_keeps_the_checkpoint(tmp_path):
    latents = latent_set()
    wild = OPTIMIZER.model_copy(update={"lr": 1e30, "clip_norm": 0.0, "warmup_steps": 0})
    with pytest.raises(UserError, match="lower the lr"):
        train(tmp_path, config(optimizer=wild), latents)
    assert 1 <= len(rows(tmp_path)) < 13


def test_configuration_mistakes_are_refused():
    with pytest.raises(ValidationError, match="between 0 and max_steps"):
        config(evaluation_steps=(13,))
    with pytest.raises(ValidationError, match="accumulation_steps"):
        config(optimizer=OptimizerConfig(accumulation_steps=3))
    with pytest.raises(ValidationError, match="zero_stage must be 0"):
        config(optimizer=OptimizerConfig(zero_stage=1))


def test_damaged_transformers_are_named(tmp_path):
    with pytest.raises(UserError, match="no such configuration"):
        load_dit(tmp_path)
    save_dit(build_dit(config().model((4, 2, 4, 4)), 0), tmp_path)
    path = tmp_path / "dit.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match="train it again"):
        load_dit(tmp_path)
    save_dit(build_dit(config(width=64).model((4, 2, 4, 4)), 0), tmp_path)
    wrong = (tmp_path / "dit.yaml").read_text().replace('"width": 64', '"width": 32')
    (tmp_path / "dit.yaml").write_text(wrong)
    with pytest.raises(UserError, match=r"not a transformer that dit\.yaml describes"):
        load_dit(tmp_path)


def run_script(*arguments, launcher=(), **options):
    # Without the process group of this process.
    own = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}
    environment = {name: value for name, value in os.environ.items() if name not in own}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, *launcher, __file__, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, **options)


@pytest.mark.slow
def test_killed_training_continues_bit_for_bit(tmp_path):
    reference = train(tmp_path / "whole", config(max_steps=40))
    kills = 0
    for _ in range(6):
        process = run_script(tmp_path / "killed", 40, stderr=subprocess.DEVNULL)
        log, deadline = tmp_path / "killed" / "loss.csv", time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if log.exists() and len(log.read_text().splitlines()) > 2 + 6 * (kills + 1):
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.002)
        assert process.wait(timeout=120) in (0, -signal.SIGKILL)
    assert kills >= 4
    resumed = train(tmp_path / "killed", config(max_steps=40))
    assert_same_weights(reference, resumed)
    assert rows(tmp_path / "whole") == rows(tmp_path / "killed")


@pytest.mark.slow
def test_two_ranks_make_the_steps_of_one(tmp_path):
    train(tmp_path / "one", config(max_steps=6, precision="float32"))
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    process = run_script(tmp_path / "two", 6, "float32", launcher=launcher, stderr=subprocess.PIPE, text=True)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    one, two = load_dit(tmp_path / "one").state_dict(), load_dit(tmp_path / "two").state_dict()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=2e-4, rtol=1e-3, msg=name)
    for first, second in zip(rows(tmp_path / "one")[1:], rows(tmp_path / "two")[1:], strict=True):
        assert float(first[1]) == pytest.approx(float(second[1]), rel=1e-4)


if __name__ == "__main__":  # a process for the tests above: FOLDER STEPS [PRECISION]
    train(
        Path(sys.argv[1]),
        config(max_steps=int(sys.argv[2]), precision=sys.argv[3] if len(sys.argv) > 3 else "auto"),
    )
