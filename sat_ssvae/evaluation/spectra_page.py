"""The spectra of any number of autoencoders as one HTML file, with the figures and numbers beside it.

write_spectra(results, folder)     # folder/spectrum.html spectrum.json figures/*.png
"""

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2

from ..comparison.report.figures import amplitude_figure, arm_styles, robustness_figure, variance_figure
from ..storage import write_bytes, write_text
from .spectra import LatentSpectra

_TEMPLATE = Path(__file__).with_name("spectrum.html.j2")
AMPLITUDES_AT = (20, 40)
"""Zigzag indices that the table shows, as the paper's figure is read."""


@dataclass(frozen=True)
class SpectraResults:
    """Autoencoders measured on the same clips; `measurement` says on which, by name."""

    arms: tuple[LatentSpectra, ...]
    measurement: dict[str, str]
    command: str


def write_spectra(results: SpectraResults, folder: Path) -> Path:
    """Write everything into `folder`; returns the path of the HTML file."""
    figures = {
        "amplitude": amplitude_figure(results),
        "variance": variance_figure(results),
        "noise": robustness_figure(
            results,
            [arm.psnr_by_noise for arm in results.arms],
            "Decoder under noise in the latents\nflatter: more robust",
            "noise, standard deviations of the channel",
        ),
        "dropped": robustness_figure(
            results,
            [arm.psnr_by_dropped for arm in results.arms],
            "Decoder under dropped channels\nflatter: more robust",
            "share of channels set to their mean",
        ),
    }
    for name, data in figures.items():
        write_bytes(folder / "figures" / f"{name}.png", data)
    write_text(folder / "spectrum.json", json.dumps(asdict(results), indent=1) + "\n")
    page = folder / "spectrum.html"
    write_text(page, _render(results, list(figures.values())))
    return page


def table(results: SpectraResults) -> list[list[str]]:
    """Header and one row an autoencoder."""
    header = ["", "latent c×t×h×w", "low frequencies", "modes for 90 %", "first mode", "local correlation"]
    header += ["Gaussian floor", *(f"amplitude at {index}" for index in AMPLITUDES_AT)]
    return [header, *(_row(arm) for arm in results.arms)]


def _row(arm: LatentSpectra) -> list[str]:
    amplitude = arm.dct_amplitude
    return [
        arm.name,
        "×".join(map(str, arm.latent_shape)),
        f"{arm.low_frequency_share:.3f}",
        f"{arm.modes_for_90_percent} of {len(arm.explained_variance)}",
        f"{arm.explained_variance[0]:.3f}",
        "–" if arm.local_correlation is None else f"{arm.local_correlation:.3f}",
        f"{arm.gaussian_floor:.3f}",
        *(f"{amplitude[index]:.2e}" if index < len(amplitude) else "–" for index in AMPLITUDES_AT),
    ]


def _render(results: SpectraResults, figures: Sequence[bytes]) -> str:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    header, *rows = table(results)
    values: dict[str, Any] = {
        "results": results,
        "colours": {arm.name: arm.colour for arm in arm_styles(results)},
        "figures": [f"data:image/png;base64,{base64.b64encode(data).decode()}" for data in figures],
        "header": header,
        "rows": rows,
    }
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(values)
