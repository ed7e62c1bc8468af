"""From speed-ups to two sentences that claim no more than the intervals allow.

    verdicts = judge(results)       # one a candidate, by the same measures for all
    verdicts[0].text                # "Diffusion converges faster on ssvae than on stock: ..."

The distances of decoded samples that have an interval are evidence. Not evidence: the denoising error at a fixed noise
level, because a shift of the noise schedule moves it (an arm can be slower than itself by it); the loss on latents,
because its floor differs between VAEs; and a distance that is mostly the own reconstruction error of a VAE of the
comparison, because it compares blur. What counts for one arm counts for all, else leaving out a measure for one arm
would lift its verdict; a counted measure on which an arm has no interval is undecided for that arm.

Nothing is judged where an arm's VAE does not explain half of the clips' variance around their mean colour, or where its
transformer does not beat its own first evaluation by half of the sample distances: a distance to the VAE's own
reconstructions is small for a decoder that shows nothing, and a transformer that does not train is as good as any at
its first evaluation.

Faster: at least half of the sample distances are faster and none is slower. Slower is the mirror image; both faster and
slower ones make it mixed; equal needs at least half of them within the equal range and the rest undecided.
"""

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Literal

from pydantic.dataclasses import dataclass

from .analysis import FLOOR_DOMINATES, Outcome, SpeedUp, floor_shares, speed_up
from .curves import NO_PROGRESS
from .results import ABOVE_MEAN_COLOUR, ComparisonResults, Estimate
from .wording import QUALITY, blur, describe, quality_name, quality_text, ratio, span, speed_up_text

Conclusion = Literal["faster", "slower", "mixed", "equal", "undecided", "no evidence", "not judgeable"]

_SILENT: tuple[Outcome, ...] = ("undefined", "no interval")
"""Outcomes that say nothing about an arm."""
LEAST_GAIN = 10 * math.log10(2)
"""dB of PSNR above the clip's mean colour from which a VAE is judged: half of the variance explained."""


@dataclass(frozen=True)
class Verdict:
    """What can be said about one candidate.

    speed_ups: all metrics, in the order of `describe`'s groups. counted: those that the conclusion rests on.
    """

    baseline: str
    candidate: str
    conclusion: Conclusion
    sentences: tuple[str, str]
    speed_ups: tuple[SpeedUp, ...]
    counted: tuple[SpeedUp, ...]

    @property
    def text(self) -> str:
        """Both sentences."""
        return " ".join(self.sentences)


def judge(results: ComparisonResults) -> list[Verdict]:
    """Read all metrics of every candidate against the baseline."""
    groups = ("samples", "denoising", "loss", "other")
    metrics = sorted(results.metrics, key=lambda name: groups.index(describe(name).group))
    read = [tuple(speed_up(results, candidate.name, metric) for metric in metrics) for candidate in results.candidates]
    measures = counting(read)
    return [_verdict(results, one, measures) for one in read]


def counting(read: Iterable[Sequence[SpeedUp]]) -> set[str]:
    """The measures that count, from all candidates' speed-ups.

    These are the sample distances that no arm's floor dominates and on which some candidate's speed-up has an interval.
    """
    every = [s for one in read for s in one if describe(s.metric).group == "samples"]
    known = {s.metric for s in every if s.outcome not in _SILENT}
    return known - {s.metric for s in every if s.measures_blur}


def conclude(counted: Sequence[SpeedUp]) -> Conclusion:
    """The rule of the module's docstring, for arms that can be judged, from the speed-ups that count."""
    outcomes = [s.outcome for s in counted]
    if all(outcome in _SILENT for outcome in outcomes):
        return "no evidence"
    if "faster" in outcomes and "slower" in outcomes:
        return "mixed"
    claims: tuple[Literal["faster", "slower", "equal"], ...] = ("faster", "slower", "equal")
    claim = next((name for name in claims if name in outcomes), None)
    return claim if claim and 2 * outcomes.count(claim) >= len(outcomes) else "undecided"


