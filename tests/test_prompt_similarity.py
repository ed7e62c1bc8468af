"""CLIP similarity with a small model of the real class: against transformers itself, and never online."""

import pytest
import torch
from transformers import CLIPModel, CLIPTokenizer

from sat_ssvae.errors import UserError
from sat_ssvae.metrics.prompt_similarity import PromptSimilarity

from .small_clip import small_clip

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small_clip(tmp_path_factory.mktemp("clip") / "model")


def test_is_the_cosine_that_transformers_computes(folder):
    video = torch.rand(3, 4, 32, 32) * 2 - 1
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)
    mean, std = (
        torch.tensor(values).view(3, 1, 1)
        for values in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    )
    pixels = ((video.transpose(0, 1) + 1) / 2 - mean) / std
    with torch.no_grad():
        logits = model(**tokenizer(["a red car"], return_tensors="pt"), pixel_values=pixels).logits_per_image
        expected = 100 * float((logits / model.logit_scale.exp()).mean())
    assert PromptSimilarity(str(folder), CPU)(video, "a red car") == pytest.approx(expected, abs=1e-3)


def test_large_frames_and_long_prompts_are_cut_to_what_the_model_takes(folder):
    similarity = PromptSimilarity(str(folder), CPU)
    square = torch.rand(3, 12, 32, 32) * 2 - 1
    wide = torch.nn.functional.pad(square, (40, 40))  # scaled to cover the square, so both sides fall away
    assert similarity(wide, "a red car") == pytest.approx(similarity(square, "a red car"), abs=1e-3)
    assert abs(similarity(square, "a very long prompt " * 40)) <= 100
    assert similarity(square, "a red car") != pytest.approx(similarity(square, "blue sky"), abs=1e-6)


def test_what_is_no_clip_model_on_this_machine(folder, tmp_path):
    with pytest.raises(UserError, match=r"clip=.*gone: no CLIP model on this machine"):
        PromptSimilarity(str(tmp_path / "gone"), CPU)
    with pytest.raises(UserError, match="no CLIP model on this machine"):
        PromptSimilarity("sat-ssvae-tests/not-in-the-cache", CPU)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="a model of type bert; give one of type clip"):
        PromptSimilarity(str(tmp_path), CPU)
