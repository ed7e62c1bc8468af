"""A training run as one HTML file, run.html in its folder, made from the files there.

    page = RunPage(Path("runs/stage1"))
    page.write("running", step=500, max_steps=150_000)      # never raises
    with page.following(run): ...                           # afterwards it says `done`, or `stopped`

It reads config.json, metrics.jsonl, evaluations.jsonl and evaluations/, so a continued run shows all of it.
"""

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from markupsafe import Markup

from ..data.video_io import read_frames
from ..engine.run import Run
from ..pages.blocks import Legend, Tone, badge, box, code, command, details, facts, paragraph, section
from ..pages.charts import Axis, chart, charts, line
from ..pages.clips import ClipCell, ClipRow, Film, film, player
from ..pages.document import document
from ..spacing import evenly_spaced
from ..storage import read_json_lines, write_text

logger = logging.getLogger(__name__)

NAME = "run.html"
POINTS = 400
"""Points of a curve; more logged steps are averaged."""
EVALUATIONS, CLIPS, FRAMES, WIDTH = 12, 4, 17, 192
"""The most evaluations, clips of each, frames of a clip and pixels in width that are shown."""
TRAINING, HELDOUT = "training", "held-out"

_STEPS = Axis("step", log=False)

State = Literal["running", "done", "stopped"]
_TONES: Mapping[State, Tone] = {"running": "neutral", "done": "good", "stopped": "warn"}
_LOSSES = {
    "total": ("Total loss", "what training minimises"),
    "error": ("Pixel error", "mean difference of a pixel, in the range -1 to 1"),
    "perceptual": ("Perceptual distance", "how different frames look to a network"),
    "nll": ("Reconstruction term", "as weighted in the total"),
    "kl": ("KL divergence", "of a sample's latents from a standard normal"),
    "lcr": ("LCR loss", "lack of local correlation of the latents; 0 once the threshold is reached"),
    "rescaled": ("Scale-equivariance error", "of shrunk latents against the shrunk video"),
    "adversarial": ("Adversarial loss", "of the decoder against the discriminators"),
    "critic": ("Discriminators' loss", "how well they are fooled"),
}
_HEALTH = {
    "gradient_norm": ("Gradient norm", "before clipping"),
    "lr": ("Learning rate", ""),
    "lcr_weight": ("Weight of LCR", "that was applied"),
    "adversarial_weight": ("Weight of the adversarial loss", "that was applied"),
    "skipped_steps": ("Skipped steps", "because a loss or gradient was infinite or NaN"),
}


@dataclass
class _Evaluation:
    """Clips beside each other: films of the originals and of their reconstructions."""

    originals: list[Film]
    reconstructions: list[Film]
    fps: float


