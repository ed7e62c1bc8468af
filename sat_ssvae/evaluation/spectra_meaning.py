"""What the spectra of latents mean for a diffusion model, in one sentence computed from the numbers.

    meaning(results.arms, results.pixels)       # "Expect a diffusion model to learn ssvae fastest: ..."

The paper (arXiv 2512.05394) names two properties of latents that diffusion learns fast: a spectrum biased to low
frequencies, and few channel modes. An autoencoder is better by the first if its amplitude falls faster with frequency
than that of every other one (the 95 % interval of the difference, clip by clip, is above 0), and by the second if 90 %
of its variance needs a share of its channel modes that is at least 5 points smaller.
"""

import math
from collections.abc import Callable, Sequence

from ..metrics.intervals import mean_interval
from .spectra import AmplitudeCurve, LatentSpectra

WHITE_FLOOR = math.pi / 2
"""The Gaussian floor of latents without any structure."""
LEAST_DIFFERENCE = 0.05
"""Of shares of channel modes."""


def meaning(arms: Sequence[LatentSpectra], pixels: AmplitudeCurve) -> str:
    """The sentence; `pixels` is the spectrum of the videos themselves, for comparison."""
    return _of_one(arms[0], pixels) if len(arms) == 1 else _of_several(arms, pixels)


def falls(curve: AmplitudeCurve) -> str:
    """How fast amplitude falls, such as `1/f^0.82`."""
    return "not measurable" if curve.decay is None else f"1/f^{curve.decay:.2f}"


def modes(arm: LatentSpectra) -> str:
    """Channel modes for 90 % of the variance, such as `11 of 48`."""
    return f"{arm.modes_for_90_percent} of {len(arm.explained_variance)}"


def _of_one(arm: LatentSpectra, pixels: AmplitudeCurve) -> str:
    fast = (arm.spatial.decay or 0) >= (pixels.decay or 0) / 2
    hidden = "detail drowns in noise long before coarse structure does, so a diffusion model can settle one by one"
    if not fast:
        hidden = (
            "coarse structure drowns in noise almost as early as detail, so a diffusion model has to learn both at once"
        )
    removed = max(0.0, 100 * (1 - arm.gaussian_floor / WHITE_FLOOR))
    return (
        f"The amplitude of {arm.name} falls with frequency as {falls(arm.spatial)} (white noise: 1/f^0, the videos "
        f"themselves: {falls(pixels)}): {hidden}; {modes(arm)} channel modes hold 90 % of the variance, and the best "
        f"linear model already removes {removed:.0f} % of the loss."
    )


def _of_several(arms: Sequence[LatentSpectra], pixels: AmplitudeCurve) -> str:
    steepest, fewest = _steepest(arms), _fewest_modes(arms)
    spectrum = f"{_each(arms, steepest, lambda arm: falls(arm.spatial))}; the videos themselves {falls(pixels)}"
    channels = _each(arms, fewest, modes)
    winners = {arm.name for arm in (steepest, fewest) if arm is not None}
    if len(winners) == 1:
        start = f"Expect a diffusion model to learn {winners.pop()} fastest: "
    else:
        start = "These numbers name no favourite for a diffusion model: "
    first = (
        f"the amplitudes fall about equally fast with frequency ({spectrum})"
        if steepest is None
        else f"the amplitude of {steepest.name} falls fastest with frequency ({spectrum}), so its coarse structure "
        "stays visible in the most noise"
    )
    second = (
        f"all need about the same share of their channel modes for 90 % of the variance ({channels})"
        if fewest is None
        else f"{fewest.name} needs the smallest share of its channel modes for 90 % of the variance ({channels})"
    )
    return f"{start}{first}, {'but' if len(winners) == 2 else 'and'} {second}."


def _each(arms: Sequence[LatentSpectra], first: LatentSpectra | None, text: Callable[[LatentSpectra], str]) -> str:
    """A number of each autoencoder, the best one's first."""
    ordered = sorted(arms, key=lambda arm: arm is not first)
    return ", ".join(f"{text(arm)} for {arm.name}" for arm in ordered)


def _steepest(arms: Sequence[LatentSpectra]) -> LatentSpectra | None:
    """The autoencoder whose amplitude falls faster than that of every other one, beyond chance."""
    if any(arm.spatial.decay is None for arm in arms):
        return None
    best, *others = sorted(arms, key=lambda arm: -(arm.spatial.decay or 0))
    for other in others:
        pairs = zip(best.spatial.decay_by_clip, other.spatial.decay_by_clip, strict=True)
        low = mean_interval([a - b for a, b in pairs]).low
        if low is None or low <= 0:
            return None
    return best


def _fewest_modes(arms: Sequence[LatentSpectra]) -> LatentSpectra | None:
    """The autoencoder that needs a clearly smaller share of its channel modes than every other one."""

    def share(arm: LatentSpectra) -> float:
        return arm.modes_for_90_percent / len(arm.explained_variance)

    best, *others = sorted(arms, key=share)
    return best if share(others[0]) - share(best) >= LEAST_DIFFERENCE else None
