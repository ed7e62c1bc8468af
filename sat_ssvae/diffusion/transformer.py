"""A small CogVideoX-like diffusion transformer: text and video tokens in one sequence, expert layer norms.

    model = build_dit(DiTConfig(latent_channels=16, latent_size=(3, 8, 8)), seed=0)
    prediction = model(x, timestep)                      # x: b c t h w, timestep: b in [0, 1]

Read top to bottom: position rotation, attention, block, transformer. The design is CogVideoX's (arXiv
2408.06072, section 2.2): text and video tokens share attention and feed-forward weights, each modality has
its own modulation of the layer norms ("expert adaptive layer norm"), queries and keys are normalised, video
tokens carry a 3-D rotary position.

Shape letters: b batch, n tokens, w width, k heads, d width of a head, l text tokens.
"""

import math
from typing import Literal, cast

import torch
from einops import rearrange
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import Config
from ..engine.precision import autocast

_TIME_FREQUENCIES = 256  # sinusoids of the timestep; CogVideoX's `adm_in_channels`


class DiTSizes(Config):
    """Size of the transformer."""

    patch_size: tuple[int, int, int] = (1, 1, 1)
    """Latent positions that one token covers, (frames, height, width)."""
    width: int = Field(default=192, gt=0)
    """Width of a token."""
    depth: int = Field(default=6, gt=0)
    """Transformer blocks."""
    heads: int = Field(default=3, gt=0)
    """Attention heads; `width` must be a multiple of 16 * heads."""
    mlp_ratio: float = Field(default=4.0, gt=0)
    """Hidden width of the feed-forward network over `width`."""


