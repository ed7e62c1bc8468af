"""The estimates of time and memory against the trainer itself, on this machine with 1 and 2 ranks.

    python scripts/check_scaling.py [--ranks 1 2] [--stages 0 1 2] [--steps 40]

A rank is a process with one thread, or with one GPU if there are any. All ranks at once first measure what the
estimate needs, operations a second (on clips of another size than training's) and the bandwidth of an all-reduce, then
train. Time: of the fastest step and the fastest measurement, which other processes disturb least; waiting for data is
left out. Memory, in a second run of a few steps: the largest sum of torch's own allocations (a CPU's: by
the profiler), against the estimate of scripts/estimate_memory.py.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from _bench import machine, make_shards
from estimate_scaling import measured_rate, operations, sent_bytes, step_seconds

from sat_ssvae import distributed
from sat_ssvae.config import parse_config
from sat_ssvae.storage import read_json_lines
from sat_ssvae.training.memory import PLANS, step_memory
from sat_ssvae.training.settings import TrainConfig
from sat_ssvae.training.trainer import train

WARM_UP = 3
MIB = 2**20


def settings(shards: Path, stage: int, steps: int, side: int) -> TrainConfig:
    """The published layout at an eighth of its width, 5 M parameters."""
    values = {
        "model": {"base_channels": 4},
        "data": {"path": str(shards), "num_frames": 5, "resolution": side, "num_workers": 1},
        "reconstruction": {"perceptual_weight": 0.0},
        "optimizer": {"zero_stage": stage},
        "batch_size": 1,
        "max_steps": steps,
        "log_every": 1,
        "checkpoint_every": 10**9,
    }
    return parse_config(TrainConfig, values)


def run_rank(case: dict[str, Any]) -> None:
    """One rank: measure, train, write the results."""
    device = distributed.default_device()
    distributed.initialize(device)
    folder, shards, stage = Path(case["folder"]), Path(case["shards"]), case["stage"]
    config = settings(shards, stage, case["steps"], side=48)
    result: dict[str, float] = {}
    if case["memory"]:
        result["peak"] = peak_while(
            lambda: train(config, folder, device), device, folder.with_suffix(f".trace{distributed.rank()}")
        )
    else:
        result["rate"] = measured_rate(settings(shards, stage, 1, side=32), PLANS[0], device)
        result["bandwidth"] = bandwidth(device)
        train(config, folder, device)
        result["seconds"] = fastest_step(folder, WARM_UP)
    worst = {}
    for name, value in result.items():
        everywhere = torch.tensor(value, dtype=torch.float64, device=device)
        dist.all_reduce(everywhere, op=dist.ReduceOp.MIN if name in ("rate", "bandwidth") else dist.ReduceOp.MAX)
        worst[name] = float(everywhere)
    if distributed.rank() == 0:
        folder.with_suffix(".json").write_text(json.dumps(worst))


def fastest_step(run: Path, warm_up: int) -> float:
    """Seconds of a run's fastest logged batch, without waiting for data."""
    lines = read_json_lines(run / "metrics.jsonl")[warm_up:]
    return min(line["batch_seconds"] * (1 - line["data_share"]) for line in lines)


def bandwidth(device: torch.device) -> float:
    """Bytes per second that a rank sends in a ring all-reduce; 1 if there is one rank, which sends nothing."""
    ranks = distributed.world_size()
    gradients = torch.ones(20_000_000, device=device)
    seconds = []
    for _ in range(6):
        distributed.barrier()
        begin = time.perf_counter()
        distributed.mean_over_ranks(gradients).sum().item()
        seconds.append(time.perf_counter() - begin)
    return 2 * (ranks - 1) / ranks * gradients.nbytes / min(seconds[1:]) if ranks > 1 else 1.0


def peak_while(run: Any, device: torch.device, trace: Path) -> float:
    """The largest number of bytes that torch had allocated."""
    if device.type == "cuda":
        run()
        return float(torch.cuda.max_memory_allocated(device))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    profiler.export_chrome_trace(str(trace))
    events = json.loads(trace.read_text())["traceEvents"]
    return float(max(event["args"]["Total Allocated"] for event in events if event.get("name") == "[memory]"))


def launch(case: dict[str, Any], ranks: int) -> dict[str, float]:
    """The ranks of a case, as a launcher would start them."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    processes = []
    for rank in range(ranks):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in place.items()}}
        command = [sys.executable, __file__, "--case", json.dumps(case)]
        processes.append(subprocess.Popen(command, env=environment))
    states = [process.wait() for process in processes]
    if any(states):
        sys.exit(f"a rank failed: {case}")
    return dict(json.loads(Path(case["folder"]).with_suffix(".json").read_text()))


def main() -> None:
    """Run all cases, print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        run_rank(options.case)
        return
    print(machine(distributed.default_device()))
    print("| ZeRO | ranks | predicted s | measured s | error | predicted MiB | measured MiB | error |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        make_shards(work, frames=32, size=(96, 96), fps=8)
        for stage in options.stages:
            for ranks in options.ranks:
                print(row(work, stage, ranks, options.steps), flush=True)


def row(work: Path, stage: int, ranks: int, steps: int) -> str:
    """Both runs of a case."""
    case = {"shards": str(work / "shards"), "stage": stage, "steps": steps, "memory": False}
    time_run = launch({**case, "folder": str(work / f"time{stage}-{ranks}")}, ranks)
    memory_run = launch({**case, "folder": str(work / f"memory{stage}-{ranks}"), "memory": True, "steps": 3}, ranks)
    config = settings(work / "shards", stage, steps, side=48)
    sending = sent_bytes(config, stage, ranks) / time_run["bandwidth"]
    seconds = step_seconds(operations(config, PLANS[0]) / time_run["rate"], sending)
    peak = step_memory(config, PLANS[0], ranks=ranks).peak
    cells = [f"{seconds:.3f}", f"{time_run['seconds']:.3f}", f"{seconds / time_run['seconds'] - 1:+.0%}"]
    cells += [f"{peak / MIB:.0f}", f"{memory_run['peak'] / MIB:.0f}", f"{peak / memory_run['peak'] - 1:+.0%}"]
    return f"| {stage} | {ranks} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
