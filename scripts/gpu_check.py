"""Checks that need a GPU, see scripts/gpu_check.sh. Each part is a separate process with its own time limit."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from _bench import PublishedNetwork, machine, make_shards, time_in_turn
from check_scaling import fastest_step, peak_while
from estimate_scaling import training

from sat_ssvae import SSVAE, SSVAEConfig, UserError, distributed
from sat_ssvae.distributed import default_device
from sat_ssvae.engine.precision import resolved
from sat_ssvae.metrics.perceptual import build_perceptual
from sat_ssvae.training.memory import GIB, RESERVE, choose_plan, device_memory
from sat_ssvae.training.settings import TrainConfig
from sat_ssvae.training.trainer import train

ROOT = Path(__file__).resolve().parent.parent
TOTAL_SECONDS = 470
TINY_SECONDS = 900
"""For a part of `--tiny`, on a busy CPU."""
ARTICLE_SECONDS = 0.5
"""The article's time for a frame of 512 px, encoded and decoded."""
NARROW = SSVAEConfig(base_channels=2, channel_multipliers=(1, 1, 1, 1, 1), num_res_blocks=1, num_mid_blocks=1)
STEPS = 4
ARTICLE = ("article_256p", "article_512p", "article_1080p")

Row = dict[str, Any]
"""What was measured: `ok`, and figures with their names."""


# --- parts: each takes the options and yields rows --------------------------------------------------------------------