def _verdict(results: ComparisonResults, read: tuple[SpeedUp, ...], measures: Container[str]) -> Verdict:
    candidate, counted = read[0].candidate, tuple(s for s in read if s.metric in measures)
    doubt = _doubt(results, candidate, read)
    conclusion = "not judgeable" if doubt else conclude(counted)
    if conclusion in ("not judgeable", "no evidence"):
        why = doubt or _why_none(read)
        base = results.baseline.name
        first = f"Whether diffusion converges faster on {candidate} or on {base} cannot be judged: {why}."
        counted = ()
    else:
        first = _convergence(results, candidate, counted, conclusion)
    sentences = first, _quality(results, candidate, read, conclusion)
    return Verdict(results.baseline.name, candidate, conclusion, sentences, read, counted)


def _doubt(results: ComparisonResults, candidate: str, read: Sequence[SpeedUp]) -> str:
    """Why the arms cannot be judged; empty if they can."""
    if blind := blind_arms(results, (results.baseline.name, candidate)):
        which = "each VAE" if len(blind) == 2 else f"the VAE of {next(iter(blind))}"
        less = all(gain.value < LEAST_GAIN for gain in blind.values())
        explains = "explains less than half" if less else "is not shown to explain half"
        gains = (f"{name} {quality_text(ABOVE_MEAN_COLOUR, gain, signed=True)}" for name, gain in blind.items())
        return (
            f"{which} {explains} of the clips' variance (PSNR against that of a flat image in the clip's "
            f"mean colour: {', '.join(gains)}); {_remedy(results, list(blind))}"
        )
    samples = [s for s in read if describe(s.metric).group == "samples"]
    stuck = [s for s in samples if s.reason.endswith(NO_PROGRESS)]
    if 2 * len(stuck) > len(samples):
        name = stuck[0].baseline if stuck[0].reason.startswith("the baseline") else candidate
        return f"the transformer of {name} {NO_PROGRESS}; train it longer, or evaluate it earlier"
    return ""


def _remedy(results: ComparisonResults, blind: Sequence[str]) -> str:
    """What to do about autoencoders that explain too little; longer training is for those that are trained here."""
    given = [name for name in blind if "checkpoint" in results.arm(name).training]
    if not given:
        return "train longer, or compress less"
    if len(given) == len(blind):
        return f"not trained here: look at {'its' if len(given) == 1 else 'their'} reconstructions"
    (trained,) = set(blind) - set(given)
    return f"train {trained} longer, or compress less; {given[0]} is not trained here: look at its reconstructions"


def blind_arms(results: ComparisonResults, names: Iterable[str]) -> dict[str, Estimate]:
    """Those of the arms `names` whose VAE is not shown to explain half of the clips' variance, with its gain in dB."""
    blind = {}
    for name in names:
        gain = results.arm(name).reconstruction.get(ABOVE_MEAN_COLOUR)
        # Of several autoencoders the mean: Student's interval over two of them is far too wide for a lower end.
        alone = len(results.vae_seeds) == 1
        if gain is not None and (gain.low if alone and gain.low is not None else gain.value) < LEAST_GAIN:
            blind[name] = gain if alone else Estimate(gain.value)
    return blind


def blurring_arms(results: ComparisonResults) -> list[str]:
    """The arms whose own reconstruction error is most of a distance of decoded samples, so that it does not count."""
    samples = [metric for metric in results.metrics if describe(metric).group == "samples"]
    shares = [share for metric in samples for share in floor_shares(results, metric).items()]
    return list(dict.fromkeys(name for name, share in shares if share > FLOOR_DOMINATES))


def reconstruction_verdict(results: ComparisonResults, candidate: str, metric: str) -> int | None:
    """+1: the candidate reconstructs better, -1: worse, 0: the intervals allow neither, None: no intervals.

    metric: one that measures quality (psnr, ssim, stlpips, lpips). Uses the paired difference over clips
    where it was measured, else whether the two intervals overlap.
    """
    *_, higher_is_better = QUALITY[metric]
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


