"""The comparison on CogVideoX's own training: train_video.py for both arms, and the report of `..convergence`.

    bash scripts/compare_convergence.sh --cogvideo CogVideo --stock STOCK.yaml sft.yaml --ssvae OVERLAY.yaml

Stages: one initial transformer a seed -> train_video.py for each arm and seed -> scores of each arm's checkpoints ->
report. The first three are processes of CogVideoX's code (see `engine.py`). Each works in a folder whose name carries a
fingerprint of what it depends on: what is finished is found again. An unfinished training starts anew, because SAT's
checkpoints hold no state of the optimiser, and a training that went on without it would be another one.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import torch
import yaml
from pydantic import Field, TypeAdapter
from safetensors.torch import load_file

from ..config import Config, fingerprint
from ..convergence.bookkeeping import Stopwatch, content, machine, write_text
from ..convergence.pictures import Pictures
from ..convergence.report import write_report
from ..convergence.results import ArmResult, ComparisonResults, CurvePoint
from ..convergence.scores import as_pictures, is_scored, read_curves, read_samples
from ..convergence.scoring import EvaluationConfig, compared
from ..errors import UserError
from ..progress import progress_bar
from .arms import BASELINE, Arm
from .engine import SCORED, InitialJob, ScoreJob
from .transformer import adapt

LOSS = re.compile(r"iteration\s+(\d+)/\s*\d+ \|.* total loss (\S+) \|")
"""A line of train_video.py's log: iteration, and the mean loss since the line before."""
ERROR = re.compile(r"(?:\[rank\d+\]: )?(?:error: |(?=(?:\w+\.)*\w*(?:Error|Exception|Interrupt)\b))(.*)")
"""The line of a failed process that says what went wrong."""
ALONE = MappingProxyType({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"})
"""Environment of a process that is not started by torchrun."""
EQUAL_STARTS = (
    "equal in both arms for every tensor of equal shape; first and last layer, and the table of positions if its size "
    "differs, are drawn anew in each arm from the same seed"
)
NOISE = (
    "the order of clips follows from the seed and is equal; noise and its levels have the same seed but other shapes"
)


class CogVideoComparison(Config):
    """How much is trained and scored; everything else is in CogVideoX's files."""

    seeds: tuple[Annotated[int, Field(gt=0)], ...] = Field(default=(1,), min_length=1)
    """Seeds of train_video.py; SAT takes none below 1."""
    evaluations: int = Field(default=8, ge=2)
    """Checkpoints that are saved and scored, evenly spaced over args.train_iters; each holds the whole model."""
    max_heldout: int = Field(default=64, ge=8)
    """Held-out clips at most. They are in memory together."""
    max_train: int = Field(default=256, ge=2)
    """Training clips, at most, whose latents give the spectra and the loss's floor."""
    scoring: EvaluationConfig = EvaluationConfig(samples=32, denoising_clips=16, batch_size=1)
    """How much of each checkpoint is scored. Sampler, its steps and guidance are CogVideoX's."""


@dataclass(frozen=True)
class Launch:
    """How CogVideoX's scripts are started, in the folder where they lie, which is the working directory."""

    python: tuple[str, ...]
    """The interpreter, and what comes before a script's name."""
    processes: int = 1
    """GPUs to train on, in this machine."""

    def train(self, arguments: Sequence[str], log: Path, description: str, iterations: int) -> None:
        """train_video.py, with a bar.

        Raises:
            UserError: it failed; what it said last, and where its log lies.
        """
        command = ["train_video.py", *arguments]
        if self.processes > 1:
            command = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={self.processes}", *command]

        def show(line: str) -> None:
            if found := LOSS.search(line):
                bar.set_postfix(loss=found[2])
                bar.update(int(found[1]) - bar.n)

        with progress_bar(iterations, f"training {description}", "step") as bar:
            self._run(command, log, show, {} if self.processes > 1 else ALONE)

    def engine(self, job: InitialJob | ScoreJob, folder: Path) -> None:
        """A job of `engine.py` in one process; job and log lie in `folder`.

        Raises:
            UserError: it failed.
        """
        path = folder / f"{job.task}.json"
        write_text(path, job.model_dump_json(indent=1))

        def show(line: str) -> None:
            if SCORED in line:
                bar.update()

        total = len(job.runs) * len(job.steps) if isinstance(job, ScoreJob) else None
        description = f"scoring {job.arm}" if isinstance(job, ScoreJob) else "drawing weights"
        with progress_bar(total, description, "checkpoint") as bar:
            self._run(["-m", f"{__package__}.engine", str(path)], path.with_suffix(".log"), show, ALONE)

    def _run(
        self, command: Sequence[str], log: Path, show: Callable[[str], None], variables: Mapping[str, str]
    ) -> None:
        root = str(Path(__file__).parents[__name__.count(".")])  # where this package is imported from
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        problem = "it said nothing"
        log.parent.mkdir(parents=True, exist_ok=True)
        with (
            log.open("w", encoding="utf-8") as file,
            subprocess.Popen(
                [*self.python, *command],
                env={**os.environ, **variables, "PYTHONPATH": path},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            ) as process,
        ):
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    file.write(line)
                    file.flush()
                    show(line)
                    if found := ERROR.match(line):
                        problem = found[1]
            except BaseException:
                process.terminate()
                raise
        if process.returncode:
            raise UserError(f"{log.stem} failed, see {log}: {problem.removeprefix('sat_ssvae.errors.UserError: ')}")


def compare(
    config: CogVideoComparison,
    arms: tuple[Arm, Arm],
    heldout: Sequence[Path],
    output: Path,
    launch: Launch,
    command: str,
) -> ComparisonResults:
    """Run or continue the comparison in `output` and write its report to `output/report`.

    The working directory is CogVideoX's sat folder, from which its files count relative paths.

    Args:
        config: how much is trained and scored.
        arms: see `read_arms`.
        heldout: folders of held-out videos; none for those of args.valid_data.
        output: an absolute path.
        launch: how CogVideoX is started.
        command: what the user typed, for the report.

    Raises:
        UserError: CogVideoX's code failed; the log is named.
    """
    return _Comparison(config, arms, tuple(heldout), output, launch, command).run()


class _Comparison:
    def __init__(
        self,
        config: CogVideoComparison,
        arms: tuple[Arm, Arm],
        heldout: tuple[Path, ...],
        output: Path,
        launch: Launch,
        command: str,
    ) -> None:
        self.config, self.arms, self.output, self.launch, self.command = config, arms, output, launch, command
        self.baseline, self.candidate = arms
        known = set(self.baseline.data("train_data"))
        self.heldout = heldout or tuple(path for path in self.baseline.data("valid_data") if path not in known)
        self.iterations: int = self.baseline.settings.get("args.train_iters")
        self.interval = max(self.iterations // config.evaluations, 1)
        self.steps = tuple(range(self.interval, self.iterations + 1, self.interval))
        self.minutes = Stopwatch(output / "minutes.json")

    def run(self) -> ComparisonResults:
        starts = {seed: self._initial(seed) for seed in self.config.seeds}
        runs = {arm.name: {seed: self._train(arm, seed, starts[seed]) for seed in starts} for arm in self.arms}
        scores = {arm.name: self._score(arm, runs[arm.name]) for arm in self.arms}
        return self._report(runs, scores)

    # --- stages -------------------------------------------------------------------------------------------------------

    def _initial(self, seed: int) -> Path:
        """The transformer from which both arms start: what of the stock one fits both, of `args.load` or drawn."""
        load = self.baseline.settings.get("args.load")
        sizes = self.candidate.settings.transformer()
        network = self.baseline.values["model"]["network_config"]
        source = content(Path(load)) if load else seed
        folder = self.output / "initial" / f"seed{seed}-{fingerprint(network, str(sizes), source)}"
        finished = folder / "transformer"
        if finished.exists():
            return finished
        shutil.rmtree(folder, ignore_errors=True)
        with self.minutes("initial transformers"):
            if not load:
                files = (*self.baseline.files, self._inference(self.baseline, folder))
                self.launch.engine(InitialJob(files=files, seed=seed, output=folder / "drawn"), folder)
            adapt(Path(load) if load else folder / "drawn", folder / "partial", sizes)
        (folder / "partial").rename(finished)
        shutil.rmtree(folder / "drawn", ignore_errors=True)
        return finished

    def _train(self, arm: Arm, seed: int, start: Path) -> Path:
        """The folder with the checkpoints of a finished training."""
        identity = fingerprint(
            arm.values, start.parent.name, self.interval, self._first_stage(arm), self.launch.processes
        )
        folder = self.output / "training" / f"{arm.name}-seed{seed}-{identity}"
        for finished in folder.glob("run/*"):
            if (finished / "latest").exists() and (finished / "latest").read_text().strip() == str(self.iterations):
                return finished
        shutil.rmtree(folder, ignore_errors=True)
        settings = {
            "load": str(start),
            "no_load_rng": True,
            "no_save_rng": True,
            "force_train": True,  # SAT refuses missing tensors otherwise
            "save": str(folder / "run"),
            "save_interval": self.interval,
            "experiment_name": arm.name,
        }
        write_text(folder / "training.yaml", yaml.safe_dump({"args": settings}))
        arguments = ["--base", *map(str, arm.files), str(folder / "training.yaml"), "--seed", str(seed)]
        with self.minutes(f"training {arm.name}"):
            self.launch.train(arguments, folder / "train.log", f"{arm.name}, seed {seed}", self.iterations)
        (finished,) = (folder / "run").iterdir()
        return finished

    def _score(self, arm: Arm, runs: dict[int, Path]) -> Path:
        """The folder with what `engine.score_arm` wrote."""
        data = [content(path) for path in self.heldout]
        how = self.config.model_dump(mode="json", exclude={"seeds"})
        folder = self.output / "scores" / f"{arm.name}-{fingerprint(how, arm.values, self._first_stage(arm), data)}"
        named = {_name(run): run for run in runs.values()}
        if (folder / "arm.json").exists() and all(is_scored(folder / name, self.steps) for name in named):
            return folder
        job = ScoreJob(
            arm=arm.name,
            files=(*arm.files, self._inference(arm, folder)),
            train=arm.data("train_data"),
            heldout=self.heldout,
            max_train=self.config.max_train,
            max_heldout=self.config.max_heldout,
            runs=named,
            steps=self.steps,
            scoring=self.config.scoring,
            output=folder,
        )
        with self.minutes(f"scoring {arm.name}"):
            self.launch.engine(job, folder)
        return folder

    def _inference(self, arm: Arm, folder: Path) -> Path:
        """The last configuration file of a process that does not train: what sample_video.py sets, too."""
        args = {"mode": "inference", "load": None, "force_inference": True}
        for precision in ("bf16", "fp16"):  # in training DeepSpeed's section decides
            args[precision] = bool(arm.settings.get(f"deepspeed.{precision}.enabled"))
        network = {"params": {"transformer_args": {"checkpoint_activations": False}}}
        path = folder / "inference.yaml"
        write_text(path, yaml.safe_dump({"args": args, "model": {"network_config": network}}))
        return path

    def _first_stage(self, arm: Arm) -> list[Any]:
        """Changes when the autoencoder's weights do."""
        path = Path(str(arm.settings.get("model.first_stage_config.params.ckpt_path")))
        return content(path) if path.exists() else []

    # --- results ------------------------------------------------------------------------------------------------------

    def _report(self, runs: dict[str, dict[int, Path]], scores: dict[str, Path]) -> ComparisonResults:
        quality = {name: load_file(folder / "quality.safetensors") for name, folder in scores.items()}
        results = ComparisonResults(
            arms=tuple(
                compared(_read_arm(folder), quality[name], quality[BASELINE]) for name, folder in scores.items()
            ),
            curves=tuple(point for arm in self.arms for point in self._curves(arm.name, runs, scores)),
            seeds=self.config.seeds,
            budget={"training steps": self.iterations, "minutes": {**self.minutes.rounded()}},
            machine=machine(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
            packages={name: metadata.version(name) for name in ("torch", "deepspeed", "SwissArmyTransformer", "numpy")},
            configuration={
                "comparison": self.config.model_dump(mode="json"),
                **{arm.name: arm.values for arm in self.arms},
            },
            measurement={
                "training": f"CogVideoX's train_video.py in {self.launch.processes} process(es)",
                "initial weights": EQUAL_STARTS + self._origin(),
                "draws": NOISE,
                "held-out videos": [str(path) for path in self.heldout],
                "held-out clips": len(next(iter(quality[BASELINE].values()))),
                "latents": "as the transformer sees them, scaled or standardised by the arm's first stage",
                "sampler": "that of the configuration, with its steps and guidance; the weights sample_video.py loads",
                "scoring": self.config.scoring.model_dump(mode="json"),
            },
            command=self.command,
        )
        write_report(results, self.output / "report", self._pictures(runs, scores))
        return results

    def _origin(self) -> str:
        load = self.baseline.settings.get("args.load")
        return f"; the others are those of {load}, which learned the baseline's latents" if load else ""

    def _curves(self, arm: str, runs: dict[str, dict[int, Path]], scores: dict[str, Path]) -> list[CurvePoint]:
        points = []
        for seed, run in runs[arm].items():
            points += read_curves(scores[arm] / _name(run), arm, seed, self.steps)
            log = (run.parents[1] / "train.log").read_text(encoding="utf-8")
            losses = {int(step): float(loss) for step, loss in LOSS.findall(log)}
            points += [CurvePoint(arm, seed, "training_loss", step, loss) for step, loss in losses.items()]
        return points

    def _pictures(self, runs: dict[str, dict[int, Path]], scores: dict[str, Path]) -> Pictures:
        clips = {name: load_file(folder / "clips.safetensors") for name, folder in scores.items()}
        first = {name: scores[name] / _name(runs[name][self.config.seeds[0]]) for name in scores}
        return Pictures(
            float(self.baseline.settings.get("data.params.fps") or 8),
            as_pictures(clips[BASELINE]["originals"]),
            {name: as_pictures(shown["reconstructions"]) for name, shown in clips.items()},
            {name: read_samples(folder, self.steps) for name, folder in first.items()},
        )


def _read_arm(folder: Path) -> ArmResult:
    return TypeAdapter(ArmResult).validate_json((folder / "arm.json").read_bytes())


def _name(run: Path) -> str:
    """Of a training: its folder's, in which `run` holds the checkpoints."""
    return run.parents[1].name