def tests(options: argparse.Namespace, file: str) -> Iterator[Row]:
    """The tests of a file, on the device."""
    note, chosen = "", []
    if options.tiny:
        chosen = ["-k", "autoencoder or correlation or kl or encoder"]
    elif not _has_weights("st-lpips-alex"):
        note = "no perceptual weights: without the tests that need some"
        chosen = ["-k", "not objective_and_its and not networks_that_score and not evaluation_while"]
    # Warnings of other versions of PyTorch than the pinned one do not count as failures.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "filterwarnings=default"]
    environment = {**os.environ, "SAT_SSVAE_TEST_DEVICE": options.device.type}
    done = subprocess.run(
        [*command, f"tests/{file}.py", *chosen], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    lines = done.stdout.strip().splitlines() or [done.stderr.strip()[-300:]]
    failed = [line.partition(" - ")[0] for line in lines if line.startswith(("FAILED", "ERROR"))]
    yield {"part": file, "ok": done.returncode == 0, "result": lines[-1], "failed": failed, "note": note}


def training_step(options: argparse.Namespace, name: str, memory: str = "auto") -> Iterator[Row]:
    """A few steps of a packaged configuration by the trainer: peak memory against the estimate, steps a second."""
    config, note = _training_config(options, name, memory)
    choice = choose_plan(config, device_memory(options.device) - RESERVE)
    estimate = choice.memory.peak
    with tempfile.TemporaryDirectory() as folder:
        config = _with_shards(config, Path(folder))
        run, trace = Path(folder) / "run", Path(folder) / "trace"
        peak = peak_while(lambda: train(config, run, options.device), options.device, trace)
        seconds = fastest_step(run, 1)
    yield {
        "part": f"train {name}",
        # A CPU runs the tiny sizes, for which libraries' own memory counts more than the step's.
        "ok": options.device.type == "cpu" or peak <= estimate + RESERVE,
        "memory": memory,
        "plan": choice.plan.name,
        "peak_gib": peak / GIB,
        "estimate_gib": estimate / GIB,
        "peak_over_estimate": peak / estimate,
        "steps_per_s": 1 / seconds,
        "note": note,
    }


def waits(options: argparse.Namespace) -> Iterator[Row]:
    """How often a training step waits for the GPU, by PyTorch's own warnings: once, for the vote of the ranks."""
    if options.device.type != "cuda":
        note = "no GPU to wait for: the run alone"
    else:
        torch.cuda.set_sync_debug_mode("warn")
        note = "torch.cuda.set_sync_debug_mode; steps that are neither first nor logged"
    counts, places = [], set()
    for steps in (STEPS, 2 * STEPS):
        narrow = ["reconstruction.perceptual_weight=0", "precision=auto", *_narrow_settings()]
        config = training("article_256p", *narrow, f"max_steps={steps}", "log_every=1000000", "resume_from=null")
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train(_with_shards(config, Path(folder)), Path(folder) / "run", options.device)
        found = [warning for warning in caught if "synchronizing" in str(warning.message)]
        counts.append(len(found))
        places |= {f"{Path(warning.filename).name}:{warning.lineno}" for warning in found}
    each = (counts[1] - counts[0]) / STEPS
    row = {"part": "waits for the GPU", "ok": each <= 1, "waits_per_step": each, "places": sorted(places)}
    yield {**row, "note": note}


def one_rank(options: argparse.Namespace) -> Iterator[Row]:
    """The process group of one rank, on NCCL where there is a GPU."""
    distributed.initialize(options.device)
    values = torch.arange(1000.0, device=options.device)
    same = torch.equal(distributed.mean_over_ranks(values.clone()), values)
    torch.distributed.all_reduce(summed := values.clone())
    distributed.barrier()
    voted = distributed.any_rank(True, options.device) and not distributed.any_rank(False, options.device)
    backend = torch.distributed.get_backend()
    wanted = "nccl" if options.device.type == "cuda" else "gloo"
    ok = same and torch.equal(summed, values) and voted and backend == wanted
    yield {"part": "one rank", "ok": ok, "backend": backend}
    distributed.leave()


def compiled(options: argparse.Namespace) -> Iterator[Row]:
    """`torch.compile` of encoder and decoder: the same outputs in float32, and its speed in bf16."""
    backend = "inductor" if options.device.type == "cuda" else "aot_eager"
    vae, video = _new_vae(options), _video(options, 5 if options.tiny else 17, 32 if options.tiny else 256)
    with torch.no_grad():
        encode, decode = (torch.compile(part, backend=backend) for part in (vae.encoder, vae.decoder))
        latents = vae.encode(video).mean
        pairs = ((vae.encoder(video), encode(video)), (vae.decoder(latents), decode(latents)))
        error = max(((ours - theirs).abs().max() / ours.std()).item() for ours, theirs in pairs)
        dtype = _dtype(options)
        vae, video, latents = vae.to(dtype), video.to(dtype), latents.to(dtype)
        ways: dict[str, Callable[[], object]] = {
            "plain": lambda: (vae.encoder(video), vae.decoder(latents)),
            "compiled": lambda: (encode(video), decode(latents)),
        }
        times = {name: statistics.median(found) for name, found in time_in_turn(ways, 3, options.device).items()}
    row = {"part": "torch.compile", "ok": error < 1e-3, "backend": backend, "error_in_std": error}
    yield {**row, "times_faster": times["plain"] / times["compiled"]}


def speed(options: argparse.Namespace, size: int) -> Iterator[Row]:
    """Frames a second of encoding and decoding in bf16, beside other autoencoders on frames of the same size."""
    height, width = (1072, 1920) if size == 1080 else (size, size)
    frames = 9 if size == 1080 else 17
    if options.tiny:
        height, width, frames = 32, 32 + size // 64 * 16, 5
    video = _video(options, frames, height, width).to(_dtype(options))
    for name, build in _autoencoders(options).items():
        row: Row = {"part": f"speed {size}", "model": name, "frames": frames, "height": height, "width": width}
        try:
            with torch.no_grad():
                run = build()
                run(video)
                (times,) = time_in_turn({name: lambda run=run: run(video)}, 3, options.device).values()
            seconds = statistics.median(times) / frames
            row |= {"ok": True, "frames_per_s": 1 / seconds, "seconds_per_frame": seconds}
        except Exception as error:  # the others still run
            row |= {"ok": False, "error": _line(error)}
        yield row
        if name == "this project" and size == 512 and row["ok"]:
            ok = options.tiny or row["seconds_per_frame"] <= ARTICLE_SECONDS
            yield {"part": "the article's 0.5 s a frame at 512 px", "ok": ok, "seconds_per_frame": seconds}
        if options.device.type == "cuda":
            torch.cuda.empty_cache()


PARTS: dict[str, tuple[Callable[..., Iterator[Row]], tuple[Any, ...], int]] = {
    "reference": (tests, ("test_reference",), 60),
    "device": (tests, ("test_device",), 90),
    "one rank": (one_rank, (), 30),
    "waits": (waits, (), 40),
    **{f"train {name}": (training_step, (name,), 60) for name in (*ARTICLE, "published_256p", "published_512p")},
    "speed 256": (speed, (256,), 40),
    "speed 512": (speed, (512,), 50),
    "speed 1080": (speed, (1080,), 60),
    "torch.compile": (compiled, (), 90),
    **{f"train {name} small": (training_step, (name, "small"), 60) for name in ARTICLE},
}
"""Function, arguments and seconds, the most important ones first."""


# --- what the parts share ---------------------------------------------------------------------------------------------


def _has_weights(name: Any) -> bool:
    try:
        build_perceptual(name)
    except UserError:
        return False
    return True


def _narrow_settings() -> list[str]:
    """The published layout, narrow, on small clips."""
    model = ["model.base_channels=2", "model.num_res_blocks=1", "model.num_mid_blocks=1"]
    return [*model, "data.buckets=[]", "data.num_frames=5", "resolution=48", "data.num_workers=0", "batch_size=2"]


def _training_config(options: argparse.Namespace, name: str, memory: str) -> tuple[TrainConfig, str]:
    """A packaged configuration for a few steps, discriminators included, and what differs from it."""
    changes = [f"memory={memory}", f"max_steps={STEPS}", "log_every=1", "checkpoint_every=1000000", "resume_from=null"]
    notes = ["random weights"]
    if name.startswith("published"):
        changes.append("adversarial.start_step=1")
        notes.append("videos alone, st-lpips-vgg, discriminators from the first step")
    if options.tiny:
        changes += [*_narrow_settings(), "adversarial.num_layers=2", "adversarial.base_channels=8"]
        if not name.startswith("published"):  # those are in float32
            changes.append("precision=auto")
    if options.tiny or not _has_weights("st-lpips-vgg"):
        changes.append("reconstruction.perceptual_weight=0")
        notes.append("no perceptual term")
    return training(name, *changes), ", ".join(notes)


def _with_shards(config: TrainConfig, folder: Path) -> TrainConfig:
    """The configuration, with clips of its size made in `folder`."""
    data = config.data
    size = max(size for stream in data.streams() for size in stream.config.sizes)
    shards = make_shards(folder, 2 * data.num_frames, size, data.fps)
    return config.model_copy(update={"data": data.model_copy(update={"path": str(shards)})})


def _new_vae(options: argparse.Namespace) -> SSVAE:
    torch.manual_seed(0)
    return SSVAE(NARROW if options.tiny else SSVAEConfig()).to(options.device).eval()


def _dtype(options: argparse.Namespace) -> torch.dtype:
    """bfloat16; at tiny sizes, what the device has instructions for."""
    return getattr(torch, resolved("auto" if options.tiny else "bfloat16", options.device))


def _video(options: argparse.Namespace, frames: int, height: int, width: int | None = None) -> torch.Tensor:
    return torch.rand(1, 3, frames, height, width or height, device=options.device) * 2 - 1


def _autoencoders(options: argparse.Namespace) -> dict[str, Callable[[], Callable[[torch.Tensor], object]]]:
    """What builds a function from a video to its reconstruction, by name; random weights in bf16."""

    def ours() -> Callable[[torch.Tensor], object]:
        vae = _new_vae(options).to(_dtype(options)).for_inference()
        return lambda video: vae.decode(vae.encode(video, chunk_frames=4).mean, chunk_frames=1)

    def published() -> Callable[[torch.Tensor], object]:
        vae = _new_vae(options)
        return PublishedNetwork(options.published, vae).to(options.device, _dtype(options)).eval()

    def foreign(name: str, settings: dict[str, Any]) -> Callable[[torch.Tensor], object]:
        import diffusers

        vae = getattr(diffusers, name)(**settings).to(options.device, _dtype(options)).eval()
        return lambda video: vae.decode(vae.encode(video).latent_dist.mode()).sample

    built: dict[str, Callable[[], Callable[[torch.Tensor], object]]] = {"this project": ours}
    if options.published:
        built["published code"] = published
    wan22, cogvideox = WAN22, dict[str, Any]()  # diffusers' defaults are CogVideoX's sizes
    if options.tiny:
        wan22 = wan22 | {"base_dim": 8, "decoder_base_dim": 8, "num_res_blocks": 1}
        cogvideox = {"block_out_channels": (8,) * 4, "layers_per_block": 1, "norm_num_groups": 2}
    built["Wan 2.2 (diffusers)"] = lambda: foreign("AutoencoderKLWan", wan22)
    built["CogVideoX (diffusers)"] = lambda: foreign("AutoencoderKLCogVideoX", cogvideox)
    return built


WAN22 = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "temperal_downsample": [False, True, True],
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "latents_mean": [0.0] * 48,
    "latents_std": [1.0] * 48,
}