class DiTConfig(DiTSizes):
    """Size of the transformer and of what it denoises."""

    latent_channels: int = Field(gt=0)
    """Channels of the latents."""
    latent_size: tuple[int, int, int]
    """Latent frames, height and width; multiples of `patch_size`."""
    text_dim: int = Field(default=0, ge=0)
    """Width of the text states joined to the video tokens; 0 trains without text."""
    text_length: int = Field(default=0, ge=0)
    """Text tokens per sample; 0 trains without text."""
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """What matrix products and attention compute in; parameters and residual stream are float32 anyway."""

    @model_validator(mode="after")
    def _check(self) -> "DiTConfig":
        if any(size < 1 for size in (*self.latent_size, *self.patch_size)):
            raise ValueError("latent_size and patch_size take positive integers")
        if any(size % patch for size, patch in zip(self.latent_size, self.patch_size, strict=True)):
            raise ValueError(f"patch_size {self.patch_size} does not divide latent_size {self.latent_size}")
        if self.width % (16 * self.heads):
            raise ValueError(f"width {self.width} is not a multiple of 16 * heads = {16 * self.heads}")
        if (self.text_dim > 0) != (self.text_length > 0):
            raise ValueError("set both text_dim and text_length for training with text, or neither")
        return self

    @property
    def grid(self) -> tuple[int, int, int]:
        """Video tokens along frames, height and width."""
        t, h, w = (size // patch for size, patch in zip(self.latent_size, self.patch_size, strict=True))
        return t, h, w

    @property
    def patch_dim(self) -> int:
        """Latent values in one token."""
        return self.latent_channels * math.prod(self.patch_size)


def rotary_angles(grid: tuple[int, int, int], head_dim: int) -> Tensor:
    """Angles of the 3-D rotary position embedding, (t*h*w, head_dim / 2) in radians.

    A quarter of a head's width turns with the frame, three eighths each with height and width (CogVideoX,
    arXiv 2408.06072, section 2.2); frequencies fall geometrically from 1 towards 1/10000 within each part.
    """
    parts = (head_dim // 4, head_dim * 3 // 8, head_dim * 3 // 8)
    frequencies = [10000.0 ** (-torch.arange(0, part, 2, dtype=torch.float64) / part) for part in parts]
    positions = torch.meshgrid(*(torch.arange(size, dtype=torch.float64) for size in grid), indexing="ij")
    angles = [
        position.flatten()[:, None] * frequency for position, frequency in zip(positions, frequencies, strict=True)
    ]
    return torch.cat(angles, dim=1).float()


def rotate(x: Tensor, phases: Tensor) -> Tensor:
    """Turn neighbouring pairs of values by their angles, in float32; x ... n d, phases (n, d/2) complex."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * phases).flatten(-2).to(x.dtype)


def timestep_features(timestep: Tensor) -> Tensor:
    """Sinusoids of 1000 * timestep, (b,) in [0, 1] -> (b, 256) float32."""
    half = _TIME_FREQUENCIES // 2
    frequencies = torch.exp(-math.log(10000.0) / half * torch.arange(half, device=timestep.device))
    angles = 1000.0 * timestep.float()[:, None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Scaled dot-product attention, b k n d.

    For short sequences in bfloat16 on a CPU two plain matrix products are used: forward and backward take
    half the time of torch's fused kernel there (10 against 20 ms for 16 samples of 192 tokens, 4 heads of 64,
    two Zen 5 cores).
    """
    if query.device.type == "cpu" and query.dtype == torch.bfloat16 and query.shape[-2] <= 1024:
        with torch.autocast("cpu", enabled=False):
            scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
            return scores.softmax(dim=-1) @ value
    return F.scaled_dot_product_attention(query, key, value)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm without weights, then x * (1 + scale) + shift; x b n w, shift and scale b 1 w."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:]), 1 + scale)


class Attention(nn.Module):
    """Self-attention over the joint sequence, queries and keys normalised and rotated by their positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.query_norm = nn.LayerNorm(width // heads)
        self.key_norm = nn.LayerNorm(width // heads)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, phases: Tensor) -> Tensor:
        """Shape [b, n, w] -> [b, n, w]; phases (n, d / 2) complex, 1 where a token is not rotated."""
        query, key, value = rearrange(self.qkv(x), "b n (three k d) -> three b k n d", three=3, k=self.heads)
        query = rotate(self.query_norm(query), phases)
        key = rotate(self.key_norm(key), phases)
        attended = attend(query.to(value.dtype), key.to(value.dtype), value)
        return cast(Tensor, self.out(rearrange(attended, "b k n d -> b n (k d)")))


class Block(nn.Module):
    """Transformer block; each modality modulates its layer norms by its own function of time (adaLN-zero)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        hidden = int(config.width * config.mlp_ratio)
        self.attention = Attention(config.width, config.heads)
        # CogVideoX approximates GELU with tanh; on a CPU the exact function takes a quarter of the time.
        self.mlp = nn.Sequential(nn.Linear(config.width, hidden), nn.GELU(), nn.Linear(hidden, config.width))
        experts = 2 if config.text_dim else 1
        self.experts = nn.ModuleList(nn.Linear(config.width, 6 * config.width) for _ in range(experts))

    def forward(self, streams: list[Tensor], condition: Tensor, phases: Tensor) -> list[Tensor]:
        """Streams (video, or text and video), each b n w; condition b w."""
        lengths = [stream.shape[1] for stream in streams]
        parts = [expert(condition)[:, None].chunk(6, dim=-1) for expert in self.experts]
        normed = [modulate(x, part[0], part[1]) for x, part in zip(streams, parts, strict=True)]
        attended = self.attention(torch.cat(normed, dim=1), phases).split(lengths, dim=1)
        streams = [torch.addcmul(x, part[2], y) for x, part, y in zip(streams, parts, attended, strict=True)]
        normed = [modulate(x, part[3], part[4]) for x, part in zip(streams, parts, strict=True)]
        widened = self.mlp(torch.cat(normed, dim=1)).split(lengths, dim=1)
        return [torch.addcmul(x, part[5], y) for x, part, y in zip(streams, parts, widened, strict=True)]


class DiT(nn.Module):
    """Predicts a diffusion target from noisy latents, their noise level, and text states if there are any.

    Shape: x [b, c, t, h, w], timestep [b] in [0, 1], text [b, l, text_dim] -> [b, c, t, h, w]. Fresh from
    `build_dit` it predicts zero, as its last layer is.
    """

    phases: Tensor

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.time_mlp = nn.Sequential(
            nn.Linear(_TIME_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.out_modulation = nn.Linear(width, 2 * width)
        self.text_in = nn.Linear(config.text_dim, width) if config.text_dim else None
        self.video_in = nn.Linear(config.patch_dim, width)
        self.video_out = nn.Linear(width, config.patch_dim)
        angles = rotary_angles(config.grid, width // config.heads)
        # Text tokens keep angle zero: their order is in the text states already.
        angles = torch.cat((angles.new_zeros(config.text_length, angles.shape[1]), angles))
        self.register_buffer("phases", torch.polar(torch.ones_like(angles), angles), persistent=False)

    def forward(self, x: Tensor, timestep: Tensor, text: Tensor | None = None) -> Tensor:
        """Raises ValueError when the latents or the text do not have the configured shape."""
        config = self.config
        expected = (x.shape[0], config.latent_channels, *config.latent_size)
        if x.shape != expected:
            raise ValueError(f"latents of shape {tuple(x.shape)}, the transformer takes {expected}")
        t, h, w = config.grid
        pt, ph, pw = config.patch_size
        tokens = rearrange(x, "b c (t pt) (h ph) (w pw) -> b (t h w) (c pt ph pw)", pt=pt, ph=ph, pw=pw)
        with autocast(x.device, config.precision):
            streams = [*self._text_stream(text, x.shape[0]), self.video_in(tokens)]
            condition = self.time_mlp(timestep_features(timestep))
            for block in self.blocks:
                streams = block(streams, condition, self.phases)
            shift, scale = self.out_modulation(condition)[:, None].chunk(2, dim=-1)
            out = self.video_out(modulate(streams[-1], shift, scale))
        return rearrange(
            out.to(x.dtype), "b (t h w) (c pt ph pw) -> b c (t pt) (h ph) (w pw)", t=t, h=h, w=w, pt=pt, ph=ph, pw=pw
        )

    def _text_stream(self, text: Tensor | None, batch: int) -> list[Tensor]:
        if self.text_in is None:
            if text is not None:
                raise ValueError("this transformer was built without text (text_dim 0)")
            return []
        expected = (batch, self.config.text_length, self.config.text_dim)
        if text is None or text.shape != expected:
            raise ValueError(f"text of shape {None if text is None else tuple(text.shape)}, expected {expected}")
        return [self.text_in(text)]

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Fill every parameter: Xavier uniform weights, zero biases, zero modulation and output layer.

        The blocks are drawn before the layers that see latents, so transformers for latents of other channel
        counts share the weights of their blocks.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        experts = [expert for block in self.blocks for expert in cast(Block, block).experts]
        for zeroed in (*experts, self.out_modulation, self.video_out):
            nn.init.zeros_(cast(nn.Linear, zeroed).weight)


def build_dit(config: DiTConfig, seed: int) -> DiT:
    """A float32 DiT on the CPU whose initial weights depend on `config` and `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        model = DiT(config)
    model.initialize(torch.Generator().manual_seed(seed))
    return model
