"""The top of a report: which arm to take, what it costs, and which command to run next.

Arms are ranked by verdict first (faster; then the baseline with those that are not shown to differ; then mixed and
slower; then those that cannot be judged) and, among equal verdicts, by the speed-up of the primary measure.
"""

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ...pages.blocks import Tone
from ..analysis import SpeedUp
from ..answer import PRIMARY
from ..provenance import FEW_CLIPS
from ..results import ComparisonResults, Estimate
from ..verdict import Conclusion, Verdict, describe, reconstruction_verdict, speed_up_text

BADGES: dict[Conclusion, tuple[str, Tone]] = {
    "faster": ("faster", "good"),
    "slower": ("slower", "bad"),
    "mixed": ("mixed", "warn"),
    "equal": ("about equal", "neutral"),
    "undecided": ("undecided", "neutral"),
    "no evidence": ("no evidence", "neutral"),
    "not judgeable": ("not judgeable", "warn"),
}
_CLASSES: dict[Conclusion, int] = {"faster": 0, "equal": 1, "undecided": 1, "mixed": 2, "slower": 3}


class Standing(NamedTuple):
    """An arm's place. verdict: None for the baseline. place: None where the arm cannot be judged."""

    arm: str
    verdict: Verdict | None
    speed_up: float
    """See `leading_value`; 1 for the baseline."""
    place: int | None


class Advice(NamedTuple):
    """A command to run next, and why."""

    command: str
    why: str


def ranking(results: ComparisonResults, verdicts: Sequence[Verdict]) -> list[Standing]:
    """All arms, the best first; those not shown to differ from the baseline share its place."""
    entries: list[tuple[int, str, Verdict | None]] = [(1, results.baseline.name, None)]
    entries += [(_CLASSES.get(one.conclusion, 5), one.candidate, one) for one in verdicts]
    values = {one.candidate: leading_value(one) for one in verdicts} | {results.baseline.name: 1.0}
    # The baseline leads its class: the others in it are not shown to be better.
    entries.sort(key=lambda one: (one[0], one[2] is not None, -values[one[1]] if values[one[1]] > 0 else math.inf))
    standings: list[Standing] = []
    for position, (rank, arm, judged) in enumerate(entries, 1):
        shared = rank == 1 and position > 1 and entries[position - 2][0] == 1
        place = standings[-1].place if shared else position
        standings.append(Standing(arm, judged, values[arm], place if rank < 4 else None))
    return standings


def leading(verdict: Verdict) -> SpeedUp | None:
    """The measure that stands for an arm: the primary one, or the first that counts where it does not."""
    return next((read for read in verdict.counted if read.metric == PRIMARY), next(iter(verdict.counted), None))


def leading_value(verdict: Verdict) -> float:
    """That measure's speed-up, or the middle of its interval where it has none. NaN: none counts."""
    read = leading(verdict)
    if read is None:
        return math.nan
    if read.value is not None and read.value > 0:
        return read.value
    if read.low is None or read.high is None or not 0 < read.high < math.inf:
        return math.nan
    return math.sqrt(read.low * read.high) if read.low > 0 else read.high


def speed_up_words(verdict: Verdict) -> str:
    """That measure's speed-up with its interval, `2.6× (2.1× to 3.0×)`; `–` where none counts."""
    read = leading(verdict)
    return "–" if read is None else speed_up_text(read)


def psnr_cost(results: ComparisonResults, arm: str) -> str:
    """PSNR against the baseline's in words; empty where it was not measured."""
    if arm == results.baseline.name:
        return ""
    ours, theirs = (one.reconstruction.get("psnr") for one in (results.arm(arm), results.baseline))
    if ours is None or theirs is None:
        return ""
    difference = results.arm(arm).reconstruction_difference.get("psnr") or Estimate(ours.value - theirs.value)
    gain = f"{difference.value:+.2f} dB PSNR"
    if difference.low is not None and difference.high is not None:
        gain += f" ({difference.low:+.2f} to {difference.high:+.2f})"
    gain = gain.replace("-", "−")
    word = {1: "better", -1: "worse", 0: "no clear difference", None: ""}[reconstruction_verdict(results, arm, "psnr")]
    return f"{gain}{', ' if word else ''}{word}"


def minutes_of(results: ComparisonResults, arm: str) -> dict[str, float]:
    """Minutes by stage (`autoencoder`, `latents`, `transformer`, ...) that this arm took, where they were measured."""
    minutes = results.budget.get("minutes")
    if not isinstance(minutes, Mapping):
        return {}
    spent: dict[str, float] = {}
    for name, value in minutes.items():
        stage, _, of = name.partition(" ")
        if of == arm and isinstance(value, (int, float)):
            spent[stage] = float(value)
    return spent


