"""What a comparison measured: plain dataclasses with an exact JSON round trip, and the CSV of every curve.

The first arm is the baseline. Every curve's metric is lower-is-better and named `family` or
`family/parameter`:

    kernel_distance_real/frame|clip             decoded samples to held-out real clips
    kernel_distance_reconstruction/frame|clip   decoded samples to the VAE's own reconstructions
    denoising_error_real/0.5                    one-step denoising at the baseline's t = 0.5 and what corresponds to
                                                it in other arms (`matched_noise.py`), decoded, to the original
    denoising_error_reconstruction/0.5          the same to the VAE's own reconstruction
    loss, loss_above_floor                      on standardised latents; less the analytic Gaussian floor
    training_loss                               as CogVideoX's training logged it
"""

import csv
import io
import itertools
import json
from typing import Any

from pydantic import ConfigDict, Field, JsonValue, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from ..errors import UserError
from .provenance import Provenance

ABOVE_MEAN_COLOUR = "psnr_above_mean_colour"
"""Reconstruction metric: PSNR of a clip's reconstruction less that of the clip's mean colour, in dB."""
_DERIVED = ("speed_ups", "verdict")
_STRICT = ConfigDict(extra="forbid", ser_json_inf_nan="strings")


@dataclass(frozen=True, config=_STRICT)
class Estimate:
    """A number with its 95 % interval; both ends None if no interval was measured.

    resamples: the number under bootstrap resamples of the clips that it was measured on, in an order that is
    the same for all arms, seeds and steps (resample r draws the same clips everywhere); empty if there are
    none. Only with them does the common effect of the choice of clips cancel in a speed-up.
    """

    value: float
    low: float | None = None
    high: float | None = None
    resamples: tuple[float, ...] = ()


@dataclass(frozen=True, config=_STRICT)
class CurvePoint:
    """One evaluation, a row of curves.csv. low, high, resamples: as in `Estimate`; seed: the transformer's."""

    arm: str
    seed: int
    metric: str
    step: int
    value: float
    low: float | None = None
    high: float | None = None
    resamples: tuple[float, ...] = ()
    vae_seed: int = 0


@dataclass(frozen=True, config=_STRICT)
class ArmResult:
    """One VAE and what was measured on it alone; the mean of several where it was trained with several seeds.

    vae, training: its configuration and training settings, as JSON. reconstruction: quality on held-out
    clips, by metric (`psnr` in dB, `ssim`, `stlpips`; any other name is shown as it is).
    reconstruction_difference: this arm less the baseline, clip by clip (see `paired_difference`); empty for
    the baseline. floors: by curve metric, the score that a perfect generator would have (reconstructions to
    real clips; the Gaussian floor for `loss`). training_distances: by kernel distance, the score of the training
    clips' reconstructions; empty if this was not measured. dct_amplitude: zigzag-ordered, divided by the DC's.
    spatial_spectrum: (cycles per pixel, amplitude relative to white noise of the same variance), see
    `spectral.spectrum`. explained_variance: cumulative, by number of components, 0..1.
    """

    name: str
    vae: dict[str, JsonValue]
    training: dict[str, JsonValue]
    reconstruction: dict[str, Estimate]
    floors: dict[str, Estimate]
    dct_amplitude: tuple[float, ...]
    explained_variance: tuple[float, ...]
    reconstruction_difference: dict[str, Estimate]
    spatial_spectrum: tuple[tuple[float, float], ...] = ()
    training_distances: dict[str, Estimate] = Field(default_factory=dict)


