"""The top of a report: which arm to take, what it costs, and which command to run next.

Arms are ranked by verdict first (faster; then the baseline with those that are not shown to differ; then mixed and
slower; then those that cannot be judged) and, among equal verdicts, by the speed-up of the primary measure.
"""

import math
import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

from ...metrics.intervals import in_brackets, written
from ...pages.blocks import Tone
from ..analysis import SpeedUp
from ..answer import PRIMARY
from ..plan import in_minutes
from ..provenance import FEW_CLIPS
from ..results import ComparisonResults, Estimate
from ..verdict import Conclusion, Verdict, blind_arms, blurring_arms, reconstruction_verdict
from ..wording import describe, interval_text, ratio, speed_up_text

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
    place: int | None


class Advice(NamedTuple):
    """A command to run next, why, and how many minutes it takes on the machine of the report, where that is known."""

    command: str
    why: str
    minutes: float | None = None


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
        standings.append(Standing(arm, judged, place if rank < 4 else None))
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


def speed_up_title(verdicts: Sequence[Verdict]) -> str:
    """What the column of `speed_up_words` is called."""
    read = [one.metric for verdict in verdicts if (one := leading(verdict)) is not None]
    return "speed-up by the primary measure" if all(metric == PRIMARY for metric in read) else "speed-up"


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
    signed = partial(written, decimals=2, signed=True)
    gain = f"{signed(difference.value)} dB PSNR{in_brackets(difference.low, difference.high, signed)}"
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


def time_words(results: ComparisonResults, arm: str) -> tuple[str, str]:
    """Minutes that an arm took here, and by stage; `–` where nothing was timed."""
    stages = minutes_of(results, arm)
    given = "autoencoder trained elsewhere" if "checkpoint" in results.arm(arm).training else ""
    if not stages:
        return "–", given
    parts = [f"{name} {f'{value:.0f}' if value >= 0.5 else 'under 1'}" for name, value in stages.items()]
    return in_minutes(60 * sum(stages.values())), ", ".join(filter(None, [*parts, given]))


def headline(results: ComparisonResults, standings: Sequence[Standing]) -> str:
    """One or two sentences: which arm to take and what it costs."""
    base, best = results.baseline.name, standings[0]
    judged = [one for one in standings if one.verdict is not None and one.place is not None]
    once = " in this one run" if len(results.runs) == 1 else ""
    if best.verdict is not None and best.verdict.conclusion == "faster":
        cost = psnr_cost(results, best.arm)
        text = f"{best.arm} leads in this one run" if once else f"Take {best.arm}"
        return f"{text}: {_lead_words(best.verdict)}." + (f" Its reconstruction: {cost}." if cost else "")
    if not judged:
        return "Take none yet: no arm can be judged."
    slower = [one.arm for one in judged if one.verdict is not None and one.verdict.conclusion == "slower"]
    if len(slower) == len(results.candidates):
        return f"Stay with {base}: every other arm is slower{once}."
    text = f"Stay with {base} for now: no other arm is shown to be faster{once}"
    return text + (f", and slower: {', '.join(slower)}." if slower else ".")


def _lead_words(verdict: Verdict) -> str:
    read = leading(verdict)
    if read is None:
        return "no measure counts"
    if read.outcome != "faster":
        faster, by = sum(one.outcome == "faster" for one in verdict.counted), describe(read.metric).label.lower()
        word = {"equal": "about equal", "undecided": "undecided"}.get(read.outcome, "without a result")
        text = f"faster on {faster} of {len(verdict.counted)} sample distances"
        return f"{text}, but {word} by {'the primary measure' if read.metric == PRIMARY else by}: {speed_up_text(read)}"
    if read.status != "measured" or read.value is None:
        return f"{verdict.baseline}'s final score {speed_up_text(read)}"
    span = interval_text(read)
    return f"{ratio(read.value)} fewer steps{f' (95 %: {span})' * bool(span)} to {verdict.baseline}'s final score"