# --- the launcher -----------------------------------------------------------------------------------------------------


def _line(error: object) -> str:
    """The last line of a message, for a cell."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0 if isinstance(error, BaseException) else -1][:200]


def run_part(options: argparse.Namespace) -> None:
    """Run one part in this process and write its rows as they come."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    function, arguments, _ = PARTS[options.part]
    with options.rows.open("a") as file:
        for row in function(options, *arguments):
            file.write(json.dumps(row) + "\n")
            file.flush()


def launch(name: str, limit: float, arguments: list[str], folder: Path) -> list[Row]:
    """The rows of a part, which runs in a process of its own; one more if it fails or takes too long."""
    rows, log, begin = folder / "rows", folder / "log", time.perf_counter()
    rows.write_text("")
    command = [sys.executable, __file__, *arguments, "--part", name, "--rows", str(rows)]
    error = ""
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            if process.wait(timeout=limit):
                error = _line(log.read_text())
        except subprocess.TimeoutExpired:
            error = f"stopped after {limit:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, 9)  # with the processes that decode for it
                process.wait()
    found: list[Row] = [json.loads(line) for line in rows.read_text().splitlines()]
    if error or not found:
        found.append({"part": name, "ok": False, "error": error or "no result"})
    return [{**row, "wall_s": time.perf_counter() - begin} for row in found]


