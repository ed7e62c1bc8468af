"""Decoder: latents `b c t h w` to video `B 3 T H W`."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .config import SSVAEConfig
from .layers import CausalConv3d, ResidualBlock, Stream, Upsample, middle_blocks, output_layers
from .norm import RMSNorm


class DecoderLevel(nn.Module):
    """Residual blocks at one resolution, then an upsampling unless the level is the shallowest."""

    def __init__(self, channels: int, num_res_blocks: int, upsample: Upsample | None) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResidualBlock(channels, channels) for _ in range(num_res_blocks))
        self.upsample = upsample

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        for block in self.block:
            x = block(x, stream)
        return x if self.upsample is None else self.upsample(x, stream)


class Decoder(nn.Module):
    """See `SSVAEConfig` for the sizes; multipliers and time levels are given in the encoder's order."""

    checkpointed = False
    """Compute the last convolution again in the backward pass; see `ResidualBlock.checkpointed`."""

    def __init__(self, config: SSVAEConfig) -> None:
        super().__init__()
        widths = [config.base_channels * multiplier for multiplier in reversed(config.channel_multipliers)]
        temporal_upsample = list(reversed(config.temporal_downsample))
        self.conv_in = CausalConv3d(config.latent_channels, widths[0])
        self.mid = middle_blocks(widths[0], config.num_mid_blocks, attention_after=range(config.num_mid_blocks - 1))
        self._merged_levels = max((level + 1 for level, doubles in enumerate(temporal_upsample) if doubles), default=0)
        self.up = nn.ModuleList()  # up[0] is the deepest level
        for level, width in enumerate(widths):
            last = level == len(widths) - 1
            upsample = None if last else Upsample(width, widths[level + 1], temporal_upsample[level])
            self.up.append(DecoderLevel(width, config.num_res_blocks + 1, upsample))
        self.out = output_layers(widths[-1], config.in_channels)

    @property
    def last_layer(self) -> Tensor:
        """The weight at which an adversarial term is balanced against the reconstruction term."""
        return cast(CausalConv3d, self.out[2]).conv.weight

    def forward(self, z: Tensor, stream: Stream | None = None) -> Tensor:
        h = self.conv_in(z, stream)
        for block in self.mid:
            h = block(h, stream)
        for level in self.up[: self._merged_levels]:
            h = level(h, stream)
        return self._every_frame(h, stream) if stream is None else stream.in_parts(self._every_frame, h)

    def _every_frame(self, h: Tensor, stream: Stream | None) -> Tensor:
        """The levels after the last doubling of time."""
        for level in self.up[self._merged_levels :]:
            h = level(h, stream)
        norm, conv = cast(RMSNorm, self.out[0]), cast(CausalConv3d, self.out[2])
        if self.checkpointed and torch.is_grad_enabled() and stream is None:
            return checkpoint(conv.after_norm, norm, h, None, use_reentrant=False)
        return conv.after_norm(norm, h, stream)
