"""`sat-ssvae restore`: degraded videos through an autoencoder's latents and a comparison's transformer."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import load_config
from ..errors import UserError
from ..storage import atomic, write_text
from ._options import add_command, working_device
from ._table import aligned, write_csv

if TYPE_CHECKING:
    from ..evaluation.restore import RestorationReport, RestoreConfig

PICTURE_SUFFIXES = (".png", ".webp")


def add(commands: Any) -> None:
    """Add the command's parser."""
    command = add_command(
        commands,
        "restore",
        run,
        "restore degraded videos with the autoencoder and transformer of a comparison's arm (SDEdit)",
        "sat-ssvae restore runs/compare --arm ssvae --input clips/ --output out/ degrade=noise:50",
        settings="evaluation.restore:RestoreConfig",
    )
    command.add_argument("comparison", type=Path, metavar="RUN", help="folder of a finished `sat-ssvae compare`")
    command.add_argument("--arm", required=True, metavar="NAME", help="whose autoencoder and transformer to use")
    command.add_argument("--input", type=Path, required=True, help="a video, a folder of videos, or shards")
    command.add_argument("--output", type=Path, required=True, metavar="DIR", help="for restored videos and scores")
    command.add_argument(
        "--original", type=Path, metavar="DIR", help="clean videos with the input's names, to score against"
    )
    command.add_argument(
        "--picture", type=Path, metavar="FILE", help="also a picture of some middle frames: .png or .webp"
    )


def run(options: argparse.Namespace) -> None:
    """Restore; write scores.csv and scores.json; print them as tables."""
    from ..evaluation.degradations import Degradation
    from ..evaluation.restore import RestoreConfig, Restorer, restore

    if options.picture and options.picture.suffix not in PICTURE_SUFFIXES:
        raise UserError(f"--picture {options.picture}: give a name that ends in {' or '.join(PICTURE_SUFFIXES)}")
    config = load_config(RestoreConfig, None, options.overrides)
    if options.picture:  # its frames are taken from the videos side by side
        config = config.model_copy(update={"side_by_side": True})
    if config.degrade and options.original:
        raise UserError("degrade= is for clean input, --original for input that is degraded already; give one of them")
    degradation = Degradation.parse(config.degrade) if config.degrade else None
    restorer = Restorer.open(options.comparison, options.arm, config.transformer_seed, working_device())
    report = restore(restorer, options.input, options.output, config, degradation, options.original)
    how = _degraded_how(config, options.original)
    measured = (
        f"{restorer.size[0]}x{restorer.size[1]} at {restorer.clips.fps:g} frames per second, in windows of "
        f"{restorer.clips.num_frames} frames that share {config.overlap}; {how}; {config.steps} sampler "
        f"steps, seed {config.seed}; perceptual distance {config.perceptual}; before rounding and compression"
    )
    document = {
        "comparison": str(options.comparison),
        "transformer": restorer.trained.model_dump(mode="json", exclude={"latent_mean", "latent_std"}),
        "measured": measured,
        "configuration": config.model_dump(mode="json"),
        "videos": [asdict(video) for video in report.videos],
        "skipped": [asdict(skip) for skip in report.skipped],
    }
    write_text(options.output / "scores.json", json.dumps(document, indent=1) + "\n")
    write_csv(options.output / "scores.csv", _rows(report))
    sys.stdout.write(_tables(report, config))
    sys.stdout.write(f"{measured}\n")
    if options.picture:
        _write_picture(report, config, options.output, options.picture)
        sys.stdout.write(f"picture: {options.picture}\n")
    for skip in report.skipped:
        sys.stdout.write(f"skipped {skip.source}: {skip.detail}\n")


def _degraded_how(config: "RestoreConfig", original: Path | None) -> str:
    if config.degrade:
        return f"degraded by {config.degrade}"
    return f"originals from {original}" if original else "no originals, so no scores"


def _rows(report: "RestorationReport") -> list[list[str]]:
    """A header and one row a video and view."""
    metrics = list(
        dict.fromkeys(name for video in report.videos for scores in video.scores.values() for name in scores)
    )
    rows = [["video", "frames", "view", *metrics]]
    for video in report.videos:
        for view, scores in video.scores.items():
            rows.append([video.name, str(video.frames), view, *(f"{scores[metric]:.4f}" for metric in metrics)])
    return rows


def _tables(report: "RestorationReport", config: "RestoreConfig") -> str:
    """PSNR of each video before and after, and the means of all metrics with their change."""
    from ..evaluation.restore import INPUT, ORIGINAL, view_names

    views = [name for name in view_names(config, scored=True) if name != ORIGINAL]
    scored = [video for video in report.videos if video.scores]
    if not scored:
        rows = [["video", "frames"], *([video.name, str(video.frames)] for video in report.videos)]
        return aligned(rows)
    rows = [["PSNR in dB", "frames", *views]]
    rows += [[v.name, str(v.frames), *(f"{v.scores[view]['psnr']:.2f}" for view in views)] for v in scored]
    metrics = list(scored[0].scores[INPUT])
    means = [["mean over videos", *(text for name in metrics for text in (name, "change (95 % interval)"))]]
    means += [[view, *(text for name in metrics for text in _mean_and_change(scored, view, name))] for view in views]
    return f"{aligned(rows)}\n{aligned(means)}\n"


def _mean_and_change(videos: list[Any], view: str, metric: str) -> tuple[str, str]:
    """Mean of a metric over videos, and of its difference to the degraded video's."""
    from ..comparison.analysis import paired_difference
    from ..evaluation.restore import INPUT

    after, before = ([video.scores[name][metric] for video in videos] for name in (view, INPUT))
    digits = 2 if metric == "psnr" else 3
    if view == INPUT:
        return f"{sum(after) / len(after):.{digits}f}", ""
    change = paired_difference(after, before)
    text = f"{change.value:+.{digits}f}"
    if change.low is not None and change.high is not None:
        text += f" ({change.low:+.{digits}f} to {change.high:+.{digits}f})"
    return f"{sum(after) / len(after):.{digits}f}", text


def _write_picture(report: "RestorationReport", config: "RestoreConfig", output: Path, path: Path) -> None:
    from ..comparison.report.pictures import labelled_grid
    from ..evaluation.restore import middle_frames, view_names
    from ..metrics.features import spaced_frames

    alike = [video for video in report.videos if video.scores] or report.videos  # as many views in every row
    names = view_names(config, scored=bool(alike[0].scores))
    shown = [alike[number] for number in spaced_frames(len(alike), 4)]
    rows = [middle_frames(output, video, len(names)) for video in shown]
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as partial:
        labelled_grid(rows, names).save(partial, path.suffix[1:].upper(), quality=90)
