"""Do the numbers of a CogVideoX configuration fit each other, and the latents of its first stage?

    config = SATConfig(merge_configs(["configs/cogvideox_2b.yaml", "configs/sft.yaml", "cogvideox_2b_5b.yaml"]))
    for mismatch in find_mismatches(config, build_first_stage(config).latent_format):
        print(mismatch)

A latent of 48 channels at 4x16x16 changes many numbers that CogVideoX's files state independently of each other. Some
wrong numbers crash late with an unrelated message, and some misalign the position embedding silently.
"""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from ..errors import UserError
from ..latents.dataset import LatentInfo, latent_folders
from ..vae.statistics import LatentStats
from .sat_config import NETWORK, POSITIONS, VALUE_FORMS, Era, SATConfig, era_of, imported_checkout, merge_configs
from .sat_transformer import read_transformer, sat_loads
from .sections import Mismatch, find_broken_sections

V1_SAMPLING_SIZE = (480, 720)
"""(height, width) that v1.0's sample_video.py always samples, whatever the configuration says."""
OWN_OVERLAYS: Mapping[Era, tuple[str, str]] = MappingProxyType(
    {
        "v1.0": ("CogVideoX-2B or 5B", "cogvideox_2b_5b.yaml or cogvideox_5b_i2v.yaml"),
        "main": ("CogVideoX1.5", "cogvideox1.5_5b.yaml or cogvideox1.5_5b_i2v.yaml"),
    }
)
"""The models of each version of CogVideoX, and the overlays for them."""
NORMALISED = f"{NETWORK}.modules.adaln_layer_config.params.qk_ln"
POSITION_CHANNELS = 16
"""What a head's channels with rotary positions, and all channels with added ones, must be a multiple of."""
INTERPOLATED_TOKENS = 16
"""Tokens to which 2B's position embedding scales the short side of any grid; both interpolations are tokens / 16."""


@dataclass(frozen=True)
class LatentFormat:
    """What a configuration must fit: the form of an autoencoder's latents."""

    channels: int
    spatial_factor: int
    """Pixels per latent position, in height and width."""
    temporal_factor: int
    """Frames per latent frame, after the first."""
    statistics: LatentStats
    """By which the latents were standardised."""


def find_mismatches(
    config: SATConfig, latents: LatentFormat, era: Era | None = None, checkout: Path | None = None
) -> list[Mismatch]:
    """Everything that does not fit, in the order in which one reads a configuration.

    Args:
        config: the merged configuration.
        latents: what it must fit.
        era: CogVideoX's version; None tells it by the form of patch_size, a number in v1.0 and a list on main.
        checkout: CogVideoX's sat folder, in which classes are looked for; None to trust that they are there.

    Raises:
        UserError: a number of the transformer is missing, or a value has a wrong form.
    """
    if broken := find_broken_sections(config, checkout):  # where there may be no numbers
        return broken
    for key in VALUE_FORMS:
        config.get(key)
    return list(_Checks(config, latents, era or config.era).mismatches())


def check_running_script(latents: LatentFormat) -> None:
    """In a process that runs one of CogVideoX's scripts: refuse its configuration if a number does not fit.

    Raises:
        UserError: the first mismatch.
    """
    sat = imported_checkout()
    if sat is None or "--base" not in sys.argv:
        return
    following = sys.argv[sys.argv.index("--base") + 1 :]
    files = list(takewhile(lambda text: not text.startswith("--"), following))
    values = merge_configs(files)
    if "--image2video" in sys.argv:  # an option of the scripts, too
        values.setdefault("args", {}).setdefault("image2video", True)
    mismatches = find_mismatches(SATConfig(values), latents, era_of(sat), sat)
    if mismatches:
        others = len(mismatches) - 1
        more = f" (and {others} more: sat-ssvae cogvideo check --base FILES)" if others else ""
        raise UserError(f"{mismatches[0]}{more}")


