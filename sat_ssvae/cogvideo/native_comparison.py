"""The comparison on CogVideoX's own training: train_video.py for both arms, and the report of `..comparison`.

    bash scripts/compare_convergence.sh --cogvideo CogVideo --stock STOCK.yaml sft.yaml --ssvae OVERLAY.yaml

Stages: measure each arm's autoencoder -> one initial transformer per seed -> train_video.py for each arm and seed ->
score each arm's checkpoints -> report. Measuring needs no checkpoint and comes first, so missing videos or packages
cost no training. All stages but the report run as processes of CogVideoX's code, see `worker.py` and `launch.py`. Each
works in a folder whose name contains a fingerprint of its inputs, so finished work is reused. An unfinished training
starts again, because SAT's checkpoints do not hold the optimiser's state.
"""

import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor

from ..comparison.bookkeeping import Stopwatch, content
from ..comparison.plan import Plan, Stage
from ..comparison.provenance import Provenance, few_warnings
from ..comparison.reference import EvaluationConfig, compared
from ..comparison.report.page import write_report
from ..comparison.report.pictures import Pictures, as_pictures
from ..comparison.results import ComparisonResults, CurvePoint
from ..comparison.score_files import curve_points, is_scored, read_samples, read_scores
from ..comparison.verdict import Verdict, judge
from ..config import Config, fingerprint
from ..errors import UserError
from ..spacing import evenly_spaced
from ..storage import write_text
from .launch import LOSS, Launch, exclusive
from .native_arms import BASELINE, NativeArm
from .sat_transformer import adapt
from .worker import ArmJob, InitialJob, is_measured, read_arm, read_environment

EQUAL_STARTS = (
    "equal in both arms for every tensor of equal shape; the first and last layer, and the position table if its size "
    "differs, are drawn in each arm from the same seed"
)
NOISE = "the order of clips is the same in both arms; noise and noise levels have the same seed but other shapes"


class CogVideoComparison(Config):
    """How much is trained and scored; everything else is set in CogVideoX's files."""

    seeds: tuple[Annotated[int, Field(gt=0)], ...] = Field(default=(1,), min_length=1)
    """Seeds of train_video.py, from 1."""
    evaluations: int = Field(default=8, ge=2)
    """At most this many checkpoints of the whole model are saved and scored, evenly spaced, the last step included."""
    max_heldout: int = Field(default=64, ge=8)
    """At most this many held-out clips are used. They are in memory together."""
    max_train: int = Field(default=256, ge=2)
    """At most this many training clips are encoded for the spectra and the loss's floor."""
    scoring: EvaluationConfig = EvaluationConfig(samples=32, denoising_clips=16, batch_size=1)
    """How each checkpoint is scored. The sampler, its steps and guidance are CogVideoX's."""


def compare(
    config: CogVideoComparison,
    arms: tuple[NativeArm, NativeArm],
    heldout: Sequence[Path],
    output: Path,
    launch: Launch,
    command: str,
) -> tuple[ComparisonResults, list[Verdict]]:
    """Run or continue the comparison in `output` and write its report to `output/report`.

    The working directory is CogVideoX's sat folder; relative paths in its files count from there.

    `output` is an absolute path. Without `heldout` folders, those of args.valid_data count.

    Raises:
        UserError: a folder of videos is missing, another comparison uses `output`, or CogVideoX's code failed (the
            message names its log).
    """
    with exclusive(output) as lock:
        return _Comparison(config, arms, tuple(heldout), output, replace(launch, lock=lock), command).run()


