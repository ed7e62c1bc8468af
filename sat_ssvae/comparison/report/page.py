"""The report of a comparison: one self-contained HTML file, and beside it everything it was made from.

write_report(results, folder, pictures)     # folder/report.html results.json curves.csv figures/ samples/
print(summary(results))                     # the short table for the terminal
"""

import base64
import json
import math
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import yaml
from pydantic import TypeAdapter
from torch import Tensor

from ...errors import UserError
from ...storage import write_bytes, write_text
from ..analysis import EQUAL_WITHIN, FLOOR_DOMINATES, SpeedUp
from ..results import ArmResult, ComparisonResults
from ..verdict import (
    Conclusion,
    Verdict,
    describe,
    interval_text,
    judge,
    percent,
    quality_name,
    quality_text,
    ratio,
    reconstruction_verdict,
    span_text,
)
from .figures import amplitude_figure, arm_styles, axis_limit, curve_figure, speed_up_figure, variance_figure
from .pictures import COLUMNS, Pictures, enlarge, file_name, png_still, tile, webp, write_clips

_TEMPLATE = Path(__file__).with_name("report.html.j2")
_GROUP_TITLES = {
    "samples": "Decoded samples",
    "denoising": "Decoded one-step denoising (no evidence: a shifted noise schedule moves it)",
    "loss": "Training loss (no evidence: its floor differs between latents)",
    "other": "Other measures",
}
_HEADLINES: dict[Conclusion, str] = {
    "faster": "Faster",
    "slower": "Slower",
    "mixed": "Mixed",
    "equal": "About equal",
    "undecided": "Undecided",
    "no evidence": "No evidence",
    "not judgeable": "Not judgeable",
}
_MARKS = {"faster": "▲", "slower": "▼", "equal": "=", "undecided": "?"}


class Shown(NamedTuple):
    """A grid of clips for the page: the animation and its middle frame."""

    title: str
    moving: bytes
    still: bytes


def write_report(results: ComparisonResults, folder: Path, pictures: Pictures | None = None) -> Path:
    """Write report.html, results.json, curves.csv, figures/*.png, samples/*.mp4; returns the first's path.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        for name in ("figures", "samples"):
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write the report to {folder}: {error.strerror}") from None
    verdicts = [judge(results, arm.name) for arm in results.candidates]
    figures = draw(results, verdicts)
    shown = show(results, pictures) if pictures else {}
    page = render(results, verdicts, figures, shown)
    # Through text, because that makes an open end of an interval (infinity) a null.
    speed_ups = json.loads(TypeAdapter(list[SpeedUp]).dump_json([s for v in verdicts for s in v.speed_ups]))
    document = results.to_json(verdict={v.candidate: v.text for v in verdicts}, speed_ups=speed_ups)
    try:
        stills = {f"pictures-{file_name(grid.title)}": grid.still for grids in shown.values() for grid in grids}
        for name, data in (figures | stills).items():
            write_bytes(folder / "figures" / f"{name}.png", data)
        if pictures:
            write_clips(pictures, folder / "samples")
        write_text(folder / "results.json", document)
        write_text(folder / "curves.csv", results.to_csv())
        write_text(folder / "report.html", page)
    except OSError as error:
        raise UserError(f"cannot write the report to {folder}: {error.strerror}") from None
    return folder / "report.html"


def draw(results: ComparisonResults, verdicts: Sequence[Verdict]) -> dict[str, bytes]:
    """All plots as PNG by name (the names of the files under figures/)."""
    read = [speed_up for verdict in verdicts for speed_up in verdict.counted]
    figures = {"speed-ups": speed_up_figure(results, verdicts)}
    figures |= {file_name(metric): curve_figure(results, metric, read) for metric in results.metrics}
    if any(arm.dct_amplitude for arm in results.arms):
        figures["spectrum-dct"] = amplitude_figure(results)
    if any(arm.explained_variance for arm in results.arms):
        figures["spectrum-channels"] = variance_figure(results)
    return figures


def render(
    results: ComparisonResults,
    verdicts: Sequence[Verdict],
    figures: dict[str, bytes],
    shown: dict[str, list[Shown]],
) -> str:
    """The HTML page, all images inside."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["png"] = lambda data: "data:image/png;base64," + base64.b64encode(data).decode()
    environment.filters["webp"] = lambda data: "data:image/webp;base64," + base64.b64encode(data).decode()
    environment.filters["yaml"] = lambda value: yaml.safe_dump(value, sort_keys=False, allow_unicode=True).rstrip()
    environment.filters["plain"] = _plain
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        results=results,
        title=" / ".join(arm.name for arm in results.arms),
        colours={arm.name: arm.colour for arm in arm_styles(results)},
        cards=[_card(results, verdict) for verdict in verdicts],
        tables=[_table(verdict) for verdict in verdicts],
        curves=_curves(results, figures),
        spectra=[figures[name] for name in ("spectrum-dct", "spectrum-channels") if name in figures],
        spectrum_rows=_spectrum_rows(results),
        quality=_quality_table(results),
        shown=shown,
        limits=_limits(results, verdicts),
        equal_within=ratio(EQUAL_WITHIN),
        floor_dominates=percent(FLOOR_DOMINATES),
        written=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    )


