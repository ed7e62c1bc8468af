"""CogVideoX's model in a process of CogVideoX's own: its initial transformer, and the scores of its checkpoints.

    cd CogVideo/sat && python -m sat_ssvae.cogvideo.engine job.json        # as `comparison.py` starts it

Everything that is scored is CogVideoX's: its data set, its first stage, its denoiser with its noise levels, its sampler
with its guidance, built from the very files that train_video.py got. The measures are those of `..convergence.scoring`.
"""

import importlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import TypeAdapter
from safetensors.torch import save_file
from torch import Tensor, nn

from ..config import Config
from ..convergence.bookkeeping import write_text
from ..convergence.latents import LatentSet
from ..convergence.results import ArmResult
from ..convergence.scores import is_scored, spread, write_scores
from ..convergence.scoring import (
    ArmReference,
    EvaluationConfig,
    arm_result,
    gaussian_loss_floor,
    measure_arm,
    reconstruction_quality,
    score_generator,
)
from ..convergence.text import CaptionStates
from ..errors import UserError
from ..evaluation.features import ClipFeatures, FrameFeatures
from ..progress import progress_bar, setup_logging
from ..training.perceptual import build_perceptual
from ..vae.statistics import LatentStats
from .registry import import_sat
from .transformer import write_transformer

logger = logging.getLogger(f"{__package__}.engine")  # __name__ is __main__ here

SCORED = "scored a checkpoint"
"""What the log says after each."""
MIN_HELDOUT = 8
"""Fewer held-out clips say nothing."""


class InitialJob(Config):
    """Write the transformer that train_video.py would draw from a seed."""

    task: Literal["initial"] = "initial"
    """Selects this job."""
    files: tuple[Path, ...]
    """Configuration files, as train_video.py's --base."""
    seed: int
    """As train_video.py's --seed."""
    output: Path
    """The folder to write, in SAT's form."""


class ScoreJob(Config):
    """Score the checkpoints of an arm."""

    task: Literal["score"] = "score"
    """Selects this job."""
    arm: str
    """The arm's name."""
    files: tuple[Path, ...]
    """Configuration files, as train_video.py's --base."""
    train: tuple[Path, ...]
    """Training data; spectra and the loss's floor are those of its latents."""
    heldout: tuple[Path, ...]
    """Held-out data."""
    max_train: int
    """Training clips that are encoded at most."""
    max_heldout: int
    """Held-out clips that are used at most."""
    runs: dict[str, Path]
    """Folders with checkpoints, by a name for each."""
    steps: tuple[int, ...]
    """Checkpoints to score."""
    scoring: EvaluationConfig
    """How much is scored."""
    output: Path
    """The folder for arm.json, quality.safetensors, clips.safetensors, and RUN/step_* of each run's name."""


def build_engine(files: Sequence[Path], seed: int = 1) -> tuple[Any, Any]:
    """CogVideoX's engine and arguments, as its sample_video.py builds them."""
    import_sat()  # also where there is no triton
    args = importlib.import_module("arguments").get_args(["--base", *map(str, files), "--seed", str(seed)])
    engine_class = importlib.import_module("diffusion_video").SATVideoDiffusionEngine
    engine = importlib.import_module("sat.model.base_model").get_model(args, engine_class)
    return engine.eval(), args


def write_initial(job: InitialJob) -> None:
    """The first thing that train_video.py draws after it set the seed is the transformer; so does this."""
    engine, _ = build_engine(job.files, job.seed)
    transformer = {name: value for name, value in engine.state_dict().items() if name.startswith("model.")}
    write_transformer(transformer, job.output)


class FirstStage(nn.Module):
    """The engine's autoencoder, of latents `b c t h w` as its transformer sees them; video `B 3 T H W` in [-1, 1]."""

    def __init__(self, engine: Any) -> None:
        super().__init__()
        self.engine = engine

    def encode(self, video: Tensor) -> Tensor:
        """Latents, float32."""
        return self.engine.encode_first_stage(video.to(self.engine.device, self.engine.dtype), None).float()

    def decode(self, latents: Tensor) -> Tensor:
        """Video; CogVideoX's main drops its own autoencoder's first frame."""
        return self.engine.decode_first_stage(latents.to(self.engine.dtype))


