"""The sentence on the spectrum page follows from the numbers."""

import pytest

from sat_ssvae.evaluation.spectra import AmplitudeCurve, LatentSpectra
from sat_ssvae.evaluation.spectra_meaning import meaning


def curve(*decay):
    return AmplitudeCurve((0.1, 0.2), (1.0, 0.5), decay)


def arm(name, decays, modes, floor=0.5):
    variance = tuple((n + 1) / 16 for n in range(16))
    spatial = curve(*decays)
    return LatentSpectra(name, (16, 3, 8, 8), spatial, spatial, (1.0,), 0.5, variance, modes, 0.5, floor, {}, {})


PIXELS = curve(1.1, 1.1)
FLAT, STEEP = (0.2, 0.3, 0.25, 0.22, 0.28), (0.8, 0.9, 0.85, 0.82, 0.88)


@pytest.mark.parametrize(
    ("arms", "words"),
    [
        (
            (arm("a", FLAT, 12), arm("b", STEEP, 4)),
            ["learn b fastest", "1/f^0.85 for b, 1/f^0.25 for a", "4 of 16 for b"],
        ),
        (
            (arm("a", FLAT, 4), arm("b", STEEP, 12)),
            ["no favourite", "of b falls fastest", "but a needs the smallest share"],
        ),
        ((arm("a", FLAT, 4), arm("b", FLAT, 12)), ["learn a fastest", "fall about equally fast", "and a needs"]),
        ((arm("a", FLAT, 8), arm("b", FLAT, 8)), ["no favourite", "about equally", "about the same share"]),
        ((arm("a", (0.1, 0.9, 0.1, 0.9), 8), arm("b", (0.2, 0.7, 0.4, 0.5), 8)), ["no favourite", "about equally"]),
        ((arm("a", FLAT, 8), arm("b", STEEP, 8), arm("c", STEEP, 2)), ["learn c fastest", "about equally"]),
        ((arm("a", (0.2,), 8), arm("b", (0.9,), 8)), ["about equally"]),  # one clip tells nothing
        ((arm("a", (), 8), arm("b", (), 8)), ["not measurable for a"]),
    ],
)
def test_of_several(arms, words):
    sentence = meaning(arms, PIXELS)
    assert all(word in sentence for word in [*words, "the videos themselves 1/f^1.10"]), sentence
    assert sentence.count(".  ") == 0 and sentence.endswith(".")


def test_of_one():
    white = meaning([arm("a", (0.01, -0.01), 14, floor=1.5708)], PIXELS)
    assert "learn both at once" in white and "removes 0 % of the loss" in white and "14 of 16" in white
    assert "one by one" in meaning([arm("a", STEEP, 4)], PIXELS)
