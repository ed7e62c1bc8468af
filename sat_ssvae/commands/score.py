"""`sat-ssvae score`: generated videos against real ones, without a judge."""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import load_config
from ..errors import UserError
from ..storage import write_json
from ._table import aligned, write_csv
from .grammar import add_command, working_device

if TYPE_CHECKING:
    from ..evaluation.score import ScoreConfig, ScoreReport


def add(commands: Any) -> None:
    """Add the command's parser."""
    command = add_command(
        commands,
        "score",
        run,
        "score generated videos against real ones, without a judge",
        "sat-ssvae score samples/ --real clips/",
        "sat-ssvae score ours/ baseline/ --real clips/ --prompts prompts.json i3d=i3d_torchscript.pt clip=models/clip",
        settings="evaluation.score:ScoreConfig",
    )
    command.add_argument(
        "generated", type=Path, nargs="+", metavar="GENERATED", help="folders of generated videos, or shards"
    )
    command.add_argument("--real", type=Path, required=True, metavar="REAL", help="a folder of real videos, or shards")
    command.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help='for CLIP similarity: {"video name": "prompt"} in NAME.json, a table, or the text file that CogVideoX '
        "sampled from (default: NAME.txt beside each video, or the names of CogVideoX's folders)",
    )
    command.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="for score.csv, score.json and each video's results (default: the first GENERATED folder)",
    )


def run(options: argparse.Namespace) -> None:
    """Score; write score.csv and score.json; print a table, and the meaning of each measure."""
    from ..evaluation.score import MEASURES, SCORE_JOURNAL, ScoreConfig, score

    if len({path.resolve() for path in options.generated}) < len(options.generated):
        raise UserError("a folder is given twice")
    config = load_config(ScoreConfig, None, options.overrides)
    first = options.generated[0]
    output = options.output or (first if first.is_dir() else first.parent)
    journal = output / SCORE_JOURNAL
    report = score(options.generated, options.real, config, working_device(), options.prompts, journal)
    write_json(output / "score.json", _document(report, config))
    write_csv(output / "score.csv", _csv_rows(report))
    measured = [name for name in MEASURES if any(name in folder.scores for folder in report.folders)]
    meanings = [f"{MEASURES[name].title} ({MEASURES[name].better}): {MEASURES[name].meaning}\n" for name in measured]
    skips = [
        f"skipped {folder.name}/{skip.source}: {skip.detail}\n"
        for folder in (*report.folders, report.real)
        for skip in folder.skipped
    ]
    notes = [f"{note}\n" for note in report.notes]
    sys.stdout.write("".join([aligned(_rows(report, measured)), "\n", *meanings, *notes, *skips]))
    sys.stdout.write(f"in brackets 95 % intervals; written: {output / 'score.csv'}, {output / 'score.json'}\n")


def _rows(report: "ScoreReport", measured: list[str]) -> list[list[str]]:
    from ..evaluation.score import MEASURES

    columns = [*report.folders, report.real]
    rows = [
        ["", *(folder.name for folder in report.folders), f"real: {report.real.name}"],
        ["videos", *(str(len(folder.videos)) for folder in columns)],
    ]
    for name in measured:
        rows.append([MEASURES[name].title, *(str(folder.scores.get(name, "")) for folder in columns)])
    return rows


def _csv_rows(report: "ScoreReport") -> list[tuple[object, ...]]:
    """A header and one row a folder and measure."""
    rows: list[tuple[object, ...]] = [("folder", "measure", "value", "low", "high", "count")]
    for folder in (*report.folders, report.real):
        for name, score in folder.scores.items():
            rows.append((folder.name, name, score.value, score.low, score.high, score.count))
    return rows


def _document(report: "ScoreReport", config: "ScoreConfig") -> dict[str, Any]:
    from ..evaluation.score import MEASURES

    return {
        "configuration": config.model_dump(mode="json"),
        "measures": {name: asdict(measure) for name, measure in MEASURES.items()},
        "notes": report.notes,
        "generated": [asdict(folder) for folder in report.folders],
        "real": asdict(report.real),
    }
