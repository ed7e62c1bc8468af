"""What a comparison found, written and read again: nothing is lost, and what contradicts itself is refused."""

import csv
import dataclasses
import io
import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sat_ssvae.comparison.results import ArmResult, ComparisonResults, CurvePoint, Estimate
from sat_ssvae.errors import UserError

from .comparisons import comparison

METRIC = "kernel_distance_reconstruction/frame"


numbers = st.floats(allow_nan=False, allow_infinity=True, width=64)
maybe = st.none() | numbers
names = st.text(min_size=1, max_size=8)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
settings_of = st.dictionaries(st.text(), json_values, max_size=3)
estimates = st.dictionaries(
    names, st.builds(Estimate, numbers, maybe, maybe, st.lists(numbers, max_size=2).map(tuple)), max_size=3
)


@st.composite
def any_results(draw):
    """ComparisonResults with every field arbitrary."""
    arms = draw(st.lists(names, min_size=2, max_size=3, unique=True))
    seeds = draw(st.lists(st.integers(0, 2**31), min_size=1, max_size=2, unique=True))
    keys = st.tuples(st.sampled_from(arms), st.sampled_from(seeds), names, st.integers(0, 10**9))
    spectrum = st.lists(numbers, max_size=3).map(tuple)
    return ComparisonResults(
        arms=tuple(
            draw(
                st.builds(
                    ArmResult,
                    st.just(arm),
                    settings_of,
                    settings_of,
                    estimates,
                    estimates,
                    spectrum,
                    spectrum,
                    estimates,
                )
            )
            for arm in arms
        ),
        curves=tuple(
            CurvePoint(*key, draw(numbers), draw(maybe), draw(maybe))
            for key in draw(st.lists(keys, max_size=4, unique=True))
        ),
        seeds=tuple(seeds),
        budget=draw(settings_of),
        machine=draw(settings_of),
        packages=draw(st.dictionaries(names, st.text(), max_size=2)),
        configuration=draw(settings_of),
        measurement=draw(settings_of),
        command=draw(st.text()),
        attribution=draw(st.text()),
        warnings=tuple(draw(st.lists(st.text(), max_size=2))),
    )


class TestJson:
    @given(any_results())
    @settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def test_round_trip_is_exact(self, results):
        assert ComparisonResults.from_json(results.to_json()) == results

    def test_a_diverged_score_survives(self):
        results = comparison([1.0], metrics=[METRIC])
        points = (dataclasses.replace(results.curves[0], value=math.nan), *results.curves[1:])
        text = dataclasses.replace(results, curves=points).to_json()
        json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
        assert math.isnan(ComparisonResults.from_json(text).curves[0].value)

    def test_what_was_derived_is_dropped_when_read(self):
        results = comparison([1.0], metrics=[METRIC])
        text = results.to_json(verdict=["two sentences"])
        assert json.loads(text)["verdict"] == ["two sentences"]
        assert ComparisonResults.from_json(text) == results
        with pytest.raises(ValueError, match="may be added"):
            results.to_json(curves=[])

    @pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"arms": []}', "\x00"])
    def test_other_texts_get_one_line(self, text):
        with pytest.raises(UserError, match="not the results of a comparison") as error:
            ComparisonResults.from_json(text)
        assert "\n" not in str(error.value)

    def test_an_unknown_key_is_named(self):
        plain = json.loads(comparison([1.0], metrics=[METRIC]).to_json())
        plain["sedes"] = [1]
        with pytest.raises(UserError, match="sedes"):
            ComparisonResults.from_json(json.dumps(plain))

    def test_csv_holds_every_point(self):
        results = comparison([2.0], metrics=[METRIC, "loss"], width=0.01)
        rows = list(csv.DictReader(io.StringIO(results.to_csv())))
        assert list(rows[0]) == ["arm", "vae_seed", "seed", "metric", "step", "value", "low", "high"]
        read_back = tuple(
            CurvePoint(
                r["arm"],
                int(r["seed"]),
                r["metric"],
                int(r["step"]),
                *(float(r[k]) for k in ("value", "low", "high")),
                vae_seed=int(r["vae_seed"]),
            )
            for r in rows
        )
        assert read_back == results.curves


class TestConsistency:
    def test_numpy_and_lists_become_plain_values(self):
        arm = comparison([1.0], metrics=[METRIC]).arms[0]
        changed = dataclasses.replace(arm, dct_amplitude=[np.float64(1.0), np.float32(0.5)])
        assert changed.dct_amplitude == (1.0, 0.5)
        assert all(type(value) is float for value in changed.dct_amplitude)

    @pytest.mark.parametrize(
        "change",
        [
            lambda r: {"arms": r.arms[:1]},
            lambda r: {"arms": (r.arms[0], r.arms[0])},
            lambda r: {"seeds": (0,)},
            lambda r: {"curves": (*r.curves, r.curves[0])},
            lambda r: {"curves": (dataclasses.replace(r.curves[0], arm="other"),)},
        ],
    )
    def test_contradictions_are_refused(self, change):
        results = comparison([1.0], metrics=[METRIC])
        with pytest.raises(ValidationError):
            dataclasses.replace(results, **change(results))

    def test_curves_come_sorted_by_step(self):
        results = comparison([1.0], metrics=[METRIC])
        shuffled = dataclasses.replace(results, curves=tuple(reversed(results.curves)))
        steps = [point.step for point in shuffled.curve("stock", 0, METRIC)]
        assert steps == sorted(steps)
        assert all(a < b for a, b in itertools.pairwise(steps))
