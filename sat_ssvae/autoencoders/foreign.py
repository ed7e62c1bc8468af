"""The autoencoders that SSVAE is compared with, opened by one specification and used through one interface.

    vae = open_autoencoder("runs/my_vae/vae")                 # an SSVAE: folder, .safetensors or published .pth
    vae = open_autoencoder("wan2.2:Wan-AI/Wan2.2-TI2V-5B-Diffusers")      # KIND:PATH_OR_ID, through diffusers
    posterior = vae.encode(video)                             # B 3 T H W in [-1, 1] -> b c t h w
    z = normalized(vae, posterior.mode())                     # what a diffusion model of this autoencoder sees
    video = vae.decode(posterior.mode())

`vae.latent_stats` is the normalisation that the autoencoder itself defines: scale, shift, or statistics per channel.
"""

import json
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..vae.autoencoder import SSVAE
from ..vae.posterior import LOGVAR_RANGE, Posterior
from ..vae.sizes import latent_size
from ..vae.statistics import LatentStats

if TYPE_CHECKING:
    from diffusers import ModelMixin

_FRAMES_AT_ONCE = 8  # of an image autoencoder


class Kind(NamedTuple):
    """What a KIND of specification must find in the config.json of a diffusers model."""

    class_name: str | None
    """The diffusers class; None takes any that config.json names."""
    residual: bool | None = None
    """Whether the class's residual variant is meant; None where it has none."""


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "cogvideox": Kind("AutoencoderKLCogVideoX"),
        "wan2.1": Kind("AutoencoderKLWan", residual=False),
        "wan2.2": Kind("AutoencoderKLWan", residual=True),
        "modelscope": Kind("AutoencoderKL"),  # Stable Diffusion's, frame by frame
        "diffusers": Kind(None),
    }
)