def _convergence(results: ComparisonResults, candidate: str, counted: Sequence[SpeedUp], conclusion: Conclusion) -> str:
    base, once = results.baseline.name, len(results.runs) == 1
    verb = "converged" if once else "converges"
    outcomes = {s.outcome for s in counted}
    faster = f"Diffusion {verb} faster on {candidate} than on {base}"
    slower = f"Diffusion {verb} more slowly on {candidate} than on {base}"
    lead = {
        "faster": faster,
        "slower": slower,
        "mixed": f"{faster} by some sample distances, slower by others",
        "equal": f"Diffusion {verb} about equally fast on {candidate} and on {base}",
        "undecided": f"No clear difference in convergence between {candidate} and {base} was found",
    }[conclusion]
    if conclusion == "undecided" and outcomes & {"faster", "slower"}:
        lead = f"{faster if 'faster' in outcomes else slower} by some sample distances, though by fewer than half"
    if once:
        lead = f"In this one run {lead[0].lower()}{lead[1:]}"
    scope = "one run, so the intervals cover evaluation noise only"
    if not once:
        vaes = len(results.vae_seeds)
        scope = f"{len(results.seeds)} seed{'s' * (len(results.seeds) > 1)}, 95 % intervals"
        scope = f"{vaes} autoencoders an arm, {scope}" if vaes > 1 else scope
    return f"{lead}: of {len(counted)} sample distance{'s' * (len(counted) != 1)}, {_counts(counted)}; {scope}."


def _counts(counted: Sequence[SpeedUp]) -> str:
    """`faster on 9 (1.6× to 3.4×, ...), slower on none, ...`: every measure is in exactly one count."""
    by = {name: [s for s in counted if s.outcome == name] for name in ("faster", "slower", "equal", "undecided")}
    parts = []
    for name in ("faster", "slower"):
        parts.append(f"{name} on {_how_many(by[name], counted)}{_range(by[name])}")
    silent = [s for s in counted if s.outcome in _SILENT]
    for some, words in (
        (by["equal"], "about equal on"),
        (by["undecided"], "undecided on"),
        (silent, "without a speed-up on"),
    ):
        if some:
            parts.append(f"{words} {_how_many(some, counted)}")
    return ", ".join(parts[:-1]) + f" and {parts[-1]}"


def _how_many(some: Sequence[SpeedUp], counted: Sequence[SpeedUp]) -> str:
    if not some:
        return "none"
    return "all" if len(some) == len(counted) > 1 else str(len(some))


def _range(some: list[SpeedUp]) -> str:
    """In brackets: the values, how often there is none, and the end of the intervals that is nearest to 1."""
    if not some:
        return ""
    values = sorted(s.value for s in some if s.value is not None and s.status == "measured")
    parts = [span(values, ratio)] if values else []
    at_once = sum(s.status == "at least" for s in some)
    if at_once:  # how much faster is not known: the number would be the grid's
        parts.append("at the first evaluation already" + (f" on {at_once}" if at_once < len(some) else ""))
    missed = sum(s.status == "not reached" for s in some)
    if missed:
        parts.append(f"{some[0].baseline}'s final score not reached" + (f" on {missed}" if missed < len(some) else ""))
    if some[0].outcome == "faster":
        parts.append(f"at least {ratio(min(s.low for s in some if s.low is not None))} by the intervals")
    else:
        parts.append(f"at most {ratio(max(s.high for s in some if s.high is not None))} by the intervals")
    return f" ({', '.join(parts)})"


def _why_none(read: Sequence[SpeedUp]) -> str:
    samples = [s for s in read if describe(s.metric).group == "samples"]
    if not samples:
        return "no distance of decoded samples was taken, and no other measure compares different latents"
    if all(s.measures_blur for s in samples):
        return "every sample distance is mostly a VAE's own reconstruction error, so it compares blur"
    if all(s.outcome == "undefined" for s in samples):
        return f"on every sample distance {samples[0].reason}"
    if all(s.outcome == "no interval" for s in samples):
        return "there is one seed and no evaluation with an interval"
    return "no sample distance has an interval, transformers that improve, and a floor small enough"