class _Comparison:
    def __init__(
        self,
        config: CogVideoComparison,
        arms: tuple[NativeArm, NativeArm],
        heldout: tuple[Path, ...],
        output: Path,
        launch: Launch,
        command: str,
    ) -> None:
        self.config, self.arms, self.output, self.launch, self.command = config, arms, output, launch, command
        self.baseline, self.candidate = arms
        self.train = self.baseline.data("train_data")
        self.heldout = heldout or tuple(path for path in self.baseline.data("valid_data") if path not in self.train)
        for folder in (*self.train, *self.heldout):
            if not folder.exists():
                raise UserError(f"{folder}: no such folder of videos (in {Path.cwd()})")
        self.train_content, self.heldout_content = (list(map(content, data)) for data in (self.train, self.heldout))
        self.iterations: int = self.baseline.settings.get("args.train_iters")
        self.interval = math.ceil(self.iterations / config.evaluations)
        # SAT always saves the last step.
        self.steps = (*range(self.interval, self.iterations, self.interval), self.iterations)
        self.minutes = Stopwatch(output / "minutes.json")

    def _stages(self) -> list[Stage]:
        """All stages; a scoring is one unit for each seed, a training one for each step."""
        names, seeds = [arm.name for arm in self.arms], self.config.seeds
        return [
            *[Stage("measuring", f"measuring {arm.name}", done=is_measured(self._scores(arm))) for arm in self.arms],
            *[Stage("initial transformer", f"initial transformer, seed {seed}") for seed in seeds],
            *[Stage("training", f"training {name}, seed {seed}", self.iterations) for name in names for seed in seeds],
            *[Stage("scoring", f"scoring {name}", len(seeds)) for name in names],
            Stage("report", "report"),
        ]

    def run(self) -> tuple[ComparisonResults, list[Verdict]]:
        self.plan = Plan(self.output / "stages.json", self._stages())
        measured = {arm.name: self._measure(arm) for arm in self.arms}
        starts = {seed: self._initial(seed) for seed in self.config.seeds}
        runs = {arm.name: {seed: self._train(arm, seed, starts[seed]) for seed in starts} for arm in self.arms}
        for arm in self.arms:
            self._score(arm, runs[arm.name], measured[arm.name])
        return self._report(runs, measured)

    # --- stages -------------------------------------------------------------------------------------------------------

    def _measure(self, arm: NativeArm) -> Path:
        """The folder that `worker.measure_autoencoder` wrote, to which the scores are added."""
        folder = self._scores(arm)
        if not is_measured(folder):
            name = f"measuring {arm.name}"
            with self.plan.stage(name, folder / "arm.json"), self.minutes(name):
                self.launch.work(self._job("measure", arm, folder), folder)
        return folder

    def _scores(self, arm: NativeArm) -> Path:
        how = self.config.model_dump(mode="json", exclude={"seeds"})
        data = self.train_content, self.heldout_content
        return self.output / "scores" / f"{arm.name}-{fingerprint(how, arm.values, self._first_stage(arm), data)}"

    def _initial(self, seed: int) -> Path:
        """The tensors from which both arms start: of `args.load`, or drawn, those whose shapes fit both arms."""
        load = self.baseline.settings.get("args.load")
        sizes = self.candidate.settings.transformer()
        network = self.baseline.values["model"]["network_config"]
        name, source = ("loaded", content(Path(load))) if load else (f"seed{seed}", seed)
        folder = self.output / "initial" / f"{name}-{fingerprint(network, str(sizes), source)}"
        finished = folder / "transformer"
        if finished.exists():
            self.plan.done(f"initial transformer, seed {seed}")
            return finished
        shutil.rmtree(folder, ignore_errors=True)
        with self.plan.stage(f"initial transformer, seed {seed}", finished), self.minutes("initial transformers"):
            if not load:
                files = (*self.baseline.files, self._inference(self.baseline, folder))
                self.launch.work(InitialJob(files=files, seed=seed, output=folder / "drawn"), folder)
            adapt(Path(load) if load else folder / "drawn", folder / "partial", sizes)
        (folder / "partial").rename(finished)
        shutil.rmtree(folder / "drawn", ignore_errors=True)
        return finished

    def _train(self, arm: NativeArm, seed: int, start: Path) -> Path:
        """The folder with the checkpoints of a finished training."""
        data = self.train_content
        identity = fingerprint(
            arm.values, start.parent.name, self.interval, self._first_stage(arm), self.launch.processes, data
        )
        folder = self.output / "training" / f"{arm.name}-seed{seed}-{identity}"
        for finished in folder.glob("run/*"):
            if (finished / "latest").exists() and (finished / "latest").read_text().strip() == str(self.iterations):
                self.plan.done(f"training {arm.name}, seed {seed}")
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
        with self.plan.stage(f"training {arm.name}, seed {seed}"), self.minutes(f"training {arm.name}"):
            self.launch.train(arguments, folder / "train.log", f"{arm.name}, seed {seed}", self.iterations)
        (finished,) = (folder / "run").iterdir()
        return finished

    def _score(self, arm: NativeArm, runs: dict[int, Path], folder: Path) -> None:
        """Have `worker.score_checkpoints` write the scores that are missing in `folder`."""
        named = {_name(run): run for run in runs.values()}
        if not all(is_scored(folder / name, self.steps) for name in named):
            name = f"scoring {arm.name}"
            with self.plan.stage(name), self.minutes(name):
                self.launch.work(self._job("score", arm, folder, runs=named, steps=self.steps), folder)

    def _job(self, task: Literal["measure", "score"], arm: NativeArm, folder: Path, **more: Any) -> ArmJob:
        return ArmJob(
            task=task,
            arm=arm.name,
            files=(*arm.files, self._inference(arm, folder)),
            train=self.train,
            heldout=self.heldout,
            max_train=self.config.max_train,
            max_heldout=self.config.max_heldout,
            scoring=self.config.scoring,
            output=folder,
            **more,
        )

    def _inference(self, arm: NativeArm, folder: Path) -> Path:
        """The last configuration file of a process that does not train, with what sample_video.py sets."""
        args = {"mode": "inference", "load": None, "force_inference": True}
        for precision in ("bf16", "fp16"):  # in training the deepspeed section decides
            args[precision] = bool(arm.settings.get(f"deepspeed.{precision}.enabled"))
        network = {"params": {"transformer_args": {"checkpoint_activations": False}}}
        path = folder / "inference.yaml"
        write_text(path, yaml.safe_dump({"args": args, "model": {"network_config": network}}))
        return path

    def _first_stage(self, arm: NativeArm) -> list[Any]:
        """A description of the autoencoder's files that changes when they do."""
        path = Path(str(arm.settings.get("model.first_stage_config.params.ckpt_path")))
        return content(path) if path.exists() else []

    # --- results ------------------------------------------------------------------------------------------------------

    def _report(
        self, runs: dict[str, dict[int, Path]], scores: dict[str, Path]
    ) -> tuple[ComparisonResults, list[Verdict]]:
        quality = {name: load_file(folder / "quality.safetensors") for name, folder in scores.items()}
        heldout = len(next(iter(quality[BASELINE].values())))
        results = ComparisonResults(
            arms=tuple(compared(read_arm(folder), quality[name], quality[BASELINE]) for name, folder in scores.items()),
            curves=tuple(point for arm in self.arms for point in self._curves(arm.name, runs, scores)),
            seeds=self.config.seeds,
            budget={"training steps": self.iterations, "minutes": {**self.minutes.rounded()}},
            **read_environment(scores[BASELINE]),
            configuration={
                "comparison": self.config.model_dump(mode="json"),
                **{arm.name: arm.values for arm in self.arms},
            },
            measurement={
                "training": "CogVideoX's train_video.py",
                "processes": self.launch.processes,
                "initial weights": EQUAL_STARTS + self._origin(),
                "draws": NOISE,
                "held-out videos": [str(path) for path in self.heldout],
                "held-out clips": heldout,
                "latents": "as the transformer sees them, scaled or standardised by the arm's first stage",
                "sampler": "that of the configuration, with its steps and guidance; the weights sample_video.py loads",
                "scoring": self.config.scoring.model_dump(mode="json"),
            },
            command=self.command,
            warnings=few_warnings(heldout, heldout),
            provenance=Provenance(_videos(self.train), _videos(self.heldout)),
        )
        verdicts = judge(results)
        with self.plan.stage("report"):
            write_report(results, verdicts, self.output / "report", self._pictures(runs, scores, quality))
        return results, verdicts

    def _origin(self) -> str:
        load = self.baseline.settings.get("args.load")
        return f"; the others are those of {load}, which was trained on the baseline's latents" if load else ""

    def _curves(self, arm: str, runs: dict[str, dict[int, Path]], scores: dict[str, Path]) -> list[CurvePoint]:
        points = []
        for seed, run in runs[arm].items():
            points += curve_points(read_scores(scores[arm] / _name(run), self.steps), arm, seed)
            log = (run.parents[1] / "train.log").read_text(encoding="utf-8")
            losses = {int(step): float(loss) for step, loss in LOSS.findall(log)}
            points += [CurvePoint(arm, seed, "training_loss", step, loss) for step, loss in losses.items()]
        return points

    def _pictures(
        self, runs: dict[str, dict[int, Path]], scores: dict[str, Path], quality: dict[str, dict[str, Tensor]]
    ) -> Pictures:
        clips = {name: load_file(folder / "clips.safetensors") for name, folder in scores.items()}
        first = {name: scores[name] / _name(runs[name][self.config.seeds[0]]) for name in scores}
        shown = self.config.scoring.shown_clips
        psnr = {name: own["psnr"][evenly_spaced(len(own["psnr"]), shown)].tolist() for name, own in quality.items()}
        return Pictures(
            float(self.baseline.settings.get("data.params.fps") or 8),
            as_pictures(clips[BASELINE]["originals"]),
            {name: as_pictures(own["reconstructions"]) for name, own in clips.items()},
            {name: read_samples(folder, self.steps) for name, folder in first.items()},
            psnr=psnr,
        )


def _videos(folders: Sequence[Path]) -> dict[str, int]:
    """The videos in CogVideoX's folders, which it cuts one clip from each."""
    return {str(path): 1 for folder in folders for path in sorted(folder.rglob("*.mp4"))}


def _name(run: Path) -> str:
    """The name of a run's folder; `run` is the folder of checkpoints two levels below it."""
    return run.parents[1].name