class RunPage:
    """The page of the run in `folder`. A failure is one warning, after which nothing is written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._evaluations: dict[int, _Evaluation] = {}
        self._failed = False

    @contextlib.contextmanager
    def following(self, run: Run) -> Iterator[None]:
        """Write the page again when the block ends: the training is done, or was stopped."""
        try:
            yield
        except BaseException:
            self.write("stopped", run.step, run.max_steps)
            raise
        self.write("done", run.step, run.max_steps)

    def write(self, state: State, step: int, max_steps: int) -> None:
        """Write the page as of now."""
        if self._failed:
            return
        try:
            write_text(self.folder / NAME, self._page(state, step, max_steps))
        except Exception as error:  # a page must never stop training
            self._failed = True
            logger.warning("%s cannot be written, training continues without it (%s)", self.folder / NAME, error)

    def _page(self, state: State, step: int, max_steps: int) -> str:
        settings = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        logged = read_json_lines(self.folder / "metrics.jsonl")
        evaluated = read_json_lines(self.folder / "evaluations.jsonl")
        legend = Legend([TRAINING, HELDOUT] if evaluated else [TRAINING])
        now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
        share = f"step {step:,} of {max_steps:,} ({100 * step / max_steps:.0f} %)"
        thinned = f"Means of {len(logged):,} logged steps at {POINTS} points each." if len(logged) > POINTS else ""
        blocks = [
            legend.toggles(f"{state} at {now}, {share}"),
            _summary(state, self.folder, logged, evaluated),
            section("Quality", charts(_quality(legend, logged, evaluated))),
            self._clips(evaluated),
            section("Losses", charts(_curves(legend, logged, _LOSSES)), note=thinned),
            section("Health of the training", charts(_curves(legend, logged, _HEALTH))),
            section("Configuration", details("config.json", code(yaml.safe_dump(settings, sort_keys=False)))),
        ]
        subtitle = Markup("{} {}").format(badge(state, _TONES[state]), share)
        footer = f"Written at {now}, at evaluations, checkpoints and the end; reload to see more."
        return document(f"Training of {self.folder.name}", blocks, subtitle=subtitle, footer=footer)

    def _clips(self, evaluated: Sequence[Mapping[str, Any]]) -> Markup:
        """Held-out clips beside their reconstructions, with a slider over the evaluations."""
        every = 1
        while len(evaluated) > every * (EVALUATIONS - 1):  # by powers of 2, so that most stay the same as a run goes on
            every *= 2
        chosen = list(evaluated[::every])
        if evaluated and chosen[-1] is not evaluated[-1]:
            chosen.append(evaluated[-1])
        chosen = [one for one in chosen if self._path(one["step"]).is_file()]
        if not chosen:
            return Markup()
        kept = {one["step"]: self._evaluation(one["step"], len(one["psnr_by_clip"])) for one in chosen}
        self._evaluations = kept
        last = kept[chosen[-1]["step"]]
        rows = []
        for number, original in enumerate(last.originals):
            captions = [f"PSNR {one['psnr_by_clip'][number]:.2f} dB" for one in chosen]
            films = [evaluation.reconstructions[number] for evaluation in kept.values()]
            cells = [
                ClipCell("original", original),
                ClipCell(
                    "reconstruction", films if len(films) > 1 else films[0], captions if len(films) > 1 else captions[0]
                ),
            ]
            rows.append(ClipRow(f"Held-out clip {number + 1}", cells))
        steps = [f"{one['step']:,}" for one in chosen]
        clips = len(chosen[-1]["psnr_by_clip"])
        count = f"{len(chosen)} of {len(evaluated)} evaluations, {len(rows)} of {clips} clips"
        note = f"{count}; evaluations/ has all of them."
        return section("Held-out clips", player(rows, fps=last.fps, steps=steps if len(steps) > 1 else ()), note=note)

    def _path(self, step: int) -> Path:
        return self.folder / "evaluations" / f"step_{step}.mp4"

    def _evaluation(self, step: int, clips: int) -> _Evaluation:
        """The clips of an evaluation's video, originals above reconstructions."""
        if step in self._evaluations:
            return self._evaluations[step]
        frames = list(read_frames(self._path(step)))
        spread = evenly_spaced(len(frames), FRAMES)
        pictures = np.stack([frames[number].picture for number in spread])
        seconds = float(frames[-1].time - frames[0].time)
        top, bottom = np.split(pictures[:, : pictures.shape[1] // 2 * 2], 2, axis=1)
        width = pictures.shape[2] // clips
        originals, reconstructions = (
            [film(half[:, :, at * width : (at + 1) * width], max_width=WIDTH) for at in range(min(clips, CLIPS))]
            for half in (top, bottom)
        )
        return _Evaluation(originals, reconstructions, (len(spread) - 1) / seconds if seconds else 8.0)


def _summary(
    state: State, folder: Path, logged: Sequence[Mapping[str, Any]], evaluated: Sequence[Mapping[str, Any]]
) -> Markup:
    """The state at a glance, and what to do next."""
    about = {}
    for name, values in ((TRAINING, logged), (HELDOUT, evaluated)):
        known = [one for one in values if one.get("psnr") is not None]
        if known:
            best = max(known, key=lambda one: one["psnr"])
            about[f"{name} PSNR"] = (
                f"{known[-1]['psnr']:.2f} dB at step {known[-1]['step']:,} (best: {best['psnr']:.2f} dB at step "
                f"{best['step']:,})"
            )
    skipped = logged[-1].get("skipped_steps", 0) if logged else 0
    if skipped:
        about["skipped steps"] = f"{skipped:,}; their samples are listed in skipped.jsonl"
    blocks: list[Markup] = [facts(about)] if about else []
    if not evaluated:
        blocks.append(
            paragraph("Held-out clips are evaluated, and shown here, with monitor.every=500 monitor.path=HELDOUT.")
        )
    if state == "stopped":
        blocks.append(
            paragraph("The training stopped before its end; the same command continues from the last checkpoint.")
        )
    if state == "done":
        blocks += [
            paragraph("The autoencoder is in vae/. How well it reconstructs videos:"),
            command(f"sat-ssvae reconstruct --checkpoint {folder} --input clips/ --output out/"),
        ]
    return box(*blocks, tone=_TONES[state])


def _quality(
    legend: Legend, logged: Sequence[Mapping[str, Any]], evaluated: Sequence[Mapping[str, Any]]
) -> list[Markup]:
    """PSNR, SSIM and local correlation, of training batches and of held-out clips."""
    drawn = []
    for title, note, label, names in (
        ("PSNR", "higher is better; in training through masked latents", "dB", ("psnr", "psnr")),
        (
            "Local correlation of the latents",
            "what LCR raises",
            "mean Pearson correlation",
            ("correlation", "local_correlation"),
        ),
        ("SSIM", "higher is better, 1 is equal", "SSIM", ("", "ssim")),
    ):
        lines = [
            line(legend, series, *_points(values, name))
            for series, values, name in ((TRAINING, logged, names[0]), (HELDOUT, evaluated, names[1]))
            if any(one.get(name) is not None for one in values)
        ]
        if lines:
            drawn.append(chart(title, lines, _STEPS, Axis(label, log=False), note=note))
    return drawn


def _curves(legend: Legend, logged: Sequence[Mapping[str, Any]], names: Mapping[str, tuple[str, str]]) -> list[Markup]:
    """A chart for each logged value that is not always 0."""
    return [
        chart(title, [line(legend, TRAINING, *_points(logged, name))], _STEPS, Axis(""), note=note)
        for name, (title, note) in names.items()
        if any(one.get(name) for one in logged)
    ]


def _points(values: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float | None]]:
    """Steps and values, averaged in groups where there are many; NaN and infinity are gaps."""
    rows = np.array([[one["step"], np.nan if one.get(name) is None else one[name]] for one in values], float)
    steps, points = [], []
    for group in np.array_split(rows, min(len(rows), POINTS)):
        finite = group[np.isfinite(group[:, 1])]
        steps.append(float(group[:, 0].mean()) if len(group) > 1 else int(group[0, 0]))
        points.append(float(finite[:, 1].mean()) if len(finite) else None)
    return steps, points
