"""The text encoder, with its real weights."""

import pytest
import torch

from sat_ssvae.assets import fetch
from sat_ssvae.diffusion.text import TextEncoder, encode_captions
from sat_ssvae.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def encoder():
    return TextEncoder(fetch("minilm"), CPU)


def test_states_have_the_asked_length_and_zero_padding(encoder):
    states = encoder.encode(["a dog runs", "a " * 50, ""], length=8)
    assert states.shape == (3, 8, 384)
    for tokens, count in zip(states, (5, 8, 2), strict=True):  # [CLS] and [SEP] count
        assert tokens[:count].abs().sum(dim=-1).min() > 0
        assert not tokens[count:].any()


def test_meaning_is_closer_than_wording(encoder):
    texts = ["a dog runs over the lawn", "a puppy is playing on the grass", "the stock market fell today"]
    states = encoder.encode(texts, length=16)
    pooled = states.sum(dim=1) / states.any(-1).sum(dim=1, keepdim=True)
    similarity = torch.nn.functional.normalize(pooled, dim=-1) @ torch.nn.functional.normalize(pooled, dim=-1).T
    assert similarity[0, 1] > similarity[0, 2] + 0.2


def test_a_text_is_encoded_the_same_alone_and_in_a_batch(encoder):
    together = encoder.encode(["a red car", "snow falls on a quiet village at night"], length=12)
    alone = encoder.encode(["a red car"], length=12)
    torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=1e-4)


def test_each_distinct_caption_is_encoded_once(encoder):
    captions = ["b", "a", "b", "", "a"]
    text = encode_captions(encoder, captions, length=4, batch_size=2)
    assert text.states.shape == (3, 4, 384)
    for clip, caption in enumerate(captions):
        torch.testing.assert_close(text[torch.tensor([clip])][0], encoder.encode([caption], 4)[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(text.empty, text[torch.tensor([3])][0], atol=1e-5, rtol=1e-4)


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(UserError, match="not a text encoder"):
        TextEncoder(tmp_path, CPU)