class DiffusersAutoencoder(nn.Module):
    """A causal video autoencoder of diffusers: T = f k + 1 frames become k + 1 latent frames, f = `temporal_factor`.

    It takes T = `frame_step` k + 1, where `frame_step` is f or a multiple of it.

    Args:
        vae: an instance of a diffusers class with `encode` and `decode` of `B C T H W`.

    Raises:
        UserError: the class does not tell its compression or its latent channels, or its statistics do not fit them.
    """

    def __init__(self, vae: "ModelMixin") -> None:
        super().__init__()
        self.vae: Any = vae
        self.spatial_factor, self.temporal_factor = self._factors()
        # CogVideoX decodes latent frames in pairs after the first: of an even number it makes too many frames.
        self.frame_step = self.temporal_factor * (2 if self.name == "AutoencoderKLCogVideoX" else 1)
        self.latent_channels = self._setting("latent_channels", "z_dim")
        self.latent_stats = self._stats()

    @property
    def name(self) -> str:
        """The diffusers class."""
        return type(self.vae).__name__

    def latent_size(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Latent (t, h, w) of a video of this size.

        Raises:
            UserError: the size does not fit; the message names the nearest that do.
        """
        _, h, w = latent_size((num_frames, height, width), self.frame_step, self.spatial_factor, self.name)
        return (num_frames - 1) // self.temporal_factor + 1, h, w

    def encode(self, x: Tensor) -> Posterior:
        """Posterior, not normalised, of a video `B C T H W` in [-1, 1].

        An autoencoder without one gives a point: the log-variance is the lowest that a `Posterior` has.

        Raises:
            UserError: the shape does not fit, or the class compresses in another way than `T = f k + 1`.
        """
        if x.ndim != 5:
            raise UserError(f"video: expected B C T H W, found {tuple(x.shape)}")
        expected = (len(x), self.latent_channels, *self.latent_size(*x.shape[2:]))
        posterior = self._posterior(x)
        if posterior.mean.shape != expected:
            found = f"latents {tuple(posterior.mean.shape)} instead of {expected} for a video {tuple(x.shape)}"
            raise UserError(f"{self.name}: {found}; this class does not fit the interface of causal video autoencoders")
        return posterior

    def decode(self, z: Tensor) -> Tensor:
        """Video `B C T H W`, about [-1, 1], of latents `b c t h w` that are not normalised."""
        return self.vae.decode(z).sample

    def _posterior(self, x: Tensor) -> Posterior:
        output = self.vae.encode(x)
        if (distribution := getattr(output, "latent_dist", None)) is not None:
            return Posterior(distribution.mean, distribution.logvar)
        latents = output[0]
        return Posterior(latents, torch.full_like(latents, LOGVAR_RANGE[0]))

    def _factors(self) -> tuple[int, int]:
        """Compression in space and in time."""
        time = self._setting("temporal_compression_ratio", "scale_factor_temporal")
        if self.name == "AutoencoderKLCogVideoX":  # the one that leaves it to the number of its blocks
            return 2 ** (len(self.vae.config.block_out_channels) - 1), time
        return self._setting("spatial_compression_ratio", "scale_factor_spatial"), time

    def _setting(self, *names: str) -> int:
        """An attribute of the class, or an entry of its configuration, under the first name that it has."""
        for name in names:
            value = self.vae.config.get(name)
            if value is None:  # some classes compute it from other entries
                value = vars(self.vae).get(name)
            if value is not None:
                return int(value)
        raise UserError(f"{self.name}: its configuration has no {names[0]}; is it a video autoencoder?")

    def _stats(self) -> LatentStats | None:
        """(z - mean) / std * scale or (z - shift) * scale, as the pipelines of the class normalise latents."""
        config = self.vae.config
        scale, shift = config.get("scaling_factor") or 1.0, config.get("shift_factor") or 0.0
        known = {**dict(self.vae.named_buffers()), **config}
        mean, std = known.get("latents_mean"), known.get("latents_std")
        if mean is None and std is None and scale == 1.0 and shift == 0.0:
            return None
        ones = torch.ones(self.latent_channels)
        mean = shift * ones if mean is None else torch.as_tensor(mean, dtype=torch.float32).flatten().cpu()
        std = ones if std is None else torch.as_tensor(std, dtype=torch.float32).flatten().cpu()
        if len(mean) != self.latent_channels:
            raise UserError(f"{self.name}: statistics of {len(mean)} channels for latents of {self.latent_channels}")
        return LatentStats(mean, std / scale)


class FrameAutoencoder(DiffusersAutoencoder):
    """An image autoencoder of diffusers (`AutoencoderKL`), applied to each frame: no compression in time."""

    def decode(self, z: Tensor) -> Tensor:
        """Video `B C T H W`, about [-1, 1], of latents `b c t h w` that are not normalised."""
        return _per_frame(lambda frames: self.vae.decode(frames).sample, z)

    def _posterior(self, x: Tensor) -> Posterior:
        moments = _per_frame(lambda frames: self.vae.encode(frames).latent_dist.parameters, x)
        return Posterior.from_moments(moments)

    def _factors(self) -> tuple[int, int]:
        return 2 ** (len(self.vae.config.block_out_channels) - 1), 1


VideoAutoencoder = SSVAE | DiffusersAutoencoder
"""What `open_autoencoder` returns: encode, decode, latent_size, latent_channels, latent_stats and the factors."""


def open_autoencoder(specification: str) -> VideoAutoencoder:
    """The autoencoder of `PATH` (an SSVAE) or `KIND:PATH_OR_ID`, in float32 on the CPU, in evaluation mode.

    PATH_OR_ID is a folder that diffusers wrote, of the autoencoder alone or of a whole pipeline, or a name on the
    Hugging Face hub.

    Raises:
        UserError: an unknown kind, nothing there, or another autoencoder than the kind says.
    """
    kind, colon, place = specification.partition(":")
    if not colon or Path(specification).exists():
        return SSVAE.from_pretrained(specification).for_inference()
    if kind not in KINDS or not place:
        known = ", ".join(KINDS)
        raise UserError(f"{specification}: expected the path of an SSVAE, or KIND:PATH_OR_ID with a KIND of {known}")
    import diffusers

    subfolder, config = _find_config(place)
    name, residual = str(config.get("_class_name")), bool(config.get("is_residual"))
    wanted = KINDS[kind]
    if (wanted.class_name or name) != name or wanted.residual not in (None, residual):
        raise UserError(f"{place}: holds a{' residual' * residual} {name}, which is not {kind}; try diffusers:{place}")
    cls = getattr(diffusers, name, None)
    if cls is None:
        raise UserError(f"{place}: diffusers {diffusers.__version__} has no class {name}")
    vae = _load(cls, place, subfolder)
    return (FrameAutoencoder(vae) if name == "AutoencoderKL" else DiffusersAutoencoder(vae)).eval()


def describe(vae: VideoAutoencoder) -> dict[str, Any]:
    """Sizes and, for another autoencoder than SSVAE, the diffusers class and the rest of its configuration, as JSON."""
    if isinstance(vae, SSVAE):
        return vae.config.model_dump(mode="json")
    known = {name: value for name, value in vae.vae.config.items() if not name.startswith("_")}
    plain: dict[str, Any] = json.loads(json.dumps({"class": vae.name, **known}, default=str))
    return plain


def normalized(vae: VideoAutoencoder, z: Tensor) -> Tensor:
    """Latents `b c t h w` as a diffusion model of this autoencoder sees them: scaled and shifted as it defines."""
    return z if vae.latent_stats is None else vae.latent_stats.standardize(z)


def denormalized(vae: VideoAutoencoder, z: Tensor) -> Tensor:
    """The inverse of `normalized`: what `vae.decode` takes."""
    return z if vae.latent_stats is None else vae.latent_stats.unstandardize(z)


def _find_config(place: str) -> tuple[str | None, dict[str, Any]]:
    """Where the autoencoder lies in `place`, "vae" in a pipeline's folder, and its configuration."""
    from diffusers import AutoencoderKL

    subfolders: tuple[str | None, ...] = ("vae", None)
    if Path(place).is_dir():
        subfolders = ("vae",) if (Path(place) / "vae" / "config.json").is_file() else (None,)
    problems = []
    for subfolder in subfolders:
        try:
            return subfolder, dict(AutoencoderKL.load_config(place, subfolder=subfolder))
        except (OSError, ValueError) as error:
            problems.append(_one_line(error))
    raise UserError(f"{place}: no autoencoder of diffusers there ({problems[-1]})")


def _load(cls: Any, place: str, subfolder: str | None) -> "ModelMixin":
    options = {"torch_dtype": torch.float32, "low_cpu_mem_usage": find_spec("accelerate") is not None}
    try:
        vae, report = cls.from_pretrained(place, subfolder=subfolder, output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise UserError(f"{place}: not a readable {cls.__name__} ({_one_line(error)})") from None
    if missing := report["missing_keys"] + report["mismatched_keys"]:
        raise UserError(f"{place}: {len(missing)} tensors of {cls.__name__} are missing, the first is {missing[0]}")
    return vae


def _per_frame(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a function of images N C H W to each frame of B C T H W, a few at a time."""
    frames = x.movedim(2, 1).flatten(0, 1)
    done = torch.cat([function(part) for part in frames.split(_FRAMES_AT_ONCE)])
    return done.unflatten(0, (len(x), x.shape[2])).movedim(1, 2)


def _one_line(error: Exception, length: int = 200) -> str:
    return " ".join(str(error).split())[:length]