def headline(results: ComparisonResults, standings: Sequence[Standing]) -> str:
    """One sentence: which arm to take and what it costs."""
    base, best = results.baseline.name, standings[0]
    judged = [one for one in standings if one.verdict is not None and one.place is not None]
    once = " in this one run" if len(results.runs) == 1 else ""
    if best.verdict is not None and best.verdict.conclusion == "faster":
        cost = psnr_cost(results, best.arm)
        counted = best.verdict.counted
        faster = sum(read.outcome == "faster" for read in counted)
        text = f"{best.arm} leads so far" if once else f"Take {best.arm}"
        text += f": {_lead_words(best.verdict)}; faster on {faster} of {len(counted)} measures{once}"
        return text + (f". Reconstruction: {cost}." if cost else ".")
    if not judged:
        return "Take none yet: no arm can be judged."
    slower = [one.arm for one in judged if one.verdict is not None and one.verdict.conclusion == "slower"]
    if len(slower) == len(judged):
        return f"Stay with {base}: every other arm is slower{once}."
    text = f"Stay with {base} for now: no other arm is shown to be faster{once}"
    return text + (f", and slower: {', '.join(slower)}." if slower else ".")


def _lead_words(verdict: Verdict) -> str:
    read = leading(verdict)
    if read is None:
        return "no measure counts"
    words = f"{speed_up_text(read)} fewer steps" if read.status == "measured" else speed_up_text(read)
    label = describe(read.metric).label
    return f"{words} to {verdict.baseline}'s final score, by {label[0].lower()}{label[1:]}"


def next_command(results: ComparisonResults, verdicts: Sequence[Verdict], best: Standing) -> Advice:
    """What to run next: the first of the steps that the result calls for."""
    if "--preset smoke" in results.command:
        size = results.command.replace("--preset smoke", "--preset default")
        return Advice(size, "the smoke preset only shows that every stage runs; this one measures.")
    if all(verdict.conclusion == "not judgeable" for verdict in verdicts):
        return _train_longer(results, verdicts)
    if len(results.runs) == 1:
        return _more_seeds(results, "one seed is one run; with three, the intervals say whether it would happen again.")
    clips = results.measurement.get("held-out clips")
    if isinstance(clips, int) and clips < FEW_CLIPS and "data" in results.configuration:
        stride = with_setting(results.command, "data.heldout_stride", f"{_stride(results) / 4:g}")
        return Advice(
            stride, f"{clips} held-out clips are few; this cuts more of the same videos (more videos are better)."
        )
    place = results.arm(best.arm).training.get("autoencoder")
    if best.verdict is not None and best.verdict.conclusion == "faster" and isinstance(place, str):
        look = f"sat-ssvae reconstruct --checkpoint {shlex.quote(place)} --input MY_VIDEOS --output runs/look"
        return Advice(look, f"see what {best.arm} makes of your own videos before you train on its latents.")
    return _more_seeds(results, "more seeds narrow the intervals; what has been run is used again.")


def with_setting(command: str, name: str, value: str) -> str:
    """The command line with a setting; one that it has already is replaced."""
    kept = re.sub(rf"\s+'?{re.escape(name)}=(\S*)", "", command)
    return f"{kept} '{name}={value}'" if "[" in value else f"{kept} {name}={value}"


def _more_seeds(results: ComparisonResults, why: str) -> Advice:
    """The same comparison with at least two more seeds, twice as many where there are several."""
    last = max(results.seeds)
    seeds = [*results.seeds, *range(last + 1, last + 1 + max(2, len(results.seeds)))]
    return Advice(with_setting(results.command, "seeds", f"[{','.join(map(str, seeds))}]"), why)


def _train_longer(results: ComparisonResults, verdicts: Sequence[Verdict]) -> Advice:
    """Four times the steps of whatever has not learned enough."""
    transformer = any("transformer of" in verdict.sentences[0] for verdict in verdicts)
    section = "transformer" if transformer else "vae"
    settings = results.configuration.get(section)
    steps = settings.get("max_steps") if isinstance(settings, Mapping) else None
    if isinstance(steps, int):
        return Advice(
            with_setting(results.command, f"{section}.max_steps", str(4 * steps)),
            f"the {'transformers have' if transformer else 'autoencoders have'} learned too little to be compared.",
        )
    return Advice(results.command, "train longer: raise the number of steps in the configuration, then run it again.")


def _stride(results: ComparisonResults) -> float:
    data = results.configuration.get("data")
    stride = data.get("heldout_stride") if isinstance(data, Mapping) else None
    return float(stride) if isinstance(stride, (int, float)) else 1.0
