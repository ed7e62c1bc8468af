"""Build CogVideoX's model in a process of its own, to write an initial transformer or to score checkpoints.

    cd CogVideo/sat && python -m sat_ssvae.cogvideo.worker job.json        # as `launch.py` starts it

The data set, first stage, denoiser with its noise levels, and sampler with its guidance are CogVideoX's, built from the
files that train_video.py was given. The measures are those of `..comparison`.
"""

import dataclasses
import importlib
import json
import logging
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, cast

import torch
from pydantic import Field, JsonValue, TypeAdapter
from torch import Tensor, nn

from ..comparison.bookkeeping import machine
from ..comparison.clips import FEWEST
from ..comparison.reference import (
    ArmReference,
    EvaluationConfig,
    arm_result,
    gaussian_loss_floor,
    measure_arm,
    reconstruction_quality,
)
from ..comparison.report.pictures import spread
from ..comparison.results import ArmResult
from ..comparison.score_files import is_scored, write_scores
from ..comparison.scoring import score_generator
from ..config import Config
from ..diffusion.text import CaptionStates
from ..errors import UserError
from ..latents.latent_set import LatentSet
from ..metrics.features import feature_networks
from ..metrics.perceptual import build_perceptual
from ..progress import progress_bar, setup_logging
from ..spacing import evenly_spaced
from ..storage import save_tensors, write_json, write_text
from ..vae.statistics import LatentStats
from .registry import import_sat
from .sat_transformer import write_transformer

logger = logging.getLogger(f"{__package__}.worker")  # __name__ is __main__ here

SCORED = "scored a checkpoint"
"""Logged after each checkpoint."""
PACKAGES = ("torch", "deepspeed", "SwissArmyTransformer", "numpy")
"""Packages whose versions are in the report."""


class InitialJob(Config):
    """Write the transformer that train_video.py would start from with a seed."""

    task: Literal["initial"] = "initial"
    """Selects this job."""
    files: tuple[Path, ...]
    """Configuration files, for train_video.py's --base."""
    seed: int
    """For train_video.py's --seed."""
    output: Path
    """The folder to write, in SAT's format."""


class ArmJob(Config):
    """Measure an arm's autoencoder, or score checkpoints of its transformers against it."""

    task: Literal["measure", "score"]
    """Measuring needs no checkpoint and comes first."""
    arm: str
    """The arm's name."""
    files: tuple[Path, ...]
    """Configuration files, for train_video.py's --base."""
    train: tuple[Path, ...]
    """Training data, whose latents give the spectra and the loss's floor."""
    heldout: tuple[Path, ...]
    """Held-out data."""
    max_train: int
    """At most this many training clips are encoded."""
    max_heldout: int
    """At most this many held-out clips are used."""
    runs: dict[str, Path] = Field(default_factory=dict)
    """Folders with checkpoints to score, by name."""
    steps: tuple[int, ...] = ()
    """Checkpoints to score."""
    scoring: EvaluationConfig
    """How much is scored."""
    output: Path
    """The folder that `measure_autoencoder` and `score_checkpoints` write to."""


def build_diffusion_engine(files: Sequence[Path], seed: int = 1) -> tuple[Any, Any]:
    """CogVideoX's engine and arguments, as its sample_video.py builds them."""
    import_sat()  # also where there is no triton
    args = importlib.import_module("arguments").get_args(["--base", *map(str, files), "--seed", str(seed)])
    engine_class = importlib.import_module("diffusion_video").SATVideoDiffusionEngine
    engine = importlib.import_module("sat.model.base_model").get_model(args, engine_class)
    return engine.eval(), args


def write_initial(job: InitialJob) -> None:
    """Write the transformer of a seed: like train_video.py, draw it first after setting the seed."""
    engine, _ = build_diffusion_engine(job.files, job.seed)
    transformer = {name: value for name, value in engine.state_dict().items() if name.startswith("model.")}
    write_transformer(transformer, job.output)


