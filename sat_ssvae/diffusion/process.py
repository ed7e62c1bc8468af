"""Two diffusion processes with one set of methods: flow matching, and CogVideoX's v-prediction.

    process = FlowMatching()
    t = process.sample_t(batch, generator)
    loss = process.loss(predict, x0, noise, t)           # (b,)
    samples = process.sample(predict, noise, steps=50)

`predict(x_t, t)` maps noisy latents (b, ...) and noise levels (b,) in [0, 1] to the process's target; t = 0
is data and t = 1 pure noise in both processes. A process is its own configuration: immutable, and the same
for every arm.
"""

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..config import Config

Predict = Callable[[Tensor, Tensor], Tensor]


def stratified_uniform(batch: int, generator: torch.Generator) -> Tensor:
    """One uniform draw from each of `batch` equal parts of [0, 1), in random order, (batch,) float32.

    CogVideoX's explicit uniform sampling (arXiv 2408.06072, section 2.3) gives each data-parallel rank its
    own part of the timesteps; doing so for each sample keeps the loss curve as smooth at batch sizes that fit
    one machine.
    """
    offsets = torch.rand(batch, generator=generator)
    return (torch.randperm(batch, generator=generator) + offsets) / batch


class FlowMatching(Config):
    """x_t = (1 - t) x_0 + t noise; the target is the velocity noise - x_0 (arXiv 2210.02747)."""

    kind: Literal["flow_matching"] = "flow_matching"
    """Selects this process in a configuration file."""
    t_distribution: Literal["uniform", "logit_normal"] = "uniform"
    """Noise levels seen in training; logit_normal (arXiv 2403.03206, section 3.1) favours the middle ones."""
    logit_mean: float = 0.0
    """Mean of the logit of t; only used by logit_normal."""
    logit_std: float = Field(default=1.0, gt=0)
    """Standard deviation of the logit of t; only used by logit_normal."""
    shift: float = Field(default=1.0, gt=0)
    """Moves the noise levels of training and sampling, t' = shift t / (1 + (shift - 1) t) (arXiv 2403.03206, section
    5.3.2): above 1 towards noise, below 1 towards data, 1 not at all."""
    solver: Literal["euler", "heun"] = "heun"
    """Sampler of the ordinary differential equation; heun calls the model 2 * steps - 1 times."""

    def signal_and_noise(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The factors of data and noise at t, each (b,) on t's device."""
        return 1 - t, t

    def sample_t(self, batch: int, generator: torch.Generator) -> Tensor:
        """Stratified noise levels for training, (batch,) in [0, 1]."""
        t = stratified_uniform(batch, generator)
        if self.t_distribution == "logit_normal":
            t = torch.sigmoid(self.logit_mean + self.logit_std * torch.special.ndtri(t))
        return shifted(t, self.shift)

    def corrupt(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Noisy latents at t (b,); x0 and noise of equal shape (b, ...)."""
        return torch.lerp(x0, noise, _as_column(t, x0))

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the model has to predict, in the shape of x0."""
        return noise - x0

    def loss(self, predict: Predict, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Mean squared error of the prediction, per sample (b,)."""
        return _squared_error(predict(self.corrupt(x0, noise, t), t), self.target(x0, noise, t))

    def denoise(self, predict: Predict, x_t: Tensor, t: Tensor) -> Tensor:
        """The estimate of x_0 from one prediction at t (b,)."""
        return x_t - _as_column(t, x_t) * predict(x_t, t)

    def levels(self, steps: int, start: float = 1.0) -> Tensor:
        """Noise levels at which `sample` calls the model, the first one `start`, (steps,) float32."""
        return self._times(steps, start)[:-1]

    def sample(self, predict: Predict, noise: Tensor, steps: int, start: float = 1.0) -> Tensor:
        """Integrate from noise (t = 1) to data (t = 0) in `steps` steps, equal ones but for the shift.

        With another `start`, `noise` are latents at the noise level `levels(steps, start)[0]`.
        """
        x = noise
        times = self._times(steps, start).to(noise.device)
        for index in range(steps):
            t, following = times[index], times[index + 1]
            velocity = predict(x, t.expand(len(x)))
            step = following - t
            if self.solver == "heun" and index + 1 < steps:
                ahead = predict(x + step * velocity, following.expand(len(x)))
                velocity = (velocity + ahead) / 2
            x = x + step * velocity
        return x

    def _times(self, steps: int, start: float) -> Tensor:
        """From `start` to 0, (steps + 1,): equally spaced before the shift."""
        unshifted = float(shifted(torch.tensor(start, dtype=torch.float64), 1 / self.shift))
        times = shifted(_descending_times(steps, unshifted), self.shift)
        times[0] = start  # without rounding
        return times


class VPrediction(Config):
    """CogVideoX's process: x_t = a x_0 + s noise, a^2 + s^2 = 1, target v = a noise - s x_0, ending in SNR 0.

    Numbers from the published configurations (CogVideo sat/configs/cogvideox_2b.yaml, cogvideox_5b.yaml, and
    the scheduler_config.json of THUDM/CogVideoX-2b); zero terminal SNR from arXiv 2305.08891; v-prediction
    from arXiv 2202.00512. t in [0, 1] stands for the discrete step round(t * (num_steps - 1)).
    """

    kind: Literal["v_prediction"] = "v_prediction"
    """Selects this process in a configuration file."""
    num_steps: int = Field(default=1000, gt=1)
    """Discrete noise levels."""
    beta_start: float = Field(default=0.00085, gt=0, lt=1)
    """First beta of the scaled-linear schedule."""
    beta_end: float = Field(default=0.012, gt=0, lt=1)
    """Last beta of the scaled-linear schedule."""
    shift_scale: float = Field(default=1.0, gt=0)
    """Divides the signal-to-noise ratio: 3.0 in CogVideoX-2B, 1.0 in 5B and 1.5."""

    def signal_and_noise(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The factors (a, s) of data and noise at t, each (b,) float32 on t's device."""
        betas = torch.linspace(self.beta_start**0.5, self.beta_end**0.5, self.num_steps, dtype=torch.float64) ** 2
        alphas = torch.cumprod(1 - betas, dim=0)
        alphas = alphas / (self.shift_scale + (1 - self.shift_scale) * alphas)
        signal = alphas.sqrt()
        # Zero terminal SNR: shift the last factor to 0 and stretch so that the first one keeps its value.
        signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
        index = (t * (self.num_steps - 1)).round().long()
        table = torch.stack((signal, (1 - signal**2).sqrt())).to(t.device, torch.float32)
        factors = table[:, index]
        return factors[0], factors[1]

    def sample_t(self, batch: int, generator: torch.Generator) -> Tensor:
        """Stratified noise levels for training, uniform over the discrete steps, (batch,) in [0, 1]."""
        index = (stratified_uniform(batch, generator) * self.num_steps).long()
        return index.clamp(max=self.num_steps - 1) / (self.num_steps - 1)

    def corrupt(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Noisy latents at t (b,); x0 and noise of equal shape (b, ...)."""
        signal, sigma = self._columns(t, x0)
        return signal * x0 + sigma * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the model has to predict, in the shape of x0."""
        signal, sigma = self._columns(t, x0)
        return signal * noise - sigma * x0

    def loss(self, predict: Predict, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Mean squared error of v, per sample (b,): CogVideoX's weight 1 / (1 - a^2) on the error of x_0."""
        return _squared_error(predict(self.corrupt(x0, noise, t), t), self.target(x0, noise, t))

    def denoise(self, predict: Predict, x_t: Tensor, t: Tensor) -> Tensor:
        """The estimate of x_0 from one prediction at t (b,)."""
        signal, sigma = self._columns(t, x_t)
        return signal * x_t - sigma * predict(x_t, t)

    def levels(self, steps: int, start: float = 1.0) -> Tensor:
        """Noise levels at which `sample` calls the model, the first one about `start`, (steps,) float32."""
        # Trailing spacing: num_steps - 1 is always visited from 1 on, as zero terminal SNR needs.
        return (_descending_times(steps, start)[:-1] * self.num_steps - 1).round().clamp_min(0) / (self.num_steps - 1)

    def sample(self, predict: Predict, noise: Tensor, steps: int, start: float = 1.0) -> Tensor:
        """Deterministic DDIM (arXiv 2010.02502) over trailing timesteps; returns the last estimate of x_0.

        With another `start`, `noise` are latents at the noise level `levels(steps, start)[0]`.

        Raises:
            ValueError: more `steps` than the process has discrete noise levels.
        """
        if not 1 <= steps <= self.num_steps:
            raise ValueError(f"{steps} sampling steps, the process has 1 to {self.num_steps}")
        x = noise
        times = self.levels(steps, start).to(noise.device)
        for index, t in enumerate(times):
            level = t.expand(len(x))
            signal, sigma = self._columns(level, x)
            v = predict(x, level)
            x0, noise_estimate = signal * x - sigma * v, sigma * x + signal * v
            if index + 1 == steps:
                return x0
            x = self.corrupt(x0, noise_estimate, times[index + 1].expand(len(x)))
        return x

    def _columns(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        signal, sigma = self.signal_and_noise(t)
        return _as_column(signal, like), _as_column(sigma, like)


DiffusionProcess = Annotated[FlowMatching | VPrediction, Field(discriminator="kind")]


def shifted(t: Tensor, shift: float) -> Tensor:
    """Noise levels in [0, 1] moved by `FlowMatching.shift`; `1 / shift` moves them back."""
    return t if shift == 1 else shift * t / (1 + (shift - 1) * t)


def guided(predict: Predict, predict_without_text: Predict, scale: float) -> Predict:
    """Classifier-free guidance (arXiv 2207.12598): without + scale * (with - without)."""

    def combined(x_t: Tensor, t: Tensor) -> Tensor:
        return torch.lerp(predict_without_text(x_t, t), predict(x_t, t), scale)

    return combined


def edit(process: DiffusionProcess, predict: Predict, x0: Tensor, noise: Tensor, strength: float, steps: int) -> Tensor:
    """SDEdit (arXiv 2108.01073): noise latents `x0` up to the level `strength` in (0, 1], then sample from there.

    One step gives the model's estimate of the mean of all clean latents that fit, more steps one of them.
    """
    level = process.levels(steps, strength)[0].to(x0.device).expand(len(x0))
    return process.sample(predict, process.corrupt(x0, noise, level), steps, strength)


def _as_column(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.dtype).reshape(-1, *(1,) * (like.dim() - 1))


def _descending_times(steps: int, start: float) -> Tensor:
    return torch.linspace(start, 0, steps + 1, dtype=torch.float32)


def _squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction.float() - target.float()).square().flatten(1).mean(dim=1)