class EngineGenerator:
    """The engine's transformer, denoiser and sampler, as `..convergence.scoring.Generator`.

    Noise levels t in [0, 1] stand for CogVideoX's discrete ones, 0 for its first and 1 for its last, pure noise.
    """

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self._signal: Tensor = engine.denoiser.sigmas.float()  # named so by sgm: the square roots of alpha's product

    def signal_and_noise(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Factors of data and noise at t (n,), each (n,)."""
        signal = self._signal.to(t.device)[self._index(t)]
        return signal, (1 - signal.square()).sqrt()

    def loss(self, clean: Tensor, noise: Tensor, t: Tensor, text: Tensor | None) -> Tensor:
        """CogVideoX's training loss: squared error of the clean latent over the noise's variance."""
        _, sigma = self.signal_and_noise(t)
        error = (self.denoise(clean, noise, t, text) - clean).square().flatten(1).mean(1)
        return error / sigma.to(error).square()

    def denoise(self, clean: Tensor, noise: Tensor, t: Tensor, text: Tensor | None) -> Tensor:
        """See `Generator`."""
        signal, sigma = (factor.to(clean) for factor in self.signal_and_noise(t))
        noisy = clean * signal.view(-1, 1, 1, 1, 1) + noise * sigma.view(-1, 1, 1, 1, 1)
        index = self._index(t).to(clean.device)
        condition = {"crossattn": text}
        engine = self.engine
        estimate = engine.denoiser(engine.model, noisy.movedim(1, 2), signal, condition, idx=index, concat_images=None)
        return estimate.float().movedim(2, 1)

    def sample(self, noise: Tensor, text: Tensor | None, empty: Tensor | None) -> Tensor:
        """With the sampler, steps and guidance of the configuration; it draws from torch's global generator."""
        assert text is not None and empty is not None  # CogVideoX's models always have captions, if empty ones
        start = noise.movedim(1, 2).contiguous()
        self.engine.seeded_noise = lambda _: start.clone()
        without = empty.to(text).expand_as(text)
        latents = self.engine.sample(
            {"crossattn": text}, uc={"crossattn": without}, batch_size=len(noise), shape=start.shape[1:]
        )
        return latents.float().movedim(2, 1)

    def _index(self, t: Tensor) -> Tensor:
        return (t * (len(self._signal) - 1)).round().long().to(self._signal.device)


class Clips:
    """Clips and captions of data sets as train_video.py opens them, at most `limit`, evenly spread."""

    def __init__(self, args: Any, folders: Sequence[Path], limit: int) -> None:
        target = importlib.import_module("sgm.util").get_obj_from_str(args.data_config["target"])
        sets = [target.create_dataset_function(str(path), args, **args.data_config["params"]) for path in folders]
        places = [(data, index) for data in sets for index in range(len(data))]
        chosen = torch.linspace(0, len(places) - 1, min(limit, len(places))).round().long().tolist()
        self._places = [places[index] for index in chosen]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        """The video `3 T H W` in [-1, 1] and its caption."""
        data, place = self._places[index]
        item = data[place]
        return item["mp4"].movedim(0, 1).float(), item["txt"]


def encode(vae: FirstStage, clips: Clips) -> LatentSet:
    """Their latents, with statistics that change nothing: they are as the transformer sees them."""
    captions, latents = [], []
    for index in progress_bar(range(len(clips)), "encoding", "clip"):
        video, caption = clips[index]
        latents.append(vae.encode(video[None]).cpu())
        captions.append(caption)
    stacked = torch.cat(latents)
    channels = stacked.shape[1]
    statistics = LatentStats(torch.zeros(channels), torch.ones(channels))
    return LatentSet(stacked, tuple(map(str, range(len(clips)))), tuple(captions), statistics)


def caption_states(engine: Any, captions: Sequence[str]) -> CaptionStates:
    """States of the captions, and of none, as sample_video.py makes them."""
    distinct = sorted(set(captions))
    states, empty = [], torch.zeros(())
    for caption in distinct:
        given, without = engine.conditioner.get_unconditional_conditioning(
            {"txt": [caption]}, batch_uc={"txt": [""]}, force_uc_zero_embeddings=["txt"]
        )
        states.append(given["crossattn"].cpu())
        empty = without["crossattn"][0].cpu()
    place = {caption: index for index, caption in enumerate(distinct)}
    return CaptionStates(torch.cat(states), torch.tensor([place[caption] for caption in captions]), empty)


@torch.no_grad()
def score_arm(job: ScoreJob) -> None:
    """Measure the first stage, then each checkpoint that has no scores yet.

    Raises:
        UserError: too few held-out clips.
    """
    engine, args = build_engine(job.files)
    engine.sampler.verbose = False
    vae, generator = FirstStage(engine), EngineGenerator(engine)
    heldout = Clips(args, job.heldout, job.max_heldout)
    if len(heldout) < MIN_HELDOUT:
        where = ", ".join(map(str, job.heldout))
        raise UserError(f"{where}: {len(heldout)} held-out clips, a comparison needs {MIN_HELDOUT} (100 to say much)")
    train = encode(vae, Clips(args, job.train, job.max_train))
    reference = _reference(vae, heldout, engine, job.scoring)
    floor = gaussian_loss_floor(train, generator.signal_and_noise, job.scoring)
    _write_arm(job, reference, train, floor)
    load_checkpoint = importlib.import_module("sat.training.model_io").load_checkpoint
    for name, run in job.runs.items():
        folder = job.output / name
        for step in job.steps:
            if is_scored(folder, [step]):
                continue
            load_checkpoint(engine, args, load_path=str(run), specific_iteration=step)
            torch.manual_seed(job.scoring.seed)  # the sampler's noise is the same for every checkpoint
            write_scores(folder, step, *score_generator(generator, reference, job.scoring, floor))
            logger.info("%s: %s, step %d", SCORED, name, step)


def _reference(vae: FirstStage, clips: Clips, engine: Any, scoring: EvaluationConfig) -> ArmReference:
    latents = encode(vae, clips)
    frames = vae.decode(latents.latents[:1].to(engine.device)).shape[2]
    videos = torch.stack([clips[index][0][:, -frames:] for index in range(len(clips))])
    features = {"frame": FrameFeatures().to(engine.device), "clip": ClipFeatures().to(engine.device)}
    return measure_arm(vae, latents, videos, features, scoring, caption_states(engine, latents.captions))


def _write_arm(job: ScoreJob, reference: ArmReference, train: LatentSet, floor: float) -> None:
    """arm.json, the reconstruction's quality clip by clip, and the clips to show."""
    device = next(reference.vae.parameters()).device
    quality = reconstruction_quality(reference, build_perceptual("st-lpips-alex").to(device))
    shape = "x".join(map(str, train.shape))
    training = {"configuration files": [str(path) for path in job.files], "clips encoded": len(train)}
    vae = {"latents (c t h w)": shape, "frames decoded": reference.reconstructions.shape[2]}
    result = arm_result(job.arm, reference, train, quality, job.scoring, floor, vae=vae, training=training)
    shown = job.scoring.shown_clips
    pictures = {
        "originals": spread(reference.clips, shown),
        "reconstructions": spread(reference.reconstructions, shown),
    }
    job.output.mkdir(parents=True, exist_ok=True)
    save_file({name: values.contiguous() for name, values in pictures.items()}, job.output / "clips.safetensors")
    save_file({name: values.contiguous() for name, values in quality.items()}, job.output / "quality.safetensors")
    write_text(job.output / "arm.json", TypeAdapter(ArmResult).dump_json(result, indent=1).decode())


def main(path: Path) -> None:
    """Do the job that a JSON file describes; what the user did wrong is the last line."""
    setup_logging()
    job: InitialJob | ScoreJob = TypeAdapter(InitialJob | ScoreJob).validate_json(path.read_text(encoding="utf-8"))
    try:
        if isinstance(job, InitialJob):
            write_initial(job)
        else:
            score_arm(job)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
