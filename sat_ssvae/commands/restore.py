"""`sat-ssvae restore`: degraded videos through an autoencoder's latents and a comparison's transformer."""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import load_config
from ..errors import UserError
from ..storage import atomic, write_json
from ._table import aligned, write_csv
from .grammar import add_command, working_device

if TYPE_CHECKING:
    from ..evaluation.moments import Exhibit
    from ..evaluation.restore import RestorationReport, RestoreConfig, RestoredVideo
    from ..pages.clips import ClipRow

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
    """Restore; write scores.csv, scores.json and gallery.html; print the scores as tables."""
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
        f"{restorer.clips.size[0]}x{restorer.clips.size[1]} at {restorer.clips.fps:g} frames per second, in windows of "
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
    write_json(options.output / "scores.json", document)
    write_csv(options.output / "scores.csv", _rows(report))
    sys.stdout.write(_tables(report, config))
    page = _gallery(report, config, options, measured)
    sys.stdout.write(f"{measured}\npage: {page}\n")
    if options.picture:
        _write_picture(report, config, options.output, options.picture)
        sys.stdout.write(f"picture: {options.picture}\n")
    for skip in report.skipped:
        sys.stdout.write(f"skipped {skip.source}: {skip.detail}\n")


def _gallery(report: "RestorationReport", config: "RestoreConfig", options: argparse.Namespace, measured: str) -> Path:
    from ..evaluation.gallery import TITLES, Gallery, clips_shown, write_gallery
    from ..evaluation.restore import quality

    ordered = sorted(report.videos, key=lambda video: quality(video, config))
    videos = {video.name: video for video in ordered}
    rows = _rows(report)
    by_video: dict[str, list[list[str]]] = {name: [row for row in rows[1:] if row[0] == name] for name in videos}
    for name, video in videos.items():
        by_video[name] = by_video[name] or [[name, str(video.frames), "not scored", *[""] * (len(rows[0]) - 3)]]
    numbers = [row for name in videos for row in by_video[name]]
    shown = [_clips(exhibit, videos[exhibit.name], config) for exhibit in report.exhibits]
    order = clips_shown(report.exhibits, len(videos), scored=bool(rows[1:]))
    return write_gallery(
        options.output / "gallery.html",
        Gallery(
            "Restorations, the worst first",
            _meaning(ordered, config, options.arm),
            shown,
            order,
            [TITLES.get(name, name) for name in rows[0]],
            numbers,
            options.output / "scores.csv",
            options.command_line,
            {"comparison": str(options.comparison), "arm": options.arm, "measured": measured},
            report.skipped,
        ),
    )


def _clips(exhibit: "Exhibit", video: "RestoredVideo", config: "RestoreConfig") -> "ClipRow":
    """A video's views: each restoration over the input, the others beside them."""
    from ..evaluation.gallery import errors, scores_in_words, still, where, wipe
    from ..evaluation.moments import ORIGINAL
    from ..evaluation.restore import INPUT, ROUND_TRIP, strength_name
    from ..pages.clips import ClipRow

    def caption(view: str) -> str:
        return scores_in_words(video.scores[view]) if view in video.scores else ""

    cells = []
    for view in map(strength_name, config.strengths):
        cells.append(wipe(exhibit, INPUT, view, caption(view)))
        if view in exhibit.errors:
            cells.append(errors(exhibit, view))
    others = [view for view in (ORIGINAL, ROUND_TRIP) if view in exhibit.films]
    cells += [still(exhibit, view, caption(view)) for view in others]
    note = f", {INPUT} {caption(INPUT)}" if caption(INPUT) else ""
    return ClipRow(exhibit.name, cells, where(exhibit) + note)


def _meaning(videos: list["RestoredVideo"], config: "RestoreConfig", arm: str) -> str:
    """How much the best strength improves the videos, and the autoencoder without the transformer."""
    from ..evaluation.restore import INPUT, ROUND_TRIP, strength_name

    scored = [video for video in videos if video.scores]
    if not scored:
        return f"{_videos(len(videos))} restored by {arm}; without originals there is nothing to score."
    means = {
        view: sum(video.scores[view]["psnr"] for video in scored) / len(scored)
        for view in (INPUT, ROUND_TRIP, *map(strength_name, config.strengths))
    }
    before, alone = means.pop(INPUT), means.pop(ROUND_TRIP)
    best = max(means, key=lambda view: means[view])
    verb = "raises" if means[best] > before else "lowers"
    difference = _mean_and_change(scored, best, "psnr")[1].replace("-", "−")
    change = f"from {before:.2f} dB to {means[best]:.2f} dB ({best}, {_videos(len(scored))}), {difference} dB"
    return f"{arm} {verb} the mean PSNR {change}; its autoencoder alone makes it {alone:.2f} dB."


def _videos(count: int) -> str:
    return f"{count:,} video{'s' * (count != 1)}"


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
    from ..evaluation.moments import ORIGINAL
    from ..evaluation.restore import INPUT, view_names

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
    from ..metrics.intervals import in_brackets

    after, before = ([video.scores[name][metric] for video in videos] for name in (view, INPUT))
    digits = 2 if metric == "psnr" else 3
    if view == INPUT:
        return f"{sum(after) / len(after):.{digits}f}", ""
    change = paired_difference(after, before)
    signed = f"{{:+.{digits}f}}".format
    text = f"{signed(change.value)}{in_brackets(change.low, change.high, signed)}"
    return f"{sum(after) / len(after):.{digits}f}", text


def _write_picture(report: "RestorationReport", config: "RestoreConfig", output: Path, path: Path) -> None:
    from ..evaluation.restore import middle_frames, view_names
    from ..evaluation.side_by_side import labelled_grid
    from ..spacing import evenly_spaced

    alike = [video for video in report.videos if video.scores] or report.videos  # as many views in every row
    names = view_names(config, scored=bool(alike[0].scores))
    shown = [alike[number] for number in evenly_spaced(len(alike), 4)]
    rows = [middle_frames(output, video, len(names)) for video in shown]
    with atomic(path) as partial:
        labelled_grid(rows, names).save(partial, path.suffix[1:].upper(), quality=90)