def table(rows: list[Row]) -> str:
    """Rows as a Markdown table: part, whether it passed, and its figures."""
    lines = ["| part | passed | figures |", "|---|---|---|"]
    for row in rows:
        figures = [
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in row.items()
            if name not in ("part", "ok", "wall_s") and value not in ("", [])
        ]
        lines.append(f"| {row['part']} | {'yes' if row['ok'] else 'NO'} | {'; '.join(figures).replace('|', '/')} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run all parts or those that were asked for; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="the same parts at tiny sizes, also on a CPU")
    parser.add_argument("--published", type=Path, metavar="CHECKOUT", help="also time a checkout of the published code")
    parser.add_argument("--output", type=Path, default=Path("gpu_check"), metavar="FOLDER", help="(default: gpu_check)")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help="some of: " + ", ".join(PARTS))
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.device = default_device()
    if options.part:
        run_part(options)
        return 0
    if options.device.type == "cpu" and not options.tiny:
        parser.error("there is no GPU here; --tiny runs on a CPU")
    passed_on = [*(["--tiny"] if options.tiny else [])]
    passed_on += ["--published", str(options.published)] if options.published else []
    options.output.mkdir(parents=True, exist_ok=True)
    begin, rows = time.perf_counter(), []
    every = list(PARTS)[:-2] if options.tiny else PARTS  # sizes do not matter to the last ones then
    for name in options.only or every:
        left = TOTAL_SECONDS - (time.perf_counter() - begin)
        with tempfile.TemporaryDirectory() as folder:
            limit = TINY_SECONDS if options.tiny else max(min(PARTS[name][2], left), 1)
            found = launch(name, limit, passed_on, Path(folder))
        rows += found
        document = {"machine": machine(options.device), "tiny": options.tiny, "rows": rows}
        (options.output / "gpu_check.json").write_text(json.dumps(document, indent=1) + "\n")
        (options.output / "gpu_check.md").write_text(f"{document['machine']}\n\n{table(rows)}")
        print(f"{name}: {'passed' if all(row['ok'] for row in found) else 'FAILED'}", flush=True)
    print(table(rows))
    return int(not all(row["ok"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
