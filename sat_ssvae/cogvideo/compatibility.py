"""Do the numbers of a CogVideoX configuration fit together?

    configuration = merge(["configs/cogvideox_2b.yaml", "configs/sft.yaml", "cogvideox_2b_5b.yaml"])
    findings = check(configuration)

A latent of 48 channels at 4x16x16 changes many numbers that CogVideoX's files state independently of each other. Some
wrong ones crash late with an unrelated message, and some misalign the position embedding silently.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..errors import UserError
from ..latents.shards import LatentInfo
from .first_stage import SSVAEFirstStage
from .sat_transformer import TransformerSizes, read_transformer

Era = Literal["v1.0", "main"]

NETWORK = "model.network_config.params"
V1_SAMPLING_SIZE = (480, 720)
"""(height, width) that v1.0's sample_video.py always samples, whatever the configuration says."""
INTERPOLATED_ROWS = 16
"""Rows of tokens over which 2B's position embedding stretches any grid: height_interpolation is rows / 16."""
DEFAULTS = {"args.latent_channels": 32, "args.sampling_num_frames": 32, "model.scale_factor": 1.0}
"""CogVideoX's values where a configuration has none."""


@dataclass(frozen=True)
class Finding:
    """A setting that does not fit the others."""

    key: str
    found: Any
    expected: str
    reason: str

    def __str__(self) -> str:
        return f"{self.key} is {self.found}, must be {self.expected}: {self.reason}"


def merge(files: Sequence[str | Path]) -> dict[str, Any]:
    """What CogVideoX makes of its `--base` files: later ones change and add keys.

    Raises:
        UserError: a file is missing or not readable as a YAML mapping.
    """
    try:
        merged = OmegaConf.merge({}, *[OmegaConf.load(file) for file in files])  # a list does not merge with a mapping
        return cast(dict[str, Any], OmegaConf.to_container(merged, resolve=True))
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: no such configuration file") from None
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, TypeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{' '.join(map(str, files))}: not readable YAML configurations ({reason})") from None


def check(configuration: dict[str, Any], era: Era | None = None) -> list[Finding]:
    """Everything that does not fit, in the order of reading; the first stage is built as CogVideoX would.

    Args:
        configuration: a merged one, see `merge`.
        era: CogVideoX's state; None to tell it by the form of patch_size, a number in v1.0 and a list on main.

    Raises:
        UserError: there is nothing to check against: no SSVAE first stage, one that cannot be built, or a transformer
            whose numbers are missing.
    """
    settings = Settings(configuration)
    target = settings.get("model.first_stage_config.target")
    if not str(target).endswith(".SSVAEFirstStage"):
        raise UserError(
            f"model.first_stage_config.target is {target}; give an overlay of cogvideo_configs/ after the stock files"
        )
    stage = SSVAEFirstStage(**(settings.get("model.first_stage_config.params") or {}))
    checks = _Checks(settings, stage, era or ("main" if isinstance(settings.network("patch_size"), list) else "v1.0"))
    return list(checks.findings())


def check_process(stage: SSVAEFirstStage) -> None:
    """Refuse the configuration of CogVideoX's script that this process runs; in any other process do nothing.

    Raises:
        UserError: what does not fit, the first of it in full.
    """
    module = sys.modules.get("diffusion_video")
    if module is None or module.__file__ is None or "--base" not in sys.argv:
        return
    following = sys.argv[sys.argv.index("--base") + 1 :]
    files = list(takewhile(lambda text: not text.startswith("--"), following))
    era: Era = "main" if "fake_cp_size" in Path(module.__file__).read_text(encoding="utf-8") else "v1.0"
    findings = list(_Checks(Settings(merge(files)), stage, era).findings())
    if findings:
        more = f" (and {len(findings) - 1} more: sat-ssvae cogvideo check --base FILES)" if len(findings) > 1 else ""
        raise UserError(f"{findings[0]}{more}")