def basis(results: ComparisonResults, standings: Sequence[Standing]) -> str:
    """What the headline rests on, in a sentence; empty where nothing counts."""
    verdicts = [one.verdict for one in standings if one.verdict is not None and one.verdict.counted]
    if not verdicts:
        return ""
    best, read = verdicts[0], leading(verdicts[0])
    assert read is not None, "a verdict with measures has a leading one"
    info = describe(read.metric)
    text = f"The first measure that counts is the distance of decoded {info.title[0].lower()}{info.title[1:]}"
    text += f", by {info.detail}"
    if read.metric == PRIMARY:
        text = (
            "The primary measure is how far decoded samples are from the VAE's own reconstructions of held-out clips,"
            " by features of their frames"
        )
    others, faster = len(best.counted) - 1, sum(one.outcome == "faster" for one in best.counted)
    if others:
        text += f"; {others} other measure{'s count' if others > 1 else ' counts'}"
        text += f". {best.candidate} is faster on {faster or 'none'} of these {len(best.counted)}."
    else:
        text += "; no other measure counts."
    over = " Intervals are 95 %"
    if sources := _interval_sources(results, read):
        over += f" and taken over the {' and the '.join(sources)}"
    scope = ", and cover evaluation noise only: another run may differ" if len(results.runs) == 1 else ""
    return f"{text}{over}{scope}."


def _interval_sources(results: ComparisonResults, read: SpeedUp) -> list[str]:
    """What a speed-up's interval is taken over."""
    vaes, seeds, videos = len(results.vae_seeds), len(results.seeds), len(results.provenance.heldout)
    runs = [f"{vaes} autoencoders an arm" if vaes > 1 else f"{seeds} seeds"] if "seeds" in read.interval_from else []
    heldout = [f"{videos} held-out videos"] if videos > 1 and "evaluation" in read.interval_from else []
    return [*runs, *heldout]


def undecided(results: ComparisonResults, verdicts: Sequence[Verdict]) -> str:
    """Which arms' intervals are too wide to decide, and what narrows them; empty where none is."""
    found = _undecided_reads(verdicts)
    if not found:
        return ""
    measure = "the primary measure" if {read.metric for read in found} == {PRIMARY} else "a measure that counts"
    spans = ", ".join(f"{read.candidate} ({interval_text(read)})" for read in found)
    few = "this 95 % interval lies" if len(found) == 1 else "these 95 % intervals lie"
    text = f"Too wide to decide by {measure}: {spans}; {few} on both sides of 1× (no difference)."
    return f"{text} {' '.join(_narrowing(results, found))}"


def _undecided_reads(verdicts: Sequence[Verdict]) -> list[SpeedUp]:
    """Of each undecided arm the measure that stands for it, or the first undecided one where that one is decided."""
    of_each = [[leading(one), *one.counted] for one in verdicts if one.conclusion == "undecided"]
    found = [next((read for read in some if read and read.outcome == "undecided"), None) for some in of_each]
    return [read for read in found if read is not None]


def _narrowing(results: ComparisonResults, found: Sequence[SpeedUp]) -> list[str]:
    """A sentence for each source that most of an interval's width comes from: what makes it smaller."""
    vaes, seeds = len(results.vae_seeds), len(results.seeds)
    runs = f"only {vaes} autoencoders an arm" if vaes > 1 else f"only {seeds} seeds"
    clips, videos = results.measurement.get("held-out clips"), len(results.provenance.heldout)
    scored = f"{clips} held-out clips" if isinstance(clips, int) else "the held-out clips"
    scored += f" of {videos} videos" if videos > 1 else ""
    remedies = {
        "seeds": f"comes from having {runs}: more narrow it.",
        "evaluation": f"comes from scoring on {scored}: more held-out videos narrow it.",
    }
    by_source = {source: [read.candidate for read in found if read.widest == source] for source in remedies}
    named = all(by_source.values())
    return [
        (f"For {', '.join(arms)} most" if named else "Most") + f" of the width {remedies[source]}"
        for source, arms in by_source.items()
        if arms
    ]