def show(results: ComparisonResults, pictures: Pictures) -> dict[str, list[Shown]]:
    """Grids by heading: originals and reconstructions, samples of the last step, one sample step by step."""

    def grid(title: str, clips: Sequence[Tensor], columns: int = COLUMNS) -> Shown:
        tiled = tile(enlarge(clips), columns)
        return Shown(title, webp(tiled, pictures.fps), png_still(tiled))

    rebuilt = [grid("Originals", pictures.originals)] if pictures.originals else []
    samples, progress = [], []
    for arm in results.arms:
        if clips := pictures.reconstructions.get(arm.name):
            rebuilt.append(grid(f"{arm.name}: reconstructions", clips))
        steps = {s: clips for s, clips in sorted(pictures.samples.get(arm.name, {}).items()) if clips}
        if steps:
            samples.append(grid(f"{arm.name}: samples after {max(steps):,} steps", steps[max(steps)]))
        if len(steps) > 1:
            after = ", ".join(f"{step:,}" for step in steps)
            firsts = [clips[0] for clips in steps.values()]
            progress.append(grid(f"{arm.name}: one sample after {after} steps", firsts, len(firsts)))
    titled = {"Held-out clips": rebuilt, "Generated": samples, "The same noise, step by step": progress}
    return {title: grids for title, grids in titled.items() if grids}


def _card(results: ComparisonResults, verdict: Verdict) -> dict[str, Any]:
    """The verdict's box: headline, sentences and three tiles (number, what it is)."""
    samples = [s for s in verdict.speed_ups if describe(s.metric).group == "samples"]
    outcomes = [s.outcome for s in verdict.counted]
    counts = [(name, outcomes.count(name)) for name in ("faster", "slower", "equal", "undecided")]
    words = [f"{count} {name}" for name, count in counts if count] or ["0"]
    what = f"of {len(outcomes)} sample distances"
    if len(outcomes) < len(samples):
        what += f" ({len(samples) - len(outcomes)} more left out)"
    tiles = [_samples_tile(verdict), (", ".join(words), what)]
    arm = results.arm(verdict.candidate)
    if "psnr" in arm.reconstruction and "psnr" in results.baseline.reconstruction:
        tiles.append(_psnr_tile(results, arm))
    headline = _HEADLINES[verdict.conclusion]
    if verdict.conclusion == "undecided":
        headline = next((f"{name.capitalize()} by some" for name in ("faster", "slower") if name in outcomes), headline)
    once = len(results.runs) == 1 and verdict.counted and verdict.conclusion != "undecided"
    return {"verdict": verdict, "headline": headline + (" in this one run" if once else ""), "tiles": tiles}