class _Checks:
    def __init__(self, config: SATConfig, latents: LatentFormat, era: Era) -> None:
        self.config = config
        self.era = era
        self.channels, self.stats = latents.channels, latents.statistics
        self.space, self.time = latents.spatial_factor, latents.temporal_factor
        self.gives_latents = not config.samples and config.gives_latents
        self.latents: list[LatentInfo] = []

    def mismatches(self) -> Iterator[Mismatch]:
        if forms := list(self._forms()):  # of CogVideoX's other version, where the other numbers mean something else
            yield from forms
            return
        yield from self._channels()
        if not self.config.has_own_transformer:
            yield from self._heads()
        yield from self._text()
        yield from self._latents()
        for key, size in self._sizes():
            yield from self._grid(key, size)
        yield from self._sampling_frames() if self.config.samples else self._training_frames()
        yield from self._images()
        yield from self._data()
        yield from self._lora()
        yield from self._checkpoint()

    def _is(self, key: str, expected: Any, reason: str) -> Iterator[Mismatch]:
        found = self.config.get(key)
        if found != expected:
            yield Mismatch(key, found, str(expected), reason)

    def _forms(self) -> Iterator[Mismatch]:
        patch, stock = self.config.network("patch_size"), self.config.stock_era
        if patch is not None and stock is not None and stock != self.config.era:
            model, overlay = OWN_OVERLAYS[stock]
            why = f"the stock configuration is that of {model}, the overlay is not"
            yield Mismatch(f"{NETWORK}.patch_size", patch, f"that of {overlay}", why)
            return
        if self.era == "main" and isinstance(patch, int):
            why = "main takes [time, height, width]; 2B and 5B run on v1.0: git checkout v1.0"
            yield Mismatch(f"{NETWORK}.patch_size", patch, f"[1, {patch}, {patch}]", why)
        if self.era == "v1.0" and isinstance(patch, list):
            why = "v1.0 takes one number, for space; CogVideoX1.5 runs on main: git checkout main"
            yield Mismatch(f"{NETWORK}.patch_size", patch, str(patch[-1]), why)
        if self.era == "main" and "height_interpolation" in (self.config.get(POSITIONS) or {}):
            key = f"{POSITIONS}.height_interpolation"
            why = "main passes it on from there, and gets it twice; 2B and 5B belong to v1.0"
            yield Mismatch(key, self.config.get(key), f"under {NETWORK}", why)

    def _channels(self) -> Iterator[Mismatch]:
        c = self.channels
        yield from self._is("model.scale_factor", 1.0, "the first stage standardises its latents")
        inputs, why = (2 * c, "latents and the image's") if self.config.has_images else (c, "the latents'")
        yield from self._is(f"{NETWORK}.in_channels", inputs, f"{why} channels")
        yield from self._is(f"{NETWORK}.out_channels", c, "the latents' channels")
        yield from self._is(f"{NETWORK}.time_compressed_rate", self.time, "frames per latent frame")
        if self.config.samples:
            yield from self._is("args.latent_channels", c, "the latents' channels")

    def _heads(self) -> Iterator[Mismatch]:
        """Of the transformer alone, whatever its latents."""
        hidden, heads = (self.config.required_network(name) for name in ("hidden_size", "num_attention_heads"))
        self.config.required_network("num_layers")
        if hidden % heads:
            why = f"each head has as many of hidden_size's {hidden} channels"
            yield Mismatch(f"{NETWORK}.num_attention_heads", heads, f"a divisor of {hidden}", why)
        elif self.config.rotary:
            size = hidden // heads
            yield from self._is(f"{POSITIONS}.hidden_size_head", size, f"hidden_size {hidden} over {heads} heads")
            if size % POSITION_CHANNELS:
                why = f"{size} a head; positions in time, height and width share them as pairs"
                yield Mismatch(f"{NETWORK}.hidden_size", hidden, f"a multiple of {POSITION_CHANNELS * heads}", why)
            if self.era == "v1.0" and not self.config.samples and self.config.get(NORMALISED) is False:
                yield Mismatch(NORMALISED, False, "True", "v1.0's rotary positions train only on normalised queries")
        elif hidden % POSITION_CHANNELS:
            why = "sines and cosines of time, height and width share them"
            yield Mismatch(f"{NETWORK}.hidden_size", hidden, f"a multiple of {POSITION_CHANNELS}", why)
        offset, embedding = self.config.network("ofs_embed_dim"), self.config.network("time_embed_dim") or hidden
        if offset is not None and offset != embedding and self.config.samples:
            yield from self._is(f"{NETWORK}.ofs_embed_dim", embedding, "it is added to that of time_embed_dim")

    def _text(self) -> Iterator[Mismatch]:
        states = self.config.text_states
        if states is not None:
            key = f"{NETWORK}.modules.patch_embed_config.params.text_hidden_size"
            yield from self._is(key, states, f"the channels of the text encoder in {self.config.text_encoder}")
        tokens = self.config.encoded_tokens
        counted = self.era == "main" and self.config.rotary and not self.config.get(f"{POSITIONS}.learnable_pos_embed")
        if tokens is not None and not counted:  # which takes the number of tokens from the text
            why = "the text encoder's max_length; another number shifts all positions"
            yield from self._is(f"{POSITIONS}.text_length", tokens, why)

    def _latents(self) -> Iterator[Mismatch]:
        """Reads what the folders of encoded latents say of themselves."""
        places = self.config.folders("train_data") if self.gives_latents else []
        for folder in (str(folder) for place in places for folder in latent_folders(place)):
            try:
                info = LatentInfo.read(Path(folder))
            except UserError as error:
                yield Mismatch("args.train_data", folder, "a folder of latents", str(error))
                continue
            self.latents.append(info)
            if (list(info.latent_mean), list(info.latent_std)) != (self.stats.mean.tolist(), self.stats.std.tolist()):
                why = "its latents are standardised with other statistics"
                yield Mismatch("args.train_data", folder, "encoded with the autoencoder of ckpt_path", why)

    def _sizes(self) -> Iterator[tuple[str, Sequence[int]]]:
        """(key, (height, width)) of the videos that are made or trained on."""
        if self.gives_latents:
            for shape in (shape for info in self.latents for shape in info.shapes):
                yield "args.train_data's size", [size * self.space for size in shape[2:]]
            return
        if not self.config.samples:
            keys = ["data.params.video_size"]
        elif self.era == "v1.0":
            yield "sample_video.py's fixed size", V1_SAMPLING_SIZE
            return
        else:  # an image's form decides, else the configuration
            keys = [] if self.config.get("args.image2video") else ["args.sampling_image_size"]
        for key in keys:
            if size := self.config.get(key):
                yield key, size

    def _grid(self, key: str, size: Sequence[int]) -> Iterator[Mismatch]:
        patch = self.config.patch[1:]
        steps = [self.space * p for p in patch]
        if any(pixels % step for pixels, step in zip(size, steps, strict=True)):
            nearest = [max(round(pixels / step), 1) * step for pixels, step in zip(size, steps, strict=True)]
            yield Mismatch(
                key, list(size), str(nearest), f"multiples of {steps}, {self.space} pixels a latent times the patch"
            )
            return
        for name, pixels in zip(("latent_height", "latent_width"), size, strict=True):
            grid, table = pixels // self.space, self.config.network(name)
            if self.era == "main" and self.config.rotary:
                if table is None or table < grid:
                    yield Mismatch(f"{NETWORK}.{name}", table, f"at least {grid}", f"{key} is {list(size)}")
            elif table != grid:
                yield Mismatch(
                    f"{NETWORK}.{name}", table, str(grid), f"{key} is {list(size)}; another grid misaligns positions"
                )
        yield from self._interpolation(min(pixels // step for pixels, step in zip(size, steps, strict=True)))

    def _interpolation(self, tokens: int) -> Iterator[Mismatch]:
        table = NETWORK if self.era == "main" else POSITIONS
        for name in ("height_interpolation", "width_interpolation"):
            found = self.config.get(f"{table}.{name}")
            if found is not None and not math.isclose(found, tokens / INTERPOLATED_TOKENS):
                why = f"{tokens} tokens on the short side over the {INTERPOLATED_TOKENS} that the weights know"
                yield Mismatch(f"{table}.{name}", found, str(tokens / INTERPOLATED_TOKENS), why)

    def _training_frames(self) -> Iterator[Mismatch]:
        if self.gives_latents:
            for info in self.latents:
                yield from self._video_frames("args.train_data's frames", info.num_frames)
        elif frames := self.config.get("data.params.max_num_frames"):
            yield from self._video_frames("data.params.max_num_frames", frames)

    def _video_frames(self, key: str, frames: int) -> Iterator[Mismatch]:
        patch = self.config.patch[0]
        step = self.time * patch
        offset = (patch - 1) * self.time + 1
        if (frames - offset) % step or frames < offset:
            nearest = max(round((frames - offset) / step), 0) * step + offset
            why = f"{self.time}k + 1 frames" + (f", a multiple of {patch} latent frames" if patch > 1 else "")
            yield Mismatch(key, frames, str(nearest), why)
        longest = self.config.required_network("num_frames")
        if frames > longest:
            yield Mismatch(f"{NETWORK}.num_frames", longest, f"at least {frames}", f"{key} is {frames}")

    def _sampling_frames(self) -> Iterator[Mismatch]:
        key = "args.sampling_num_frames"
        latents, patch = self.config.get(key), self.config.patch[0]
        frames = self.config.required_network("num_frames")
        longest = (frames - 1) // self.time + 1
        if latents > longest:
            yield Mismatch(key, latents, f"at most {longest}", f"num_frames is {frames}")
        if latents % patch:
            yield Mismatch(
                key, latents, str(latents // patch * patch or patch), f"the patch spans {patch} latent frames"
            )
        if self.era == "v1.0" and (latents < 3 or latents % 2 == 0):
            yield Mismatch(
                key, latents, str(max(latents - 1, 3)), "v1.0 decodes three latent frames, then two at a time"
            )

    def _images(self) -> Iterator[Mismatch]:
        """Of image to video: the model wants an image's latent beside the noise, or it must not get one."""
        if self.config.samples and bool(self.config.get("args.image2video")) != self.config.has_images:
            state = "" if self.config.has_images else "not "
            why = f"the model was {state}made for an image's latent beside its input (model.noised_image_input)"
            yield from self._is("args.image2video", self.config.has_images, why)
        if not self.config.samples and self.config.network("ofs_embed_dim") is not None:
            yield from self._is(f"{NETWORK}.ofs_embed_dim", None, "train_video.py never gives the model this input")

    def _data(self) -> Iterator[Mismatch]:
        if self.config.samples:
            return
        if self.config.get("data.target") is None:
            why = "give configs/sft.yaml to train, or configs/inference.yaml to sample"
            yield Mismatch("data.target", None, "data_video.SFTDataset", why)
        places: tuple[Literal["train_data", "valid_data"], ...] = ("train_data", "valid_data")
        for place in places:
            key = f"args.{place}"
            found = self.config.get(key)
            if isinstance(found, str):
                yield Mismatch(key, found, f"[{found}]", "CogVideoX takes each letter of a word for a folder")
            elif self.config.has(key) and not self.config.folders(place):
                yield Mismatch(key, found, "[DATA]", "a list of folders")
        if self.gives_latents and self.config.has_images:
            why = "image to video needs the image in front of the encoder"
            yield Mismatch("data.target", self.config.get("data.target"), "data_video.SFTDataset", why)
        elif bool(self.config.get("model.latent_input")) != self.gives_latents:
            why = f"data.target is {self.config.get('data.target')}; to train on latents give latents.yaml last"
            yield from self._is("model.latent_input", self.gives_latents, why)

    def _lora(self) -> Iterator[Mismatch]:
        frozen = self.config.get("model.not_trainable_prefixes") or []
        if "all" in frozen and not self.config.samples:
            why = "the first and last layer are new and must be trained"
            yield Mismatch("model.not_trainable_prefixes", frozen, "those of cogvideox_lora.yaml", why)

    def _checkpoint(self) -> Iterator[Mismatch]:
        folder = self.config.get("args.load")
        if folder is None:
            return
        sizes = self.config.transformer()
        try:
            weights = read_transformer(Path(folder))
        except UserError as error:
            yield Mismatch("args.load", folder, "a transformer's folder, or null to start at random", str(error))
            return
        if difference := sizes.other_model(weights):
            yield Mismatch("args.load", folder, "a transformer of the configuration's size", difference)
        elif misfits := sizes.misfits(weights):
            name, found, expected = misfits[0]
            why = f"{name} there is {found} instead of {expected}; sat-ssvae cogvideo adapt leaves such tensors out"
            yield Mismatch("args.load", folder, "a transformer for these latents", why)
        elif not sat_loads(Path(folder)):
            why = f"SAT takes no other; it takes a copy: sat-ssvae cogvideo adapt {folder} NEW --base FILES"
            yield Mismatch("args.load", folder, "a folder with `latest`, in which there is a number or release", why)
