"""The report of a comparison: one self-contained HTML file, and beside it everything it was made from.

write_report(results, judge(results), folder, pictures)     # folder/report.html results.json curves.csv samples/
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup
from pydantic import TypeAdapter

from ...errors import UserError
from ...metrics.intervals import in_brackets
from ...pages.blocks import Legend, badge, box, bullets, code, command, details, facts, paragraph, section, table
from ...pages.document import document, joined
from ...storage import write_text
from ..analysis import EQUAL_WITHIN, FLOOR_DOMINATES, SpeedUp
from ..answer import PRIMARY
from ..plan import in_minutes
from ..provenance import Provenance
from ..results import ComparisonResults, Estimate
from ..verdict import Verdict, blurring_arms
from ..wording import blur, describe, percent, quality_name, quality_text, ratio
from .advice import (
    BADGES,
    Standing,
    basis,
    headline,
    minutes_of,
    next_command,
    psnr_cost,
    ranking,
    speed_up_title,
    speed_up_words,
    time_words,
    undecided,
)
from .clips import clip_player
from .differences import differing_settings, plain
from .pictures import Pictures, write_clips
from .plots import curve_blocks, spectrum_charts
from .speed_ups import speed_up_matrix


def write_report(
    results: ComparisonResults, verdicts: Sequence[Verdict], folder: Path, pictures: Pictures | None = None
) -> Path:
    """Write report.html, results.json, curves.csv and samples/*.mp4; returns the first's path.

    Raises:
        UserError: the folder cannot be written.
    """
    page = render(results, verdicts, pictures)
    # Through text, because that makes an open end of an interval (infinity) a null.
    speed_ups = json.loads(TypeAdapter(list[SpeedUp]).dump_json([s for v in verdicts for s in v.speed_ups]))
    results_json = results.to_json(verdict={v.candidate: v.text for v in verdicts}, speed_ups=speed_ups)
    try:
        if pictures:
            write_clips(pictures, folder / "samples")
        write_text(folder / "results.json", results_json)
        write_text(folder / "curves.csv", results.to_csv())
        write_text(folder / "report.html", page)
    except OSError as error:
        raise UserError(f"cannot write the report to {folder}: {error.strerror}") from None
    return folder / "report.html"


def render(results: ComparisonResults, verdicts: Sequence[Verdict], pictures: Pictures | None = None) -> str:
    """The HTML page."""
    legend = Legend([arm.name for arm in results.arms])
    standings = ranking(results, verdicts)
    written = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    footer = Markup("Beside this file: results.json (all numbers), curves.csv, samples/. Written {}.").format(written)
    return document(
        "Does diffusion converge faster on these latents?",
        [
            *_top(results, verdicts, standings, legend),
            legend.toggles("show or hide an arm everywhere"),
            section("Clips", clip_player(pictures, legend) if pictures else "", note=_CLIPS_NOTE),
            section("Arms and measures", speed_up_matrix(results, standings, legend), note=_MATRIX_NOTE),
            section("Curves", *curve_blocks(results, verdicts, legend), note=_CURVES_NOTE),
            section("Spectra of the latents", spectrum_charts(results, legend), _spectrum_table(results, legend)),
            section(
                "Reconstruction",
                _quality_table(results, legend),
                *_floors(results, legend),
                note=_quality_note(results),
            ),
            section("Where the clips come from", *_provenance(results)),
            section("How it was measured", *_measurement(results, legend)),
            section("What the numbers do not say", bullets([*_limits(results, verdicts), *_CAVEATS])),
        ],
        subtitle=_subtitle(results, legend),
        footer=footer,
    )


_TERMS = (
    "An arm is one video autoencoder (VAE). The same diffusion transformer is trained on the latents of each. Speed-up:"
    " steps that the baseline needs for its final score, divided by the arm's steps to the same score."
    " PSNR: how close a reconstruction is to its clip; higher is better."
)
_CLIPS_NOTE = (
    "Under each arm: its reconstruction of the held-out clip with the PSNR, and a sample that its transformer made from"
    " noise. The noise is the same in every arm and at every step, so the slider shows one sample as training goes on."
)
_MATRIX_NOTE = (
    "2× means half the steps; bars are 95 % intervals on a logarithmic line whose middle is 1×. Green: faster,"
    f" orange: slower, framed: not counted. About equal: the whole interval is within {ratio(EQUAL_WITHIN)} of 1."
    f" A measure is blur where more than {percent(FLOOR_DOMINATES)} of it, in any"
    " arm, is there already when the VAE only reconstructs real clips. “Not reached”: the arm never got to the"
    " baseline's final score; its interval is that at the best score both have. “At once”: it had that score at its"
    " first evaluation."
)
_CURVES_NOTE = (
    "Lower is better. Markers: the evaluations, shaded: their 95 % interval. Lines: the curve as it is read, without"
    " single outliers and never rising (thick: mean over seeds; thin: each seed). Dotted: the baseline's final score as"
    " read, which other lines must reach; dashed: in distances what the VAE's training clips score, below"
    " which only a transformer that generalises comes, else the floor. Drag to zoom, double-click to zoom out."
)
_CAVEATS = (
    "Steps are not seconds: another latent size or VAE changes the time of a step, of encoding and of decoding.",
    "A distance to the VAE's own reconstructions sets the VAE's quality aside: it says how fast the transformer learns"
    " these latents, not how good the video gets.",
    "The measures are correlated and each has its own 95 % interval: among many, one may be off by chance.",
    "The kernel distance uses this report's features and sample count. It is not FVD and cannot be compared with"
    " published numbers, and a small transformer's speed-up need not carry over to a large one.",
)


def _subtitle(results: ComparisonResults, legend: Legend) -> Markup:
    count = len(results.seeds)
    parts = [f"{count} seed{'s' * (count > 1)}"]
    if len(results.vae_seeds) > 1:
        parts.append(f"{len(results.vae_seeds)} autoencoders an arm")
    parts += [f"{value:,} {name.replace('_', ' ')}" for name, value in results.budget.items() if isinstance(value, int)]
    heldout = results.measurement.get("held-out clips")
    parts += [f"{heldout} held-out clips"] if heldout is not None else []
    arms = joined([legend.label(arm.name) for arm in results.candidates], ", ")
    return Markup("{} against the baseline {} · {}").format(
        arms, legend.label(results.baseline.name), " · ".join(parts)
    )


def _top(
    results: ComparisonResults, verdicts: Sequence[Verdict], standings: Sequence[Standing], legend: Legend
) -> list[Markup]:
    """The answer, a line with a badge for each arm, the warnings, what to run next, and what sets the arms apart."""
    best = standings[0]
    advice = next_command(results, verdicts, best)
    lines = [_arm_line(results, one, legend) for one in standings]
    header = ["arm", "verdict", speed_up_title(verdicts), "reconstruction against the baseline", "time spent"]
    shown = len(header) if any(minutes_of(results, one.arm) for one in standings) else len(header) - 1
    verdict_table = table(header[:shown], [line[:shown] for line in lines], numbers=False)
    sentences = [Markup("<p>{} {}</p>").format(legend.label(verdict.candidate), verdict.text) for verdict in verdicts]
    tone = BADGES[best.verdict.conclusion][1] if best.verdict is not None else "neutral"
    lead = Markup('<p class="lead">{}</p>').format(headline(results, standings))
    if all(verdict.conclusion in ("not judgeable", "no evidence") for verdict in verdicts):
        lead += paragraph(verdicts[0].sentences[0])
    elif doubt := undecided(results, verdicts):
        lead += paragraph(doubt)
    return [
        box(
            lead,
            verdict_table,
            paragraph(f"{basis(results, standings)} {_TERMS}".strip(), small=True),
            details("In full sentences", *sentences),
            tone=tone,
        ),
        *[box(paragraph(warning), tone="warn") for warning in results.warnings],
        box(
            Markup("<p><b>Run next</b> – {}{}</p>").format(
                advice.why, f" About {in_minutes(60 * advice.minutes)} on this machine." if advice.minutes else ""
            ),
            command(advice.command),
        ),
        *_differences(results, legend),
    ]


def _differences(results: ComparisonResults, legend: Legend) -> list[Markup]:
    """A box with what sets the arms apart, a line each; nothing where no settings are known."""
    settings = differing_settings(results.arms)
    if not settings:
        return []
    given = any("checkpoint" in arm.training for arm in results.arms)
    intro = Markup("<b>Settings in which the arms differ</b>") + ("." if given else "; all others are the same.")
    if any("stages" in arm.training for arm in results.arms):
        stages = " “Then”: in the next stage of the training." * any(" then " in text for text in settings.values())
        intro += f"{stages} What each does is said by: sat-ssvae settings train"
    return [box(paragraph(intro, small=True), facts({legend.label(name): text for name, text in settings.items()}))]


def _arm_line(results: ComparisonResults, one: Standing, legend: Legend) -> list[Markup | str]:
    words, tone = BADGES[one.verdict.conclusion] if one.verdict else ("baseline", "neutral")
    speed = speed_up_words(one.verdict) if one.verdict else "1×"
    psnr = results.arm(one.arm).reconstruction.get("psnr")
    cost = psnr_cost(results, one.arm)
    if one.verdict is None and psnr is not None:
        cost = f"PSNR {quality_text('psnr', psnr)}"
    time, given = time_words(results, one.arm)[0], "checkpoint" in results.arm(one.arm).training
    spent = Markup("{}<small>without its autoencoder</small>").format(time) if given and time != "–" else time
    return [legend.label(one.arm), badge(words, tone), speed, cost or "–", spent]


def _spectrum_table(results: ComparisonResults, legend: Legend) -> Markup:
    rows = []
    for arm in results.arms:
        variance, floor = arm.explained_variance, arm.floors.get("loss")
        modes = next((i for i, share in enumerate(variance, 1) if share >= 0.9), None)
        first = percent(variance[0]) if variance else "–"
        rows.append(
            [
                legend.label(arm.name),
                f"{modes} of {len(variance)}" if modes else "–",
                first,
                f"{floor.value:.3f}" if floor else "–",
            ]
        )
    note = (
        "The Gaussian floor is what the best linear predictor leaves of the flow-matching loss on latents with these"
        " eigenvalues: it differs between arms, so raw losses do not compare."
    )
    header = ["arm", "modes for 90 % of the variance", "first mode", "Gaussian floor of the loss"]
    return table(header, rows) + paragraph(note, small=True)


def _quality_table(results: ComparisonResults, legend: Legend) -> Markup:
    """Reconstruction metrics by arm, with the clip-by-clip difference to the baseline if there is one."""
    metrics = list(dict.fromkeys(metric for arm in results.arms for metric in arm.reconstruction))
    rows: list[list[Any]] = []
    for arm in results.arms:
        cells: list[Any] = [legend.label(arm.name)]
        for metric in metrics:
            value, difference = arm.reconstruction.get(metric), arm.reconstruction_difference.get(metric)
            text = Markup("{}").format(quality_text(metric, value)) if value else Markup("–")
            if difference:
                signed = quality_text(metric, difference, signed=True)
                text += Markup("<small>{}</small>").format(signed)
            cells.append(text)
        rows.append(cells)
    return table(["arm", *(quality_name(metric) for metric in metrics)], rows, numbers=False) if metrics else Markup()


def _quality_note(results: ComparisonResults) -> str:
    over = "videos or over autoencoders, whichever are wider" if len(results.vae_seeds) > 1 else "videos"
    return (
        "What the latents cost: a VAE can buy easy latents with blur. Means over held-out clips with 95 % intervals"
        f" over {over}; second line: the difference to the baseline, clip by clip."
    )


def _floors(results: ComparisonResults, legend: Legend) -> list[Markup]:
    """The scores of a perfect generator on each VAE."""
    metrics = [m for m in results.metrics if any(m in arm.floors for arm in results.arms) and not m.startswith("loss")]
    if not metrics:
        return []
    rows: list[list[Any]] = []
    for metric in metrics:
        rows.append([describe(metric).label, *(_with_interval(arm.floors.get(metric)) for arm in results.arms)])
        if any(metric in arm.training_distances for arm in results.arms):
            learnt = [_with_interval(arm.training_distances.get(metric)) for arm in results.arms]
            rows.append([f"{describe(metric).label}: the training clips", *learnt])
    header = ["measure", *(legend.label(arm.name) for arm in results.arms)]
    note = "Kernel distances are unbiased estimates: where the true distance is about 0, they may come out negative."
    return [
        details(
            "Floors: the score of a perfect generator on each VAE", table(header, rows), paragraph(note, small=True)
        )
    ]


def _with_interval(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    return f"{estimate.value:.4g}{in_brackets(estimate.low, estimate.high, '{:.3g}'.format)}".replace("-", "−")


def _provenance(results: ComparisonResults) -> list[Markup]:
    """Videos and clips by name, and what was left out."""
    provenance = results.provenance
    blocks = []
    # Shards of both splits may number their samples alike.
    alike = not provenance.train.keys().isdisjoint(provenance.heldout)
    for title, split, videos in (("Training", "train", provenance.train), ("Held out", "heldout", provenance.heldout)):
        if videos:
            summary = f"{title}: {sum(videos.values()):,} clips of {len(videos):,} video{'s' * (len(videos) != 1)}"
            rows = [[f"{split}/{name}" if alike else name, f"{clips:,}"] for name, clips in videos.items()]
            blocks.append(details(summary, table(["video", "clips"], rows)))
    if provenance.left_out:
        rows = [[one.split, one.source, one.cause, one.detail] for one in provenance.left_out]
        summary = f"Left out: {len(rows):,}"
        blocks.append(
            details(summary, table(["split", "video", "why", "details"], rows, numbers=False), opened=len(rows) < 20)
        )
    elif provenance != Provenance({}, {}):
        blocks.append(paragraph("Nothing was left out."))
    if results.attribution:
        blocks.append(details("Authors and licences", code(results.attribution.strip())))
    return blocks


def _measurement(results: ComparisonResults, legend: Legend) -> list[Markup]:
    values = {name.replace("_", " "): plain(value) for name, value in results.measurement.items()}
    values["seeds"] = ", ".join(map(str, results.seeds))
    for group in (results.machine, results.budget):
        values |= {name.replace("_", " "): plain(value) for name, value in group.items()}
    minutes = results.budget.get("minutes")
    if isinstance(minutes, dict):  # by stage in the matrix
        del values["minutes"]
        total = sum(float(value) for value in minutes.values() if isinstance(value, (int, float)))
        values["time"] = in_minutes(60 * total)
    packages = "\n".join(f"{name}=={version}" for name, version in results.packages.items())
    return [
        command(results.command),
        facts({name: value for name, value in values.items() if value}),
        *[
            details(
                Markup("{}: VAE and its training").format(legend.label(arm.name)),
                code(_yaml({"vae": arm.vae, "training": arm.training})),
            )
            for arm in results.arms
        ],
        details("Exact configuration", code(_yaml(results.configuration))),
        details("Package versions", code(packages)),
    ]


def _limits(results: ComparisonResults, verdicts: Sequence[Verdict]) -> list[str]:
    """What the numbers do not say, as far as it depends on this comparison."""
    read = [s for verdict in verdicts for s in verdict.speed_ups]
    limits = []
    if len(results.runs) == 1:
        limits.append("One run: the intervals cover evaluation noise only. Another seed may give another result.")
    elif len(results.vae_seeds) == 1:
        limits.append(
            f"The {len(results.seeds)} seeds vary the transformer's training. Each arm is one trained VAE, so"
            " the intervals do not include what retraining the VAEs would change."
        )
    given = [arm.name for arm in results.arms if "checkpoint" in arm.training]
    if given:
        limits.append(
            f"Not trained here: {', '.join(given)}. A difference may come from their size, their training data and how"
            " long they were trained, not only from the form of their latents; and they may have seen the held-out"
            " clips."
        )
    shares = [s.floor_share for s in read if s.measures_blur and s.floor_share is not None]
    if shares:
        longer = "" if set(blurring_arms(results)) <= set(given) else "train the VAEs longer, or "
        limits.append(
            f"Up to {blur(max(shares))} of a distance is a VAE's own reconstruction error, so it compares blur:"
            f" {longer}compress less, to make it count."
        )
    learnt = _learnt_share(results, read)
    if learnt is not None and learnt > FLOOR_DOMINATES:
        limits.append(
            f"{blur(learnt)} of the baseline's final score by the primary measure is what its training clips score"
            " themselves, since they show other scenes than the held-out ones. Curves level off towards that, so late"
            " in training a small difference in score is a large one in steps."
        )
    missed = sum(s.status == "not reached" for s in read)
    if missed:
        limits.append(f"Not reached ({missed} of {len(read)}) means within these steps; with more it might be.")
    return limits


def _learnt_share(results: ComparisonResults, read: Sequence[SpeedUp]) -> float | None:
    """The score of the baseline's training clips over its transformer's final score, by the primary measure."""
    learnt = results.baseline.training_distances.get(PRIMARY)
    target = next((one.target for one in read if one.metric == PRIMARY), None)
    return None if learnt is None or not target or target < 0 else learnt.value / target


def _yaml(value: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True).rstrip()
