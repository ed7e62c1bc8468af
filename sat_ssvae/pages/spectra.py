"""The charts of latent spectra that several pages show."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from .blocks import Legend
from .charts import Axis, chart, line


def amplitude_chart(legend: Legend, title: str, unit: str, curves: Mapping[str, Sequence[Sequence[float]]]) -> Markup:
    """Amplitude by frequency, in cycles per `unit`; curves: by series, frequencies and amplitudes."""
    return chart(
        title,
        [line(legend, name, frequency, amplitude) for name, (frequency, amplitude) in curves.items()],
        Axis(f"cycles per {unit}", log=True),
        Axis("amplitude", log=True),
        note="relative to white noise of the same variance (dotted); steeper is easier to diffuse",
        targets=[1.0],
    )


def modes_chart(legend: Legend, explained: Mapping[str, Sequence[float]]) -> Markup:
    """Share of the variance that the 1, 2, ... largest channel modes explain, by series."""
    return chart(
        "Channel modes",
        [line(legend, name, range(1, len(shares) + 1), shares) for name, shares in explained.items()],
        Axis("largest modes", log=False),
        Axis("share of the variance", ends=(0, 1.02)),
        note="fewer for 90 % (dotted) are easier to diffuse",
        targets=[0.9],
    )