def next_command(results: ComparisonResults, verdicts: Sequence[Verdict], best: Standing) -> Advice:
    """What to run next: the first of the steps that the result calls for."""
    smoke = next((flag for flag in ("--preset smoke", "--preset=smoke") if flag in results.command), None)
    if smoke is not None:
        why = "the smoke preset only shows that every stage runs; this one measures, and trains everything again"
        if not any("checkpoint" in arm.training for arm in results.arms):
            why += " (about half an hour on two cores that compute in bfloat16, over an hour on others)"
        return Advice(results.command.replace(smoke, "--preset default"), f"{why}.")
    unjudged = all(verdict.conclusion in ("not judgeable", "no evidence") for verdict in verdicts)
    advice = _for_unjudged(results, verdicts) if unjudged else None
    return advice or _for_judged(results, verdicts, best)


def _for_judged(results: ComparisonResults, verdicts: Sequence[Verdict], best: Standing) -> Advice:
    """More runs or clips where they can tell more, or a look at the arm that leads."""
    shift_seed = results.configuration.get("shift_seed")
    if results.configuration.get("shifts") and isinstance(shift_seed, int) and results.seeds == (shift_seed,):
        why = "one seed tried these shifts; another one tells whether the arms would keep the same."
        return Advice(with_setting(results.command, "shift_seed", str(shift_seed + 1)), why)
    if len(results.runs) == 1:
        return _more_seeds(results, "this is one run; with three, the intervals say whether it would happen again.")
    clips = results.measurement.get("held-out clips")
    few = isinstance(clips, int) and clips < min(FEW_CLIPS, _data(results, "max_heldout", math.inf))
    if few and "data" in results.configuration:
        stride = with_setting(results.command, "data.heldout_stride", f"{_data(results, 'heldout_stride', 1) / 4:g}")
        why = f"{clips} held-out clips are few; this cuts more of the same videos (more videos are better)."
        return Advice(stride, why, _minutes(results, "latents", "transformer", "scoring"))
    place = results.arm(best.arm).training.get("autoencoder")
    if best.verdict is not None and best.verdict.conclusion == "faster" and isinstance(place, str):
        return Advice(_look(place), f"see what {best.arm} makes of your own videos before you train on its latents.")
    why = "more seeds narrow the intervals"
    if {read.widest for read in _undecided_reads(verdicts)} == {"evaluation"}:
        why = "more seeds tell whether other runs agree; only more held-out videos (--data) narrow the intervals much"
    return _more_seeds(results, f"{why}. What has been run is used again.")


def _look(place: str) -> str:
    return f"sat-ssvae reconstruct --checkpoint {shlex.quote(place)} --input MY_VIDEOS --output runs/look"


def _for_unjudged(results: ComparisonResults, verdicts: Sequence[Verdict]) -> Advice | None:
    """What makes arms judgeable; None where nothing but more runs can. Longer training helps only what is trained."""
    if any("transformer of" in verdict.sentences[0] for verdict in verdicts):
        return _train_longer(results, "transformers", _transformer_settings(results))
    blind = list(blind_arms(results, [arm.name for arm in results.arms]))
    poor = [results.arm(name) for name in blind or blurring_arms(results)]
    if not poor:
        return None
    if not all("checkpoint" in arm.training for arm in poor):
        return _train_longer(results, "autoencoders", _autoencoder_settings(results))
    what = "hardly reconstructs these clips" if blind else "loses so much that distances of samples compare its blur"
    why = f"{poor[0].name} is not trained here and {what}: see what it makes of your videos."
    return Advice(_look(str(poor[0].training["autoencoder"])), why)


