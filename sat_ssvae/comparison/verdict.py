"""From speed-ups to two sentences that claim no more than the intervals allow.

    judge(results, "ssvae").text        # "Diffusion converges faster on ssvae than on stock: ..."

Evidence are the decoded measures (sample distances and denoising errors in pixels) that have an interval. Not
evidence: the loss on latents, because its floor differs between VAEs, and a distance that is mostly the VAE's
own reconstruction error, because it compares blur.

Faster: at least half of the leading measures are faster and no measure at all is slower. The leading measures
are the sample distances, or the denoising errors where no sample distance is evidence. Slower is the mirror
image; both faster and slower ones make it mixed; equal needs at least half of all evidence within the equal
range and the rest undecided.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

from pydantic.dataclasses import dataclass

from .analysis import ComparisonResults, Estimate, SpeedUp, speed_up

Conclusion = Literal["faster", "slower", "mixed", "equal", "undecided", "no evidence"]

_QUALITY = {
    "psnr": ("PSNR", " dB", 2, True),
    "ssim": ("SSIM", "", 3, True),
    "stlpips": ("ST-LPIPS", "", 3, False),
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
    """How a metric is shown. group: samples, denoising, loss or other (only the first two are evidence)."""

    name: str
    family: str
    title: str
    detail: str
    group: str

    @property
    def label(self) -> str:
        """Title and detail in one line."""
        return f"{self.title}, {self.detail}" if self.detail else self.title


@dataclass(frozen=True)
class Verdict:
    """What can be said about one candidate. speed_ups: all metrics, in the order of `describe`'s groups."""

    baseline: str
    candidate: str
    conclusion: Conclusion
    sentences: tuple[str, str]
    speed_ups: tuple[SpeedUp, ...]

    @property
    def text(self) -> str:
        """Both sentences."""
        return " ".join(self.sentences)


def describe(metric: str) -> Metric:
    """Title and group of a metric's name; an unknown family is shown under its own name."""
    family, _, parameter = metric.partition("/")
    title, detail, group = _FAMILIES.get(family, (family.replace("_", " "), "{}", "other"))
    return Metric(metric, family, title, detail.format(parameter) if parameter else "", group)


def judge(results: ComparisonResults, candidate: str, *, seed: int = 0) -> Verdict:
    """Read all metrics of one candidate against the baseline. `seed` draws the evaluation noise."""
    groups = ("samples", "denoising", "loss", "other")
    metrics = sorted(results.metrics, key=lambda name: groups.index(describe(name).group))
    read = tuple(speed_up(results, candidate, metric, seed=seed) for metric in metrics)
    conclusion = conclude(read)
    sentences = (_convergence(results, candidate, read, conclusion), _quality(results, candidate, read))
    return Verdict(results.baseline.name, candidate, conclusion, sentences, read)


def evidence(read: Sequence[SpeedUp], group: str | None = None) -> list[SpeedUp]:
    """The speed-ups that count: decoded measures with an interval and not dominated by their floor."""
    counted = [s for s in read if describe(s.metric).group in ("samples", "denoising")]
    counted = [s for s in counted if s.outcome not in ("undefined", "no interval") and not s.measures_blur]
    return [s for s in counted if group in (None, describe(s.metric).group)]


def _leading(read: Sequence[SpeedUp]) -> list[SpeedUp]:
    return evidence(read, "samples") or evidence(read, "denoising")


def conclude(read: tuple[SpeedUp, ...]) -> Conclusion:
    """The rule of the module's docstring."""
    everything, leading = evidence(read), _leading(read)
    if not leading:
        return "no evidence"
    faster, slower = (any(s.outcome == name for s in everything) for name in ("faster", "slower"))
    if faster and slower:
        return "mixed"
    if faster:
        return "faster" if 2 * sum(s.outcome == "faster" for s in leading) >= len(leading) else "undecided"
    if slower:
        return "slower" if 2 * sum(s.outcome == "slower" for s in leading) >= len(leading) else "undecided"
    return "equal" if 2 * sum(s.outcome == "equal" for s in everything) >= len(everything) else "undecided"


def reconstruction_verdict(results: ComparisonResults, candidate: str, metric: str) -> int | None:
    """+1: the candidate reconstructs better, -1: worse, 0: the intervals allow neither, None: no intervals.

    metric: one that measures quality (psnr, ssim, stlpips, lpips). Uses the paired difference over clips
    where it was measured, else whether the two intervals overlap.
    """
    *_, higher_is_better = _QUALITY[metric]
    arm = results.arm(candidate)
    difference = arm.reconstruction_difference.get(metric)
    if difference is None:
        ours, theirs = arm.reconstruction.get(metric), results.baseline.reconstruction.get(metric)
        if ours is None or theirs is None or None in (ours.low, ours.high, theirs.low, theirs.high):
            return None
        assert ours.low is not None and ours.high is not None
        assert theirs.low is not None and theirs.high is not None
        low, high = ours.low - theirs.high, ours.high - theirs.low
    elif difference.low is None or difference.high is None:
        return None
    else:
        low, high = difference.low, difference.high
    sign = (low > 0) - (high < 0)
    return sign if higher_is_better else -sign