@dataclass(frozen=True, config=_STRICT)
class ComparisonResults:
    """Everything a report needs; `from_json(to_json())` gives an equal object.

    budget (steps, batch sizes, minutes), machine, packages (name -> version), configuration (the exact, whole
    one) and measurement (clips, samples, sampler, features, sizes, fps) are shown as they are. attribution:
    of the clips shown. provenance: the videos that the clips come from.

    Raises:
        ValueError: fewer than two arms, two arms of one name, curves of an unknown arm or seed, two values
        for one point.
    """

    arms: tuple[ArmResult, ...]
    curves: tuple[CurvePoint, ...]
    seeds: tuple[int, ...]
    budget: dict[str, JsonValue]
    machine: dict[str, JsonValue]
    packages: dict[str, str]
    configuration: dict[str, JsonValue]
    measurement: dict[str, JsonValue]
    command: str
    attribution: str = ""
    warnings: tuple[str, ...] = ()
    vae_seeds: tuple[int, ...] = (0,)
    provenance: Provenance = Provenance({}, {})

    @model_validator(mode="after")
    def _is_consistent(self) -> "ComparisonResults":
        names = [arm.name for arm in self.arms]
        if len(names) < 2 or len(set(names)) < len(names):
            raise ValueError(f"a comparison needs at least two arms with different names, got {names}")
        seen = set()
        for point in self.curves:
            if point.arm not in names or (point.vae_seed, point.seed) not in self.runs:
                raise ValueError(f"curve of unknown arm or seed: {point.arm}, seed {point.seed}")
            key = (point.arm, point.vae_seed, point.seed, point.metric, point.step)
            if key in seen:
                raise ValueError(f"two values for one point of a curve: {key}")
            seen.add(key)
        return self

    @property
    def baseline(self) -> ArmResult:
        """The first arm."""
        return self.arms[0]

    @property
    def candidates(self) -> tuple[ArmResult, ...]:
        """All other arms."""
        return self.arms[1:]

    @property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """(seed of the autoencoder, seed of the transformer) of each run that all arms completed."""
        return tuple(itertools.product(self.vae_seeds, self.seeds))

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of all metrics with a curve, in the order of the curves."""
        return tuple(dict.fromkeys(point.metric for point in self.curves))

    def arm(self, name: str) -> ArmResult:
        """The arm of that name. Raises KeyError."""
        return {arm.name: arm for arm in self.arms}[name]

    def curve(self, arm: str, seed: int, metric: str, vae_seed: int | None = None) -> list[CurvePoint]:
        """The evaluations of one run, by step; of the first autoencoder where no `vae_seed` is given."""
        run = (self.vae_seeds[0] if vae_seed is None else vae_seed, seed)
        points = (p for p in self.curves if (p.arm, p.metric) == (arm, metric) and (p.vae_seed, p.seed) == run)
        return sorted(points, key=lambda point: point.step)

    def to_json(self, **derived: Any) -> str:
        """As JSON. `speed_ups` and `verdict` may be added for readers of the file; `from_json` drops them."""
        unknown = set(derived) - set(_DERIVED)
        if unknown:
            raise ValueError(f"only {_DERIVED} may be added, not {sorted(unknown)}")
        plain = json.loads(_ADAPTER.dump_json(self))
        return json.dumps({**derived, **plain}, indent=1, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "ComparisonResults":
        """Raises UserError if the text is not such JSON."""
        try:
            plain = json.loads(text)
            if isinstance(plain, dict):
                plain = {key: value for key, value in plain.items() if key not in _DERIVED}
            return _ADAPTER.validate_python(plain)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise UserError(f"not the results of a comparison: {where} {first['msg']}; write it again") from None
        except json.JSONDecodeError as error:
            raise UserError(f"not the results of a comparison: no JSON ({error}); write it again") from None

    def to_csv(self) -> str:
        """All curves as CSV: arm, vae_seed, seed, metric, step, value, low, high (empty: not measured)."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("arm", "vae_seed", "seed", "metric", "step", "value", "low", "high"))
        for p in self.curves:
            writer.writerow((p.arm, p.vae_seed, p.seed, p.metric, p.step, p.value, p.low, p.high))
        return text.getvalue()


_ADAPTER: TypeAdapter[ComparisonResults] = TypeAdapter(ComparisonResults)
