"""The whole comparison, from clips to a report.

    bash scripts/compare_convergence.sh --preset default

Stages: clips -> autoencoders, one per arm and `vae_seed` -> latents -> transformers, one per autoencoder and seed,
scored as they train -> report.
Each stage works in a folder whose name has a fingerprint of everything that the stage depends on. So a finished stage
is found again, an interrupted one continues, and a changed setting makes a new folder and leaves the old one alone.
`members.py` has the stages of one autoencoder, `processes.py` runs those of several side by side.
"""

import contextlib
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import torch
from pydantic import JsonValue

from .. import distributed
from ..engine.precision import tell_precision
from ..spacing import evenly_spaced
from ..storage import write_json
from ..training.run_folder import alone
from .answer import answer, commit
from .arms import common_patches, given_identity, latent_sizes, open_given, shape_warning
from .bookkeeping import Stopwatch, machine
from .clips import demo_source, heldout_clips
from .layout import Layout, Member, refuse_wrong_arms, stages_of
from .members import MemberResult, Work
from .plan import Plan, planned
from .pooling import pooled
from .processes import run_members, shared_out
from .provenance import Provenance, few_warnings
from .reference import compared
from .report.page import write_report
from .report.pictures import Pictures, as_pictures, spread
from .results import ArmResult, ComparisonResults, CurvePoint
from .run_index import RunIndex, TrainedTransformer
from .score_files import read_samples
from .settings import SPLITS, ClipSource, CompareConfig
from .shifts import shift_comparison
from .verdict import Verdict, judge


def compare(
    config: CompareConfig, output: Path, device: torch.device, command: str, clips: ClipSource | None = None
) -> tuple[ComparisonResults, list[Verdict]]:
    """Run or continue the comparison in `output` and write its report to `output/report`.

    `command` is what the user typed, for the report. Without `clips`, the demo's are used.

    Raises:
        UserError: unusable clips, configuration or weights, another process that works in `output`, no space left, or
            one of its processes was killed.
        SystemExit: SIGTERM came; checkpoints were saved.
    """
    with contextlib.ExitStack() as held:
        if distributed.rank() == 0:
            output.mkdir(parents=True, exist_ok=True)
            held.enter_context(alone(output))  # `sat-ssvae runs` shows that it runs, and cleans nothing
        comparison = _Comparison(config.settled(device), output, device, command, clips)
        tell_precision(config.transformer.precision, device)
        return comparison.run()


