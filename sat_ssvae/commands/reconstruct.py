"""`sat-ssvae reconstruct`: videos through an autoencoder and back, with scores."""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import find_config, load_config, parse_config, read_yaml
from ..errors import UserError
from ..storage import write_json
from ._table import aligned, write_csv
from .grammar import add_command, working_device

if TYPE_CHECKING:
    from ..autoencoders.protocol import VideoAutoencoder
    from ..evaluation.reconstruct import ReconstructConfig, ReconstructionReport


def add(commands: Any) -> None:
    """Add the command's parser."""
    command = add_command(
        commands,
        "reconstruct",
        run,
        "encode and decode videos with an autoencoder, and score the reconstructions",
        "sat-ssvae reconstruct --checkpoint runs/stage1 --input clips/ --output out/ side_by_side=true",
        settings="evaluation.reconstruct:ReconstructConfig",
    )
    command.add_argument(
        "--checkpoint",
        "--vae",
        required=True,
        metavar="VAE",
        help="an SSVAE's path, a training run's folder, or KIND:PATH_OR_ID",
    )
    command.add_argument("--input", type=Path, required=True, help="a video, a folder of videos, or shards")
    command.add_argument("--output", type=Path, required=True, metavar="DIR", help="for reconstructions and scores")
    command.add_argument(
        "--config", type=Path, metavar="YAML", help="training configuration whose network the checkpoint must have"
    )


def run(options: argparse.Namespace) -> None:
    """Reconstruct; write scores.csv, scores.json and gallery.html; print the scores as a table."""
    from ..autoencoders.specification import open_autoencoder
    from ..evaluation.reconstruct import ReconstructConfig, reconstruct

    device = working_device()
    config = load_config(ReconstructConfig, None, options.overrides)
    vae = open_autoencoder(options.checkpoint)
    if options.config:
        _check_sizes(find_config(options.config, compared=False), vae)
    report = reconstruct(vae, options.input, options.output, config, device)
    rows = _rows(report)
    write_csv(options.output / "scores.csv", rows)
    measured = _measured(config, report, vae)
    document = {
        "autoencoder": options.checkpoint,
        "measured": measured,
        "total": report.totals(),
        **({} if report.rfvd is None else {"rfvd": {**asdict(report.rfvd), "warning": report.rfvd.warning}}),
        "videos": [asdict(clip) for clip in report.clips],
        "skipped": [asdict(skip) for skip in report.skipped],
    }
    write_json(options.output / "scores.json", document)
    page = _gallery(report, rows, options, measured)
    sys.stdout.write(f"{aligned(rows)}{measured}\npage: {page}\n")
    if report.rfvd is not None and report.rfvd.warning:
        sys.stdout.write(f"warning: {report.rfvd.warning}\n")
    for skip in report.skipped:
        sys.stdout.write(f"skipped {skip.source}: {skip.detail}\n")


def _gallery(report: "ReconstructionReport", rows: list[list[str]], options: argparse.Namespace, measured: str) -> Path:
    from ..evaluation.gallery import TITLES, Gallery, clips_shown, errors, scores_in_words, where, wipe, write_gallery
    from ..evaluation.moments import ORIGINAL
    from ..evaluation.reconstruct import OWN
    from ..pages.clips import ClipRow

    clips = {clip.name: clip for clip in sorted(report.clips, key=lambda clip: clip.scores["psnr"])}
    worst, last = next(iter(clips.values())), list(clips.values())[-1]
    videos = "1 video"
    if len(clips) > 1:
        low, high = (f"{clip.scores['psnr']:.2f} dB ({clip.name})" for clip in (worst, last))
        videos = f"{len(clips):,} videos, from {low} to {high}"
    shown = [
        ClipRow(
            exhibit.name,
            [wipe(exhibit, ORIGINAL, OWN, where(exhibit)), errors(exhibit, OWN)],
            scores_in_words(clips[exhibit.name].scores),
        )
        for exhibit in report.exhibits
    ]
    numbers = {row[0]: row for row in rows[1 : 1 + len(clips)]}
    return write_gallery(
        options.output / "gallery.html",
        Gallery(
            "Reconstructions, the worst first",
            f"{options.checkpoint} reconstructs with a mean PSNR of {report.totals()['psnr']:.2f} dB: {videos}.",
            shown,
            clips_shown(report.exhibits, len(clips)),
            [TITLES.get(name, name) for name in rows[0]],
            [numbers[name] for name in clips],
            options.output / "scores.csv",
            options.command_line,
            {"autoencoder": options.checkpoint, "measured": measured},
            report.skipped,
        ),
    )


def _measured(config: "ReconstructConfig", report: "ReconstructionReport", vae: "VideoAutoencoder") -> str:
    used = "".join(f", {how}" for how in vae.describe().get("used", []))
    perceptual = "" if config.perceptual == "none" else f", perceptual distance {config.perceptual}"
    tiles = "" if config.tile_size is None else f" in tiles of {config.tile_size} pixels"
    return (
        f"Means over frames, total over videos; RGB at the videos' own size and frame rate; PSNR in dB, SSIM (Gaussian "
        f"window 11){perceptual}; posterior mean, {config.chunk_frames} frames at a time{tiles}{used}{_fvd(report)}"
    )


def _fvd(report: "ReconstructionReport") -> str:
    if (rfvd := report.rfvd) is None:
        return ""
    return (
        f"; rFVD between originals and reconstructions, {rfvd.clips} clips of {rfvd.frames} frames scaled to 224x224, "
        f"{rfvd.backbone} (sha256 {rfvd.sha256})"
    )


def _rows(report: "ReconstructionReport") -> list[list[str]]:
    names = list(report.totals())
    rows = [["video", "frames", "height", "width", "fps", *names]]
    for clip in report.clips:
        about = [clip.name, str(clip.frames), str(clip.height), str(clip.width), f"{clip.fps:g}"]
        rows.append(about + [f"{clip.scores[name]:.4f}" for name in names])
    frames = str(sum(clip.frames for clip in report.clips))
    rows.append(["total", frames, "", "", "", *(f"{value:.4f}" for value in report.totals().values())])
    if report.rfvd is not None:  # it has no value for a single video
        distance = report.rfvd.distance
        last = "" if distance is None else f"{distance:.4f}"
        rows = [[*row, cell] for row, cell in zip(rows, ["rfvd", *[""] * len(report.clips), last], strict=True)]
    return rows


def _check_sizes(path: Path, vae: "VideoAutoencoder") -> None:
    """Refuse a checkpoint of another network than the configuration's; nothing else of it matters here."""
    from ..vae.config import SSVAEConfig

    values = read_yaml(path)
    model = {"latent_channels": values["channels"]} if "channels" in values else {}
    wanted = parse_config(SSVAEConfig, model | dict(values.get("model") or {}), source=str(path))
    found = vae.describe()
    if wanted.model_dump(mode="json") != found:
        raise UserError(f"{path}: describes another network than the checkpoint's ({wanted} instead of {found})")
