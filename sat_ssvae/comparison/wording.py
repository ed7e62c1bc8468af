"""How the comparison's metrics, speed-ups and shares are named and written."""

from collections.abc import Callable
from functools import partial

from pydantic.dataclasses import dataclass

from ..metrics.intervals import in_brackets, written
from .analysis import SpeedUp
from .results import ABOVE_MEAN_COLOUR, Estimate

_FAR = 100.0
"""Ratios beyond which an end of an interval is written as open."""

QUALITY = {
    "psnr": ("PSNR", " dB", 2, True),
    "ssim": ("SSIM", "", 3, True),
    "stlpips": ("ST-LPIPS", "", 3, False),
    ABOVE_MEAN_COLOUR: ("PSNR gain over a flat mean-colour image", " dB", 2, True),
}
"""Reconstruction metric -> (name, unit, decimals, higher is better)."""

_LEVEL = "t\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{}"
_FAMILIES = {
    "kernel_distance_real": ("Samples to real clips", "{} features", "samples"),
    "kernel_distance_reconstruction": ("Samples to own reconstructions", "{} features", "samples"),
    "denoising_error_real": ("Denoising error to the original", _LEVEL, "denoising"),
    "denoising_error_reconstruction": ("Denoising error to own reconstruction", _LEVEL, "denoising"),
    "loss": ("Loss on standardised latents", "{}", "loss"),
    "loss_above_floor": ("Loss above its Gaussian floor", "{}", "loss"),
    "training_loss": ("Loss that train_video.py logged", "{}", "loss"),
}


@dataclass(frozen=True)
class Metric:
    """How a metric is shown. group: samples, denoising, loss or other (only samples are evidence)."""

    title: str
    detail: str
    group: str

    @property
    def label(self) -> str:
        """Title and detail in one line."""
        return f"{self.title}, {self.detail}" if self.detail else self.title


def describe(metric: str) -> Metric:
    """Title and group of a metric's name; an unknown family is shown under its own name."""
    family, _, parameter = metric.partition("/")
    title, detail, group = _FAMILIES.get(family, (family.replace("_", " "), "{}", "other"))
    return Metric(title, detail.format(parameter) if parameter else "", group)


def speed_up_text(read: SpeedUp) -> str:
    """`2.6× (1.9× to 3.4×)`, `not reached in 2 of 3 runs (...)`, `at the first evaluation (from 1.9×)`, and so on."""
    interval = interval_text(read)
    if read.status == "undefined":
        return "not defined"
    if read.status == "not reached":
        where = f" in {read.seeds - read.reached} of {read.seeds} runs" if read.seeds > 1 else ""
        return f"not reached{where}" + (f" ({interval} at the best common score)" if interval else "")
    assert read.value is not None
    # The ratio at the first evaluation is the grid's and no measurement.
    value = "at the first evaluation" if read.status == "at least" else ratio(read.value)
    return f"{value} ({interval})" if interval else value


def interval_text(read: SpeedUp) -> str:
    """`1.9× to 3.4×`, with an open end `from 1.9×` or `up to 3.4×`, empty if there is none.

    An end beyond a hundredth or a hundredfold says no more than an open one, and is written like it.
    """
    low, high = read.low, read.high
    if low is None or high is None:
        return ""
    if high > _FAR:
        return f"from {ratio(min(low, _FAR))}" if low >= 1 / _FAR else "any ratio"
    return f"{ratio(low)} to {ratio(high)}" if low >= 1 / _FAR else f"up to {ratio(max(high, 1 / _FAR))}"


def ratio(value: float) -> str:
    """`2.6×`, with as many digits as say something."""
    return f"{value:.0f}×" if value >= 10 else f"{value:.1f}×" if value >= 1.45 else f"{value:.2f}×"


def quality_text(metric: str, estimate: Estimate, *, signed: bool = False) -> str:
    """A reconstruction metric with unit and interval, as in `20.31 dB (19.90 to 20.72)`."""
    _, unit, decimals, _ = QUALITY.get(metric, (metric, "", 4, True))
    form = partial(written, decimals=decimals, signed=signed)
    return f"{form(estimate.value)}{unit}{in_brackets(estimate.low, estimate.high, form)}"


def quality_name(metric: str, *, arrow: bool = True) -> str:
    """The name of a reconstruction metric, with an arrow in the direction in which it gets better."""
    if metric not in QUALITY:
        return metric.replace("_", " ").replace("/", ", ")
    name, _, _, higher_is_better = QUALITY[metric]
    return f"{name} {'↑' if higher_is_better else '↓'}" if arrow else name


def percent(share: float) -> str:
    """`81 %`."""
    return f"{100 * share:.0f} %"


def blur(share: float) -> str:
    """How much of a distance is there without a generator; noise may make that more than the whole."""
    return percent(min(share, 1.0))


def span(ordered: list[float], form: Callable[[float], str]) -> str:
    """`1.2× to 3.4×`, or one number when both ends read alike."""
    first, last = form(ordered[0]), form(ordered[-1])
    return first if first == last else f"{first} to {last}"
