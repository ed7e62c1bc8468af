"""The report: everything is in it, it needs nothing else, and it survives whatever a comparison may give."""

import base64
import dataclasses
import io
import json
import math

import pytest
import torch
from PIL import Image

from sat_ssvae.comparison.provenance import LeftOut, Provenance
from sat_ssvae.comparison.report.page import render, write_report
from sat_ssvae.comparison.report.pictures import Pictures, file_name
from sat_ssvae.comparison.report.speed_ups import axis_limit
from sat_ssvae.comparison.results import ComparisonResults, CurvePoint, Estimate
from sat_ssvae.comparison.verdict import judge
from sat_ssvae.comparison.wording import describe, speed_up_text
from sat_ssvae.data.video_io import probe, read_clip
from sat_ssvae.errors import UserError

from .comparisons import DENOISING, SAMPLES, STEPS, comparison, judged, pictures
from .parsed_page import Parsed

METRICS = (SAMPLES[0], SAMPLES[2], DENOISING[1], "loss")
FEW = (SAMPLES[0], SAMPLES[2])


@pytest.fixture(scope="module")
def results():
    made = comparison([2.6], metrics=METRICS, floors={SAMPLES[0]: 0.02})
    return dataclasses.replace(made, provenance=Provenance({"beach.mp4": 3}, {"dog.mp4": 2}))


@pytest.fixture(scope="module")
def folder(results, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    assert write_report(results, judge(results), folder, pictures()) == folder / "report.html"
    return folder


@pytest.fixture(scope="module")
def page(folder):
    return Parsed((folder / "report.html").read_text(encoding="utf-8"))


class TestPage:
    def test_needs_nothing_from_outside(self, page):
        images = [source for source in page.sources if source != "data:,"]
        assert images and all(source.startswith("data:image/webp;base64,") for source in images)

    def test_every_image_opens(self, page):
        sources = [source for source in page.sources if source != "data:,"]
        pictures = [Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) for source in sources]
        assert pictures and all(picture.load() and min(picture.size) > 1 for picture in pictures)

    def test_has_the_verdict_word_for_word(self, results, page):
        for sentence in judged(results, "ssvae").sentences:
            assert sentence in page.text

    def test_has_every_section(self, page):
        for heading in (
            "Run next",
            "Clips",
            "Arms and measures",
            "Curves",
            "Spectra of the latents",
            "Reconstruction",
            "Where the clips come from",
            "How it was measured",
            "What the numbers do not say",
        ):
            assert heading in page.text

    def test_has_every_measure_with_its_number(self, results, page):
        verdict = judged(results, "ssvae")
        for read in verdict.speed_ups:
            info = describe(read.metric)
            assert " ".join(f"{info.title} {info.detail}".split()) in page.text
            assert speed_up_text(read).split(" ")[0] in page.text

    def test_has_how_it_was_measured(self, results, page):
        assert results.command in page.text
        assert "torch==2.13.0" in page.text
        assert "width: 128" in page.text
        assert "0, 1, 2" in page.text
        assert "Euler, 50 steps" in page.text
        assert results.attribution in page.text

    def test_what_is_not_decided_is_said_without_a_colour(self):
        results = comparison([1.0], metrics=(SAMPLES[2],), width=0.3)
        assert "undecided 0." in Parsed(render(results, judge(results))).text

    def test_is_for_phones_and_printers(self, folder):
        text = (folder / "report.html").read_text(encoding="utf-8")
        assert '<meta name="viewport" content="width=device-width' in text
        assert "@media print" in text
        assert "@media (max-width" in text

    def test_every_clip_is_there_at_every_step(self, page):
        films = [attributes for tag, attributes in page.tags if tag == "div" and attributes.get("class") == "film"]
        assert len(films) == 5 * (1 + 2 + 2)  # original, and reconstruction and sample of each arm
        assert all(film["data-frames"] == "5" for film in films)
        stepwise = [
            attributes["data-step"] for tag, attributes in page.tags if tag == "img" and "data-step" in attributes
        ]
        assert stepwise.count("0") == stepwise.count("1") == 5 * 2

    def test_each_reconstruction_has_its_psnr_and_each_clip_its_name(self, results):
        shown = dataclasses.replace(pictures(), names=[f"beach.mp4@{n}" for n in range(5)], psnr={"ssvae": [21.37] * 5})
        text = Parsed(render(results, judge(results), shown)).text
        assert text.count("reconstruction, 21.37 dB") == 5 and "beach.mp4, from 3 s" in text

    def test_says_where_the_clips_come_from(self, results):
        left_out = LeftOut("train", "broken.mp4", "unreadable file", "no video in it")
        provenance = Provenance({"beach.mp4": 3, "city.mp4": 4}, {"dog.mp4": 2}, (left_out,))
        known = dataclasses.replace(results, provenance=provenance)
        text = Parsed(render(known, judge(results))).text
        assert "Training: 7 clips of 2 videos" in text and "Held out: 2 clips of 1 video " in text
        assert "train broken.mp4 unreadable file no video in it" in text