def _samples_tile(verdict: Verdict) -> tuple[str, str]:
    """How much sooner samples get as good, with the intervals, over the sample distances that count."""
    counts = verdict.counted
    what = f"speed-up to {verdict.baseline}'s final sample distance"
    if not counts:
        return "–", f"{what}: no measure counts"
    lowest = min(s.low for s in counts if s.low is not None)
    highest = max(s.high for s in counts if s.high is not None)
    values = sorted(s.value for s in counts if s.value is not None and s.status == "measured")
    if values:
        ends = [ratio(value) for value in (values[0], values[-1])]
        text = ends[0] if ends[0] == ends[1] else f"{ends[0]} – {ends[1]}"
    else:
        text = "not reached" if any(s.status == "not reached" for s in counts) else "at once"
    return text, f"{what}, 95 % intervals {span_text(lowest, highest)}"


def _psnr_tile(results: ComparisonResults, arm: ArmResult) -> tuple[str, str]:
    gain = arm.reconstruction["psnr"].value - results.baseline.reconstruction["psnr"].value
    difference = arm.reconstruction_difference.get("psnr")
    sign = reconstruction_verdict(results, arm.name, "psnr")
    word = {1: "better", -1: "worse", 0: "no clear difference", None: "no interval"}[sign]
    if difference is not None and difference.low is not None and difference.high is not None:
        word += f", 95 % interval {difference.low:+.2f} to {difference.high:+.2f}".replace("-", "−")
    return f"{gain:+.2f} dB".replace("-", "−"), f"reconstruction (PSNR on held-out clips): {word}"


def _table(verdict: Verdict) -> dict[str, Any]:
    """Rows of the speed-up table by group, with the coordinates (0..100) of their interval marks."""
    limit = axis_limit(verdict.speed_ups)
    groups: dict[str, list[dict[str, Any]]] = {}
    for read in verdict.speed_ups:
        groups.setdefault(_GROUP_TITLES[describe(read.metric).group], []).append(_row(read, limit, verdict))
    return {"verdict": verdict, "groups": groups, "limit": f"{limit:.0f}×", "inverse": f"1/{limit:.0f}×"}


def _row(read: SpeedUp, limit: float, verdict: Verdict) -> dict[str, Any]:
    def place(value: float | None) -> float | None:
        if value is None:
            return None
        clipped = min(max(value, 1 / limit), limit)
        return round(50 + 50 * math.log(clipped) / math.log(limit), 2)

    value = {"not reached": "not reached", "undefined": "not defined"}.get(read.status)
    if value is None and read.value is not None:
        value = "first evaluation" if read.status == "at least" else ratio(read.value)
    if read.baseline_steps is None:
        steps = ""
    elif read.candidate_steps is None:
        steps = f"{read.baseline_steps:,.0f} steps → {'not always' if read.reached else 'never'}"
    else:
        steps = f"{read.baseline_steps:,.0f} → {read.candidate_steps:,.0f} steps"
    note = read.reason
    if read.status == "not reached" and read.seeds > 1:
        note = f"in {read.seeds - read.reached} of {read.seeds} seeds"
    return {
        "info": describe(read.metric),
        "value": value,
        "interval": interval_text(read) or ("" if read.reason else "no interval"),
        "note": note,
        "steps": steps,
        "reading": _reading(read, verdict),
        "mark": _MARKS.get(_reading(read, verdict), "–"),
        "blur": percent(read.floor_share) if read.measures_blur and read.floor_share is not None else "",
        "low": place(read.low),
        "high": place(read.high),
        "at": place(read.value),
    }


def _reading(read: SpeedUp, verdict: Verdict) -> str:
    """The last column: what the row says, or why it does not count."""
    if read.measures_blur:
        return "measures blur"
    if describe(read.metric).group != "samples" or verdict.conclusion == "not judgeable":
        return "not counted"
    return read.outcome