class _Comparison:
    def __init__(
        self, config: CompareConfig, output: Path, device: torch.device, command: str, clips: ClipSource | None
    ) -> None:
        self.config, self.output, self.device, self.command = config, output, device, command
        self.minutes = Stopwatch(output / "minutes.json")
        # All arms are checked before clips are cut and the first one is trained.
        refuse_wrong_arms(config)
        given = open_given(config.arms)
        if clips is None:
            with self.minutes("clips"):
                clips = demo_source(config, output)
        self.source = clips
        self.members = [Member(name, seed) for seed in config.vae_seeds for name in config.arms]
        data = self.source.data(config.data, "train")
        self.trainings = {member: stages_of(config, member, data) for member in self.members}
        identities = {name: given_identity(vae) for name, vae in given.items()}
        self.layout = Layout(config, output, self.source, self.trainings, identities)
        firsts = {member.arm: stages[0] for member, stages in self.trainings.items()}
        self.latent_sizes = latent_sizes(firsts, given, config.data)
        self.patches = common_patches(self.latent_sizes, config.transformer.patch_size)
        self.work = Work(self.layout, self.patches, device)
        self.share = shared_out(config.jobs, len(self.members), device)
        stages = planned(self.layout, lambda arm: self.work.training(arm, None))
        self.plan = Plan(output / "stages.json", stages, self.share.jobs)
        self.begin, self.end = self.plan.begin, self.plan.end
        self.trained: list[TrainedTransformer] = []

    def run(self) -> tuple[ComparisonResults, list[Verdict]]:
        heldout = heldout_clips(self.layout)  # first: too few are noticed before anything is trained
        results = run_members(self.work, self.members, heldout, self, self.share)
        steps, shown = self.config.transformer.evaluation_steps, self.config.scoring.shown_clips
        curves = [point for result in results.values() for point in result.curves]
        firsts = {member.arm: own for member, own in results.items() if member.vae_seed == self.config.vae_seeds[0]}
        places = evenly_spaced(len(heldout), shown)
        keys = next(iter(results.values())).keys
        pictures = Pictures(
            self.config.data.fps,
            as_pictures(spread(heldout, shown)),
            {arm: as_pictures(torch.from_numpy(own.reconstructions)) for arm, own in firsts.items()},
            {arm: read_samples(own.scores[self.config.seeds[0]], steps) for arm, own in firsts.items()},
            [keys["heldout"][place] for place in places],
            {arm: own.quality["psnr"][places].tolist() for arm, own in firsts.items()},
        )
        skipped: dict[str, Path] = {split: self.layout.skipped(split) for split in SPLITS}
        provenance = Provenance.of_clips(keys["train"], keys["heldout"], skipped)
        return self._report(results, curves, pictures, provenance)

    # --- records of the members' progress -----------------------------------------------------------------------------

    def spent(self, what: str, seconds: float) -> None:
        self.minutes.add(what, seconds / 60)

    def finished(self, transformer: TrainedTransformer) -> None:
        """Record it for later commands, such as `sat-ssvae restore`, in the order of the members and seeds."""
        config = self.config
        self.trained.append(transformer)
        self.trained.sort(
            key=lambda one: (self.members.index(Member(one.arm, one.vae_seed)), config.seeds.index(one.seed))
        )
        index = RunIndex(clips=config.data, text_length=config.text_length, transformers=tuple(self.trained))
        index.write(self.output)

    # --- results ------------------------------------------------------------------------------------------------------

    def _report(
        self,
        members: Mapping[Member, MemberResult],
        curves: Sequence[CurvePoint],
        pictures: Pictures,
        provenance: Provenance,
    ) -> tuple[ComparisonResults, list[Verdict]]:
        config, heldout = self.config, sum(provenance.heldout.values())
        results = ComparisonResults(
            arms=self._arms(members),
            curves=tuple(curves),
            seeds=config.seeds,
            vae_seeds=config.vae_seeds,
            budget={
                "autoencoder steps": self._vae_steps(),
                "transformer steps": config.transformer.max_steps,
                "minutes": {**self.minutes.rounded()},
            },
            machine=machine(self.device),
            packages={name: metadata.version(name) for name in ("torch", "deepspeed", "numpy", "av")},
            configuration=config.model_dump(mode="json"),
            measurement={"held-out clips": heldout, **self._measurement(members)},
            command=self.command,
            attribution=self.source.attribution,
            warnings=(*self._warnings(), *few_warnings(heldout, len(provenance.heldout))),
            provenance=provenance,
        )
        verdicts = judge(results)
        with self.plan.stage("report"):
            report = write_report(results, verdicts, self.output / "report", pictures)
        write_json(report.with_name("summary.json"), answer(results, verdicts, commit()))
        for member, own in members.items():
            if len(own.search) > 1:
                shown = shift_comparison(results, member.arm, own.search, config.shift_seed)
                write_report(shown, judge(shown), self.output / "report" / f"shifts-{member.arm}")
        return results, verdicts

    def _measurement(self, members: Mapping[Member, MemberResult]) -> dict[str, JsonValue]:
        config = self.config
        shifts: dict[str, JsonValue] = {member.arm: own.shift for member, own in members.items() if own.shift}
        return {
            "clip": config.data.model_dump(mode="json"),
            "scoring": config.scoring.model_dump(mode="json"),
            "seeds vary": "the transformer's initial weights, clip order and noise",
            **({"autoencoders": self._autoencoder_seeds()} if self._vae_steps() else {}),
            "denoised at, by the baseline's level": {
                self.layout.label(member): {f"{level:g}": own for level, own in result.levels.items()}
                for member, result in members.items()
                if member != self.layout.baseline(member)
            },
            **({"timestep shifts": shifts} if shifts else {}),
        }

    def _arms(self, members: Mapping[Member, MemberResult]) -> tuple[ArmResult, ...]:
        """Each arm over its autoencoders."""
        quality = {
            member: {name: torch.from_numpy(v) for name, v in own.quality.items()} for member, own in members.items()
        }
        arms: dict[str, list[ArmResult]] = {}
        for member, own in members.items():
            baseline = quality[self.layout.baseline(member)]
            compared_arm = compared(own.arm, quality[member], baseline, own.keys["heldout"])
            arms.setdefault(member.arm, []).append(compared_arm)
        return tuple(pooled(results) for results in arms.values())

    def _vae_steps(self) -> dict[str, JsonValue]:
        """Steps of all stages of an arm's autoencoder, for arms that are trained here."""
        totals = {member.arm: sum(stage.max_steps for stage in stages) for member, stages in self.trainings.items()}
        return {name: total for name, total in totals.items() if name not in self.layout.given}

    def _autoencoder_seeds(self) -> str:
        arm = "arm that is trained here" if self.layout.given else "arm"
        return f"one per {arm} and seed: {', '.join(map(str, self.config.vae_seeds))}"

    def _warnings(self) -> tuple[str, ...]:
        steps = self._vae_steps()
        unequal = ", ".join(f"{name} {total}" for name, total in steps.items()) if len(set(steps.values())) > 1 else ""
        return (
            *([self.config.caveat] if self.config.caveat else []),
            *([f"The arms' autoencoders are trained for unequal numbers of steps: {unequal}."] if unequal else []),
            *shape_warning(self.latent_sizes, self.patches),
        )