class TestFolder:
    def test_results_read_back(self, results, folder):
        text = (folder / "results.json").read_text(encoding="utf-8")
        assert ComparisonResults.from_json(text) == results
        document = json.loads(text)
        assert document["verdict"] == {"ssvae": judged(results, "ssvae").text}
        assert {row["metric"] for row in document["speed_ups"]} == set(METRICS)

    def test_curves_are_the_results(self, results, folder):
        assert (folder / "curves.csv").read_text(encoding="utf-8") == results.to_csv()

    def test_samples_are_the_clips(self, folder):
        names = sorted(path.name for path in (folder / "samples").iterdir())
        assert len(names) == 5 * 5
        shown = pictures().samples["ssvae"][1600][2]
        path = folder / "samples" / "ssvae-sample-02.mp4"
        info = probe(path)
        assert (info.frames, info.height, info.width) == (5, 32, 48)
        assert info.fps == pytest.approx(8)
        video = read_clip(path, start=0, num_frames=5, fps=8, size=(32, 48)).permute(1, 2, 3, 0)
        assert (video.float() - shown.float()).abs().mean() < 4

    def test_is_written_again_over_itself(self, results, folder):
        before = sorted(path.relative_to(folder) for path in folder.rglob("*"))
        write_report(results, judge(results), folder, pictures())
        assert sorted(path.relative_to(folder) for path in folder.rglob("*")) == before

    def test_a_folder_that_cannot_be_written_is_one_line(self, results, tmp_path):
        (tmp_path / "taken").write_text("a file")
        with pytest.raises(UserError, match=r"cannot write the report to .*taken") as error:
            write_report(results, judge(results), tmp_path / "taken")
        assert "\n" not in str(error.value)