def _curves(results: ComparisonResults, figures: dict[str, bytes]) -> dict[str, list[tuple[str, bytes]]]:
    """Curve figures by group, as (label, PNG)."""
    groups: dict[str, list[tuple[str, bytes]]] = {}
    for group, title in _GROUP_TITLES.items():
        metrics = [metric for metric in results.metrics if describe(metric).group == group]
        if metrics:
            groups[title] = [(describe(metric).label, figures[file_name(metric)]) for metric in metrics]
    return groups


def _spectrum_rows(results: ComparisonResults) -> list[list[str]]:
    """By arm: modes for 90 % of the variance, share of the first mode, amplitudes, Gaussian floor."""
    rows = []
    for arm in results.arms:
        variance, amplitude = arm.explained_variance, arm.dct_amplitude
        modes = next((i for i, share in enumerate(variance, 1) if share >= 0.9), None)
        floor = arm.floors.get("loss")
        rows.append(
            [
                arm.name,
                f"{modes} of {len(variance)}" if modes else "–",
                percent(variance[0]) if variance else "–",
                *(f"{amplitude[i]:.1e}" if len(amplitude) > i else "–" for i in (20, 40)),
                f"{floor.value:.3f}" if floor else "–",
            ]
        )
    return rows


def _quality_table(results: ComparisonResults) -> dict[str, Any]:
    """Reconstruction metrics by arm, with the clip-by-clip difference to the baseline if there is one."""
    metrics = list(dict.fromkeys(metric for arm in results.arms for metric in arm.reconstruction))
    rows = []
    for arm in results.arms:
        cells = []
        for metric in metrics:
            value, difference = arm.reconstruction.get(metric), arm.reconstruction_difference.get(metric)
            cells.append(
                (
                    quality_text(metric, value) if value else "–",
                    quality_text(metric, difference, signed=True).replace("-", "−") if difference else "",
                )
            )
        rows.append((arm.name, cells))
    floors = [
        (describe(metric).label, [arm.floors.get(metric) for arm in results.arms])
        for metric in results.metrics
        if any(metric in arm.floors for arm in results.arms) and not metric.startswith("loss")
    ]
    return {"names": [quality_name(metric) for metric in metrics], "rows": rows, "floors": floors}


def _limits(results: ComparisonResults, verdicts: Sequence[Verdict]) -> list[str]:
    """What the numbers do not say, as far as it depends on this comparison."""
    read = [s for verdict in verdicts for s in verdict.speed_ups]
    limits = []
    if len(results.runs) == 1:
        limits.append("One seed: the intervals hold the evaluation's noise only. Another seed may give another result.")
    elif len(results.vae_seeds) == 1:
        limits.append(
            f"The {len(results.seeds)} seeds vary the transformer's training. Each arm is one trained VAE, so"
            " the intervals do not include what retraining the VAEs would change."
        )
    given = [arm.name for arm in results.arms if "checkpoint" in arm.training]
    if given:
        limits.append(
            f"Not trained here: {', '.join(given)}. Beside the form of its latents, an arm's training data, training"
            " steps and size decide then, and it may have seen the held-out clips."
        )
    shares = [s.floor_share for s in read if s.measures_blur and s.floor_share is not None]
    if shares:
        limits.append(
            f"Up to {percent(max(shares))} of a distance is the VAEs' own reconstruction error. It"
            " then compares blur. Train the VAEs further, or compress less, to make it evidence."
        )
    missed = sum(s.status == "not reached" for s in read)
    if missed:
        limits.append(f"Not reached ({missed} of {len(read)} rows) means within these steps; with more it might be.")
    return limits


def _plain(value: Any) -> str:
    """A setting in one line: numbers with separators, mappings as `key: value, key: value`."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_plain(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(item) for item in value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