def speed_up_text(read: SpeedUp) -> str:
    """`2.6× (1.9× to 3.4×)`, `not reached in 2 of 3 seeds (...)`, `at least 4.0×`, ..., as tables show it."""
    interval = interval_text(read)
    if read.status == "undefined":
        return "not defined"
    if read.status == "not reached":
        where = f" in {read.seeds - read.reached} of {read.seeds} seeds" if read.seeds > 1 else ""
        return f"not reached{where}" + (f" ({interval} at the best common score)" if interval else "")
    assert read.value is not None
    value = f"at least {ratio(read.value)}" if read.status == "at least" else ratio(read.value)
    return f"{value} ({interval})" if interval else value


def interval_text(read: SpeedUp) -> str:
    """`1.9× to 3.4×`, with an open end `from 1.9×` or `up to 3.4×`, empty where there is none."""
    if read.low is None or read.high is None:
        return ""
    if math.isinf(read.high):
        return f"from {ratio(read.low)}" if read.low > 0 else "any ratio"
    return f"{ratio(read.low)} to {ratio(read.high)}" if read.low > 0 else f"up to {ratio(read.high)}"


def ratio(value: float) -> str:
    """`2.6×`, with as many digits as say something."""
    return f"{value:.0f}×" if value >= 10 else f"{value:.1f}×" if value >= 1.45 else f"{value:.2f}×"


def quality_text(metric: str, estimate: Estimate, *, signed: bool = False) -> str:
    """A reconstruction metric with unit and interval, as in `20.31 dB (19.90 to 20.72)`."""
    _, unit, decimals, _ = _QUALITY.get(metric, (metric, "", 4, True))
    sign = "+" if signed else ""
    text = f"{estimate.value:{sign}.{decimals}f}{unit}"
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} ({estimate.low:{sign}.{decimals}f} to {estimate.high:{sign}.{decimals}f})"


def quality_name(metric: str, *, arrow: bool = True) -> str:
    """The name of a reconstruction metric, with an arrow in the direction in which it gets better."""
    if metric not in _QUALITY:
        return metric.replace("_", " ").replace("/", ", ")
    name, _, _, higher_is_better = _QUALITY[metric]
    return f"{name} {'↑' if higher_is_better else '↓'}" if arrow else name


def _convergence(results: ComparisonResults, candidate: str, read: tuple[SpeedUp, ...], conclusion: Conclusion) -> str:
    base, seeds = results.baseline.name, len(results.seeds)
    if conclusion == "no evidence":
        why = _why_none(read)
        return f"Whether diffusion converges faster on {candidate} or on {base} cannot be judged: {why}."
    once = seeds == 1
    verb = "converged" if once else "converges"
    counted = evidence(read)
    faster = f"Diffusion {verb} faster on {candidate} than on {base}"
    slower = f"Diffusion {verb} more slowly on {candidate} than on {base}"
    few = {"samples": "sample distances", "denoising": "denoising errors"}[describe(_leading(read)[0].metric).group]
    some = f"by some measures, though by fewer than half of the {few}"
    lead = {
        "faster": faster,
        "slower": slower,
        "mixed": f"{faster} by some measures, slower by others",
        "equal": f"Diffusion {verb} about equally fast on {candidate} and on {base}",
        "undecided": f"No clear difference in convergence between {candidate} and {base} was found",
    }[conclusion]
    if conclusion == "undecided" and any(s.outcome in ("faster", "slower") for s in counted):
        lead = f"{faster if any(s.outcome == 'faster' for s in counted) else slower} {some}"
    if once:
        lead = f"In this one run {lead[0].lower()}{lead[1:]}"
    scope = (
        "one seed, so the intervals hold the evaluation's noise and not another run's"
        if once
        else f"{seeds} seeds, 95 % intervals"
    )
    return f"{lead}: of {len(counted)} decoded measure{'s' * (len(counted) != 1)}, {_counts(counted)}; {scope}."