class TestCases:
    """Whatever a comparison gives, there is a page, and it says what it must."""

    def page(self, results, tmp_path):
        return Parsed(write_report(results, judge(results), tmp_path).read_text(encoding="utf-8"))

    def test_one_seed(self, tmp_path):
        page = self.page(comparison([2.6], seeds=(7,), metrics=FEW), tmp_path)
        assert "ssvae leads in this one run" in page.text
        assert "One run: the intervals cover evaluation noise only." in page.text

    def test_not_reached(self, tmp_path):
        page = self.page(comparison([0.3], metrics=FEW), tmp_path)
        assert "Stay with stock: every other arm is slower." in page.text and "ssvae slower" in page.text
        assert "not reached 0." in page.text and "in 3 of 3 runs" in page.text

    def test_a_floor_that_dominates(self, tmp_path):
        page = self.page(comparison([2.6], metrics=FEW, floors={SAMPLES[0]: 0.8}), tmp_path)
        assert "Measures blur, not convergence (1 row)" in page.text
        assert "compares blur, not convergence" in page.text

    @pytest.mark.parametrize(("share", "said"), [(0.6, True), (0.4, False)])
    def test_training_clips_that_score_hardly_better_than_the_transformer(self, tmp_path, share, said):
        results = comparison([2.6], metrics=METRICS)
        (verdict,) = judge(results)
        target = next(one.target for one in verdict.speed_ups if one.metric == SAMPLES[2])
        learnt = {SAMPLES[2]: Estimate(share * target, 0.5 * share * target, 2 * share * target)}
        arms = tuple(dataclasses.replace(arm, training_distances=learnt) for arm in results.arms)
        page = self.page(dataclasses.replace(results, arms=arms), tmp_path)
        assert ("60 % of the baseline's final score by the primary measure" in page.text) == said

    def test_three_arms_and_hostile_names(self, tmp_path):
        results = comparison([2.6, 0.5], metrics=FEW)
        name = "<script>alert(1)</script>/../&"
        arms = (*results.arms[:2], dataclasses.replace(results.arms[2], name=name))
        points = tuple(dataclasses.replace(p, arm=name) if p.arm == "lcr only" else p for p in results.curves)
        results = dataclasses.replace(results, arms=arms, curves=points)
        path = write_report(results, judge(results), tmp_path / "report", pictures(("stock", "ssvae", name)))
        text = path.read_text(encoding="utf-8")
        assert "<script>alert" not in text
        assert name in Parsed(text).text
        assert all(tmp_path / "report" in file.parents for file in tmp_path.rglob("*.mp4"))

    def test_the_barest_results(self, tmp_path):
        """No intervals, floors, spectra, settings or pictures; one evaluation each."""
        full = comparison([1.0], metrics=FEW)
        arms = [
            dataclasses.replace(
                arm,
                vae={},
                training={},
                reconstruction={},
                reconstruction_difference={},
                floors={},
                dct_amplitude=(),
                spatial_spectrum=(),
                explained_variance=(),
            )
            for arm in full.arms
        ]
        points = tuple(CurvePoint(arm.name, 0, "loss", 0, 1.0) for arm in arms)
        bare = dataclasses.replace(
            full,
            arms=tuple(arms),
            curves=points,
            seeds=(0,),
            budget={},
            machine={},
            packages={},
            configuration={},
            measurement={},
            attribution="",
        )
        page = self.page(bare, tmp_path)
        assert "no evidence" in page.text
        assert "the baseline does not improve beyond its noise from the first evaluation to the last" in page.text

    def test_a_run_that_diverged(self, tmp_path):
        results = comparison([2.6], metrics=FEW)
        points = tuple(
            dataclasses.replace(p, value=float("nan"), low=None, high=None) if p.arm == "ssvae" and p.step > 400 else p
            for p in results.curves
        )
        page = self.page(dataclasses.replace(results, curves=points), tmp_path)
        assert "ssvae slower" in page.text

    def test_an_open_interval_is_null_in_the_json(self, tmp_path):
        results = comparison([100.0], metrics=FEW)
        assert judged(results, "ssvae").speed_ups[0].high == math.inf
        write_report(results, judge(results), tmp_path)
        text = (tmp_path / "results.json").read_text(encoding="utf-8")
        assert json.loads(text)["speed_ups"][0]["high"] is None and "Infinity" not in text

    def test_from_step_zero_and_in_many_steps(self, tmp_path):
        results = comparison([1.0], seeds=(0,), metrics=[SAMPLES[0]])
        points = [
            CurvePoint(arm, 0, metric, step, 5.0 / (1 + step / speed) - (0.2 if metric == "loss" else 0.0))
            for metric, steps in ((SAMPLES[0], (0, *STEPS)), ("loss", range(0, 1600, 4)))
            for arm, speed in (("stock", 100), ("ssvae", 50))
            for step in steps
        ]
        floors = {"loss": Estimate(0.1), SAMPLES[0]: Estimate(0.01, 0.0, 0.02)}
        arms = tuple(dataclasses.replace(arm, floors=floors) for arm in results.arms)
        page = self.page(dataclasses.replace(results, arms=arms, curves=tuple(points)), tmp_path)
        drawn = [json.loads(data) for data in page.data[:-1]]
        assert "Loss on standardised latents" in page.text and [one["log_x"] for one in drawn[:2]] == [True, True]
        assert all(len(one["x"]) <= 64 for chart in drawn[:2] for one in chart["lines"])

    def test_warnings_are_shown(self, tmp_path):
        results = dataclasses.replace(comparison([1.0], metrics=FEW), warnings=("12 clips were <skipped>",))
        assert "12 clips were <skipped>" in self.page(results, tmp_path).text


class TestPictures:
    @pytest.mark.parametrize("clip", [torch.zeros(3, 5, 8, 8, dtype=torch.uint8), torch.zeros(5, 8, 8, 3)])
    def test_other_shapes_and_types_are_refused(self, clip):
        with pytest.raises(ValueError, match="uint8 T H W 3"):
            Pictures(8.0, [clip], {}, {})

    @pytest.mark.parametrize(("text", "name"), [("a/b", "a-b"), ("../x", "x"), ("", "unnamed"), ("ß", "unnamed")])
    def test_file_names_are_plain(self, text, name):
        assert file_name(text) == name


def test_the_axis_of_speed_ups_holds_them(results):
    read = judged(results, "ssvae").speed_ups
    limit = axis_limit(read)
    assert limit in (4, 8, 16, 32, 64)
    assert all(1 / limit <= end <= limit for s in read for end in (s.low, s.high, s.value))
    assert axis_limit([]) == 4


def test_a_page_without_pictures_has_no_empty_section():
    bare = dataclasses.replace(comparison([2.6], metrics=FEW), attribution="")
    page = Parsed(render(bare, judge(bare)))
    assert "Under each arm" not in page.text and "Where the clips come from" not in page.text
