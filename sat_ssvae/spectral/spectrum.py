"""What makes latents easy to diffuse: spatio-temporal spectrum, channel eigenspectrum, Gaussian floor.

    amplitude = dct_amplitude(latents)                                      # the paper's first plot
    spectrum = spatial_spectrum(latents, (256, 256))  # the same question in cycles per pixel, for any compression
    variance = cumulative_explained_variance(channel_eigenvalues(latents))  # the second: few channel modes
    floor = mean_gaussian_floor(latent_eigenvalues(latents))  # loss that the best linear model leaves

All functions are pure. Latents are `N c t h w`; results are float64 on the latents' device, because they are
means over millions of positions and eigenvalues that span many orders of magnitude.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

DEFAULT_BLOCK = (4, 8, 8)
BINS_PER_OCTAVE = 4


class FrequencySpectrum(NamedTuple):
    """Root mean square amplitude by frequency; latents of unit variance without any structure have 1 everywhere."""

    frequency: Tensor
    """(b,) ascending, in cycles per pixel or per frame."""
    amplitude: Tensor
    """(N, b), one row a clip."""

    @property
    def mean(self) -> Tensor:
        """Amplitude (b,) of all clips together."""
        return self.amplitude.square().mean(0).sqrt()

    @property
    def decay(self) -> Tensor | None:
        """Exponent a of the fit amplitude ~ 1 / frequency^a of each clip, (N,); None of fewer than two frequencies."""
        if len(self.frequency) < 2:
            return None
        x, y = self.frequency.log(), self.amplitude.clamp_min(torch.finfo(torch.float64).tiny).log()
        x = x - x.mean()
        return -(y @ x) / x.square().sum()


def dct_matrix(size: int) -> Tensor:
    """Orthonormal DCT-II matrix (size, size), float64: row k holds the k-th cosine."""
    position = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi / size * (position + 0.5) * position[:, None]) * math.sqrt(2.0 / size)
    matrix[0] *= math.sqrt(0.5)
    return matrix


def dct3(x: Tensor) -> Tensor:
    """Orthonormal 3-D DCT-II over the last three dimensions of `x` (..., t, h, w), in the dtype of `x`."""
    return _transform3(x, *(dct_matrix(size).to(x) for size in x.shape[-3:]))


def inverse_dct3(x: Tensor) -> Tensor:
    """What `dct3` made `x` (..., t, h, w) out of."""
    return _transform3(x, *(dct_matrix(size).to(x).T for size in x.shape[-3:]))


def _transform3(x: Tensor, t: Tensor, h: Tensor, w: Tensor) -> Tensor:
    x = torch.einsum("...thw,kt->...khw", x, t)
    x = torch.einsum("...thw,kh->...tkw", x, h)
    return torch.einsum("...thw,kw->...thk", x, w)


def zigzag_order(block: tuple[int, int, int]) -> Tensor:
    """Flat indices (t*h*w,) of a block's frequencies from low to high: planes of equal i + j + k, DC first.

    Inside a plane the flat index decides, so that the order is one fixed permutation for every block size.
    """
    t, h, w = (torch.arange(size) for size in block)
    plane = t[:, None, None] + h[None, :, None] + w[None, None, :]
    return torch.argsort(plane.flatten(), stable=True)


def dct_amplitude(latents: Tensor, block: tuple[int, int, int] = DEFAULT_BLOCK) -> Tensor:
    """Mean |3-D DCT coefficient| relative to DC, in zigzag order: the paper's spatio-temporal spectrum.

    Latents are cut into blocks (what does not fill a block is left out; a block is never larger than the
    latents), each channel's mean |coefficient| over blocks is divided by that of its own DC, and channels are
    averaged.

    Args:
        latents: N c t h w, raw or standardised per channel (the channel's mean counts towards its DC).
        block: size (t, h, w).

    Returns:
        (K,) with K the number of coefficients of a block; the first is 1.
    """
    magnitude = dct3(_blocks(latents.double(), block)).abs().mean(0).flatten(1)  # c K
    ordered = magnitude[:, zigzag_order(_fitted(latents, block)).to(magnitude.device)]
    return (ordered / ordered[:, :1].clamp_min(torch.finfo(torch.float64).tiny)).mean(0)


def spatial_spectrum(latents: Tensor, size: tuple[int, int]) -> FrequencySpectrum:
    """Amplitude by spatial frequency in cycles per pixel, whatever an autoencoder's compression.

    The 2-D DCT of whole frames of latents that are standardised per channel, averaged over channels, frames and
    frequencies of about one radius, up to the highest that the latents have in both directions. Diffusion adds
    white noise to such latents: noise of standard deviation s hides the frequencies whose amplitude is below s.

    `latents` are N c t h w, or videos; `size` is the (height, width) of the frames in pixels.
    """
    h, w = latents.shape[-2:]
    vertical, horizontal = (_frequencies(n, pixels) for n, pixels in ((h, size[0]), (w, size[1])))
    radius = torch.hypot(vertical[:, None], horizontal).flatten()
    rows, columns = (dct_matrix(n).to(latents.device) for n in (h, w))
    mean, std = _channel_moments(latents)
    power = torch.stack([(rows @ ((x - mean) / std) @ columns.T).square().mean((0, 1)).flatten() for x in latents])
    return _binned(radius, power, step=1 / (2 * min(size)), highest=min(h / size[0], w / size[1]) / 2)


def temporal_spectrum(latents: Tensor, num_frames: int) -> FrequencySpectrum:
    """Amplitude by temporal frequency in cycles per frame, of latents N c t h w of `num_frames` frames.

    As `spatial_spectrum`, with the DCT over time, averaged over channels and positions.
    """
    t = latents.shape[2]
    over_time = dct_matrix(t).to(latents.device)
    mean, std = _channel_moments(latents)
    power = torch.stack([(over_time @ ((x - mean) / std).flatten(2)).square().mean((0, 2)) for x in latents])
    return _binned(_frequencies(t, num_frames), power, step=1 / (2 * num_frames), highest=t / num_frames / 2)


def low_frequency_share(latents: Tensor, fraction: float = 0.125) -> float:
    """Share of the latents' variance, 0 to 1, in the lowest `fraction` of 3-D DCT coefficients, DC included.

    Each channel's mean is removed first; variance is summed over channels, so loud channels weigh more.
    White noise has a share equal to `fraction` (rounded up to whole coefficients).
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie in (0, 1], got {fraction}")
    centred = latents.double() - latents.double().mean((0, 2, 3, 4), keepdim=True)
    energy = dct3(_blocks(centred, DEFAULT_BLOCK)).square().sum((0, 1)).flatten()
    ordered = energy[zigzag_order(_fitted(latents, DEFAULT_BLOCK)).to(energy.device)]
    low = ordered[: math.ceil(fraction * len(ordered))].sum()
    return float(low / ordered.sum().clamp_min(torch.finfo(torch.float64).tiny))


def channel_eigenvalues(latents: Tensor) -> Tensor:
    """Eigenvalues (c,) of the channel covariance over samples and positions of N c t h w, largest first."""
    rows = latents.double().movedim(1, 0).flatten(1)
    centred = rows - rows.mean(1, keepdim=True)
    return _descending(torch.linalg.eigvalsh(centred @ centred.T / max(rows.shape[1] - 1, 1)))


def latent_eigenvalues(latents: Tensor) -> Tensor:
    """Eigenvalues (c*t*h*w,) of the whole latent's covariance, largest first; positions decorrelated by DCT.

    Each 3-D DCT frequency of the whole latent has its own covariance of channels; covariances between
    frequencies, which the DCT makes small for natural signals, are left out. So N well above c samples are
    enough, where the full covariance would need N well above c*t*h*w, and a Gaussian floor made of these
    values is that of the best predictor that treats frequencies apart: at least the true one, at most the
    one from `channel_eigenvalues` (up to the variance of the position's mean). The values sum to the
    latents' variance about their mean.
    """
    _, covariance = frequency_covariance(latents)
    return _descending(torch.linalg.eigvalsh(covariance).flatten())


def frequency_covariance(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (c, t, h, w) of the 3-D DCT coefficients of N c t h w, and covariance of channels at each, (t*h*w, c, c)."""
    coefficients = dct3(latents.double())
    mean = coefficients.mean(0)
    centred = (coefficients - mean).flatten(2)
    return mean, torch.einsum("nck,ndk->kcd", centred, centred) / max(len(latents) - 1, 1)


def cumulative_explained_variance(eigenvalues: Tensor) -> Tensor:
    """Share (c,) of the total variance that the first 1, 2, ... c components explain; the last is 1."""
    ordered = _descending(eigenvalues)
    return ordered.cumsum(0) / ordered.sum()


def modes_for(eigenvalues: Tensor, share: float = 0.9) -> int:
    """The smallest number of components that explains at least `share` (0 to 1] of the variance."""
    if not 0 < share <= 1:
        raise ValueError(f"share must lie in (0, 1], got {share}")
    reached = cumulative_explained_variance(eigenvalues) >= share - 1e-12  # a full share must survive rounding
    return int(reached.int().argmax()) + 1


def gaussian_floor(eigenvalues: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
    """Diffusion loss per dimension that the best predictor leaves on Gaussian latents, at a noise level.

    Of x_t = a x_0 + s e, an eigenvalue l of the latents' covariance leaves l / (a^2 l + s^2): of the velocity e - x_0
    where a + s = 1 (flow matching; "Diffusing in the Right Space", arXiv 2606.03578), and of v = a e - s x_0 where
    a^2 + s^2 = 1. Latents standardised per channel have mean eigenvalue 1.

    Args:
        eigenvalues: (D,), at least 0.
        signal: a, any shape.
        noise: s, in the same shape.

    Returns:
        The floor, in that shape. A dimension without variance costs nothing where there is noise.
    """
    a, s = (factor.double()[..., None] for factor in (signal, noise))
    values = eigenvalues.double().clamp_min(0.0)
    noisy = a.square() * values + s.square()
    return (values / noisy.clamp_min(torch.finfo(torch.float64).tiny)).mean(-1)


def mean_gaussian_floor(eigenvalues: Tensor) -> float:
    """`gaussian_floor` of flow matching averaged over uniform t in [0, 1]: (pi / 2) mean_i sqrt(l_i)."""
    return float(math.pi / 2 * eigenvalues.double().clamp_min(0.0).sqrt().mean())


def _fitted(latents: Tensor, block: tuple[int, int, int]) -> tuple[int, int, int]:
    t, h, w = (min(wanted, available) for wanted, available in zip(block, latents.shape[-3:], strict=True))
    return t, h, w


def _blocks(latents: Tensor, block: tuple[int, int, int]) -> Tensor:
    """N c t h w -> (blocks, c, *block); the incomplete blocks at the far ends are dropped."""
    fitted = _fitted(latents, block)
    if latents.ndim != 5 or min(fitted) < 1:
        raise ValueError(f"expected latents N c t h w and a positive block, got {tuple(latents.shape)} and {block}")
    for axis, size in enumerate(fitted, start=2):
        latents = latents.narrow(axis, 0, latents.shape[axis] // size * size)
        latents = latents.unflatten(axis, (-1, size)).movedim(axis, 0).flatten(0, 1)
    return latents


def _channel_moments(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of N c t h w, (c, 1, 1, 1) in float64, to be applied to a clip."""
    clips = [clip.double() for clip in latents]
    mean = torch.stack([clip.mean((1, 2, 3)) for clip in clips]).mean(0)[:, None, None, None]
    variance = torch.stack([(clip - mean).square().mean((1, 2, 3)) for clip in clips]).mean(0)
    return mean, variance.sqrt().clamp_min(torch.finfo(torch.float64).tiny)[:, None, None, None]


def _frequencies(size: int, pixels: int) -> Tensor:
    """Of the DCT coefficients of `size` positions over this many pixels (or frames), in cycles per pixel."""
    return torch.arange(size, dtype=torch.float64) / (2 * pixels)


def _binned(frequency: Tensor, power: Tensor, step: float, highest: float) -> FrequencySpectrum:
    """Power (N, K) of DCT coefficients averaged over bins of equal width in octaves, without the constant one.

    Args:
        frequency: (K,).
        power: (N, K).
        step: distance of two frequencies along an axis; no bin is narrower.
        highest: coefficients of this frequency and above are left out.
    """
    ring = (frequency / step).round()
    kept = (ring > 0) & (ring < round(highest / step))
    octave = (ring.clamp_min(1).log2() * BINS_PER_OCTAVE + 1e-9).floor()
    bins = octave[kept].unique()
    member = (kept & (octave == bins[:, None])).double()  # (b, K)
    member = member / member.sum(1, keepdim=True)
    return FrequencySpectrum(member @ frequency, (power @ member.T.to(power.device)).sqrt())


def _descending(eigenvalues: Tensor) -> Tensor:
    """Largest first; rounding below zero is cut, a covariance has none."""
    return eigenvalues.double().clamp_min(0.0).sort(descending=True).values
