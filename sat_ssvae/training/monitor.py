"""Monitoring of a training run: held-out clips beside their reconstructions, scores and spectra, and loggers.

Nothing here draws a random number or changes a weight, so a run takes the same steps with and without it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ..config import Config
from ..data.settings import DataConfig
from ..data.shards import fixed_clips
from ..data.skips import SkipLog
from ..data.video_io import to_uint8, write_video
from ..engine.log import JsonLog
from ..engine.precision import Precision, autocast
from ..errors import UserError
from ..spacing import evenly_spaced
from ..spectral.correlation import local_correlation
from ..spectral.spectrum import channel_eigenvalues, cumulative_explained_variance, dct_amplitude
from ..storage import atomic
from ..vae.autoencoder import SSVAE
from .loggers import EvaluationPictures, Logger, TensorBoard, WeightsAndBiases

SHOWN_FRAMES = 4
"""Frames of a clip in the grid of pictures, evenly spaced."""


class MonitorConfig(Config):
    """How a run is monitored."""

    every: int = Field(default=0, ge=0)
    """Steps between evaluations on held-out clips; 0 makes none."""
    path: str | tuple[str, ...] = ()
    """Held-out shards or videos; empty: the tenth that `data.part=train` leaves out."""
    clips: int = Field(default=4, gt=0)
    """How many held-out clips; they are always the same."""
    tensorboard: bool = False
    """Write event files for TensorBoard to tensorboard/ in the run's folder."""
    wandb_project: str | None = Field(default=None, min_length=1)
    """Project of Weights & Biases to log to, if `wandb` is installed; WANDB_MODE and so on have their usual meaning."""

    @property
    def active(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.every or self.tensorboard or self.wandb_project)


class Monitor:
    """Writes evaluations.jsonl, evaluations/step_N.png and step_N.mp4, and feeds the loggers; for the first rank alone.

    Held-out clips have the frames, rate and first size of the training clips in `data`. `start`: steps taken
    before; anything logged beyond them is dropped. `settings`: the run's configuration, for loggers that show it.

    Raises:
        UserError: no held-out clips, or a package is missing.
    """

    def __init__(
        self,
        config: MonitorConfig,
        data: DataConfig,
        output: Path,
        precision: Precision,
        device: torch.device,
        start: int,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.config, self.output, self.precision = config, output, precision
        if config.every:
            _metrics()  # reports a missing package now, and not after hundreds of steps
        self._log = JsonLog(output / "evaluations.jsonl", start) if config.every else None
        self.fps = data.fps
        self.video = _heldout(config, data).to(device) if config.every else None
        self._loggers: list[Logger] = []
        if config.tensorboard:
            self._loggers.append(TensorBoard(output / "tensorboard", start))
        if config.wandb_project:
            self._loggers.append(WeightsAndBiases(output, config.wandb_project, settings or {}))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers of a training step."""
        self._send(step, "train", values)

    @torch.no_grad()
    def evaluate(self, step: int, vae: SSVAE) -> None:
        """Reconstruct the held-out clips from their posterior means, without masks; write scores and pictures.

        Raises:
            UserError: the files cannot be written.
        """
        if self.video is None or self._log is None:
            return
        training = vae.training
        vae.eval()
        with autocast(self.video.device, self.precision):
            latents = torch.cat([vae.encode(clip[None]).mode() for clip in self.video]).float()
            rebuilt = torch.cat([vae.decode(latent[None]) for latent in latents]).float()
        vae.train(training)
        metrics, correlation = _metrics(), local_correlation(latents).mean
        scores = {name: float(metric(rebuilt, self.video).mean()) for name, metric in metrics.items()}
        scores |= {} if correlation is None else {"local_correlation": float(correlation)}
        spectra = {
            "dct_amplitude": dct_amplitude(latents).tolist(),
            "explained_variance": cumulative_explained_variance(channel_eigenvalues(latents)).tolist(),
        }
        self._log.write(step, {**scores, "psnr_by_clip": metrics["psnr"](rebuilt, self.video).tolist(), **spectra})
        self._send(step, "heldout", scores)
        for name, curve in spectra.items():
            self._send(step, name, _points(curve))
        self._show(step, rebuilt)

    def _send(self, step: int, group: str, values: Mapping[str, float]) -> None:
        for one in self._loggers:
            one.scalars(step, {f"{group}/{name}": value for name, value in values.items()})

    def _show(self, step: int, rebuilt: Tensor) -> None:
        """Write originals above their reconstructions: all frames as a video, some of them as a picture."""
        assert self.video is not None
        pairs = torch.cat([_side_by_side(self.video), _side_by_side(rebuilt)], dim=2).cpu()  # C T 2H NW
        folder = self.output / "evaluations"
        frames = evenly_spaced(pairs.shape[1], SHOWN_FRAMES)
        moving = to_uint8(pairs).permute(1, 2, 3, 0).numpy()  # T 2H NW C
        grid = np.concatenate(moving[frames])
        video = folder / f"step_{step}.mp4"
        try:
            with atomic(folder / f"step_{step}.png") as partial:
                imageio.imwrite(partial, grid, extension=".png")
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error}); make room") from None
        write_video(video, pairs, self.fps)
        for one in self._loggers:
            one.pictures(step, EvaluationPictures(grid, moving, video, self.fps))

    def close(self) -> None:
        """Close the loggers."""
        for one in self._loggers:
            one.close()


def _side_by_side(video: Tensor) -> Tensor:
    """`B C T H W` to `C T H BW`."""
    return torch.cat(list(video), dim=-1)


def _heldout(config: MonitorConfig, data: DataConfig) -> Tensor:
    """The clips, `B C T H W` in [-1, 1]."""
    first = data.streams()[0].config
    place = {"path": config.path, "part": "all"} if config.path else {"part": "heldout"}
    fixed = first.model_copy(update={"resolution": first.sizes[0], "buckets": (), "num_workers": 0, **place})
    clips = fixed_clips(fixed, stride=fixed.span + 1 / fixed.fps, limit=config.clips, skips=SkipLog(max_share=1))
    videos = [clip.video for clip in clips]
    if not videos:
        raise UserError(f"{fixed.shown_path}: no held-out clip can be read")
    return torch.stack(videos)


def _metrics() -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    try:
        from ..metrics.fidelity import psnr, ssim
    except ImportError as error:
        raise UserError(f"monitor.every needs `pip install sat-ssvae[compare]` ({error})") from None
    return {"psnr": psnr, "ssim": ssim}


def _points(curve: list[float]) -> dict[str, float]:
    """Some values of a spectrum, to be logged as scalars: number 1, 2, 4, 8, ..., counted from 1."""
    return {f"{2**power:04d}": curve[2**power - 1] for power in range(len(curve).bit_length())}