def _counts(counted: list[SpeedUp]) -> str:
    """`faster on 9 (1.6× to 3.4×, ...), slower on none, ...`: every measure is in exactly one count."""
    by = {name: [s for s in counted if s.outcome == name] for name in ("faster", "slower", "equal", "undecided")}
    parts = []
    for name in ("faster", "slower"):
        parts.append(f"{name} on {_how_many(by[name], counted)}{_range(by[name])}")
    for name, words in (("equal", "about equal on"), ("undecided", "undecided on")):
        if by[name]:
            parts.append(f"{words} {_how_many(by[name], counted)}")
    return ", ".join(parts[:-1]) + f" and {parts[-1]}"


def _how_many(some: list[SpeedUp], counted: list[SpeedUp]) -> str:
    if not some:
        return "none"
    return "all" if len(some) == len(counted) > 1 else str(len(some))


def _range(some: list[SpeedUp]) -> str:
    """In brackets: the values, how often there is none, and the end of the intervals that is nearest to 1."""
    if not some:
        return ""
    values = sorted(s.value for s in some if s.value is not None)
    parts = [_span(values, ratio)] if values else []
    missed = sum(s.status == "not reached" for s in some)
    if missed:
        parts.append(f"{some[0].baseline}'s final score not reached" + (f" on {missed}" if missed < len(some) else ""))
    if some[0].outcome == "faster":
        parts.append(f"at least {ratio(min(s.low for s in some if s.low is not None))} by the intervals")
    else:
        parts.append(f"at most {ratio(max(s.high for s in some if s.high is not None))} by the intervals")
    return f" ({', '.join(parts)})"


def _why_none(read: tuple[SpeedUp, ...]) -> str:
    decoded = [s for s in read if describe(s.metric).group in ("samples", "denoising")]
    if not decoded:
        return "no decoded measure was taken, and losses on different latents do not compare"
    if all(s.measures_blur for s in decoded):
        return "every decoded measure is mostly the VAEs' own reconstruction error, so it compares blur"
    if all(s.outcome == "undefined" for s in decoded):
        return f"on every decoded measure {decoded[0].reason}"
    if all(s.outcome == "no interval" for s in decoded):
        return "there is one seed and no evaluation with an interval"
    return "no decoded measure has an interval, a baseline that improves, and a floor small enough"


def _quality(results: ComparisonResults, candidate: str, read: tuple[SpeedUp, ...]) -> str:
    """The second sentence: what the latents cost in reconstruction, and which distances measure blur."""
    base, arm = results.baseline.name, results.arm(candidate)
    shared = [m for m in _QUALITY if m in arm.reconstruction and m in results.baseline.reconstruction]
    if not shared:
        return "The reconstruction quality of the two VAEs was not measured, so blur may explain any difference."
    signs = [reconstruction_verdict(results, candidate, metric) for metric in shared]
    worse, better = -1 in signs, 1 in signs
    numbers = ", ".join(
        f"{quality_name(m, arrow=False)} {quality_text(m, Estimate(arm.reconstruction[m].value))}"
        f" against {quality_text(m, Estimate(results.baseline.reconstruction[m].value))}"
        for m in shared
    )
    if worse and better:
        text = f"By some measures {candidate} reconstructs better and by others worse than {base} ({numbers})"
    elif worse:
        text = f"{candidate} reconstructs worse ({numbers}), so part of any ease may be bought with blur"
    elif better:
        text = f"{candidate} also reconstructs better ({numbers})"
    elif all(sign is None for sign in signs):
        text = f"Reconstruction was measured without intervals ({numbers})"
    else:
        text = f"No clear difference in reconstruction was found ({numbers})"
    return f"{text}{_blur(read)}."


def _blur(read: tuple[SpeedUp, ...]) -> str:
    """The clause on distances whose floor is most of them; empty when there are none."""
    blurred = [s for s in read if s.measures_blur]
    if not blurred:
        return ""
    share = _span(sorted(s.floor_share for s in blurred if s.floor_share is not None), percent)
    kinds = sorted({describe(s.metric).title[0].lower() + describe(s.metric).title[1:] for s in blurred})
    which = f"{len(blurred)} measure{'s' if len(blurred) > 1 else ''} ({' and '.join(kinds)})"
    verb, pronoun, each = ("compare", "are", "each") if len(blurred) > 1 else ("compares", "is", "it")
    return f"; {which} {verb} blur, not convergence, and {pronoun} left out: {share} of {each} is the VAE's floor"


def percent(share: float) -> str:
    """`81 %`."""
    return f"{100 * share:.0f} %"


def _span(ordered: list[float], form: Callable[[float], str]) -> str:
    """`1.2× to 3.4×`, or one number when both ends read alike."""
    first, last = form(ordered[0]), form(ordered[-1])
    return first if first == last else f"{first} to {last}"