def _quality(results: ComparisonResults, candidate: str, read: Sequence[SpeedUp], conclusion: Conclusion) -> str:
    """The second sentence: what the latents cost in reconstruction, and which distances measure blur."""
    base, arm = results.baseline.name, results.arm(candidate)
    shared = [m for m in QUALITY if m in arm.reconstruction and m in results.baseline.reconstruction]
    if not shared:
        return "The reconstruction quality of the two VAEs was not measured, so blur may explain any difference."
    signs = {metric: reconstruction_verdict(results, candidate, metric) for metric in shared}
    worse, better = (_by_which(signs, sign) for sign in (-1, 1))
    numbers = ", ".join(
        f"{quality_name(m, arrow=False)} {quality_text(m, Estimate(arm.reconstruction[m].value))}"
        f" against {quality_text(m, Estimate(results.baseline.reconstruction[m].value))}"
        for m in shared
    )
    judged = conclusion not in ("not judgeable", "no evidence")
    doubt = ", so part of any speed-up may come from blur" if judged else ""
    if worse is not None and better is not None:
        text = f"{candidate} reconstructs better{better} and worse{worse} than {base} ({numbers}){doubt}"
    elif worse is not None:
        text = f"{candidate} reconstructs worse{worse} ({numbers}){doubt}"
    elif better is not None:
        also = "also " if conclusion == "faster" else ""
        text = f"{candidate} {also}reconstructs better{better} ({numbers})"
    elif all(sign is None for sign in signs.values()):
        text = f"Reconstruction was measured without intervals ({numbers})"
    else:
        text = f"No clear difference in reconstruction was found ({numbers})"
    return f"{text}{_blur(read)}."


def _by_which(signs: Mapping[str, int | None], sign: int) -> str | None:
    """` by PSNR and SSIM`, the measures with this sign; empty if all have it, None if none has."""
    some = [quality_name(metric, arrow=False) for metric, own in signs.items() if own == sign]
    if not some:
        return None
    return "" if len(some) == len(signs) else f" by {' and '.join(some)}"


def _blur(read: Sequence[SpeedUp]) -> str:
    """The clause on distances whose floor is most of them; empty when there are none."""
    blurred = [s for s in read if s.measures_blur]
    if not blurred:
        return ""
    share = span(sorted(s.floor_share for s in blurred if s.floor_share is not None), blur)
    kinds = sorted({describe(s.metric).title[0].lower() + describe(s.metric).title[1:] for s in blurred})
    which = f"{len(blurred)} measure{'s' if len(blurred) > 1 else ''} ({' and '.join(kinds)})"
    verb, pronoun, each = ("compare", "are", "each") if len(blurred) > 1 else ("compares", "is", "it")
    return f"; {which} {verb} blur, not convergence, and {pronoun} left out: {share} of {each} is a VAE's floor"


def summary_table(results: ComparisonResults, verdicts: Sequence[Verdict]) -> str:
    """Speed-ups, reconstruction quality and verdicts as plain text, for the terminal; the report holds the rest."""
    lines = [*results.warnings, ""] if results.warnings else []
    for candidate, verdict in zip(results.candidates, verdicts, strict=True):
        lines.append(f"{candidate.name} against {results.baseline.name}")
        if verdict.conclusion != "not judgeable":  # its numbers would be read as results
            lines += [_speed_up_line(read, verdict) for read in verdict.speed_ups]
        for metric, estimate in candidate.reconstruction.items():
            ours = quality_text(metric, estimate)
            theirs = results.baseline.reconstruction.get(metric)
            against = f" ({results.baseline.name} {quality_text(metric, theirs)})" if theirs else ""
            lines.append(f"  {quality_name(metric):<72} {ours}{against}")
        lines += ["", *verdict.sentences, ""]
    return "\n".join(lines).rstrip()


def _speed_up_line(read: SpeedUp, verdict: Verdict) -> str:
    note = "" if read in verdict.counted else " - measures blur" if read.measures_blur else " - not counted"
    return f"  {'speed-up: ' + describe(read.metric).label:<72} {speed_up_text(read)}{note}"