class SATAutoencoder(nn.Module):
    """The engine's autoencoder: videos `B 3 T H W` in [-1, 1], latents `b c t h w` as its transformer sees them."""

    def __init__(self, engine: Any) -> None:
        super().__init__()
        self.engine = engine

    def encode(self, video: Tensor) -> Tensor:
        """Latents, float32."""
        return self.engine.encode_first_stage(video.to(self.engine.device, self.engine.dtype), None).float()

    def decode(self, latents: Tensor) -> Tensor:
        """Video; main drops the first frame of CogVideoX's own autoencoder."""
        return self.engine.decode_first_stage(latents.to(self.engine.dtype))


class SATGenerator:
    """The engine's transformer, denoiser and sampler, as `..comparison.scoring.Generator`.

    Noise levels t in [0, 1] stand for CogVideoX's discrete steps: 0 for the first, 1 for the last, which is pure noise.
    """

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self._signal: Tensor = engine.denoiser.sigmas.float()  # sgm's name for sqrt(cumprod(alpha))

    def signal_and_noise(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Factors of data and noise at t (n,), each (n,)."""
        signal = self._signal.to(t.device)[self._index(t)]
        return signal, (1 - signal.square()).sqrt()

    def loss(self, clean: Tensor, noise: Tensor, t: Tensor, text: Tensor | None) -> Tensor:
        """CogVideoX's training loss (b,): squared error of the clean latent, divided by the variance of the noise."""
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
        """Samples, with the configuration's sampler, steps and guidance; draws from torch's global generator."""
        assert text is not None and empty is not None  # CogVideoX's models always take captions, even empty ones
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
    """At most `limit` clips with captions, evenly spread over data sets that are opened as train_video.py does."""

    def __init__(self, args: Any, folders: Sequence[Path], limit: int) -> None:
        target = importlib.import_module("sgm.util").get_obj_from_str(args.data_config["target"])
        sets = [target.create_dataset_function(str(path), args, **args.data_config["params"]) for path in folders]
        places = [(data, index) for data in sets for index in range(len(data))]
        self._places = [places[index] for index in evenly_spaced(len(places), limit)]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        """The video `3 T H W` in [-1, 1] and its caption."""
        data, place = self._places[index]
        item = data[place]
        return item["mp4"].movedim(0, 1).float(), item["txt"]

    def read(self) -> tuple[Tensor, list[str]]:
        """All videos, `N 3 T H W`, and their captions."""
        clips = [self[index] for index in progress_bar(range(len(self)), "reading", "clip")]
        return torch.stack([video for video, _ in clips]), [caption for _, caption in clips]


def encode(vae: SATAutoencoder, clips: Clips | list[tuple[Tensor, str]]) -> LatentSet:
    """Latents of clips as the transformer sees them, with statistics (mean 0, deviation 1) that change nothing."""
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
    """Text states of the captions and of the empty one, as sample_video.py makes them."""
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
def measure_autoencoder(job: ArmJob) -> None:
    """Write what needs no checkpoint: what `read_arm`, `read_environment` and the report read.

    Raises:
        UserError: too few held-out clips, or no training clips.
    """
    engine, args = build_diffusion_engine(job.files)
    vae, generator = SATAutoencoder(engine), SATGenerator(engine)
    clips = Clips(args, job.train, job.max_train)
    if not len(clips):
        raise UserError(f"{', '.join(map(str, job.train))}: no training clips")
    reference = _reference(job, args, vae)
    train = encode(vae, clips)
    floor = gaussian_loss_floor(train, generator.signal_and_noise, job.scoring)
    _write_arm(job, reference, train, floor)


@torch.no_grad()
def score_checkpoints(job: ArmJob) -> None:
    """Score each checkpoint that has no scores yet, into RUN/step_* by each run's name, after `measure_autoencoder`.

    Raises:
        UserError: too few held-out clips.
    """
    engine, args = build_diffusion_engine(job.files)
    engine.sampler.verbose = False
    generator, reference = SATGenerator(engine), _reference(job, args, SATAutoencoder(engine))
    floor = read_arm(job.output).floors["loss"].value
    load_checkpoint = importlib.import_module("sat.training.model_io").load_checkpoint
    for name, run in job.runs.items():
        folder = job.output / name
        for step in job.steps:
            if is_scored(folder, [step]):
                continue
            load_checkpoint(engine, args, load_path=str(run), specific_iteration=step)
            torch.manual_seed(job.scoring.seed)  # every checkpoint samples from the same noise
            write_scores(folder, step, *score_generator(generator, reference, job.scoring, floor))
            logger.info("%s: %s, step %d", SCORED, name, step)


def is_measured(folder: Path) -> bool:
    """Whether `measure_autoencoder` finished there."""
    return (folder / "arm.json").exists()


def read_arm(folder: Path) -> ArmResult:
    """What `measure_autoencoder` found about the autoencoder."""
    return TypeAdapter(ArmResult).validate_json((folder / "arm.json").read_bytes())


def read_environment(folder: Path) -> dict[str, Any]:
    """`machine` and `packages` of the process that measured, see `ComparisonResults`."""
    return cast(dict[str, Any], json.loads((folder / "environment.json").read_text(encoding="utf-8")))


def _reference(job: ArmJob, args: Any, vae: SATAutoencoder) -> ArmReference:
    """Held-out clips and what scores compare with; computed again for scoring, since a file of it would be large."""
    clips = Clips(args, job.heldout, job.max_heldout)
    if len(clips) < FEWEST:
        where = ", ".join(map(str, job.heldout))
        raise UserError(f"{where}: {len(clips)} held-out clips, a comparison needs {FEWEST} (100 to say much)")
    videos, captions = clips.read()
    latents = encode(vae, list(zip(videos, captions, strict=True)))
    device = torch.device(vae.engine.device)  # CogVideoX keeps it as text
    frames = vae.decode(latents.latents[:1].to(device)).shape[2]
    text = caption_states(vae.engine, captions)
    return measure_arm(vae.decode, device, latents, videos[:, :, -frames:], feature_networks(device), job.scoring, text)


def _write_arm(job: ArmJob, reference: ArmReference, train: LatentSet, floor: float) -> None:
    """The clips to show, the reconstruction's quality clip by clip, the environment, and arm.json."""
    device = reference.device
    quality = reconstruction_quality(reference, build_perceptual("st-lpips-alex").to(device))
    shape = "x".join(map(str, train.shape))
    training: dict[str, JsonValue] = {
        "configuration files": [str(path) for path in job.files],
        "clips encoded": len(train),
    }
    vae: dict[str, JsonValue] = {"latents (c t h w)": shape, "frames decoded": reference.reconstructions.shape[2]}
    measured = arm_result(job.arm, reference, train, quality, job.scoring, floor)
    result = dataclasses.replace(measured, vae=vae, training=training)
    shown = job.scoring.shown_clips
    pictures = {
        "originals": spread(reference.clips, shown),
        "reconstructions": spread(reference.reconstructions, shown),
    }
    save_tensors(job.output / "clips.safetensors", pictures)
    save_tensors(job.output / "quality.safetensors", quality)
    environment = {"machine": machine(device), "packages": _versions()}
    write_json(job.output / "environment.json", environment)
    write_text(job.output / "arm.json", TypeAdapter(ArmResult).dump_json(result, indent=1).decode())


def _versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):  # a package on the path that is not installed has no version
            versions[name] = metadata.version(name)
    return versions


def main(path: Path) -> None:
    """Do the job that a JSON file describes; a user error is the last line of the output."""
    setup_logging()
    job: InitialJob | ArmJob = TypeAdapter(InitialJob | ArmJob).validate_json(path.read_text(encoding="utf-8"))
    try:
        if isinstance(job, InitialJob):
            write_initial(job)
        elif job.task == "measure":
            measure_autoencoder(job)
        else:
            score_checkpoints(job)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
