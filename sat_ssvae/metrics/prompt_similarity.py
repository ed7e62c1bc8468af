"""CLIP similarity of videos to their prompts, with a model that is already on this machine.

    similarity = PromptSimilarity("models/clip-vit-base-patch32", device)
    similarity(video, "a red car")          # 3 T H W in [-1, 1] -> 100 x cosine, the mean over frames

CLIP is arXiv 2103.00020; 100 x cosine is CLIPScore (arXiv 2104.08718) without its factor of 2.5. Nothing is downloaded.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError, first_line
from ..spacing import evenly_spaced

_FRAMES = 8


class PromptSimilarity:
    """A CLIP model and its tokenizer.

    `model`: a folder as transformers saves it, or the name of a model in its cache.

    Raises:
        UserError: no such model on this machine, or another kind of model.
        ModuleNotFoundError: transformers is not installed.
    """

    def __init__(self, model: str, device: torch.device) -> None:
        from transformers import AutoConfig, AutoTokenizer, CLIPModel
        from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

        try:
            kind = AutoConfig.from_pretrained(model, local_files_only=True).model_type
            if kind != "clip":
                raise UserError(f"clip={model}: a model of type {kind}; give one of type clip")
            self._tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
            network = CLIPModel.from_pretrained(model, local_files_only=True)
        except (OSError, ValueError) as error:
            reason = first_line(error).rstrip(".")
            raise UserError(f"clip={model}: no CLIP model on this machine ({reason}); give its folder") from None
        self.network, self._device = network.eval().to(device).requires_grad_(False), device
        sizes = network.config.to_dict()
        self._size: int = sizes["vision_config"]["image_size"]
        self._length: int = sizes["text_config"]["max_position_embeddings"]
        self._mean, self._std = (
            torch.tensor(values, device=device).view(3, 1, 1) for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
        )

    @torch.no_grad()
    def __call__(self, video: Tensor, prompt: str) -> float:
        """100 x the cosine of image and text embeddings, the mean over at most 8 evenly spaced frames.

        video: `3 T H W` in [-1, 1]; frames are scaled to cover CLIP's square and cropped at the centre. The prompt is
        cut to the model's length.
        """
        frames = video[:, evenly_spaced(video.shape[1], _FRAMES)].transpose(0, 1).to(self._device, torch.float32)
        scale = self._size / min(frames.shape[-2:])
        height, width = (max(self._size, round(side * scale)) for side in frames.shape[-2:])
        frames = F.interpolate(frames, size=(height, width), mode="bicubic", align_corners=False, antialias=True)
        top, left = (height - self._size) // 2, (width - self._size) // 2
        pixels = (frames[..., top : top + self._size, left : left + self._size].clamp(-1, 1) + 1) / 2
        tokens = self._tokenizer([prompt], truncation=True, max_length=self._length, return_tensors="pt")
        found = self.network(
            input_ids=tokens["input_ids"].to(self._device),
            attention_mask=tokens["attention_mask"].to(self._device),
            pixel_values=(pixels - self._mean) / self._std,
        )
        return float(100 * F.cosine_similarity(found.image_embeds, found.text_embeds).mean())