class Settings:
    """A merged configuration, read by dotted keys; what is missing has CogVideoX's default, or is None."""

    def __init__(self, configuration: dict[str, Any]) -> None:
        self._values = configuration

    def get(self, key: str) -> Any:
        """The value at `model.network_config.params.in_channels`, say."""
        value: Any = self._values
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return DEFAULTS.get(key) if value is None else value

    def required(self, key: str) -> Any:
        """The value of a key that CogVideoX's own files have.

        Raises:
            UserError: it is missing.
        """
        value = self.get(key)
        if value is None:
            raise UserError(f"{key} is missing; give the stock files before the overlay")
        return value

    def network(self, name: str) -> Any:
        """A parameter of the transformer."""
        return self.get(f"{NETWORK}.{name}")

    def required_network(self, name: str) -> Any:
        """A parameter of the transformer that the stock files have, see `required`."""
        return self.required(f"{NETWORK}.{name}")

    @property
    def samples(self) -> bool:
        """Whether this is a configuration for sample_video.py."""
        return bool(self.get("args.mode") == "inference")

    @property
    def has_images(self) -> bool:
        """Whether an image's latent is concatenated."""
        return bool(self.get("model.noised_image_input"))

    @property
    def patch(self) -> tuple[int, int, int]:
        """Patch (time, height, width) of the transformer."""
        patch = self.required_network("patch_size")
        return (1, patch, patch) if isinstance(patch, int) else tuple(patch)

    def transformer(self) -> TransformerSizes:
        """Shapes of the transformer's tensors that depend on the latents.

        Raises:
            UserError: a number is missing.
        """
        return TransformerSizes(
            hidden=self.required_network("hidden_size"),
            in_channels=self.required_network("in_channels"),
            out_channels=self.required_network("out_channels"),
            patch=self.patch,
            flat_patch=isinstance(self.required_network("patch_size"), list),
            text_positions=self.network("modules.pos_embed_config.params.text_length") or 0,
            video_positions=self._video_positions(),
            rotary_size=self.network("modules.pos_embed_config.params.hidden_size_head"),
        )

    def _video_positions(self) -> int:
        names = ("num_frames", "time_compressed_rate", "latent_height", "latent_width")
        frames, rate, height, width = map(self.required_network, names)
        _, rows, columns = self.patch
        return int(((frames - 1) // rate + 1) * (height // rows) * (width // columns))


class _Checks:
    def __init__(self, settings: Settings, stage: SSVAEFirstStage, era: Era) -> None:
        self.settings = settings
        self.era = era
        self.channels = stage.vae.config.latent_channels
        self.space = stage.vae.spatial_factor
        self.time = stage.vae.temporal_factor
        self.stats = stage.stats
        self.gives_latents = not settings.samples and str(settings.get("data.target")).endswith(".LatentDataset")
        self.latents: list[LatentInfo] = []

    def findings(self) -> Iterator[Finding]:
        yield from self._forms()
        yield from self._channels()
        yield from self._latents()
        for key, size in self._sizes():
            yield from self._grid(key, size)
        yield from self._sampling_frames() if self.settings.samples else self._training_frames()
        yield from self._data()
        yield from self._lora()
        yield from self._checkpoint()

    def _is(self, key: str, expected: Any, reason: str) -> Iterator[Finding]:
        found = self.settings.get(key)
        if found != expected:
            yield Finding(key, found, str(expected), reason)

    def _forms(self) -> Iterator[Finding]:
        patch = self.settings.network("patch_size")
        if self.era == "main" and isinstance(patch, int):
            yield Finding(f"{NETWORK}.patch_size", patch, f"[1, {patch}, {patch}]", "main takes [time, height, width]")
        if self.era == "v1.0" and isinstance(patch, list):
            yield Finding(f"{NETWORK}.patch_size", patch, str(patch[-1]), "v1.0 takes one number, for space")
        table = f"{NETWORK}.modules.pos_embed_config.params"
        if self.era == "main" and "height_interpolation" in (self.settings.get(table) or {}):
            yield Finding(
                f"{table}.height_interpolation",
                self.settings.get(f"{table}.height_interpolation"),
                f"under {NETWORK}",
                "main passes it on from there, and gets it twice; 2B and 5B belong to v1.0",
            )

    def _channels(self) -> Iterator[Finding]:
        c = self.channels
        yield from self._is("model.scale_factor", 1.0, "the first stage standardises its latents")
        inputs, why = (2 * c, "latents and the image's") if self.settings.has_images else (c, "the latents'")
        yield from self._is(f"{NETWORK}.in_channels", inputs, f"{why} channels")
        yield from self._is(f"{NETWORK}.out_channels", c, "the latents' channels")
        yield from self._is(f"{NETWORK}.time_compressed_rate", self.time, "frames per latent frame")
        if self.settings.samples:
            yield from self._is("args.latent_channels", c, "the latents' channels")

    def _latents(self) -> Iterator[Finding]:
        """Reads what the folders of encoded latents say of themselves."""
        for folder in self.settings.get("args.train_data") or [] if self.gives_latents else []:
            try:
                info = LatentInfo.read(Path(folder))
            except UserError as error:
                yield Finding("args.train_data", folder, "a folder of latents", str(error))
                continue
            self.latents.append(info)
            if (list(info.latent_mean), list(info.latent_std)) != (self.stats.mean.tolist(), self.stats.std.tolist()):
                why = "its latents are standardised with other statistics"
                yield Finding("args.train_data", folder, "encoded with the autoencoder of ckpt_path", why)

    def _sizes(self) -> Iterator[tuple[str, Sequence[int]]]:
        """(key, (height, width)) of the videos that are made or trained on."""
        if self.gives_latents:
            for info in self.latents:
                yield "args.train_data's size", [size * self.space for size in info.shape[2:]]
            return
        if not self.settings.samples:
            keys = ["data.params.video_size"]
        elif self.era == "v1.0":
            yield "sample_video.py's fixed size", V1_SAMPLING_SIZE
            return
        else:  # an image's form decides, else the configuration
            keys = [] if self.settings.get("args.image2video") else ["args.sampling_image_size"]
        for key in keys:
            if size := self.settings.get(key):
                yield key, size

    def _grid(self, key: str, size: Sequence[int]) -> Iterator[Finding]:
        patch = self.settings.patch[1:]
        steps = [self.space * p for p in patch]
        if any(pixels % step for pixels, step in zip(size, steps, strict=True)):
            nearest = [max(round(pixels / step), 1) * step for pixels, step in zip(size, steps, strict=True)]
            yield Finding(
                key, list(size), str(nearest), f"multiples of {steps}, {self.space} pixels a latent times the patch"
            )
            return
        rotary = "Rotary" in str(self.settings.network("modules.pos_embed_config.target"))
        for name, pixels in zip(("latent_height", "latent_width"), size, strict=True):
            grid, table = pixels // self.space, self.settings.network(name)
            if self.era == "main" and rotary:
                if table is None or table < grid:
                    yield Finding(f"{NETWORK}.{name}", table, f"at least {grid}", f"{key} is {list(size)}")
            elif table != grid:
                yield Finding(
                    f"{NETWORK}.{name}", table, str(grid), f"{key} is {list(size)}; another grid misaligns positions"
                )
        yield from self._interpolation(size[0] // self.space // patch[0])

    def _interpolation(self, rows: int) -> Iterator[Finding]:
        table = f"{NETWORK}.modules.pos_embed_config.params"
        for name in ("height_interpolation", "width_interpolation"):
            found = self.settings.get(f"{table}.{name}")
            if found is not None and not math.isclose(found, rows / INTERPOLATED_ROWS):
                why = f"{rows} rows of tokens over the {INTERPOLATED_ROWS} that the weights know"
                yield Finding(f"{table}.{name}", found, str(rows / INTERPOLATED_ROWS), why)

    def _training_frames(self) -> Iterator[Finding]:
        if self.gives_latents:
            for info in self.latents:
                yield from self._video_frames("args.train_data's frames", info.num_frames)
        elif frames := self.settings.get("data.params.max_num_frames"):
            yield from self._video_frames("data.params.max_num_frames", frames)

    def _video_frames(self, key: str, frames: int) -> Iterator[Finding]:
        patch = self.settings.patch[0]
        step = self.time * patch
        offset = (patch - 1) * self.time + 1
        if (frames - offset) % step or frames < offset:
            nearest = max(round((frames - offset) / step), 0) * step + offset
            why = f"{self.time}k + 1 frames" + (f", a multiple of {patch} latent frames" if patch > 1 else "")
            yield Finding(key, frames, str(nearest), why)
        longest = self.settings.required_network("num_frames")
        if frames > longest:
            yield Finding(f"{NETWORK}.num_frames", longest, f"at least {frames}", f"{key} is {frames}")

    def _sampling_frames(self) -> Iterator[Finding]:
        key = "args.sampling_num_frames"
        latents, patch = self.settings.get(key), self.settings.patch[0]
        frames = self.settings.required_network("num_frames")
        longest = (frames - 1) // self.time + 1
        if latents > longest:
            yield Finding(key, latents, f"at most {longest}", f"num_frames is {frames}")
        if latents % patch:
            yield Finding(
                key, latents, str(latents // patch * patch or patch), f"the patch spans {patch} latent frames"
            )
        if self.era == "v1.0" and (latents < 3 or latents % 2 == 0):
            yield Finding(
                key, latents, str(max(latents - 1, 3)), "v1.0 decodes three latent frames, then two at a time"
            )

    def _data(self) -> Iterator[Finding]:
        if self.settings.samples:
            return
        if self.gives_latents and self.settings.has_images:
            why = "image to video needs the image in front of the encoder"
            yield Finding("data.target", self.settings.get("data.target"), "data_video.SFTDataset", why)
        elif bool(self.settings.get("model.latent_input")) != self.gives_latents:
            why = f"data.target is {self.settings.get('data.target')}"
            yield from self._is("model.latent_input", self.gives_latents, why)

    def _lora(self) -> Iterator[Finding]:
        frozen = self.settings.get("model.not_trainable_prefixes") or []
        if "all" in frozen and not self.settings.samples:
            why = "the first and last layer are new and must be trained"
            yield Finding("model.not_trainable_prefixes", frozen, "those of cogvideox_lora.yaml", why)

    def _checkpoint(self) -> Iterator[Finding]:
        folder = self.settings.get("args.load")
        if folder is None:
            return
        try:
            misfits = self.settings.transformer().misfits(read_transformer(Path(folder)))
        except UserError as error:
            yield Finding("args.load", folder, "a transformer's folder, or null to start afresh", str(error))
            return
        if misfits:
            name, found, expected = misfits[0]
            why = f"{name} there is {found} instead of {expected}; sat-ssvae cogvideo adapt leaves such tensors out"
            yield Finding("args.load", folder, "a transformer for these latents", why)