def with_setting(command: str, name: str, value: str) -> str:
    """The command line with a setting; one that it has already is replaced."""
    kept = [word for word in shlex.split(command) if not word.startswith(f"{name}=")]
    return shlex.join([*kept, f"{name}={value}"])


def _more_seeds(results: ComparisonResults, why: str) -> Advice:
    """The same comparison with at least two more seeds, twice as many where there are several.

    Of the autoencoders where all are trained here: retraining them is what changes a result most.
    """
    given = any("checkpoint" in arm.training for arm in results.arms)
    name = "vae_seeds" if "vae_seeds" in results.configuration and not given else "seeds"
    old = results.vae_seeds if name == "vae_seeds" else results.seeds
    more = max(2, len(old))
    seeds = [*old, *range(max(old) + 1, max(old) + 1 + more)]
    first = ("autoencoder", "latents") if name == "vae_seeds" else ()
    stages = (*first, "transformer", "training", "scoring")  # `training`: of CogVideoX itself
    spent = _minutes(results, *stages)
    minutes = None if spent is None else spent / len(old) * more
    return Advice(with_setting(results.command, name, f"[{','.join(map(str, seeds))}]"), why, minutes)


def _minutes(results: ComparisonResults, *stages: str, times: Mapping[str, float] | None = None) -> float | None:
    """Minutes that these stages took for all arms together; None where they were not timed.

    times: by stage, how many times as long one will take.
    """
    spent = [minutes_of(results, arm.name) for arm in results.arms]
    total = sum(one.get(stage, 0.0) * (times or {}).get(stage, 1.0) for one in spent for stage in stages)
    return total or None


def _train_longer(results: ComparisonResults, what: str, settings: Mapping[str, str]) -> Advice:
    """Four times the steps of whatever has not learned enough; settings: empty where they are in other files."""
    if not settings:
        why = f"train the {what} longer: raise the number of steps in their configuration, then run it again."
        return Advice(results.command, why)
    command = results.command
    for name, value in settings.items():
        command = with_setting(command, name, value)
    transformers = what == "transformers"
    again = ("transformer", "scoring") if transformers else ("autoencoder", "latents", "transformer", "scoring")
    minutes = _minutes(results, *again, times={again[0]: 4.0})
    return Advice(command, f"the {what} have learned too little to be compared.", minutes)


def _transformer_settings(results: ComparisonResults) -> dict[str, str]:
    """Four times the steps, and evaluations of them: without these the curves would stay as they are."""
    own = results.configuration.get("transformer")
    steps, evaluated = (own.get("max_steps"), own.get("evaluation_steps")) if isinstance(own, Mapping) else (None, None)
    if not isinstance(steps, int) or not isinstance(evaluated, list):
        return {}
    at = ",".join(map(str, [*evaluated, 2 * steps, 4 * steps]))
    return {"transformer.max_steps": str(4 * steps), "transformer.evaluation_steps": f"[{at}]"}


def _autoencoder_settings(results: ComparisonResults) -> dict[str, str]:
    """Four times the steps of every stage, which have their own where there are several."""
    arms, stages = results.configuration.get("arms"), results.configuration.get("stages")
    if isinstance(arms, Mapping) and any(isinstance(arm, Mapping) and arm.get("stages") for arm in arms.values()):
        return {}  # each arm has stages of its own
    parts = {f"stages.{number}": stage for number, stage in enumerate(stages if isinstance(stages, list) else [])}
    parts = parts or {"vae": results.configuration.get("vae")}
    steps = {f"{name}.max_steps": part.get("max_steps") for name, part in parts.items() if isinstance(part, Mapping)}
    return {name: str(4 * count) for name, count in steps.items() if isinstance(count, int)}


def _data(results: ComparisonResults, name: str, otherwise: float) -> float:
    """A number of the clips' settings."""
    data = results.configuration.get("data")
    value = data.get(name) if isinstance(data, Mapping) else None
    return float(value) if isinstance(value, (int, float)) else otherwise
