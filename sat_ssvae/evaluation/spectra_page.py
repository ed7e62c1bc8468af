"""The spectra of any number of autoencoders as one HTML file, with the numbers beside it.

write_spectra(results, folder)     # folder/spectrum.html spectrum.json
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from markupsafe import Markup

from ..pages.blocks import Legend, box, command, facts, paragraph, section, table
from ..pages.charts import Axis, chart, charts, line
from ..pages.document import document
from ..pages.spectra import amplitude_chart, modes_chart
from ..storage import write_json, write_text
from .spectra import AmplitudeCurve, LatentSpectra
from .spectra_meaning import falls, meaning, modes

PIXELS = "the videos' pixels"
"""Name of the curve of the videos themselves."""
_NEXT = Markup(
    "This is a prediction from statistics of the latents, not a measurement of training. "
    "<code>sat-ssvae compare</code> trains a diffusion model on each autoencoder's latents and measures which one "
    "learns faster:"
)
_NOTES = (
    "Amplitude: root mean square of the DCT coefficients of latents standardised per channel, over channels, clips and "
    "all frequencies of about one radius; white noise has 1 everywhere. Diffusion adds such noise: noise of standard "
    "deviation s hides the frequencies whose amplitude is below s. Frequencies are those of the video's pixels and "
    "frames, so autoencoders of different compression share an axis; a curve ends where the latents do not resolve "
    "more.",
    "Falls as: the slope of amplitude over cycles per pixel, fitted in each clip, mean over clips; clips count as "
    "independent. Low frequencies: share of the variance in the lowest eighth of DCT coefficients of blocks of 4×8×8 "
    "latent positions. Modes: principal components of the channels. Local correlation: mean Pearson correlation inside "
    "2×2×2 windows. Gaussian floor: flow-matching loss that the best linear predictor leaves on latents standardised "
    "per channel, averaged over noise levels (1.57 for white noise); a lower one makes a raw loss look better before "
    "anything is learned.",
    "spectrum.json beside this file has every number, and the amplitudes over the zigzag index that the paper plots.",
)


@dataclass(frozen=True)
class SpectraResults:
    """Autoencoders measured on the same clips; `measurement` says on which, by name."""

    arms: tuple[LatentSpectra, ...]
    pixels: AmplitudeCurve
    """Of the clips themselves, by cycles per pixel."""
    pixels_over_time: AmplitudeCurve
    """The same by cycles per frame."""
    measurement: dict[str, str]
    command: str
    next_command: str
    """What measures the training of a diffusion model on these latents."""

    @property
    def meaning(self) -> str:
        """What the numbers mean for a diffusion model, in a sentence."""
        return meaning(self.arms, self.pixels)


def write_spectra(results: SpectraResults, folder: Path) -> Path:
    """Write everything into `folder`; returns the path of the HTML file."""
    write_json(folder / "spectrum.json", asdict(results) | {"meaning": results.meaning})
    page = folder / "spectrum.html"
    write_text(page, _render(results))
    return page


def numbers_table(results: SpectraResults) -> list[list[str]]:
    """A header and one row per autoencoder."""
    header = ["", "latent c×t×h×w", "amplitude falls as", "low frequencies", "modes for 90 %", "first mode"]
    return [[*header, "local correlation", "Gaussian floor"], *(_row(arm) for arm in results.arms)]


def _row(arm: LatentSpectra) -> list[str]:
    return [
        arm.name,
        "×".join(map(str, arm.latent_shape)),
        falls(arm.spatial),
        f"{arm.low_frequency_share:.3f}",
        modes(arm),
        f"{arm.explained_variance[0]:.3f}",
        "–" if arm.local_correlation is None else f"{arm.local_correlation:.3f}",
        f"{arm.gaussian_floor:.3f}",
    ]


def _render(results: SpectraResults) -> str:
    legend = Legend([*(arm.name for arm in results.arms), PIXELS])
    header, *rows = numbers_table(results)
    numbers = [[legend.label(row[0]), *row[1:]] for row in rows]
    spatial = {arm.name: arm.spatial for arm in results.arms} | {PIXELS: results.pixels}
    temporal = {arm.name: arm.temporal for arm in results.arms} | {PIXELS: results.pixels_over_time}
    drawings = [
        amplitude_chart(legend, "Detail in space", "pixel", _curves(spatial)),
        amplitude_chart(legend, "Change over time", "frame", _curves(temporal)),
        modes_chart(legend, {arm.name: arm.explained_variance for arm in results.arms}),
    ]
    robustness = [
        _robustness(results, legend, "Noise in the latents", "standard deviations", lambda arm: arm.psnr_by_noise),
        _robustness(results, legend, "Channels set to their mean", "share", lambda arm: arm.psnr_by_dropped),
    ]
    blocks = [
        legend.toggles(),
        box(paragraph(Markup("<b>{}</b>").format(results.meaning)), paragraph(_NEXT), command(results.next_command)),
        section("Spectra of the latents", charts(drawings), note=_NOTES[0]),
        section("Numbers", table(header, numbers), note=_NOTES[1]),
        section(
            "Decoder under disturbed latents", charts(robustness), note="PSNR to the clip; flatter is more robust."
        ),
        section("How it was measured", facts(results.measurement), command(results.command), note=_NOTES[2]),
    ]
    size = results.measurement.get("clips", "")
    return document("What these latents look like to a diffusion model", blocks, subtitle=size)


def _curves(spectra: Mapping[str, AmplitudeCurve]) -> dict[str, tuple[Sequence[float], Sequence[float]]]:
    """Frequencies and amplitudes of the curves that have any."""
    return {name: (one.frequency, one.amplitude) for name, one in spectra.items() if one.frequency}


def _robustness(
    results: SpectraResults,
    legend: Legend,
    title: str,
    label: str,
    psnr: Callable[[LatentSpectra], Mapping[float, float]],
) -> Markup:
    lines = [line(legend, arm.name, list(psnr(arm)), list(psnr(arm).values())) for arm in results.arms]
    return chart(title, lines, Axis(label, log=False), Axis("PSNR, dB", log=False))
