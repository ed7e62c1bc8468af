"""Time of the default comparison: a few steps per stage, extrapolated, beside other checkouts in the same run.

    python scripts/bench_comparison.py                              # this checkout, on an idle machine
    python scripts/bench_comparison.py --beside /tmp/old            # and another one, in turn
    python scripts/bench_comparison.py --processor-time --beside /tmp/old   # on a busy machine

Every checkout runs its own default preset twice, with N and with 3 N steps in the first stage and as large a share of
the others, to separate the work that is done once from that of each step. Scoring and latents are scaled by the
number of samples and the length of the film. "one by one" adds up the arms, "side by side" takes the slower one.
`--processor-time` counts seconds of the processor instead, of one thread and one member at a time, data workers
included: of two free cores "side by side" would then take about as long.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from _bench import machine

ROOT = Path(__file__).resolve().parent.parent
RUN = """
import resource, sys, threading, queue, multiprocessing.connection, time, torch
def processor_seconds():
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)
begin = time.monotonic()
if sys.argv[1] == "processor":  # threading and queue took the clock before: their timeouts go by it
    time.monotonic = processor_seconds
    begin = 0.0
from sat_ssvae.cli import main
main(sys.argv[3:])
open(sys.argv[2], "w").write(str(time.monotonic() - begin))
"""
"""Runs a command and writes how long it took; the packages keep their time by `time.monotonic`, too."""
SCALED = "clips", "latents"


class Cut(NamedTuple):
    """How a preset is shortened."""

    first: int
    """Steps of the first stage."""
    film: float
    """Seconds."""
    samples: int


def first_stage(preset: dict[str, Any]) -> int:
    """Steps of the autoencoder's first stage, in older checkouts the only one."""
    return int(preset["stages"][0]["max_steps"] if "stages" in preset else preset["vae"]["max_steps"])


def shortened(preset: dict[str, Any], cut: Cut) -> dict[str, Any]:
    """The preset with a share of its steps, film and samples."""
    share, scoring, transformer = cut.first / first_stage(preset), preset["scoring"], preset["transformer"]
    stages = [one | {"max_steps": max(round(one["max_steps"] * share), 1)} for one in preset.get("stages", [])]
    own = {} if stages else {"max_steps": cut.first}
    steps = max(round(transformer["max_steps"] * share), 1)
    samples = {"samples": cut.samples, "denoising_clips": max(48 * cut.samples // scoring["samples"], 2)}
    short = preset | {
        "vae": preset["vae"] | own,
        "transformer": transformer | {"max_steps": steps, "evaluation_steps": [steps]},
        "scoring": scoring | samples,
        "film_seconds": cut.film,
    }
    return short | ({"stages": stages} if stages else {})


def measured(checkout: Path, cut: Cut, folder: Path, processor: bool) -> dict[str, float]:
    """Seconds by stage of a run, and of all of it as `total`."""
    preset = yaml.safe_load((checkout / "sat_ssvae/configs/compare_default.yaml").read_text())
    config, total, output = folder / "config.yaml", folder / "total", folder / "run"
    config.write_text(yaml.safe_dump(shortened(preset, cut)))
    arms = ["--vae", "stock=stock", "--vae", "ssvae=ssvae"]
    own = ["jobs=1"] if processor and checkout == ROOT else []
    words = ["compare", "--config", str(config), *arms, "--output", str(output), *own]
    environment = os.environ | {"PYTHONPATH": str(checkout)} | ({"OMP_NUM_THREADS": "1"} if processor else {})
    command = [sys.executable, "-c", RUN, "processor" if processor else "clock", str(total), *words]
    with (folder / "log").open("w") as log:  # in the checkout: `python -c` looks for packages where it runs first
        done = subprocess.run(command, env=environment, check=False, stdout=log, stderr=log, cwd=checkout)
    if done.returncode:
        sys.exit(f"{checkout}: {(folder / 'log').read_text()[-2000:]}")
    minutes: dict[str, float] = json.loads((output / "minutes.json").read_text())
    (output / "minutes.json").unlink()
    return {"total": float(total.read_text()), **{stage: 60 * value for stage, value in minutes.items()}}


def extrapolated(preset: dict[str, Any], cut: Cut, short: dict[str, float], long: dict[str, float]) -> dict[str, float]:
    """Seconds by stage of the whole preset, from runs of N and of 3 N steps; `rest` is what no stage has."""
    more = (first_stage(preset) - cut.first) / (2 * cut.first)
    film, evaluations = preset.get("film_seconds", 482.0), len(preset["transformer"]["evaluation_steps"])
    whole = {}
    for stage in {**short, **long}:
        kind = stage.split()[0]
        if kind in SCALED:
            whole[stage] = short[stage] * film / cut.film
        elif kind == "scoring":
            whole[stage] = (short[stage] + long[stage]) / 2 * evaluations * preset["scoring"]["samples"] / cut.samples
        elif kind != "total":
            whole[stage] = short[stage] + (long[stage] - short[stage]) * more
    whole["rest"] = long["total"] - sum(seconds for stage, seconds in long.items() if stage != "total")
    return whole


def totals(seconds: dict[str, float]) -> tuple[float, float]:
    """Seconds of all stages with arms one after the other, and at the same time."""
    arms: dict[str, float] = {}
    for stage, value in seconds.items():
        arm = stage.partition(" ")[2]
        arms[arm] = arms.get(arm, 0.0) + value
    shared = arms.pop("", 0.0)
    return shared + sum(arms.values()), shared + max(arms.values())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beside", type=Path, nargs="*", default=[], metavar="CHECKOUT", help="others to measure")
    parser.add_argument("--steps", type=int, default=100, help="N (default: %(default)s)")
    parser.add_argument("--film", type=float, default=482.0, help="seconds of the demo's film (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=128, help="clips to generate (default: %(default)s)")
    parser.add_argument("--processor-time", action="store_true", help="count the processor's seconds, see above")
    options = parser.parse_args()
    cut = Cut(options.steps, options.film, options.samples)
    print(machine(torch.device("cpu")))
    columns: dict[str, dict[str, float]] = {}
    for checkout in [*(path.resolve() for path in options.beside), ROOT]:
        with tempfile.TemporaryDirectory() as name:
            runs = [cut, cut._replace(first=3 * cut.first)]
            short, long = (measured(checkout, run, Path(name), options.processor_time) for run in runs)
        preset = yaml.safe_load((checkout / "sat_ssvae/configs/compare_default.yaml").read_text())
        columns[str(checkout)] = extrapolated(preset, cut, short, long)
        print(f"{checkout}\n  N: {short}\n  3 N: {long}", flush=True)
    print("\n| minutes | " + " | ".join(columns) + " |\n|---" + "|---" * len(columns) + "|")
    for stage in dict.fromkeys(stage for column in columns.values() for stage in column):
        print(f"| {stage} | " + " | ".join(f"{column.get(stage, 0) / 60:.1f}" for column in columns.values()) + " |")
    for number, way in enumerate(("one by one", "side by side")):
        print(f"| {way} | " + " | ".join(f"{totals(column)[number] / 60:.1f}" for column in columns.values()) + " |")


if __name__ == "__main__":
    main()
