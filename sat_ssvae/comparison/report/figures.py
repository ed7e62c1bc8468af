"""Plots of spectra by matplotlib, in colours that all eyes tell apart.

Colours are Okabe and Ito's; every arm also has its own marker, so that nothing depends on colour.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, QUIET, HAIRLINE = "#1b1f24", "#5b6570", "#d5dae0"
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": QUIET,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlecolor": INK,
    "grid.color": HAIRLINE,
    "grid.linewidth": 0.6,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "legend.frameon": False,
    "svg.fonttype": "none",
}


class Spectrum(Protocol):
    """What is drawn of an autoencoder's latents."""

    @property
    def name(self) -> str:
        """Of the autoencoder."""

    @property
    def dct_amplitude(self) -> Sequence[float]:
        """In zigzag order, relative to the DC's."""

    @property
    def explained_variance(self) -> Sequence[float]:
        """Cumulative, by number of components."""


class Spectra(Protocol):
    """Several autoencoders that are drawn together; the results of a comparison are one."""

    @property
    def arms(self) -> Sequence[Spectrum]:
        """The autoencoders; the first is the baseline."""


class ArmStyle(NamedTuple):
    """How one arm is drawn."""

    name: str
    colour: str
    marker: str


def arm_styles(results: Spectra) -> list[ArmStyle]:
    """Colour and marker by position: the baseline is always blue circles."""
    return [
        ArmStyle(arm.name, _COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)])
        for i, arm in enumerate(results.arms)
    ]


def png(figure: Figure) -> bytes:
    """The figure as a PNG, cropped to its contents."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=170, facecolor="white", bbox_inches="tight", pad_inches=0.08)
    return data.getvalue()


def amplitude_figure(results: Spectra) -> bytes:
    """Mean absolute DCT coefficient over the DC's, in zigzag order of spatio-temporal frequency."""
    with _axes(5.2, 3.5) as (figure, axes):
        axes.set_title("Spatio-temporal spectrum of the latents\nfaster decay: smoother, biased to low frequencies")
        for arm, one in zip(results.arms, arm_styles(results), strict=True):
            axes.plot(range(len(arm.dct_amplitude)), arm.dct_amplitude, color=one.colour, label=one.name, lw=1.8)
            _mark(axes, range(len(arm.dct_amplitude)), arm.dct_amplitude, one)
        axes.set_yscale("log")
        axes.set_xlabel("zigzag index of 3-D DCT coefficient")
        axes.set_ylabel("amplitude / DC")
        axes.grid(axis="y")
        axes.legend(loc="upper right", fontsize=9)
        return png(figure)


def variance_figure(results: Spectra) -> bytes:
    """Share of the channels' variance that the largest components explain."""
    with _axes(5.2, 3.5) as (figure, axes):
        axes.set_title("Channel spectrum of the latents\nhigher: few modes carry the signal")
        for arm, one in zip(results.arms, arm_styles(results), strict=True):
            components = range(1, len(arm.explained_variance) + 1)
            axes.plot(components, arm.explained_variance, color=one.colour, label=one.name, lw=1.8)
            _mark(axes, components, arm.explained_variance, one)
        axes.axhline(0.9, color=QUIET, lw=0.8, ls=":")
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("components")
        axes.set_ylabel("explained variance")
        axes.grid(axis="y")
        axes.legend(loc="lower right", fontsize=9)
        return png(figure)


def robustness_figure(results: Spectra, psnr: Sequence[Mapping[float, float]], title: str, label: str) -> bytes:
    """PSNR (dB) of each arm against the strength of a disturbance; `psnr` has the arms' order."""
    with _axes(5.2, 3.5) as (figure, axes):
        axes.set_title(title)
        for one, scores in zip(arm_styles(results), psnr, strict=True):
            style: Any = {"color": one.colour, "marker": one.marker, "mec": "white", "lw": 1.8}
            axes.plot(list(scores), list(scores.values()), label=one.name, **style)
        axes.set_xlabel(label)
        axes.set_ylabel("PSNR to the clip, dB")
        axes.grid(axis="y")
        axes.legend(loc="best", fontsize=9)
        return png(figure)


@contextmanager
def _axes(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """Axes in the report's style; nothing of it remains set afterwards."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height))
        yield figure, figure.add_subplot()


def _mark(axes: Axes, x: Sequence[float], y: Sequence[float], arm: ArmStyle) -> None:
    """A few markers along a dense line."""
    every = max(1, len(y) // 8)
    axes.plot(x[::every], y[::every], ls="", marker=arm.marker, ms=5, mec="white", mew=0.6, color=arm.colour)
